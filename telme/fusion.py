"""Attention-based modality shifting fusion (arXiv 2401.12987, section 3.3): the students shift the teacher's feature.

Shapes: B batch, D = 768 feature, V = 1536 both students' features side by side, C classes.

Two things follow the published code where it departs from the paper or says more. The attention's input has no sequence
axis, so torch takes the batch for the sequence and every utterance attends to the others of its batch; that is kept
behind `Mode.fusion_across_batch`, and otherwise each row stands alone, as in a batch of one. Which student comes first
in V depends on the weights: `Mode.student_order`.

An absent student. The published code has no such case. Here its half of V is zero before the attention, whatever was
handed in for it, and when both are absent there is no shift at all: the row is the classifier's answer to the
layer-normalised text feature. The output says for each row what was used. (Two zero vectors that are handed in as
present go the published way, in which the biases alone make a shift. Where attention runs across the batch, rows of
absent students take part in it as zeros.)
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from telme.config import FEATURE_DIM, TelmeConfig
from telme.errors import FeatureError
from telme.modes import CLEAN, Mode

STUDENTS = ("audio", "video")
_PAIR_DIM = 2 * FEATURE_DIM
_EPSILON = 1e-6


class FusionOutput(NamedTuple):
    """What the fusion says of a batch.

    Attributes:
        logits: [B, C].
        used: [B, 3] bool: text, which always is, audio and video.
        shift: [B] length of the audio-visual shift as a fraction of the text feature's length; 0 without students.
    """

    logits: Tensor
    used: Tensor
    shift: Tensor


class AttentionShiftFusion(nn.Module):
    """The fusion; its parameter names are those of the published checkpoint.

    Args:
        config: Gives the classes and `fusion_settings`.
        mode: Gives the order of the students and whether attention runs across the batch.
    """

    def __init__(self, config: TelmeConfig, mode: Mode = CLEAN) -> None:
        super().__init__()
        settings = config.fusion_settings
        self.multihead_attn = nn.MultiheadAttention(_PAIR_DIM, settings.heads)
        self.W_hav = nn.Linear(_PAIR_DIM + FEATURE_DIM, FEATURE_DIM)
        self.W_av = nn.Linear(_PAIR_DIM, FEATURE_DIM)
        self.LayerNorm = nn.LayerNorm(FEATURE_DIM)
        self.AV_LayerNorm = nn.LayerNorm(_PAIR_DIM)
        self.W = nn.Linear(FEATURE_DIM, len(config.label_set.names))
        self.dropout = nn.Dropout(settings.dropout)
        self._beta_shift = settings.beta_shift
        self._mode = mode

    def forward(
        self, text: Tensor, audio: Tensor | None = None, video: Tensor | None = None, present: Tensor | None = None
    ) -> FusionOutput:
        """Fuse a batch.

        Args:
            text: [B, D] the teacher's feature.
            audio: [B, D] the audio student's feature; None when absent from the whole batch.
            video: [B, D] the video student's feature; None when absent from the whole batch.
            present: [B, 2] bool, whether a row has audio and video; None where it has all that was given. What stands
                in the rows of an absent student is ignored, NaN included.

        Raises:
            FeatureError: The shapes do not fit one another.
        """
        _check(text, audio, video, present)
        # No tensor of the two: its copy to the GPU is what a CUDA graph cannot record.
        has = text.new_ones((len(text), 2), dtype=torch.bool) if present is None else present
        known = torch.stack([has[:, column] & (half is not None) for column, half in enumerate((audio, video))], 1)
        halves = {
            name: torch.zeros_like(text) if half is None else half.where(known[:, column, None], 0.0)
            for column, (name, half) in enumerate(zip(STUDENTS, (audio, video), strict=True))
        }
        pair = torch.cat([halves[name] for name in self._mode.student_order], dim=1)  # [B, V]
        pair = self.dropout(self.AV_LayerNorm(self._attend(pair) + pair))
        gate = functional.relu(self.W_hav(torch.cat([pair, text], dim=1)))  # [B, D]
        shift = gate * self.W_av(pair)  # [B, D]
        scale = self._scale(text, shift).where(known.any(1), 0.0)  # [B]
        fused = self.dropout(self.LayerNorm(scale[:, None] * shift + text))
        used = torch.cat([torch.ones_like(known[:, :1]), known], dim=1)
        length = scale * shift.norm(dim=1) / text.norm(dim=1).clamp(min=_EPSILON)
        return FusionOutput(self.W(fused), used, length)

    def row_by_row(self) -> AttentionShiftFusion:
        """The same weights, each row on its own whatever the mode: how a live utterance is answered.

        In a published mode a batch of one is the same as this.
        """
        alone = copy.copy(self)
        alone._mode = replace(self._mode, fusion_across_batch=False)
        return alone

    def _attend(self, pair: Tensor) -> Tensor:
        if self._mode.fusion_across_batch:
            # [B, V] without a batch axis: the rows are the sequence (published code).
            attended: Tensor = self.multihead_attn(pair, pair, pair, need_weights=False)[0]
            return attended
        # A sequence of one attends to itself with weight 1, which leaves the value and output projections.
        value = functional.linear(
            pair, self.multihead_attn.in_proj_weight[-_PAIR_DIM:], self.multihead_attn.in_proj_bias[-_PAIR_DIM:]
        )
        projected: Tensor = self.multihead_attn.out_proj(value)
        return projected

    def _scale(self, text: Tensor, shift: Tensor) -> Tensor:
        """alpha = min(beta_shift * |text| / |shift|, 1) for each row [B]; a shift of length 0 counts as 1 long."""
        # In float32: a sum of 768 squares can pass float16's largest number.
        length = shift.float().norm(dim=1)
        length = length.where(length != 0, 1.0)
        ratio: Tensor = self._beta_shift * text.float().norm(dim=1) / (length + _EPSILON)
        return ratio.clamp(max=1.0).to(text.dtype)


def _check(text: Tensor, audio: Tensor | None, video: Tensor | None, present: Tensor | None) -> None:
    rows = text.shape[0]
    seen = {"text": text, "audio": audio, "video": video}
    wrong = [
        f"{name} {tuple(feature.shape)}"
        for name, feature in seen.items()
        if feature is not None and feature.shape != (rows, FEATURE_DIM)
    ]
    if present is not None and (present.shape != (rows, 2) or present.dtype != torch.bool):
        wrong.append(f"present {present.dtype} {tuple(present.shape)}")
    if wrong:
        raise FeatureError(
            f"{', '.join(wrong)} in a batch of {rows}",
            f"features [{rows}, {FEATURE_DIM}] and present bool [{rows}, 2]",
            "use encoders with 768 features",
        )
