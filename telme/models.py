"""TelME's three encoders (arXiv 2401.12987, section 3): the text teacher and the audio and video students.

Shapes: B batch, T tokens or time frames, S samples, F video frames, H hidden size of a backbone, D = 768 feature,
C classes. Backbones are built from a configuration alone: nothing is downloaded, and weights are random until loaded.
Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from telme.config import FEATURE_DIM, UNFIT_SETTINGS, TelmeConfig
from telme.errors import BundleError


class EncoderOutput(NamedTuple):
    """What an encoder says of a batch: `feature` [B, D] for the fusion and `logits` [B, C].

    A student's feature is its backbone's hidden state, so D is H there: 768 for the backbones of the paper.
    """

    feature: Tensor
    logits: Tensor


class TextTeacher(nn.Module):
    """The text teacher: hidden state of the last position -> `W` (the feature) -> `classifier` (paper section 3.2).

    Args:
        config: `text_config` names the backbone; its weights are random until loaded. `turn_starts` says what a
            token sees.
    """

    def __init__(self, config: TelmeConfig) -> None:
        super().__init__()
        backbone = _backbone(config.text_config, "text_config")
        self._turn_starts = config.turn_starts
        # The published teacher carries a pooler that nothing reads; it is not built here.
        self.text_model = _build(backbone, add_pooling_layer=False)
        self.W = nn.Linear(backbone.hidden_size, FEATURE_DIM)
        self.classifier = nn.Linear(FEATURE_DIM, len(config.label_set.names))
        # RoBERTa's family, MPNet included, counts positions from its padding index + 1; BERT's from 0.
        padding = getattr(self.text_model.embeddings, "padding_idx", None)
        self.first_position = 0 if padding is None else padding + 1

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> EncoderOutput:
        """Read left-padded prompts that end with the mask token.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, T] int64, 0 on the padding at the left.
        """
        # Positions count real tokens only, so that padding changes nothing.
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0) + self.first_position
        seen = attention_mask
        if self._turn_starts is not None:
            seen = additive_mask(self._past_turns(input_ids, attention_mask), self.W.weight.dtype)
        hidden = self.text_model(
            input_ids=input_ids, attention_mask=seen, position_ids=positions
        ).last_hidden_state  # [B, T, H]
        return self.read(hidden[:, -1])

    def read(self, hidden: Tensor) -> EncoderOutput:
        """Hidden states at the mask tokens [B, H] -> feature and logits."""
        feature = self.W(hidden)  # [B, D]
        return EncoderOutput(feature, self.classifier(feature))

    def _past_turns(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Which token (second axis) sees which (third): [B, T, T] bool."""
        # One number after the other: a tensor of them would be copied to the GPU, which a CUDA graph cannot record.
        begins = torch.zeros_like(input_ids, dtype=torch.bool)
        for start in self._turn_starts or ():
            begins = begins | (input_ids == start)
        turn = begins.to(torch.int64).cumsum(1)  # [B, T]
        return (turn[:, None, :] <= turn[:, :, None]) & attention_mask[:, None, :].bool()


class AudioStudent(nn.Module):
    """The audio student: hidden state of time frame 0 (the feature) -> `W` (section 3.2, published code).

    Args:
        config: `audio_config` names the backbone, data2vec-audio for the published weights.
    """

    def __init__(self, config: TelmeConfig) -> None:
        super().__init__()
        backbone = _backbone(config.audio_config, "audio_config")
        self.model = _build(backbone)
        self.W = nn.Linear(backbone.hidden_size, len(config.label_set.names))

    def forward(self, input_values: Tensor) -> EncoderOutput:
        """Hear a batch as `telme.sound.pad_left` makes it.

        Args:
            input_values: [B, S] float32, S at least 400. There is no mask: the published student has none.
        """
        feature = self.model(input_values, **self._masks(input_values)).last_hidden_state[:, 0]  # [B, T, H] -> [B, H]
        return EncoderOutput(feature, self.W(feature))

    def _masks(self, input_values: Tensor) -> dict[str, Tensor]:
        """In training spans of time frames are hidden; of a sound shorter than a span nothing is."""
        if not self.training:
            return {}
        model: Any = self.model
        frames = int(model._get_feat_extract_output_lengths(input_values.shape[1]))
        if frames >= model.config.mask_time_length:
            return {}
        return {"mask_time_indices": input_values.new_zeros((len(input_values), frames), dtype=torch.bool)}


class VideoStudent(nn.Module):
    """The video student: CLS state (the feature) -> `W` (section 3.2, published code).

    Args:
        config: `video_config` names the backbone, TimeSformer for the published weights.
    """

    def __init__(self, config: TelmeConfig) -> None:
        super().__init__()
        backbone = _backbone(config.video_config, "video_config")
        self.model = _build(backbone)
        self.W = nn.Linear(backbone.hidden_size, len(config.label_set.names))

    def forward(self, pixel_values: Tensor) -> EncoderOutput:
        """Watch a batch as `telme.frames.pixel_values` makes it.

        Args:
            pixel_values: [B, F, 3, edge, edge] float32, F and edge as the backbone's configuration says.
        """
        feature = self.model(pixel_values).last_hidden_state[:, 0]  # [B, 1 + patches * F, H] -> [B, H]
        return EncoderOutput(feature, self.W(feature))


def additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, T, T] bool -> [B, 1, T, T]: 0 where a token is seen and the least number of the type where it is not."""
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=seen.device)
    return torch.where(seen[:, None], torch.zeros_like(hidden), hidden)


def _backbone(settings: dict[str, Any] | None, field: str) -> PretrainedConfig:
    if settings is None or "model_type" not in settings:
        raise BundleError(
            f"config.json without {field} or its model_type",
            "the configuration of a backbone",
            "train or import the bundle again",
        )
    rest = dict(settings)
    try:
        backbone = AutoConfig.for_model(rest.pop("model_type"), **rest)
        _ = backbone.hidden_size
    except UNFIT_SETTINGS as error:
        raise BundleError(
            f"config.json with a {field} that is none: {error}",
            "the configuration of a backbone",
            "train or import the bundle again",
        ) from error
    return backbone


def _build(backbone: PretrainedConfig, **options: bool) -> PreTrainedModel:
    try:
        model: PreTrainedModel = AutoModel.from_config(backbone, **options)  # type: ignore[no-untyped-call]
    except UNFIT_SETTINGS as error:  # such as an option that the family has not
        raise BundleError(
            f"an encoder of type {backbone.model_type}: {error}",
            "settings that make one; for the text, one of BERT's or RoBERTa's family",
            "name another or mend its settings",
        ) from error
    return model


def resize_vocabulary(teacher: TextTeacher, size: int, seed: int) -> None:
    """Grow the token embeddings to `size` rows for the speaker tokens; the new rows are near the mean of the old."""
    torch.manual_seed(seed)
    teacher.text_model.resize_token_embeddings(size, mean_resizing=True)
