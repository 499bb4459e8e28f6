"""What the Trainer calls at each step: a network with its loss, and examples made batches for it.

Shapes: B batch, T tokens, S samples, D = 768 feature, C classes. A learner answers `loss` and `logits` [B, C].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from telme.cache import MediaCache
from telme.data import ClipSource
from telme.distill import Distillation, feature_loss, logit_loss
from telme.features import FeatureMaker, Missing, collate_prompts
from telme.fusion import AttentionShiftFusion
from telme.models import AudioStudent, EncoderOutput, TextTeacher, VideoStudent
from telme.modes import Mode, Student
from telme.sound import pad_left

Answer = dict[str, Tensor]


class TextLearner(nn.Module):
    """Stage 1: the teacher, with cross-entropy."""

    def __init__(self, network: TextTeacher, label_smoothing: float) -> None:
        super().__init__()
        self.network = network
        self._smoothing = label_smoothing

    def forward(self, labels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Answer:
        """Labels [B], prompts [B, T] and their mask [B, T]."""
        logits = self.network(input_ids, attention_mask).logits.float()
        return {"loss": functional.cross_entropy(logits, labels, label_smoothing=self._smoothing), "logits": logits}


@dataclass(frozen=True)
class PromptExamples(Dataset[dict[str, Any]]):
    """Prompts and their labels."""

    prompts: Sequence[tuple[int, ...]]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"labels": self.labels[index], "input_ids": self.prompts[index]}


@dataclass(frozen=True)
class PromptCollator:
    """Prompts of a batch, left-padded."""

    pad_id: int

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids, mask = collate_prompts([example["input_ids"] for example in batch], self.pad_id)
        return {"labels": _labels(batch), "input_ids": ids, "attention_mask": mask}


class StudentLearner(nn.Module):
    """Stage 2: a student, with cross-entropy and the two distillation losses (section 3.2)."""

    def __init__(self, network: AudioStudent | VideoStudent, distillation: Distillation) -> None:
        super().__init__()
        self.network = network
        self._distillation = distillation

    def forward(self, labels: Tensor, teacher_feature: Tensor, teacher_logits: Tensor, inputs: list[Tensor]) -> Answer:
        """Labels [B], what the teacher says [B, D] and [B, C], and one or more tensors that hold the batch's inputs."""
        answers: list[EncoderOutput] = [self.network(part) for part in inputs]
        feature = torch.cat([answer.feature for answer in answers]).float()
        logits = torch.cat([answer.logits for answer in answers]).float()
        # The losses compare small differences: in float32 whatever the networks run in.
        with torch.autocast(logits.device.type, enabled=False):
            loss = (
                functional.cross_entropy(logits, labels)
                + self._distillation.logit_weight
                * logit_loss(logits, teacher_logits.float(), self._distillation.temperature)
                + feature_loss(feature, teacher_feature.float())
            )
        return {"loss": loss, "logits": logits}


@dataclass(frozen=True)
class ClipExamples(Dataset[dict[str, Any]]):
    """A student's clips, which all have its modality, with what the teacher says of them."""

    cache: MediaCache
    maker: FeatureMaker
    student: Student
    sources: Sequence[ClipSource]
    labels: Sequence[int]
    teacher: EncoderOutput

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        media = self.cache.media(self.sources[index])
        given = media.sound if self.student == "audio" else self.maker.pixels(media)
        assert not isinstance(given, Missing), given.reason
        return {
            "labels": self.labels[index],
            "teacher_feature": self.teacher.feature[index],
            "teacher_logits": self.teacher.logits[index],
            "inputs": given,
        }


@dataclass(frozen=True)
class ClipCollator:
    """Clips of a batch. Sounds share a tensor only where the mode pads them to one length, as published."""

    student: Student
    mode: Mode

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        given = [example["inputs"] for example in batch]
        return {
            "labels": _labels(batch),
            "teacher_feature": torch.stack([example["teacher_feature"] for example in batch]),
            "teacher_logits": torch.stack([example["teacher_logits"] for example in batch]),
            "inputs": sounds(given, self.mode) if self.student == "audio" else [torch.cat(given)],
        }


def sounds(clips: Sequence[Any], mode: Mode) -> list[Tensor]:
    """Clips [S] as batches for the audio student: one [B, S] in a mode that pads to the longest, else one each."""
    if mode.audio_left_pad == "batch":
        return [pad_left(clips, mode)]
    return [pad_left([clip], mode) for clip in clips]


class FusionLearner(nn.Module):
    """Stage 3: the fusion, with cross-entropy, on features of frozen encoders."""

    def __init__(self, network: AttentionShiftFusion) -> None:
        super().__init__()
        self.network = network

    def forward(self, labels: Tensor, text: Tensor, audio: Tensor, video: Tensor, present: Tensor) -> Answer:
        """Labels [B], the encoders' features [B, D] and which students there are [B, 2]."""
        logits = self.network(text, audio, video, present).logits.float()
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


@dataclass(frozen=True)
class FeatureExamples(Dataset[dict[str, Any]]):
    """Features of the three encoders: rows of tensors by name, `labels` among them."""

    columns: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}


def stack_features(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of `FeatureExamples` -> a batch."""
    return {name: torch.stack([example[name] for example in batch]) for name in batch[0]}


def _labels(batch: list[dict[str, Any]]) -> Tensor:
    return torch.tensor([example["labels"] for example in batch])
