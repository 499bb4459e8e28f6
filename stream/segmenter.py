"""Where an utterance begins and ends: a pure state machine over 30 ms frames.

It never looks at a clock or at how the samples were cut into blocks: the same samples give the same spans.

    silence --strong evidence--> open --voiced for min_speech--> started
    started --silence for speculate--> paused --voiced frame--> resumed
    open or started --silence for hangover--> ended (or dropped when shorter than min_speech)
        hangover: hangover_min when the words end a sentence, hangover_max when they do not, as far as a hint says so
    started --max length--> ended, forced, at the quietest frame of the last third; the rest stays open

A frame is voiced when its evidence is weak or strong. An utterance begins with the audible frames that led to the
strong one, up to 180 ms of them: detectors hear the first sound of a word late.

What is voiced less than a hangover after the last voiced frame before a forced cut would have been of the same
utterance, so it is one of its own however short it stays: a forced cut loses no words.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from stream.clock import ms_to_samples
from stream.config import SegmenterConfig
from stream.items import Pcm, Span
from stream.vad import FRAME_MS, FRAME_SAMPLES, Evidence

_ONSET_FRAMES = 6  # 180 ms


@dataclass(frozen=True)
class Started:
    """Speech is certain; it began at sample `start`."""

    start: int


@dataclass(frozen=True)
class Paused:
    """Silence has begun. If it is the end of the utterance, `span` is what it will be, to the sample."""

    span: Span


@dataclass(frozen=True)
class Resumed:
    """Speech goes on after a pause."""


Signal: TypeAlias = Started | Paused | Resumed | Span


@dataclass(frozen=True)
class Hint:
    """What was said until the voice paused at sample `voiced_end`: does it end a sentence?"""

    voiced_end: int
    complete: bool


@dataclass
class _Open:
    """An utterance in the making: its frames from `voiced_start` on, each with loudness and decision.

    `continues`: it follows a forced cut, so it is speech however short it stays. `onset`: how many of the frames are
    only audible; they make nothing certain.
    """

    start: int
    voiced_start: int
    continues: bool
    announced: bool = False
    paused: bool = False
    onset: int = 0
    hint: Hint | None = None
    loudness: list[float] = field(default_factory=list)
    voiced: list[bool] = field(default_factory=list)

    def voiced_ms(self) -> int:
        return (sum(self.voiced) - self.onset) * FRAME_MS

    def silent_ms(self) -> int:
        silent = next((back for back, voiced in enumerate(reversed(self.voiced)) if voiced), len(self.voiced))
        return silent * FRAME_MS

    def voiced_end(self) -> int:
        return self.voiced_start + len(self.voiced) * FRAME_SAMPLES - ms_to_samples(self.silent_ms())


class Segmenter:
    """Samples in, signals out.

    Args:
        config: Durations in ms.
        weigh: Gives the evidence of the next frame of FRAME_SAMPLES samples.
    """

    def __init__(self, config: SegmenterConfig, weigh: Callable[[Pcm], Evidence]) -> None:
        self._config = config
        self._weigh = weigh
        self._rest: Pcm = np.zeros(0, np.int16)
        self._next = 0  # first sample of the next frame
        self._floor = 0  # no span starts before this sample
        self._continues_before = 0  # what starts before this sample continues the speech of a forced cut
        self._open: _Open | None = None
        self._before: deque[tuple[Evidence, float]] = deque(maxlen=_ONSET_FRAMES)  # the last frames and their loudness

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

    def take(self, hint: Hint) -> None:
        """Learn about the pause that lasts, from the next frame on; what is said of an earlier one is too late."""
        if self._open is not None and self._open.paused:
            self._open.hint = hint

    def so_far(self) -> Span | None:
        """The utterance in progress, while somebody speaks and speech is certain."""
        utterance = self._open
        if utterance is None or not utterance.announced or not utterance.voiced[-1]:
            return None
        return Span(utterance.start, self._next, utterance.voiced_start, self._next, forced=False)

    def flush(self) -> list[Signal]:
        """End of the stream: close what is open."""
        if self._open is None:
            return []
        return self._close(self._open)

    def _step(self, frame: Pcm) -> list[Signal]:
        start, self._next = self._next, self._next + FRAME_SAMPLES
        evidence = self._weigh(frame)
        loudness = float(np.square(frame, dtype=np.float64).mean())
        if self._open is None and self._opens(evidence, start):
            self._open = self._begin_with_onset(start)
        self._before.append((evidence, loudness))
        if self._open is None:
            return []
        utterance = self._open
        utterance.voiced.append(evidence >= Evidence.WEAK)
        utterance.loudness.append(loudness)
        signals = self._announce(utterance) + self._pause(utterance)
        if utterance.silent_ms() >= self._hangover_ms(utterance):
            signals += self._close(utterance)
        elif self._next - utterance.start >= ms_to_samples(self._config.max_ms):
            signals += self._cut(utterance)
        return signals

    def _opens(self, evidence: Evidence, start: int) -> bool:
        """What goes on after a forced cut is not asked for more than what stays open."""
        return evidence >= (Evidence.WEAK if start < self._continues_before else Evidence.STRONG)

    def _begin_with_onset(self, start: int) -> _Open:
        room = max(start - self._floor, 0) // FRAME_SAMPLES
        onset: list[float] = []
        for evidence, loudness in reversed(self._before):
            if evidence < Evidence.AUDIBLE or len(onset) == room:
                break
            onset.insert(0, loudness)
        utterance = self._begin(start - len(onset) * FRAME_SAMPLES)
        utterance.onset = len(onset)
        utterance.voiced = [True] * len(onset)
        utterance.loudness = onset
        return utterance

    def _begin(self, voiced_start: int) -> _Open:
        start = max(voiced_start - ms_to_samples(self._config.pre_roll_ms), self._floor)
        return _Open(start, voiced_start, continues=voiced_start < self._continues_before)

    def _announce(self, utterance: _Open) -> list[Signal]:
        certain = utterance.continues or utterance.voiced_ms() >= self._config.min_speech_ms
        if utterance.announced or not certain:
            return []
        utterance.announced = True
        return [Started(utterance.voiced_start)]

    def _pause(self, utterance: _Open) -> list[Signal]:
        """Not before the tail has been heard: then the span cannot change any more."""
        silent_ms = utterance.silent_ms()
        if utterance.paused and not silent_ms:
            utterance.paused = False
            return [Resumed()]
        if utterance.paused or not utterance.announced:
            return []
        if silent_ms < max(self._config.speculate_ms, self._config.tail_ms):
            return []
        utterance.paused = True
        return [Paused(self._whole(utterance))]

    def _hangover_ms(self, utterance: _Open) -> int:
        hint = utterance.hint
        if hint is None or hint.voiced_end != utterance.voiced_end():
            return self._config.hangover_ms
        return self._config.hangover_min_ms if hint.complete else self._config.hangover_max_ms

    def _close(self, utterance: _Open) -> list[Signal]:
        self._open = None
        if not utterance.announced:
            return []
        span = self._whole(utterance)
        self._floor = span.end
        return [span]

    def _whole(self, utterance: _Open) -> Span:
        voiced_end = utterance.voiced_end()
        end = min(voiced_end + ms_to_samples(self._config.tail_ms), self._next)
        return Span(utterance.start, end, utterance.voiced_start, voiced_end, forced=False)

    def _cut(self, utterance: _Open) -> list[Signal]:
        self._open = None
        if not utterance.announced:
            return []
        third = len(utterance.voiced) * 2 // 3
        quietest = third + int(np.argmin(utterance.loudness[third:]))
        cut = utterance.voiced_start + quietest * FRAME_SAMPLES
        head = replace(utterance, voiced=utterance.voiced[:quietest])
        self._floor = cut
        hangover_ms = max(self._config.hangover_ms, self._hangover_ms(utterance))
        self._continues_before = head.voiced_end() + ms_to_samples(hangover_ms)
        signals: list[Signal] = [Span(head.start, cut, head.voiced_start, head.voiced_end(), forced=True)]
        if True in utterance.voiced[quietest:]:
            first = utterance.voiced.index(True, quietest)
            self._open = self._begin(utterance.voiced_start + first * FRAME_SAMPLES)
            self._open.voiced = utterance.voiced[first:]
            self._open.loudness = utterance.loudness[first:]
            signals += self._announce(self._open)
        return signals
