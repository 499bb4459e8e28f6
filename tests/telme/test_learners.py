"""What a step computes: the losses of the paper, and batches that a mode allows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from telme.distill import Distillation, feature_loss, logit_loss
from telme.fusion import AttentionShiftFusion
from telme.learners import ClipCollator, FusionLearner, PromptCollator, StudentLearner, TextLearner, sounds
from telme.models import AudioStudent, EncoderOutput, TextTeacher
from telme.modes import CLEAN, PUBLISHED_MELD
from tests.telme import tiny

LABELS = torch.tensor([0, 3, 6])
CLIPS = [np.full(length, length, dtype=np.float32) for length in (900, 400, 700)]


class Fixed(nn.Module):
    """A student that says the same whatever it is given, a row for each row."""

    def __init__(self, answer: EncoderOutput) -> None:
        super().__init__()
        self.answer = answer
        self.given: list[Tensor] = []

    def forward(self, part: Tensor) -> EncoderOutput:
        first = sum(len(seen) for seen in self.given)
        self.given.append(part)
        return EncoderOutput(*(held[first : first + len(part)] for held in self.answer))


def test_a_students_loss_is_cross_entropy_and_both_distillation_losses() -> None:
    said = EncoderOutput(tiny.noise(3, 768, seed=1), tiny.noise(3, 7, seed=2))
    taught = EncoderOutput(tiny.noise(3, 768, seed=3), tiny.noise(3, 7, seed=4))
    settings = Distillation(temperature=2.0, logit_weight=0.1)
    expected = (
        functional.cross_entropy(said.logits, LABELS)
        + 0.1 * logit_loss(said.logits, taught.logits, 2.0)
        + feature_loss(said.feature, taught.feature)
    )
    for parts in ([torch.zeros(3, 5)], [torch.zeros(1, 5), torch.zeros(2, 9)]):
        learner = StudentLearner(Fixed(said), settings)  # type: ignore[arg-type]
        answer = learner(LABELS, taught.feature, taught.logits, parts)
        torch.testing.assert_close(answer["loss"], expected)
        torch.testing.assert_close(answer["logits"], said.logits)


def test_the_losses_stay_in_float32_under_mixed_precision() -> None:
    said = EncoderOutput(tiny.noise(3, 768, seed=1), tiny.noise(3, 7, seed=2))
    learner = StudentLearner(Fixed(said), Distillation(4.0, 1.0))  # type: ignore[arg-type]
    plain = learner(LABELS, said.feature, said.logits, [torch.zeros(3, 5)])["loss"]
    again = StudentLearner(Fixed(said), Distillation(4.0, 1.0))  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = again(LABELS, said.feature, said.logits, [torch.zeros(3, 5)])["loss"]
    torch.testing.assert_close(mixed, plain, rtol=0, atol=0)


def test_clean_sounds_are_heard_one_by_one_and_published_ones_padded_to_the_longest() -> None:
    assert [tuple(batch.shape) for batch in sounds(CLIPS, CLEAN)] == [(1, 900), (1, 400), (1, 700)]
    assert [tuple(batch.shape) for batch in sounds(CLIPS, PUBLISHED_MELD)] == [(3, 900)]
    assert [batch.shape[1] for batch in sounds(CLIPS, replace(CLEAN, audio_left_pad=50))] == [950, 450, 750]


def test_a_clips_batch_changes_nothing_in_clean_mode() -> None:
    torch.manual_seed(0)
    network = AudioStudent(tiny.config()).eval()
    examples = [
        {"labels": 1, "teacher_feature": torch.zeros(48), "teacher_logits": torch.zeros(7), "inputs": clip}
        for clip in CLIPS
    ]
    with torch.inference_mode():
        together = torch.cat([network(part).logits for part in ClipCollator("audio", CLEAN)(examples)["inputs"]])
        alone = torch.cat([network(ClipCollator("audio", CLEAN)([one])["inputs"][0]).logits for one in examples])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_the_teachers_loss_is_smoothed_as_asked() -> None:
    torch.manual_seed(0)
    network = TextTeacher(tiny.config()).eval()
    batch = PromptCollator(pad_id=1)([{"labels": 2, "input_ids": (5, 6, 7)}, {"labels": 0, "input_ids": (5,)}])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    logits = TextLearner(network, 0.0)(**batch)["logits"]
    for smoothing in (0.0, 0.2):
        loss = TextLearner(network, smoothing)(**batch)["loss"]
        torch.testing.assert_close(
            loss, functional.cross_entropy(logits, torch.tensor([2, 0]), label_smoothing=smoothing)
        )


def test_the_fusion_learns_from_rows_without_a_student() -> None:
    torch.manual_seed(0)
    learner = FusionLearner(AttentionShiftFusion(tiny.config()))
    text, audio, video = (tiny.noise(3, 768, seed=seed) for seed in range(3))
    present = torch.tensor([[True, True], [False, True], [False, False]])
    answer = learner(LABELS, text, audio, video, present)
    answer["loss"].backward()
    gradients = [parameter.grad for parameter in learner.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
