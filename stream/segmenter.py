"""Where an utterance begins and ends: a pure state machine over 30 ms frames.

It never looks at a clock or at how the samples were cut into blocks: the same samples give the same spans.

    silence --voiced frame--> open --voiced for min_speech--> started
    open or started --silence for hangover--> ended (or dropped when shorter than min_speech)
    started --max length--> ended, forced, at the quietest frame of the last third; the rest stays open

What is voiced less than a hangover after the last voiced frame before a forced cut would have been of the same
utterance, so it is one of its own however short it stays: a forced cut loses no words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from stream.clock import ms_to_samples
from stream.config import SegmenterConfig
from stream.items import Pcm, Span
from stream.vad import FRAME_MS, FRAME_SAMPLES


@dataclass(frozen=True)
class Started:
    """Speech is certain; it began at sample `start`."""

    start: int


Signal: TypeAlias = Started | Span


@dataclass
class _Open:
    """An utterance in the making: its frames from `voiced_start` on, each with loudness and decision.

    `continues`: it follows a forced cut, so it is speech however short it stays.
    """

    start: int
    voiced_start: int
    continues: bool
    announced: bool = False
    loudness: list[float] = field(default_factory=list)
    voiced: list[bool] = field(default_factory=list)

    def voiced_ms(self) -> int:
        return sum(self.voiced) * FRAME_MS

    def silent_ms(self) -> int:
        silent = next((back for back, voiced in enumerate(reversed(self.voiced)) if voiced), len(self.voiced))
        return silent * FRAME_MS

    def voiced_end(self) -> int:
        last = max(index for index, voiced in enumerate(self.voiced) if voiced)
        return self.voiced_start + (last + 1) * FRAME_SAMPLES


class Segmenter:
    """Samples in, signals out.

    Args:
        config: Durations in ms.
        is_voiced: Decides on one frame of FRAME_SAMPLES samples.
    """

    def __init__(self, config: SegmenterConfig, is_voiced: Callable[[Pcm], bool]) -> None:
        self._config = config
        self._is_voiced = is_voiced
        self._rest: Pcm = np.zeros(0, np.int16)
        self._next = 0  # first sample of the next frame
        self._floor = 0  # no span starts before this sample
        self._continues_before = 0  # what starts before this sample continues the speech of a forced cut
        self._open: _Open | None = None

    def push(self, first_sample: int, pcm: Pcm) -> list[Signal]:
        """Take consecutive samples.

        A gap (first_sample is not where the last block ended) closes what is open: no span reaches over lost sound.
        """
        signals: list[Signal] = []
        if first_sample != self._next + len(self._rest):
            signals += self.flush()
            self._rest = np.zeros(0, np.int16)
            self._next = self._floor = first_sample
            self._continues_before = first_sample
        samples = np.concatenate((self._rest, pcm))
        whole = len(samples) - len(samples) % FRAME_SAMPLES
        for frame in samples[:whole].reshape(-1, FRAME_SAMPLES):
            signals += self._step(frame)
        self._rest = samples[whole:]
        return signals

    def flush(self) -> list[Signal]:
        """End of the stream: close what is open."""
        if self._open is None:
            return []
        return self._close(self._open)

    def _step(self, frame: Pcm) -> list[Signal]:
        start, self._next = self._next, self._next + FRAME_SAMPLES
        voiced = self._is_voiced(frame)
        if self._open is None:
            if not voiced:
                return []
            self._open = self._begin(start)
        utterance = self._open
        utterance.voiced.append(voiced)
        utterance.loudness.append(float(np.square(frame, dtype=np.float64).mean()))
        signals = self._announce(utterance)
        if utterance.silent_ms() >= self._config.hangover_ms:
            signals += self._close(utterance)
        elif self._next - utterance.start >= ms_to_samples(self._config.max_ms):
            signals += self._cut(utterance)
        return signals

    def _begin(self, voiced_start: int) -> _Open:
        start = max(voiced_start - ms_to_samples(self._config.pre_roll_ms), self._floor)
        return _Open(start, voiced_start, continues=voiced_start < self._continues_before)

    def _announce(self, utterance: _Open) -> list[Signal]:
        certain = utterance.continues or utterance.voiced_ms() >= self._config.min_speech_ms
        if utterance.announced or not certain:
            return []
        utterance.announced = True
        return [Started(utterance.voiced_start)]

    def _close(self, utterance: _Open) -> list[Signal]:
        self._open = None
        if not utterance.announced:
            return []
        voiced_end = utterance.voiced_end()
        end = min(voiced_end + ms_to_samples(self._config.tail_ms), self._next)
        self._floor = end
        return [Span(utterance.start, end, utterance.voiced_start, voiced_end, forced=False)]

    def _cut(self, utterance: _Open) -> list[Signal]:
        self._open = None
        if not utterance.announced:
            return []
        third = len(utterance.voiced) * 2 // 3
        quietest = third + int(np.argmin(utterance.loudness[third:]))
        cut = utterance.voiced_start + quietest * FRAME_SAMPLES
        head = replace(utterance, voiced=utterance.voiced[:quietest])
        self._floor = cut
        self._continues_before = head.voiced_end() + ms_to_samples(self._config.hangover_ms)
        signals: list[Signal] = [Span(head.start, cut, head.voiced_start, head.voiced_end(), forced=True)]
        if True in utterance.voiced[quietest:]:
            first = utterance.voiced.index(True, quietest)
            self._open = self._begin(utterance.voiced_start + first * FRAME_SAMPLES)
            self._open.voiced = utterance.voiced[first:]
            self._open.loudness = utterance.loudness[first:]
            signals += self._announce(self._open)
        return signals
