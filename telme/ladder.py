"""The steps of TelME, each evaluated alone: teacher, students, and the fusion of the teacher with either or both.

A step is named by the modalities that it reads. One alone is answered by its own network's classifier: `text` by the
teacher's, `audio` and `video` by that student's. `text` with one or both students is the fusion, in which a student
that is not named is absent. Students without text have no fusion: it shifts the text's feature.

Protocols. `streaming`: each utterance is answered from itself and the turns before it, as the live worker does.
`published`: the utterances go in groups of four in the order of the file, as the authors' test code does, over the
borders of dialogues and one to three utterances into the future. Where the bundle's mode says so, the fusion attends
across a group, its sounds are padded to the longest, and of a dialogue's turns none is left out before the prompt is
too long; in clean mode both protocols give the same.

Shapes: B utterances, T tokens, S samples, F video frames, D = 768 feature, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from telme.bundle import Bundle
from telme.config import Part
from telme.errors import PredictorError, UsageError
from telme.features import collate_prompts
from telme.modes import CLEAN, Student
from telme.predictor import Networks
from telme.sound import pad_left

Protocol: TypeAlias = Literal["streaming", "published"]
Modality: TypeAlias = Literal["text", "audio", "video"]
GROUP = 4
STUDENTS: tuple[Student, Student] = ("audio", "video")
_Item = TypeVar("_Item")


@dataclass(frozen=True, eq=False)
class Outputs:
    """What an encoder said of some utterances.

    Attributes:
        rows: Their places in the annotation file, ascending.
        feature: [B, D] float32.
        logits: [B, C] float32, of its own classifier.
    """

    rows: tuple[int, ...]
    feature: Tensor
    logits: Tensor


def check_step(modalities: frozenset[Modality], bundle: Bundle) -> None:
    """Check that a bundle can take a step.

    Raises:
        UsageError: It lacks a network, or there is no such step.
    """
    if modalities == {"audio", "video"}:
        raise UsageError("audio and video without text", "a single modality, or text among them", "mend --modalities")
    needed: set[Part] = {*modalities, *(("fusion",) if len(modalities) > 1 else ())}
    lacking = sorted(needed - set(bundle.config.parts))
    if lacking:
        raise UsageError(
            f"bundle {bundle.model_id} without {', '.join(lacking)}", "the networks of --modalities", "mend either"
        )


class Ladder:
    """The networks of a bundle, step by step.

    Args:
        bundle: Its classifiers and, across a group, its fusion run under torch on every backend.
        networks: The backend's.
        protocol: How utterances are grouped.
    """

    def __init__(self, bundle: Bundle, networks: Networks, protocol: Protocol) -> None:
        self._bundle = bundle
        self._networks = networks
        self._mode = bundle.config.input_mode
        self._grouped = protocol == "published"

    @property
    def pads_sound_to_group(self) -> bool:
        """Whether a sound's feature depends on the others of its group."""
        return self._grouped and self._mode.audio_left_pad == "batch"

    @property
    def reads_whole_dialogues(self) -> bool:
        """Whether a prompt's length alone cuts a dialogue, not the bundle's number of turns, which is for live ones."""
        return self._grouped and self._mode.name != CLEAN.name

    @torch.inference_mode()
    def text(self, prompts: Mapping[int, Sequence[int]]) -> Outputs:
        """The teacher on prompts, by row; batched by length, which changes no row's answer."""
        feature: dict[int, Tensor] = {}
        logits: dict[int, Tensor] = {}
        pad_id = int(self._bundle.tokenizer.pad_token_id)
        by_length = sorted(prompts, key=lambda row: len(prompts[row]))
        for rows in _chunks(by_length, self._networks.most_rows):
            answer = self._networks.text(*collate_prompts([prompts[row] for row in rows], pad_id))
            feature.update(zip(rows, answer.feature.float().cpu(), strict=True))
            logits.update(zip(rows, answer.logits.float().cpu(), strict=True))
        ordered = tuple(sorted(prompts))
        return Outputs(ordered, *(_stacked(held, ordered) for held in (feature, logits)))

    @torch.inference_mode()
    def audio(self, rows: Sequence[int], sound: Callable[[int], NDArray[np.float32]]) -> Outputs:
        """The audio student.

        Args:
            rows: Utterances that have sound, ascending.
            sound: Row -> [S] as `telme.sound.input_values` makes it; asked for once, in order.
        """
        groups = _groups(rows) if self.pads_sound_to_group else ([row] for row in rows)
        features = [
            self._networks.audio(values)
            for group in groups
            # The padding is part of the input, so the rows of a group need not go together.
            for values in torch.split(pad_left([sound(row) for row in group], self._mode), self._networks.most_rows)
        ]
        return self._student("audio", rows, features)

    @torch.inference_mode()
    def video(self, rows: Sequence[int], pixels: Callable[[int], Tensor]) -> Outputs:
        """The video student.

        Args:
            rows: Utterances that have pictures, ascending.
            pixels: Row -> [1, F, 3, edge, edge]; asked for once, in order.
        """
        features = [
            self._networks.video(torch.cat([pixels(row) for row in chunk]))
            for chunk in _chunks(rows, self._networks.most_rows)
        ]
        return self._student("video", rows, features)

    @torch.inference_mode()
    def fuse(self, text: Outputs, students: Mapping[Student, Outputs]) -> Tensor:
        """The fusion's logits [B, C] for the rows of `text`; a student that lacks a row is absent there."""
        halves = {student: _half(text, students.get(student)) for student in STUDENTS}
        present = torch.stack([has for _, has in halves.values()], 1)  # [B, 2]
        inputs = (text.feature, *(half for half, _ in halves.values()), present)
        place = {row: index for index, row in enumerate(text.rows)}
        across = self._grouped and self._mode.fusion_across_batch
        chunks = _groups(text.rows) if across else _chunks(text.rows, self._networks.most_rows)
        fuse = self._across if across else self._networks.fusion
        answers = [fuse(*(item[[place[row] for row in chunk]] for item in inputs)) for chunk in chunks]
        return torch.cat([answer.float().cpu() for answer in answers]) if answers else torch.zeros((0, 0))

    def _across(self, text: Tensor, audio: Tensor, video: Tensor, present: Tensor) -> Tensor:
        fusion = self._bundle.model.fusion
        assert fusion is not None
        device = fusion.W.weight.device
        logits: Tensor = fusion(text.to(device), audio.to(device), video.to(device), present.to(device)).logits
        return logits

    def _student(self, student: Student, rows: Sequence[int], features: Sequence[Tensor]) -> Outputs:
        network = self._bundle.model.audio if student == "audio" else self._bundle.model.video
        assert network is not None
        feature = (
            torch.cat([item.float() for item in features]) if features else torch.zeros((0, network.W.in_features))
        )
        return Outputs(tuple(rows), feature.cpu(), network.W(feature.to(network.W.weight.device)).cpu())


def probabilities(logits: Tensor, temperature: float = 1.0) -> NDArray[np.float64]:
    """Logits [B, C] -> probabilities."""
    if not logits.isfinite().all():
        raise PredictorError("answers that are not finite", "numbers", "run telme-stream models verify on the bundle")
    answer: NDArray[np.float64] = (logits.double() / temperature).softmax(1).cpu().numpy()
    return answer


def _stacked(held: Mapping[int, Tensor], rows: Sequence[int]) -> Tensor:
    """One row each; [0, 0] of none."""
    return torch.stack([held[row] for row in rows]) if rows else torch.zeros((0, 0))


def _half(text: Outputs, student: Outputs | None) -> tuple[Tensor, Tensor]:
    """A student's features [B, D] for the rows of `text`, and bool [B] whether it has them."""
    half = torch.zeros_like(text.feature)
    place = {} if student is None else {row: index for index, row in enumerate(student.rows)}
    has = torch.tensor([row in place for row in text.rows])
    if student is not None and has.any():
        half[has] = student.feature[[place[row] for row in text.rows if row in place]]
    return half, has


def _groups(rows: Sequence[int]) -> Iterator[list[int]]:
    """Rows of the file by fours; what is left out of the file's rows leaves its group smaller."""
    for _, group in groupby(rows, key=lambda row: row // GROUP):
        yield list(group)


def _chunks(items: Sequence[_Item], most: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]
