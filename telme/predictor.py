"""Predictor: features in, probabilities out. One path for every backend; a backend brings the networks alone.

Shapes: B utterances, T tokens, S samples, F video frames, D = 768 feature, C classes.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from telme.bundle import Bundle
from telme.config import TelmeConfig
from telme.errors import OutOfMemory, PredictorError
from telme.features import Features, Missing, Watched, collate_prompts
from telme.labels import LabelSet
from telme.memory import lacks_memory, memory_needed
from telme.modeling import TelmeModel
from telme.models import EncoderOutput
from telme.sound import pad_left

_log = logging.getLogger(__name__)

# Prompts whose lengths are within so many tokens share a batch.
_TOKENS_BUCKET = 32
# What torch raises since 2.8 for errors of the GPU.
_ACCELERATOR_ERROR: type[RuntimeError] = getattr(torch, "AcceleratorError", RuntimeError)


@dataclass(frozen=True)
class Prediction:
    """The answer to one utterance.

    Attributes:
        probabilities: Of each class, in the order of the label set; they sum to 1.
        unused: `audio` and `video`, where the answer does not depend on them, and why. The text is always used.
        watched: What the video student made of the pictures, where it was used; it can stand for the same pictures.
    """

    probabilities: tuple[float, ...]
    unused: Mapping[str, str] = field(default_factory=dict)
    watched: Watched | None = field(default=None, compare=False)


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


class Networks(Protocol):
    """A bundle's networks on some backend. Inputs come from the CPU, features may stay on a device.

    Attributes:
        backend: What runs them.
        most_rows: Most utterances in one call; 1 where a row would change its neighbours.
    """

    @property
    def backend(self) -> str: ...
    @property
    def most_rows(self) -> int: ...

    def text(self, ids: Tensor, mask: Tensor) -> EncoderOutput:
        """The teacher on int64 [B, T], left-padded."""
        ...

    def audio(self, values: Tensor) -> Tensor:
        """The audio student's feature [B, D] of float32 [B, S]; no row is padded to another's length."""
        ...

    def video(self, pixels: Tensor) -> Tensor:
        """The video student's feature [B, D] of float32 [B, F, 3, edge, edge]."""
        ...

    def fusion(self, text: Tensor, audio: Tensor, video: Tensor, present: Tensor) -> Tensor:
        """The fusion's logits [B, C], each row on its own, of features [B, D] and bool [B, 2]."""
        ...


class NetworkPredictor:
    """Answers with the networks of a backend.

    Encoders get batches of like length, the fusion each utterance on its own. A batch that the device has no room for
    is halved, and later ones are no larger. torch's error of a GPU that is lost passes: no later call in the same
    process would be answered.

    Args:
        bundle: Gives the configuration and the padding token.
        networks: The backend's.
    """

    def __init__(self, bundle: Bundle, networks: Networks) -> None:
        self.labels = bundle.config.label_set
        self.model_id = bundle.model_id
        self.backend = networks.backend
        self._config: TelmeConfig = bundle.config
        self._mode = bundle.config.input_mode
        self._unread = {
            name: reason for name in self._mode.student_order if (reason := bundle.config.why_unread(name)) is not None
        }
        self._pad_id = int(bundle.tokenizer.pad_token_id)
        self._networks = networks
        self._most_rows = networks.most_rows

    @torch.inference_mode()
    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        """See Predictor."""
        answers: list[Prediction] = []
        while len(answers) < len(batch):
            rows = batch[len(answers) : len(answers) + self._most_rows]
            try:
                answers += self._answer(rows)
            except (OutOfMemory, MemoryError, RuntimeError, IndexError) as error:
                if not lacks_memory(error):
                    if _device_is_lost(error):
                        raise  # so that the process ends: only another one can answer
                    raise PredictorError(
                        f"{self.model_id} on {self.backend} failed: {error}",
                        "an answer",
                        "run telme-stream doctor and report this",
                    ) from error
                self._most_rows = self._fewer(rows, error)
        return answers

    def _fewer(self, rows: Sequence[Features], error: Exception) -> int:
        """How many utterances to try at once after there was no room for these."""
        if len(rows) == 1:
            raise OutOfMemory(
                f"{self.backend} has no room for one utterance of {len(rows[0].prompt_ids)} tokens: {error}",
                f"memory for {self.model_id}",
                "stop what else uses that memory, or choose a smaller --bundle or another --backend",
            ) from error
        fewer = len(rows) // 2
        _log.warning("no room for %d utterances at once on %s; now at most %d", len(rows), self.backend, fewer)
        return fewer

    def _answer(self, rows: Sequence[Features]) -> list[Prediction]:
        unused = [{**self._unread, **features.missing} for features in rows]
        read = self._read(rows)
        if "fusion" in self._config.parts:
            # Pictures first: on a GPU they take longest, and sounds run beside them.
            seen, heard = self._seen(rows), self._heard(rows)
            text = _in_order(read)  # which waits for the texts
            present = torch.tensor([[row in heard, row in seen] for row in range(len(rows))])
            logits = self._networks.fusion(
                text.feature, _stack(heard, text.feature), _stack(seen, text.feature), present
            )
        else:
            logits, seen = _in_order(read).logits, {}
        # [B, C], with as many decimals as double has, so that rows sum to 1.
        answers = (logits.double().cpu() / self._config.calibration_temperature).softmax(1)
        if not answers.isfinite().all():
            raise PredictorError(
                f"{self.model_id} on {self.backend} answered with what is no number",
                "probabilities",
                "use --precision fp32; if it stays so, the bundle's weights are broken: telme-stream models verify",
            )
        probabilities = answers.tolist()
        return [
            Prediction(tuple(probabilities[row]), unused[row], Watched(seen[row]) if row in seen else None)
            for row in range(len(rows))
        ]

    def _read(self, rows: Sequence[Features]) -> list[tuple[list[int], EncoderOutput]]:
        """Rows of like length, and the teacher's answers to them."""
        lengths = {row: len(features.prompt_ids) for row, features in enumerate(rows)}
        return [
            (bucket, self._networks.text(*collate_prompts([rows[row].prompt_ids for row in bucket], self._pad_id)))
            for bucket in _grouped({row: -(-length // _TOKENS_BUCKET) for row, length in lengths.items()})
        ]

    def _heard(self, rows: Sequence[Features]) -> dict[int, Tensor]:
        """Row -> the audio student's feature [1, D]. It has no mask, so only sounds of one length share a batch."""
        if "audio" not in self._config.parts:
            return {}
        sounds = {row: item.sound for row, item in enumerate(rows) if not isinstance(item.sound, Missing)}
        heard: dict[int, Tensor] = {}
        for bucket in _grouped({row: len(sound) for row, sound in sounds.items()}):
            features = self._networks.audio(pad_left([sounds[row] for row in bucket], self._mode))
            heard.update(zip(bucket, torch.split(features, 1), strict=True))
        return heard

    def _seen(self, rows: Sequence[Features]) -> dict[int, Tensor]:
        """Row -> the video student's feature [1, D]."""
        if "video" not in self._config.parts:
            return {}
        seen = {row: item.pixels.feature for row, item in enumerate(rows) if isinstance(item.pixels, Watched)}
        new = {row: item.pixels for row, item in enumerate(rows) if isinstance(item.pixels, Tensor)}
        if new:
            pixels = list(new.values())
            # One utterance's are large enough not to be copied for nothing.
            features = self._networks.video(pixels[0] if len(pixels) == 1 else torch.cat(pixels))
            seen.update(zip(new, torch.split(features, 1), strict=True))
        return seen


class TorchNetworks:
    """torch eager, float32, on the CPU or on CUDA where there is one: the reference that every backend is held against.

    Args:
        model: Its networks; they stay where they are, and a GPU gets copies.

    Raises:
        OutOfMemory: The GPU has no room for them.
    """

    most_rows = 16

    def __init__(self, model: TelmeModel) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.backend = f"torch-{self._device.type}"
        self._model = model
        if self._device.type != "cpu":
            # The bundle's own stay on the CPU, where other backends export them. And no TF32 in the reference.
            with memory_needed("the networks", self._device):
                self._model = copy.deepcopy(model).to(self._device)  # type: ignore[arg-type]  # transformers wraps it
            torch.backends.cudnn.allow_tf32 = False
        self._fusion = None if self._model.fusion is None else self._model.fusion.row_by_row()

    def text(self, ids: Tensor, mask: Tensor) -> EncoderOutput:
        """See Networks."""
        answer: EncoderOutput = self._model.text(ids.to(self._device), mask.to(self._device))
        return answer

    def audio(self, values: Tensor) -> Tensor:
        """See Networks."""
        assert self._model.audio is not None
        feature: Tensor = self._model.audio(values.to(self._device)).feature
        return feature

    def video(self, pixels: Tensor) -> Tensor:
        """See Networks."""
        assert self._model.video is not None
        feature: Tensor = self._model.video(pixels.to(self._device)).feature
        return feature

    def fusion(self, text: Tensor, audio: Tensor, video: Tensor, present: Tensor) -> Tensor:
        """See Networks."""
        assert self._fusion is not None
        inputs = (item.to(self._device) for item in (text, audio, video, present))
        logits: Tensor = self._fusion(*inputs).logits
        return logits


def _grouped(keys: Mapping[int, int]) -> Iterator[list[int]]:
    """Rows whose keys are equal, together."""
    for _, rows in groupby(sorted(keys, key=keys.__getitem__), key=keys.__getitem__):
        yield list(rows)


def _device_is_lost(error: Exception) -> bool:
    """Whether the GPU itself failed: then it answers nothing more in this process, and says so again."""
    if not isinstance(error, _ACCELERATOR_ERROR) or not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _in_order(read: Sequence[tuple[list[int], EncoderOutput]]) -> EncoderOutput:
    """Answers to some rows each, as one answer in the order of the rows."""
    if len(read) == 1:
        return read[0][1]
    order = [row for bucket, _ in read for row in bucket]
    features = torch.cat([answer.feature for _, answer in read])
    back = torch.tensor(order).argsort().to(features.device)
    return EncoderOutput(features[back], torch.cat([answer.logits for _, answer in read])[back])


def _stack(features: Mapping[int, Tensor], like: Tensor) -> Tensor:
    """Row -> feature [1, D], to [B, D] as `like`; what stands in the other rows is ignored by the fusion."""
    if len(features) == len(like):
        return torch.cat([features[row] for row in range(len(like))])
    stacked = torch.zeros_like(like)
    for row, feature in features.items():
        stacked[row] = feature[0]
    return stacked


class TorchPredictor(NetworkPredictor):
    """A bundle under torch eager, float32."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, TorchNetworks(bundle.model))
