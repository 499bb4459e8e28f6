"""Packed dialogues: the logits of the prompts one by one, and turns that see no later turn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from telme.features import collate_prompts
from telme.models import TextTeacher
from telme.packing import collate_packs, packs, read_packs
from tests.telme import tiny

SPEAKERS = (111, 112, 113)
SEPARATOR, MASK, PAD = 110, 114, 0
STARTS = (*SPEAKERS, SEPARATOR)
Dialogue = list[tuple[int, list[int]]]


def prompts_of(dialogue: Dialogue, first: int = 0) -> list[tuple[int, ...]]:
    """`<s1> words <s2> words </s> Now <sK> feels <mask>` for each turn, from turn `first` on."""
    turns = [(SPEAKERS[speaker], *words) for speaker, words in dialogue[first:]]
    return [
        (*(token for turn in turns[: last + 1] for token in turn), SEPARATOR, 20, turns[last][0], 21, MASK)
        for last in range(len(turns))
    ]


@pytest.fixture(params=["bert", "mpnet", "roberta"])
def teacher(request: pytest.FixtureRequest) -> TextTeacher:
    torch.manual_seed(3)
    config = tiny.config(request.param)
    config.turn_starts = list(STARTS)
    return TextTeacher(config).eval()


DIALOGUES: list[Dialogue] = [[(0, [30, 31]), (1, [32]), (0, [33, 34, 35]), (2, [36])], [(0, [40]), (1, [41, 42])]]


def test_packed_logits_are_those_of_the_prompts(teacher: TextTeacher) -> None:
    # The second dialogue is also entered late, so that a pack begins in its midst.
    prompts = [prompt for dialogue in DIALOGUES for prompt in prompts_of(dialogue)] + prompts_of(DIALOGUES[0], 2)
    made = packs(prompts, SEPARATOR)
    assert [len(item.questions) for item in made] == [4, 2, 2]
    with torch.inference_mode():
        packed = read_packs(teacher, collate_packs(made, STARTS, PAD))
        alone = [teacher(*collate_prompts([prompt], PAD)) for prompt in prompts]
        together = teacher(*collate_prompts(prompts, PAD))
    expected = torch.cat([one.logits for one in alone])
    torch.testing.assert_close(packed.logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.logits, expected, rtol=0, atol=1e-5)
    assert expected.std(0).max() > 1e-3  # the turns do differ


def test_a_turn_sees_no_later_one(teacher: TextTeacher) -> None:
    ids = torch.tensor([prompts_of(DIALOGUES[0])[-1]])
    changed = ids.clone()
    changed[0, 6:9] = 50  # the third turn's words
    states: dict[str, torch.Tensor] = {}
    teacher.text_model.register_forward_hook(lambda *parts: states.update(hidden=parts[2].last_hidden_state))
    with torch.inference_mode():
        teacher(ids, torch.ones_like(ids))
        before = states["hidden"]
        teacher(changed, torch.ones_like(ids))
    torch.testing.assert_close(states["hidden"][:, :5], before[:, :5], rtol=0, atol=1e-6)
    assert (states["hidden"][:, 5:] - before[:, 5:]).abs().amax(2).min() > 0


words = st.lists(st.integers(22, 100), min_size=1, max_size=4)
dialogues = st.lists(st.tuples(st.integers(0, 2), words), min_size=1, max_size=5)


@given(st.lists(dialogues, min_size=1, max_size=3))
def test_a_question_sees_what_its_prompt_holds(drawn: list[Dialogue]) -> None:
    prompts = [prompt for dialogue in drawn for prompt in prompts_of(dialogue)]
    batch = collate_packs(packs(prompts, SEPARATOR), STARTS, PAD)
    assert len(batch.masks) == len(prompts)
    width = batch.ids.shape[1]
    for place, prompt in zip(batch.masks.tolist(), prompts, strict=True):
        row, column = divmod(place, width)
        seen = batch.seen[row, column]
        order = batch.positions[row][seen].argsort()
        assert tuple(batch.ids[row][seen][order].tolist()) == prompt
        assert sorted(batch.positions[row][seen].tolist()) == list(range(len(prompt)))
