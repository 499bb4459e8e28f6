"""The segmenter on any stream: the same samples give the same signals, and no rule is broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.clock import ms_to_samples
from stream.config import SegmenterConfig
from stream.items import Pcm, Span
from stream.segmenter import Hint, Paused, Resumed, Segmenter, Signal, Started
from stream.vad import FRAME_SAMPLES
from tests.stream.patterns import (
    HINTED,
    QUIET,
    edges,
    is_loud,
    signals_of,
    sound,
    spans,
)


@dataclass(frozen=True)
class Stream:
    """Runs of samples with lost sound between them: (samples lost before, pattern, odd samples at the end)."""

    runs: tuple[tuple[int, str, int], ...]

    def blocks(self, cuts: Sequence[int]) -> list[tuple[int, Pcm]]:
        """Each run cut at `cuts` (modulo its length); none gives a block a run."""
        position, blocks = 0, []
        for lost, pattern, odd in self.runs:
            position += lost
            pcm = np.concatenate((sound(pattern), np.full(odd, QUIET, np.int16)))
            edges = sorted({0, len(pcm), *(cut % (len(pcm) + 1) for cut in cuts)})
            blocks += [(position + begin, pcm[begin:end]) for begin, end in pairwise(edges)]
            position += len(pcm)
        return blocks

    def signals(self, config: SegmenterConfig, cuts: Sequence[int] = ()) -> list[Signal]:
        segmenter = Segmenter(config, is_loud)
        found = [signal for first, pcm in self.blocks(cuts) for signal in segmenter.push(first, pcm)]
        return found + segmenter.flush()


# Stretches of one kind, long enough to reach hangovers and the maximum.
patterns = st.lists(st.tuples(st.sampled_from("#+wa."), st.integers(1, 40)), min_size=1, max_size=12).map(
    lambda stretches: "".join(kind * count for kind, count in stretches)
)
runs = st.tuples(st.integers(1, 5_000), patterns, st.integers(0, FRAME_SAMPLES - 1))
streams = st.lists(runs, min_size=1, max_size=4).map(lambda found: Stream(tuple(found)))
configs = st.builds(
    SegmenterConfig,
    pre_roll_ms=st.integers(0, 500),
    min_speech_ms=st.integers(1, 400),
    hangover_ms=st.integers(100, 600),
    tail_ms=st.integers(0, 700),
    speculate_ms=st.integers(0, 700),
    max_ms=st.integers(1400, 2500),
)


@given(streams, configs, st.lists(st.integers(0, 60_000), max_size=40))
def test_signals_do_not_depend_on_how_the_samples_were_cut(
    stream: Stream, config: SegmenterConfig, cuts: list[int]
) -> None:
    assert stream.signals(config, cuts) == stream.signals(config)


@given(
    patterns,
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=6),
    st.lists(st.integers(0, 60_000), max_size=40),
)
def test_the_same_samples_and_hints_give_the_same_signals_however_they_are_cut(
    pattern: str, answers: list[tuple[int, bool]], cuts: list[int]
) -> None:
    """Each pause is answered so many frames later, by turns; then the same is fed in other blocks."""
    pcm, reference, found = sound(pattern), Segmenter(HINTED, is_loud), list[Signal]()
    hints: dict[int, Hint] = {}  # by the sample before which they come
    for first in range(0, len(pcm), FRAME_SAMPLES):
        if first in hints:
            reference.take(hints[first])
        signals = reference.push(first, pcm[first : first + FRAME_SAMPLES])
        for signal in signals:
            if isinstance(signal, Paused):
                later, complete = answers[len(hints) % len(answers)]
                hints[first + (1 + later) * FRAME_SAMPLES] = Hint(signal.span.voiced_end, complete)
        found += signals
    other, again = Segmenter(HINTED, is_loud), list[Signal]()
    edges = sorted({0, len(pcm), *(cut % (len(pcm) + 1) for cut in cuts), *(at for at in hints if at < len(pcm))})
    for begin, end in pairwise(edges):
        if begin in hints:
            other.take(hints[begin])
        again += other.push(begin, pcm[begin:end])
    assert again == found
    assert other.flush() == reference.flush()


@given(streams, configs)
def test_spans_are_ordered_bounded_and_inside_their_run(stream: Stream, config: SegmenterConfig) -> None:
    found = stream.signals(config)
    limit = ms_to_samples(config.max_ms) + FRAME_SAMPLES
    places = [(first, first + len(pcm)) for first, pcm in stream.blocks([])]
    for span in spans(found):
        assert span.start <= span.voiced_start < span.voiced_end <= span.end
        assert span.end - span.start <= limit
        assert span.voiced_start - span.start <= ms_to_samples(config.pre_roll_ms)
        assert any(first <= span.start and span.end <= end for first, end in places)
    for before, after in pairwise(spans(found)):
        assert before.end <= after.start


@given(streams, configs)
def test_every_span_is_announced_just_before(stream: Stream, config: SegmenterConfig) -> None:
    found = edges(stream.signals(config))
    assert [type(signal) for signal in found] == [Started, Span] * (len(found) // 2)
    for started, span in zip(found[::2], found[1::2], strict=True):
        assert isinstance(started, Started)
        assert isinstance(span, Span)
        assert started.start == span.voiced_start


@given(streams, configs)
def test_a_pause_without_more_speech_tells_the_span_to_the_sample(stream: Stream, config: SegmenterConfig) -> None:
    """So what was transcribed on trial is what would be transcribed: the same samples."""
    for before, after in pairwise(stream.signals(config)):
        if isinstance(before, Paused):
            assert isinstance(after, Resumed) or after == before.span or (isinstance(after, Span) and after.forced)
        assert isinstance(before, Paused) or not isinstance(after, Resumed)


# Speech that is certain in its first 14 frames, with pauses below a hangover of 600 ms.
utterances = st.lists(st.tuples(st.sampled_from("#+w."), st.integers(1, 19)), min_size=4, max_size=30).map(
    lambda stretches: "#" * 14 + "".join(kind * count for kind, count in stretches).replace("." * 20, "#" * 20)
)


@given(st.lists(utterances, min_size=1, max_size=3).map(("." * 25).join), configs)
def test_a_forced_cut_loses_no_voiced_frame(pattern: str, config: SegmenterConfig) -> None:
    """What is in a span without a maximum length is in a span with one."""
    config = msgspec.structs.replace(config, hangover_ms=600)
    unlimited = spans(signals_of(pattern, msgspec.structs.replace(config, max_ms=10**6)))
    limited = spans(signals_of(pattern, config))
    voiced = [index * FRAME_SAMPLES for index, character in enumerate(pattern) if character in "#+w"]

    def held(found: Sequence[Span]) -> set[int]:
        return {sample for sample in voiced for span in found if span.voiced_start <= sample < span.voiced_end}

    assert held(unlimited) <= held(limited)
