"""Sound written as patterns of frames, and what the segmenter says of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from stream.config import SegmenterConfig
from stream.items import Pcm, Span
from stream.segmenter import Segmenter, Signal, Started
from stream.vad import FRAME_SAMPLES, Evidence

LOUD, QUIET = 1000, 12
# Whole frames: pre-roll 3, minimum 4, hangover 5, tail 2, maximum 60.
# Pauses are too short for a draft.
CONFIG = SegmenterConfig(pre_roll_ms=90, min_speech_ms=120, hangover_ms=150, tail_ms=60, speculate_ms=200, max_ms=1800)
PRE, MIN, HANG, TAIL, MAX = 3, 4, 5, 2, 60
HINTED = msgspec.structs.replace(CONFIG, speculate_ms=60, hangover_min_ms=90, hangover_max_ms=240)


def is_loud(frame: Pcm) -> Evidence:
    """The fake detector: the evidence of a frame is the last two bits of its first sample."""
    return Evidence(frame[0] % 4)


def sound(pattern: str) -> Pcm:
    """A frame per character: `#` strong, `+` strong and softer, `w` weak, `a` audible, `.` silent, `,` more so."""
    levels = {"#": LOUD + 3, "+": LOUD // 10 + 3, "w": LOUD + 2, "a": LOUD + 1, ".": QUIET, ",": 0}
    return np.repeat(np.array([levels[character] for character in pattern], np.int16), FRAME_SAMPLES)


def signals_of(pattern: str, config: SegmenterConfig = CONFIG, flush: bool = True) -> list[Signal]:
    segmenter = Segmenter(config, is_loud)
    return segmenter.push(0, sound(pattern)) + (segmenter.flush() if flush else [])


def spans(signals: Sequence[Signal]) -> list[Span]:
    return [signal for signal in signals if isinstance(signal, Span)]


def edges(signals: Sequence[Signal]) -> list[Started | Span]:
    """Begins and ends, without the pauses between."""
    return [signal for signal in signals if isinstance(signal, Started | Span)]


def frames(span: Span) -> tuple[float, ...]:
    return tuple(edge / FRAME_SAMPLES for edge in (span.start, span.voiced_start, span.voiced_end, span.end))
