"""The fusion: neighbours, absence, order of the students, and the bound on the shift."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from telme.config import TelmeConfig
from telme.errors import FeatureError
from telme.fusion import AttentionShiftFusion
from telme.modes import CLEAN, PUBLISHED_IEMOCAP, PUBLISHED_MELD, Mode
from tests.telme import tiny

TEXT, AUDIO, VIDEO = (tiny.noise(4, 768, seed=seed) for seed in (1, 2, 3))
NEIGHBOURS = torch.tensor([0, 1, 2])


def fusion_in(mode: Mode) -> AttentionShiftFusion:
    torch.manual_seed(5)
    fusion = AttentionShiftFusion(TelmeConfig(), mode).eval().requires_grad_(False)
    fusion.multihead_attn.in_proj_bias.normal_()  # torch begins with zeros
    return fusion


def test_neighbours_change_nothing_in_clean_mode() -> None:
    fusion = fusion_in(CLEAN)
    whole = fusion(TEXT, AUDIO, VIDEO)
    row = slice(3, 4)
    alone = fusion(TEXT[row], AUDIO[row], VIDEO[row])
    others = [feature.clone() for feature in (TEXT, AUDIO, VIDEO)]
    for feature in others:
        feature[NEIGHBOURS] = 100.0
    changed = fusion(*others)
    torch.testing.assert_close(whole.logits[row], alone.logits, rtol=0, atol=1e-6)
    assert torch.equal(changed.logits[row], whole.logits[row])


def test_neighbours_change_the_answer_across_the_batch() -> None:
    fusion = fusion_in(PUBLISHED_MELD)
    other = AUDIO.clone()
    other[NEIGHBOURS] = -other[NEIGHBOURS]
    assert not torch.allclose(fusion(TEXT, AUDIO, VIDEO).logits[3], fusion(TEXT, other, VIDEO).logits[3], atol=1e-6)


def test_a_batch_of_one_is_the_same_with_and_without_attention_across_it() -> None:
    one = [feature[:1] for feature in (TEXT, AUDIO, VIDEO)]
    across, alone = (fusion_in(replace(CLEAN, fusion_across_batch=flag)) for flag in (True, False))
    torch.testing.assert_close(across(*one).logits, alone(*one).logits, rtol=0, atol=1e-6)


def test_row_by_row_the_same_weights_know_no_neighbours() -> None:
    across, alone = (fusion_in(replace(CLEAN, fusion_across_batch=flag)) for flag in (True, False))
    expected = across(TEXT, AUDIO, VIDEO).logits
    assert torch.equal(across.row_by_row()(TEXT, AUDIO, VIDEO).logits, alone(TEXT, AUDIO, VIDEO).logits)
    assert torch.equal(across(TEXT, AUDIO, VIDEO).logits, expected)  # and the fusion itself is as it was


def test_student_order_decides_which_half_a_student_fills() -> None:
    audio_first, video_first = (
        fusion_in(replace(CLEAN, student_order=mode.student_order)) for mode in (PUBLISHED_MELD, PUBLISHED_IEMOCAP)
    )
    torch.testing.assert_close(audio_first(TEXT, AUDIO, VIDEO).logits, video_first(TEXT, VIDEO, AUDIO).logits)
    assert not torch.allclose(audio_first(TEXT, AUDIO, VIDEO).logits, video_first(TEXT, AUDIO, VIDEO).logits, atol=1e-6)


@pytest.mark.parametrize("mode", [CLEAN, PUBLISHED_MELD], ids=lambda mode: mode.name)
def test_an_absent_student_is_said_and_its_rows_are_ignored(mode: Mode) -> None:
    fusion = fusion_in(mode)
    absent = fusion(TEXT, audio=AUDIO)
    assert absent.used.tolist() == [[True, True, False]] * 4
    garbage = torch.full_like(VIDEO, float("nan"))
    present = torch.tensor([[True, False]] * 4)
    marked = fusion(TEXT, AUDIO, garbage, present)
    assert torch.equal(marked.used, absent.used)
    assert torch.equal(marked.logits, absent.logits)
    assert not torch.allclose(absent.logits, fusion(TEXT, AUDIO, VIDEO).logits, atol=1e-6)


def test_absence_is_per_row() -> None:
    fusion = fusion_in(CLEAN)
    present = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    mixed = fusion(TEXT, AUDIO, VIDEO, present)
    assert mixed.used.tolist() == [[True, *row] for row in present.tolist()]
    expected = [
        fusion(TEXT[:1], AUDIO[:1], VIDEO[:1]),
        fusion(TEXT[1:2], audio=AUDIO[1:2]),
        fusion(TEXT[2:3], video=VIDEO[2:3]),
        fusion(TEXT[3:]),
    ]
    torch.testing.assert_close(mixed.logits, torch.cat([row.logits for row in expected]), rtol=0, atol=1e-6)


def test_without_students_nothing_shifts_the_text() -> None:
    fusion = fusion_in(CLEAN)
    answer = fusion(TEXT)
    assert answer.used.tolist() == [[True, False, False]] * 4
    assert torch.equal(answer.shift, torch.zeros(4))
    torch.testing.assert_close(answer.logits, fusion.W(fusion.LayerNorm(TEXT)))


def test_zeros_handed_in_as_present_are_not_absence() -> None:
    fusion = fusion_in(CLEAN)
    zeros = torch.zeros_like(TEXT)
    assert fusion(TEXT, zeros, zeros).used.all()
    assert not torch.equal(fusion(TEXT, zeros, zeros).logits, fusion(TEXT).logits)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_shift_is_at_most_a_tenth_of_the_text(scale: float) -> None:
    fusion = fusion_in(CLEAN)
    with torch.no_grad():
        fusion.W_av.weight *= 1e3
    shift = fusion(scale * TEXT, AUDIO, VIDEO).shift
    assert (shift > 0).all()
    assert (shift <= 0.1 + 1e-6).all()


def test_a_text_of_no_length_is_not_shifted() -> None:
    answer = fusion_in(CLEAN)(torch.zeros_like(TEXT), AUDIO, VIDEO)
    assert torch.equal(answer.shift, torch.zeros(4))


def test_dropout_is_on_the_students_and_on_what_is_fused() -> None:
    fusion = fusion_in(CLEAN).train()
    fusion.dropout.p = 1.0
    one, other = fusion(TEXT, AUDIO, VIDEO), fusion(TEXT, VIDEO, AUDIO)
    assert torch.equal(one.shift, other.shift)
    assert torch.equal(one.logits, fusion.W.bias.expand(4, -1))


def test_a_shift_of_no_length_leaves_the_text() -> None:
    fusion = fusion_in(CLEAN)
    _silence(fusion.W_av)
    answer = fusion(TEXT, AUDIO, VIDEO)
    assert torch.equal(answer.shift, torch.zeros(4))
    torch.testing.assert_close(answer.logits, fusion.W(fusion.LayerNorm(TEXT)))


def _silence(layer: torch.nn.Linear) -> None:
    layer.weight.zero_()
    layer.bias.zero_()


def test_gradients_are_finite_where_students_are_absent() -> None:
    fusion = fusion_in(CLEAN).train().requires_grad_(True)
    present = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    loss = functional.cross_entropy(fusion(TEXT, AUDIO, VIDEO, present).logits, torch.arange(4))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad.isfinite().all() for parameter in fusion.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(
    ("audio", "present"),
    [(AUDIO[:3], None), (AUDIO[:, :48], None), (AUDIO, torch.ones(4, 3, dtype=torch.bool)), (AUDIO, torch.ones(4, 2))],
)
def test_shapes_that_do_not_fit_are_named(audio: Tensor, present: Tensor | None) -> None:
    with pytest.raises(FeatureError, match=r"\[4, 768\]"):
        fusion_in(CLEAN)(TEXT, audio, VIDEO, present)
