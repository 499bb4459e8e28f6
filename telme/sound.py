"""From samples to the audio student's input.

Shapes: B batch, S samples at the mode's rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from telme.errors import FeatureError
from telme.modes import Mode

# The convolutions of data2vec-audio need 400 samples for their first time frame.
MIN_SAMPLES = 400
# Published code: of a longer sound the last 400,000 samples are kept, once the whole is normalised.
MAX_SAMPLES = 400_000
# Published code: a clip longer than this is not read at all.
MAX_CLIP_S = 30
# Published code: the zeros that stand for such a clip.
ZERO_CLIP_SAMPLES = 1412
_EPSILON = 1e-7


def input_values(pcm: NDArray[np.float32], rate_hz: int, mode: Mode) -> NDArray[np.float32]:
    """One clip as the audio student hears it: [S] float32, not yet padded.

    The whole clip is made zero mean and unit variance; what is kept of a long one need not have either.

    Args:
        pcm: [samples] float32, mono.
        rate_hz: Its rate; it is resampled to the mode's rate (soxr, high quality).
        mode: Gives the rate, and what a clip of more than 30 s becomes.

    Raises:
        FeatureError: It is not mono float32, is too short for one time frame, or too long for the mode. The audio is
            absent then.
    """
    if pcm.ndim != 1 or pcm.dtype != np.float32:
        raise FeatureError(f"sound {pcm.dtype} {pcm.shape}", "float32 [samples]", "convert it to mono float32")
    if too_long(pcm, rate_hz) and mode.long_clip == "zeros":
        return np.zeros(ZERO_CLIP_SAMPLES, dtype=np.float32)
    if too_long(pcm, rate_hz) and mode.long_clip == "absent":
        raise FeatureError(
            f"a clip of {len(pcm) / rate_hz:.1f} s", f"at most {MAX_CLIP_S} s", "treat the audio as absent"
        )
    heard = pcm if rate_hz == mode.audio_rate_hz else soxr.resample(pcm, rate_hz, mode.audio_rate_hz, quality="HQ")
    heard = heard.astype(np.float64)
    if len(heard) < MIN_SAMPLES:
        raise FeatureError(
            f"a sound of {len(heard)} samples at {mode.audio_rate_hz} Hz",
            f"at least {MIN_SAMPLES}",
            "treat the audio as absent",
        )
    normal = (heard - heard.mean()) / np.sqrt(heard.var() + _EPSILON)
    kept: NDArray[np.float32] = normal[-MAX_SAMPLES:].astype(np.float32)
    return kept


def too_long(pcm: NDArray[Any], rate_hz: int) -> bool:
    """Whether a sound is longer than the clips that the published code reads."""
    return len(pcm) > MAX_CLIP_S * rate_hz


def pad_left(clips: Sequence[NDArray[np.float32]], mode: Mode) -> Tensor:
    """Clips of `input_values` as one batch [B, S] float32, zeros at the left.

    The published code pads to the longest clip of the batch without a mask and reads time frame 0, which then is
    padding for most utterances. Otherwise every clip gets the mode's fixed pad, and only clips of one length can
    share a batch, because the student has no mask that would hide more.

    Raises:
        FeatureError: The clips differ in length and the mode does not pad to the batch.
    """
    lengths = {len(clip) for clip in clips}
    if mode.audio_left_pad == "batch":
        width = max(lengths)
    elif len(lengths) == 1:
        width = max(lengths) + mode.audio_left_pad
    else:
        raise FeatureError(
            f"clips of {min(lengths)} to {max(lengths)} samples in one batch",
            f"one length, since mode {mode.name} pads no clip to another",
            "batch clips of equal length, or one at a time",
        )
    batch = torch.zeros((len(clips), width), dtype=torch.float32)
    for row, clip in enumerate(clips):
        batch[row, width - len(clip) :] = torch.from_numpy(clip)
    return batch
