"""What `telme.compact` learns from: whole dialogues in packs, or prompts one by one.

Packed (`telme.packing`), a dialogue costs little more than its words, but a token sees nothing behind its own turn. In
a prompt by itself every token sees all of it, as the encoder saw text before, at four times the cost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from telme.config import TelmeConfig
from telme.data import Row, windows
from telme.features import FeatureMaker, collate_prompts
from telme.models import TextTeacher
from telme.packing import PackedBatch, collate_packs, packs, read_packs

MAX_TURNS = 24
_BATCH_OF_ANSWERS = {True: 8, False: 64}  # packed or not


class Lesson(NamedTuple):
    """Prompts of a dialogue, their labels [N] and a teacher's logits [N, C], where there is one."""

    prompts: list[tuple[int, ...]]
    labels: Tensor
    taught: Tensor | None


class Lessons(torch.utils.data.Dataset[Lesson]):
    """The dialogues of a split, or its utterances.

    Args:
        rows: As read.
        maker: Makes the prompts.
        packed: A lesson is a dialogue; otherwise one utterance behind those before it.
        taught: A teacher's logits [rows, C].
        late: How often a dialogue is entered late, another turn each time.
    """

    def __init__(
        self, rows: Sequence[Row], maker: FeatureMaker, packed: bool, taught: Tensor | None = None, late: float = 0.0
    ) -> None:
        numbered = list(enumerate(rows))
        dialogues = [list(group) for _, group in groupby(numbered, key=lambda item: item[1].dialogue)]
        if not packed:
            dialogues = [turns[:end] for turns in dialogues for end in range(1, len(turns) + 1)]
        self._dialogues = dialogues
        self._maker = maker
        self._packed = packed
        self._taught = taught
        self._late = late

    def __len__(self) -> int:
        return len(self._dialogues)

    @property
    def lengths(self) -> list[int]:
        """Words of each lesson: batches are of like ones, so that little is padded."""
        return [sum(len(row.turn.text.split()) for _, row in turns) for turns in self._dialogues]

    def __getitem__(self, index: int) -> Lesson:
        turns = self._dialogues[index]
        if torch.rand(()).item() < self._late:
            turns = turns[int(torch.randint(len(turns), ()).item()) :]
        asked = turns if self._packed else turns[-1:]
        seen = windows([row for _, row in turns], MAX_TURNS)
        if not self._packed:
            seen = iter(deque(seen, maxlen=1))
        return Lesson(
            [self._maker.make(window).prompt_ids for window in seen],
            torch.tensor([row.label for _, row in asked]),
            None if self._taught is None else self._taught[[number for number, _ in asked]],
        )


def collate(lessons: Sequence[Lesson], tokenizer: PreTrainedTokenizerBase, config: TelmeConfig) -> dict[str, Any]:
    """Arguments of `Pupil.forward`: packed where the configuration says that a token sees nothing behind its turn."""
    pad_id, separator = tokenizer.pad_token_id, tokenizer.sep_token_id
    if config.turn_starts is None:
        ids, mask = collate_prompts([prompt for lesson in lessons for prompt in lesson.prompts], pad_id)
        batch = {"input_ids": ids, "attention_mask": mask}
    else:
        packed = [pack for lesson in lessons for pack in packs(lesson.prompts, separator)]
        batch = collate_packs(packed, config.turn_starts, pad_id)._asdict()
    taught = [lesson.taught for lesson in lessons if lesson.taught is not None]
    return {
        "batch": batch,
        "labels": torch.cat([lesson.labels for lesson in lessons]),
        "taught": torch.cat(taught) if taught else None,
    }


def read(teacher: TextTeacher, batch: dict[str, Tensor]) -> Tensor:
    """Logits [N, C] of a batch of `collate`, float32, in the order of the prompts."""
    answer = read_packs(teacher, PackedBatch(**batch)) if "masks" in batch else teacher(**batch)
    return answer.logits.float()


def answers(
    teacher: TextTeacher, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: TelmeConfig
) -> Tensor:
    """Logits of all rows [rows, C], in their order."""
    packed = config.turn_starts is not None
    lessons = Lessons(rows, FeatureMaker(tokenizer, config), packed)
    size = _BATCH_OF_ANSWERS[packed]
    made = []
    with torch.inference_mode():
        for start in range(0, len(lessons), size):
            some = [lessons[index] for index in range(start, min(start + size, len(lessons)))]
            made.append(read(teacher, collate(some, tokenizer, config)["batch"]))
    return torch.cat(made)
