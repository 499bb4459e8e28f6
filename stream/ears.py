"""Blocks of sound in, utterances out, with their times, pictures, drafts and interims."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from stream.align import PcmRing, cut_frames
from stream.asr import Transcription, ends_sentence
from stream.clock import SampleClock, ms_to_samples
from stream.config import Config
from stream.devices import Source
from stream.frames import FrameRing
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Draft, Interim, Missing, Span, Stalled, Utterance
from stream.machine import slept_ns, wall_ahead_ns
from stream.segmenter import Hint, Paused, Resumed, Segmenter, Signal, Started
from stream.vad import SpeechDetector

_INTERIM_SAMPLES = SAMPLE_RATE_HZ  # between two interims of an utterance
_NOT_OVER = Missing("the utterance is not over")


@dataclass
class _Channel:
    """One channel, heard up to the sample `until`; `seq` and `next_interim` are of the utterance in progress."""

    number: int
    segmenter: Segmenter
    pcm: PcmRing
    until: int = 0
    seq: int = 0
    next_interim: int = 0


@dataclass(frozen=True)
class Onward:
    """Speech goes on: what was drafted on this channel is not the end."""

    channel: int


Heard: TypeAlias = Started | Draft | Onward | Interim | Utterance


class Ears:
    """Listens to a source: blocks in, finished utterances out, in the order in which their end was decided.

    Args:
        config: Segmenter, recognizer and camera sections are read.
        source: Microphone or file.
        frames: The pictures of the session, or why there are none.
    """

    def __init__(self, config: Config, source: Source, frames: FrameRing | Missing) -> None:
        segmenter = config.segmenter
        keep = ms_to_samples(segmenter.kept_ms)
        self.source = source
        self.adaptive = segmenter.adaptive
        self._frames = frames
        self._segmenter = segmenter
        self._interim = config.asr.interim
        self._keep = keep
        self._channels: dict[int, _Channel] = {}
        self._clock = SampleClock(keep)
        self._tolerance_ns = config.camera.stale_ms * 1_000_000
        self._seq = 0
        self._next_sample = 0

    def hear(self, block: AudioBlock | Stalled) -> Iterator[Heard]:
        """Take a block; yields what it began or ended. A source that stalls or lost sound ends what is open."""
        if isinstance(block, Stalled):
            yield from self.end()
            return
        if block.channel == 0:
            if block.first_sample != self._next_sample:
                # Now: after a long hole the rings would have forgotten what was said before it.
                yield from self.end()
            # A channel that turned out to be a copy gets no more sound.
            yield from self._close([one for one in self._channels.values() if one.until < self._next_sample])
            self._next_sample = block.first_sample + len(block.pcm)
            self._clock.observe(block)
        channel = self._channel(block.channel)
        channel.pcm.append(block.first_sample, block.pcm)
        channel.until = block.first_sample + len(block.pcm)
        for signal in channel.segmenter.push(block.first_sample, block.pcm):
            yield self._heard(signal, channel)
        if self._interim:
            yield from self._so_far(channel)

    def take(self, draft: Draft, said: Transcription) -> None:
        """Learn what a draft says: with the adaptive hangover its words tell whether the utterance is over."""
        if self.adaptive and said.rejected is None and said.certain:
            hint = Hint(draft.span.voiced_end, ends_sentence(said.text))
            self._channels[draft.channel].segmenter.take(hint)

    def session_ns(self, sample: int) -> int:
        """Session time of a recent sample, by the system's clock."""
        return self._clock.session_ns(sample)

    def counters(self) -> dict[str, int]:
        """Drift of the sound card's clock against the system's in parts per million, once it is known."""
        fast_ppm = self._clock.fast_ppm
        if fast_ppm is None:
            return {}
        return {"audio_clock_fast_ppm": max(fast_ppm, 0), "audio_clock_slow_ppm": max(-fast_ppm, 0)}

    def end(self) -> Iterator[Utterance]:
        """The source ended or stalled: close what is open."""
        yield from self._close(list(self._channels.values()))

    def _close(self, channels: Sequence[_Channel]) -> Iterator[Utterance]:
        spans = [
            (signal, channel)
            for channel in channels
            for signal in channel.segmenter.flush()
            if isinstance(signal, Span)
        ]
        for span, channel in sorted(spans, key=lambda found: found[0].voiced_end):
            yield self._utterance(span, channel, whole=True)

    def _channel(self, number: int) -> _Channel:
        if number not in self._channels:
            detector = SpeechDetector(self._segmenter.aggressiveness)
            self._channels[number] = _Channel(number, Segmenter(self._segmenter, detector), PcmRing(self._keep))
        return self._channels[number]

    def _heard(self, signal: Signal, channel: _Channel) -> Heard:
        match signal:
            case Started():
                channel.seq, self._seq = self._seq, self._seq + 1
                channel.next_interim = signal.start + _INTERIM_SAMPLES
                return signal
            case Paused(span):
                return Draft(channel.number, span, channel.pcm.cut(span.start, span.end))
            case Resumed():
                return Onward(channel.number)
            case Span():
                return self._utterance(signal, channel, whole=True)

    def _so_far(self, channel: _Channel) -> Iterator[Interim]:
        span = channel.segmenter.so_far()
        if span is not None and span.end >= channel.next_interim:
            channel.next_interim = span.end + _INTERIM_SAMPLES
            yield Interim(self._utterance(span, channel, whole=False))

    def _utterance(self, span: Span, channel: _Channel, whole: bool) -> Utterance:
        frames = self._frames if whole else _NOT_OVER
        return Utterance(
            seq=channel.seq,
            channel=channel.number,
            span=span,
            start_ns=self._clock.session_ns(span.voiced_start),
            end_ns=self._clock.session_ns(span.voiced_end),
            pcm=channel.pcm.cut(span.start, span.end),
            frames=frames if isinstance(frames, Missing) else cut_frames(span, self._clock, frames, self._tolerance_ns),
            heard_ns=self._clock.heard_ns(span.voiced_end),
            decided_ns=time.monotonic_ns(),
            started_wall_ns=self._clock.started_ns + wall_ahead_ns(),
            slept_ns=slept_ns(),
        )
