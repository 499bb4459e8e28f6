"""Predictor: features in, probabilities out. The torch one is the reference that every engine is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from telme.bundle import Bundle
from telme.errors import PredictorError
from telme.features import Features, collate_prompts
from telme.labels import LabelSet


@dataclass(frozen=True)
class Prediction:
    """Probability of each class, in the order of the label set; they sum to 1."""

    probabilities: tuple[float, ...]


class Predictor(Protocol):
    """What the worker needs of a model.

    Attributes:
        labels: Its classes.
        model_id: Name and digest of the weights.
        backend: What runs them.
        unread: Modalities this model does not read, and why.
    """

    @property
    def labels(self) -> LabelSet: ...
    @property
    def model_id(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def unread(self) -> Mapping[str, str]: ...

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
        self.unread = {
            modality: f"bundle {bundle.model_id} has no {modality} student" for modality in ("audio", "video")
        }
        self._pad_id = int(bundle.tokenizer.pad_token_id)
        self._temperature = bundle.config.calibration_temperature
        self._teacher = bundle.teacher.to(self._device)

    @torch.inference_mode()
    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        """See Predictor."""
        ids, mask = collate_prompts([features.prompt_ids for features in batch], self._pad_id)
        try:
            logits = self._teacher(ids.to(self._device), mask.to(self._device)).logits
        except (RuntimeError, IndexError) as error:
            raise PredictorError(
                f"{self.model_id} failed: {error}", "an answer", "run telme-stream doctor and report this"
            ) from error
        probabilities = (logits.double().cpu() / self._temperature).softmax(1)  # [B, C]
        return [Prediction(tuple(row)) for row in probabilities.tolist()]
