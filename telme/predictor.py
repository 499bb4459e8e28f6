"""Predictor: features in, probabilities out. The torch one is the reference that every engine is held against.

Shapes: B batch, D feature, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from telme.bundle import Bundle
from telme.errors import PredictorError
from telme.features import Features, Missing, collate_prompts
from telme.labels import LabelSet
from telme.sound import pad_left


@dataclass(frozen=True)
class Prediction:
    """The answer to one utterance.

    Attributes:
        probabilities: Of each class, in the order of the label set; they sum to 1.
        unused: `audio` and `video`, where the answer does not depend on them, and why. The text is always used.
    """

    probabilities: tuple[float, ...]
    unused: Mapping[str, str] = field(default_factory=dict)


class Predictor(Protocol):
    """What the worker needs of a model.

    Attributes:
        labels: Its classes.
        model_id: Name and digest of the weights.
        backend: What runs them.
    """

    @property
    def labels(self) -> LabelSet: ...
    @property
    def model_id(self) -> str: ...
    @property
    def backend(self) -> str: ...

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        """Answer every utterance on its own: the neighbours in the batch change nothing.

        Raises:
            PredictorError: The model could not answer.
        """
        ...


class TorchPredictor:
    """A bundle under torch eager, float32, on the CPU or on CUDA where there is one."""

    def __init__(self, bundle: Bundle) -> None:
        self.labels = bundle.config.label_set
        self.model_id = bundle.model_id
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.backend = f"torch-{self._device.type}"
        self._mode = bundle.config.input_mode
        self._unread = {
            name: reason for name in self._mode.student_order if (reason := bundle.config.why_unread(name)) is not None
        }
        self._pad_id = int(bundle.tokenizer.pad_token_id)
        self._temperature = bundle.config.calibration_temperature
        self._model = bundle.model
        self._model.to(self._device)  # type: ignore[arg-type]  # transformers wraps Module.to

    @torch.inference_mode()
    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        """See Predictor."""
        if not batch:
            return []
        unused = [{**self._unread, **features.missing} for features in batch]
        try:
            logits = self._logits(batch)
        except (RuntimeError, IndexError) as error:
            raise PredictorError(
                f"{self.model_id} failed: {error}", "an answer", "run telme-stream doctor and report this"
            ) from error
        probabilities = (logits.double().cpu() / self._temperature).softmax(1)  # [B, C]
        return [Prediction(tuple(row), why) for row, why in zip(probabilities.tolist(), unused, strict=True)]

    def _logits(self, batch: Sequence[Features]) -> Tensor:
        ids, mask = collate_prompts([features.prompt_ids for features in batch], self._pad_id)
        text = self._model.text(ids.to(self._device), mask.to(self._device))
        if self._model.fusion is None:
            logits: Tensor = text.logits
            return logits
        heard, seen = self._heard(batch), self._seen(batch)
        # One utterance at a time: the published fusion attends across the members of a batch.
        rows = [
            self._model.fusion(text.feature[row : row + 1], heard.get(row), seen.get(row)).logits
            for row in range(len(batch))
        ]
        return torch.cat(rows)

    def _heard(self, batch: Sequence[Features]) -> dict[int, Tensor]:
        """Row -> the audio student's feature [1, D]. One at a time: it has no mask that would hide padding."""
        if self._model.audio is None:
            return {}
        return {
            row: self._model.audio(pad_left([features.sound], self._mode).to(self._device)).feature
            for row, features in enumerate(batch)
            if not isinstance(features.sound, Missing)
        }

    def _seen(self, batch: Sequence[Features]) -> dict[int, Tensor]:
        """Row -> the video student's feature [1, D]."""
        pixels = {row: item.pixels for row, item in enumerate(batch) if not isinstance(item.pixels, Missing)}
        if self._model.video is None or not pixels:
            return {}
        features = self._model.video(torch.cat(list(pixels.values())).to(self._device)).feature
        return dict(zip(pixels, features.split(1), strict=True))
