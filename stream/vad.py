"""Speech decision on 30 ms of sound, by three witnesses.

WebRTC's detector is fast and takes everything that has a voice's spectrum for one: music, fans, and the 100 ms after a
voice. The level must lie above the noise floor, which is followed. Silero's network knows speech from other sounds,
also in noise, but hears the first and the last 100 ms of it badly. To open an utterance more is asked than to keep it
open (hysteresis). The limits were found by bench/endpointing.py (bench/LOG.md).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from enum import IntEnum

import numpy as np
import webrtcvad

from stream.items import SAMPLE_RATE_HZ, Pcm
from stream.silero import SileroStream

FRAME_MS = 30
FRAME_SAMPLES = SAMPLE_RATE_HZ * FRAME_MS // 1000

_FULL_SCALE = 32768.0
_OPEN_DB = 6.0  # above the noise floor
_STAY_DB = 3.0
_OPEN_PROBABILITY = 0.3
_STAY_PROBABILITY = 0.2
_SURE_PROBABILITY = 0.5  # whatever the level: speech may be as loud as the noise
_FLOOR_FRAMES = 100  # 3 s
_FLOOR_RANK = 10  # from below: breaths and gaps between words are a tenth of fluent speech and more
_LEAST_FLOOR_DBFS = -75.0


class Evidence(IntEnum):
    """What speaks for speech in a frame; each step includes those before it."""

    NONE = 0
    AUDIBLE = 1  # a voice's spectrum, and loud enough to be the begin of speech
    WEAK = 2  # enough to keep an utterance open
    STRONG = 3  # enough to open one


class NoiseFloor:
    """The level that a tenth of the last 3 s stay below. It lies at the bottom until it has heard so much."""

    def __init__(self) -> None:
        self._recent = deque([_LEAST_FLOOR_DBFS] * _FLOOR_FRAMES)
        self._sorted = list(self._recent)

    def above(self, frame: Pcm) -> float:
        """Take a frame; returns by how many dB it is louder than the floor."""
        samples = frame.astype(np.float64)
        power = float(samples @ samples) / len(frame) / _FULL_SCALE**2
        level_dbfs = max(10 * math.log10(power), _LEAST_FLOOR_DBFS) if power > 0 else _LEAST_FLOOR_DBFS
        del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(level_dbfs)
        insort(self._sorted, level_dbfs)
        return level_dbfs - self._sorted[_FLOOR_RANK]


class SpeechDetector:
    """Hears one stream frame by frame. The same frames give the same evidence.

    Args:
        aggressiveness: WebRTC's, 0..3.

    Raises:
        TranscriptionError: Silero's network cannot be loaded.
    """

    def __init__(self, aggressiveness: int) -> None:
        self._webrtc = webrtcvad.Vad(aggressiveness)
        self._floor = NoiseFloor()
        self._silero = SileroStream()

    def __call__(self, frame: Pcm) -> Evidence:
        """Weigh the next frame of FRAME_SAMPLES int16 samples."""
        above_db = self._floor.above(frame)
        probability = self._silero(frame)
        if not self._webrtc.is_speech(frame.tobytes(), SAMPLE_RATE_HZ):
            return Evidence.NONE
        if probability >= _SURE_PROBABILITY or (probability >= _OPEN_PROBABILITY and above_db >= _OPEN_DB):
            return Evidence.STRONG
        if probability >= _STAY_PROBABILITY and above_db >= _STAY_DB:
            return Evidence.WEAK
        return Evidence.AUDIBLE if above_db >= _OPEN_DB else Evidence.NONE
