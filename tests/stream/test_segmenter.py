"""The segmenter: the same samples give the same spans, and what each rule promises holds to the frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.clock import ms_to_samples
from stream.config import SegmenterConfig
from stream.items import Pcm, Span
from stream.segmenter import Segmenter, Signal, Started
from stream.vad import FRAME_SAMPLES, VoiceDetector

LOUD, QUIET = 1000, 10
# Whole frames: pre-roll 3, minimum 4, hangover 5, tail 2, maximum 60.
CONFIG = SegmenterConfig(pre_roll_ms=90, min_speech_ms=120, hangover_ms=150, tail_ms=60, max_ms=1800)
PRE, MIN, HANG, TAIL, MAX = 3, 4, 5, 2, 60


def is_loud(frame: Pcm) -> bool:
    """The fake detector: a frame is voiced when its first sample is odd."""
    return bool(frame[0] % 2)


def sound(pattern: str) -> Pcm:
    """A frame per character: `#` voiced, `+` voiced and softer, `.` silent, `,` more so."""
    levels = {"#": LOUD + 1, "+": LOUD // 10 + 1, ".": QUIET, ",": 0}
    return np.repeat(np.array([levels[character] for character in pattern], np.int16), FRAME_SAMPLES)


def signals_of(pattern: str, config: SegmenterConfig = CONFIG, flush: bool = True) -> list[Signal]:
    segmenter = Segmenter(config, is_loud)
    return segmenter.push(0, sound(pattern)) + (segmenter.flush() if flush else [])


def spans(signals: Sequence[Signal]) -> list[Span]:
    return [signal for signal in signals if isinstance(signal, Span)]


def frames(span: Span) -> tuple[float, ...]:
    return tuple(edge / FRAME_SAMPLES for edge in (span.start, span.voiced_start, span.voiced_end, span.end))


# -------------------------------------------------------------------------------------------- single rules


def test_a_span_has_its_pre_roll_and_its_tail() -> None:
    signals = signals_of("." * 10 + "#" * 8 + "." * 10, flush=False)
    assert signals[0] == Started(10 * FRAME_SAMPLES)
    assert [frames(span) for span in spans(signals)] == [(10 - PRE, 10, 18, 18 + TAIL)]
    assert not spans(signals)[0].forced


@pytest.mark.parametrize("voiced", range(1, 8))
def test_speech_below_the_minimum_is_dropped(voiced: int) -> None:
    signals = signals_of("." * 5 + "#" * voiced + "." * 10)
    assert len(spans(signals)) == (voiced >= MIN)
    assert len(signals) == 2 * len(spans(signals))


def test_speech_is_announced_in_the_frame_that_makes_it_certain() -> None:
    segmenter = Segmenter(CONFIG, is_loud)
    assert segmenter.push(0, sound("..##.#")) == []
    assert segmenter.push(6 * FRAME_SAMPLES, sound("#")) == [Started(2 * FRAME_SAMPLES)]
    assert segmenter.push(7 * FRAME_SAMPLES, sound("#")) == []


@pytest.mark.parametrize("pause", range(1, 9))
def test_the_hangover_is_exact(pause: int) -> None:
    found = spans(signals_of("#" * 6 + "." * pause + "#" * 6))
    if pause < HANG:
        assert [frames(span)[1:3] for span in found] == [(0, 12 + pause)]
    else:
        assert [frames(span)[1:3] for span in found] == [(0, 6), (6 + pause, 12 + pause)]


def test_the_end_is_decided_in_the_last_frame_of_the_hangover() -> None:
    segmenter = Segmenter(CONFIG, is_loud)
    assert spans(segmenter.push(0, sound("#" * 6 + "." * (HANG - 1)))) == []
    assert len(spans(segmenter.push((6 + HANG - 1) * FRAME_SAMPLES, sound(".")))) == 1


def test_pre_roll_ends_where_the_span_before_ends() -> None:
    first, second = spans(signals_of("#" * 6 + "." * HANG + "#" * 6))
    assert frames(first) == (0, 0, 6, 6 + TAIL)
    assert second.start == max(first.end, second.voiced_start - PRE * FRAME_SAMPLES)
    long = msgspec.structs.replace(CONFIG, pre_roll_ms=900)
    first, second = spans(signals_of("#" * 6 + "." * HANG + "#" * 6, long))
    assert second.start == first.end


def test_pre_roll_never_reaches_over_lost_sound() -> None:
    segmenter = Segmenter(CONFIG, is_loud)
    segmenter.push(0, sound("." * 10))
    signals = segmenter.push(20 * FRAME_SAMPLES + 7, sound("." + "#" * 6)) + segmenter.flush()
    assert [span.start for span in spans(signals)] == [20 * FRAME_SAMPLES + 7]


def test_lost_sound_closes_what_is_open() -> None:
    segmenter = Segmenter(CONFIG, is_loud)
    segmenter.push(0, sound("#" * 6 + "." * 3))
    signals = segmenter.push(30 * FRAME_SAMPLES, sound("."))
    assert [frames(span) for span in spans(signals)] == [(0, 0, 6, 6 + TAIL)]


def test_flush_closes_what_is_open_once() -> None:
    segmenter = Segmenter(CONFIG, is_loud)
    segmenter.push(0, sound("#" * 6 + "."))
    assert [frames(span) for span in spans(segmenter.flush())] == [(0, 0, 6, 7)]
    assert segmenter.flush() == []


def test_flush_drops_what_is_not_certain() -> None:
    assert signals_of("#" * (MIN - 1)) == []


# ------------------------------------------------------------------------------------------- forced cuts


def test_a_forced_cut_falls_on_the_quietest_frame_of_the_last_third() -> None:
    soft = 48
    pattern = "#" * 10 + "+" + "#" * (soft - 11) + "+" + "#" * (MAX - soft - 1)
    head, rest = spans(signals_of(pattern))
    assert frames(head) == (0, 0, soft, soft)
    assert head.forced
    assert frames(rest) == (soft, soft, MAX, MAX)
    assert not rest.forced


def test_the_rest_is_announced_behind_the_forced_span() -> None:
    signals = signals_of("#" * 80, flush=False)
    assert [type(signal) for signal in signals] == [Started, Span, Started]
    assert signals[2] == Started(spans(signals)[0].end)


@pytest.mark.parametrize("more", range(MIN))
def test_speech_that_ends_just_behind_a_forced_cut_is_not_lost(more: int) -> None:
    last = MAX - 1
    pattern = "#" * last + "." + "#" * more
    head, *rest = spans(signals_of(pattern + "." * 10))
    assert frames(head)[1:3] == (0, last)
    assert head.forced
    assert [frames(span)[1:3] for span in rest] == [(MAX, MAX + more)] * (more > 0)
    assert all(span.start >= head.end for span in rest)


@pytest.mark.parametrize("pause", range(1, 9))
def test_a_word_within_the_hangover_of_a_forced_cut_is_speech_and_a_later_one_is_not(pause: int) -> None:
    """Before the cut the voice had stopped; without a cut one word within the hangover would have been kept."""
    last = MAX - 1
    found = spans(signals_of("#" * last + "." * pause + "#" + "." * 10))
    assert found[0].forced
    assert [frames(span)[1:3] for span in found[1:]] == [(last + pause, last + pause + 1)] * (pause < HANG)


def test_the_voice_of_a_forced_span_ends_before_its_silence() -> None:
    head, rest = spans(signals_of("#" * 56 + "..,#" + "#" * 10))
    assert frames(head) == (0, 0, 56, 58)
    assert frames(rest) == (58, 59, 70, 70)


def test_nothing_continues_over_lost_sound() -> None:
    segmenter = Segmenter(CONFIG, is_loud)
    assert len(segmenter.push(0, sound("#" * (MAX - 1) + "."))) == 2
    assert segmenter.push(MAX * FRAME_SAMPLES + 7, sound("#" + "." * 10)) == []


def test_blips_that_never_are_speech_are_not_cut_into_speech() -> None:
    patient = msgspec.structs.replace(CONFIG, hangover_ms=900)
    assert signals_of(("#" + "." * 25) * 6, patient) == []


def test_a_maximum_that_leaves_no_speech_is_refused() -> None:
    with pytest.raises(ValueError, match="max_ms 1200 is below"):
        SegmenterConfig(pre_roll_ms=600, min_speech_ms=250, max_ms=1200)


# --------------------------------------------------------------------------------------------- properties


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
patterns = st.lists(st.tuples(st.sampled_from("#+."), st.integers(1, 40)), min_size=1, max_size=12).map(
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
    max_ms=st.integers(1400, 2500),
)


@given(streams, configs, st.lists(st.integers(0, 60_000), max_size=40))
def test_signals_do_not_depend_on_how_the_samples_were_cut(
    stream: Stream, config: SegmenterConfig, cuts: list[int]
) -> None:
    assert stream.signals(config, cuts) == stream.signals(config)


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
    found = stream.signals(config)
    assert [type(signal) for signal in found] == [Started, Span] * (len(found) // 2)
    for started, span in zip(found[::2], found[1::2], strict=True):
        assert isinstance(started, Started)
        assert isinstance(span, Span)
        assert started.start == span.voiced_start


# Speech that is certain in its first 14 frames, with pauses below a hangover of 600 ms.
utterances = st.lists(st.tuples(st.sampled_from("#+."), st.integers(1, 19)), min_size=4, max_size=30).map(
    lambda stretches: "#" * 14 + "".join(kind * count for kind, count in stretches).replace("." * 20, "#" * 20)
)


@given(st.lists(utterances, min_size=1, max_size=3).map(("." * 25).join), configs)
def test_a_forced_cut_loses_no_voiced_frame(pattern: str, config: SegmenterConfig) -> None:
    """What is in a span without a maximum length is in a span with one."""
    config = msgspec.structs.replace(config, hangover_ms=600)
    unlimited = spans(signals_of(pattern, msgspec.structs.replace(config, max_ms=10**6)))
    limited = spans(signals_of(pattern, config))
    voiced = [index * FRAME_SAMPLES for index, character in enumerate(pattern) if character in "#+"]

    def held(found: Sequence[Span]) -> set[int]:
        return {sample for sample in voiced for span in found if span.voiced_start <= sample < span.voiced_end}

    assert held(unlimited) <= held(limited)


# ---------------------------------------------------------------------------------------- the real detector


def speech_like(seconds: float, seed: int) -> Pcm:
    """A buzz of a voice's pitch with two formants, in syllables of a quarter of a second."""
    time_s = np.arange(int(seconds * 16_000)) / 16_000
    pitch = 120 + 10 * np.sin(2 * np.pi * 3 * time_s)
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    formants = ((500, 200), (1500, 300))
    partials = np.zeros_like(phase)
    for number in range(1, 25):
        loudness = sum(math.exp(-(((number * 120 - centre) / width) ** 2)) for centre, width in formants)
        partials += np.sin(number * phase) * loudness
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * time_s)
    noise = np.random.default_rng(seed).normal(0, 0.01, len(time_s))
    return np.asarray((partials * syllables + noise) * 4_000, np.float64).astype(np.int16)


def test_webrtc_finds_two_utterances_in_noise_however_they_are_cut() -> None:
    random = np.random.default_rng(1)

    def hush(seconds: float) -> Pcm:
        return random.normal(0, 20, int(seconds * 16_000)).astype(np.int16)

    pcm = np.concatenate((hush(1.0), speech_like(1.5, 2), hush(1.5), speech_like(1.0, 3), hush(1.0)))
    config = SegmenterConfig()
    results = []
    for size in (len(pcm), 480, 333):
        segmenter = Segmenter(config, VoiceDetector(config.aggressiveness))
        found: list[Signal] = []
        for first in range(0, len(pcm), size):
            found += segmenter.push(first, pcm[first : first + size])
        results.append(found + segmenter.flush())
    assert results[0] == results[1] == results[2]
    for span, begin_s, end_s in zip(spans(results[0]), (1.0, 4.0), (2.5, 5.0), strict=True):
        assert abs(span.voiced_start / 16_000 - begin_s) < 0.15
        assert abs(span.voiced_end / 16_000 - end_s) < 0.35
        assert span.voiced_start - span.start == ms_to_samples(config.pre_roll_ms)
