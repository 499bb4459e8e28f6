"""The segmenter, rule by rule: what each promises holds to the frame."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from stream.clock import ms_to_samples
from stream.config import SegmenterConfig
from stream.items import Span
from stream.segmenter import Hint, Paused, Resumed, Segmenter, Signal, Started
from stream.vad import FRAME_SAMPLES, SpeechDetector
from tests.stream.patterns import (
    CONFIG,
    HANG,
    HINTED,
    MAX,
    MIN,
    PRE,
    TAIL,
    frames,
    is_loud,
    signals_of,
    sound,
    spans,
)
from tests.stream.sounds import example_clips

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


# -------------------------------------------------------------------------------------------- hysteresis


def test_weak_evidence_keeps_an_utterance_open_and_opens_none() -> None:
    assert signals_of("." + "w" * 30 + ".....") == []
    (span,) = spans(signals_of("." + "#" * 4 + "w" * 30 + "....."))
    assert frames(span)[1:3] == (1, 35)


def test_audible_frames_do_not_keep_an_utterance_open() -> None:
    (span,) = spans(signals_of("#" * 6 + "a" * HANG))
    assert frames(span)[1:3] == (0, 6)


@pytest.mark.parametrize("onset", range(9))
def test_an_utterance_begins_with_the_audible_frames_that_led_to_it(onset: int) -> None:
    (span,) = spans(signals_of("." * 10 + "a" * onset + "#" * 6 + "....."))
    assert frames(span)[1:3] == (10 + onset - min(onset, 6), 16 + onset)


def test_audible_frames_make_nothing_certain() -> None:
    assert signals_of("....aaaaaa" + "#" * (MIN - 1) + ".....") == []
    assert len(signals_of("....aaaaaa" + "#" * MIN + ".....")) == 2


def test_a_begin_does_not_reach_into_the_utterance_before_or_over_lost_sound() -> None:
    first, second = spans(signals_of("#" * 6 + "." + "aaaaaa" + "#" * 6))
    assert second.voiced_start == first.end == 8 * FRAME_SAMPLES
    segmenter = Segmenter(CONFIG, is_loud)
    segmenter.push(0, sound("aaaa"))
    (span,) = spans(segmenter.push(20 * FRAME_SAMPLES + 7, sound("a" + "#" * 6)) + segmenter.flush())
    assert span.voiced_start == 20 * FRAME_SAMPLES + 7


# ----------------------------------------------------------------------------------------------- pauses


@pytest.mark.parametrize("speculate_ms", [0, 60, 90, 120, 150, 500])
def test_a_pause_is_said_after_so_much_silence_but_not_before_the_tail(speculate_ms: int) -> None:
    config = msgspec.structs.replace(CONFIG, speculate_ms=speculate_ms)
    segmenter = Segmenter(config, is_loud)
    segmenter.push(0, sound("#" * 6))
    silent = [segmenter.push((6 + count) * FRAME_SAMPLES, sound(".")) for count in range(HANG)]
    at = max(speculate_ms // 30, TAIL) - 1
    for number, signals in enumerate(silent):
        assert [isinstance(signal, Paused) for signal in signals] == [True] * (number == at) + [False] * (
            number == HANG - 1
        )
    if at < HANG:
        (ended,) = spans(silent[-1])
        assert silent[at][0] == Paused(ended)


def test_speech_that_goes_on_is_said_once_and_a_new_pause_is_a_new_one() -> None:
    config = msgspec.structs.replace(CONFIG, speculate_ms=60)
    signals = signals_of("#" * 6 + "..." + "##" + ".." + "#" + ".....", config)
    assert [type(signal) for signal in signals] == [Started, Paused, Resumed, Paused, Resumed, Paused, Span]
    assert [frames(signal.span)[2] for signal in signals if isinstance(signal, Paused)] == [6, 11, 14]


def test_what_is_said_so_far_is_there_while_somebody_speaks() -> None:
    segmenter = Segmenter(CONFIG, is_loud)
    segmenter.push(0, sound("....###"))
    assert segmenter.so_far() is None  # not certain yet
    segmenter.push(7 * FRAME_SAMPLES, sound("##"))
    so_far = segmenter.so_far()
    assert so_far is not None
    assert frames(so_far) == (1, 4, 9, 9)
    segmenter.push(9 * FRAME_SAMPLES, sound("."))
    assert segmenter.so_far() is None
    segmenter.flush()
    assert segmenter.so_far() is None


# ------------------------------------------------------------------------------------------ adaptive hangover

# Whole frames: pauses are said after 2, an utterance ends after 3, 5 or 8.


def silence_until_the_end(hint: Hint | None, after: int = 2) -> int:
    """Frames of silence before the end of an utterance of 6 frames, with a hint given after so many of them."""
    segmenter = Segmenter(HINTED, is_loud)
    segmenter.push(0, sound("#" * 6))
    for count in range(20):
        if count == after and hint is not None:
            segmenter.take(hint)
        if spans(segmenter.push((6 + count) * FRAME_SAMPLES, sound("."))):
            return count + 1
    raise AssertionError("it never ended")


@pytest.mark.parametrize(
    ("hint", "after", "silence"),
    [
        (None, 2, 5),
        (Hint(6 * FRAME_SAMPLES, complete=True), 2, 3),
        (Hint(6 * FRAME_SAMPLES, complete=True), 4, 5),  # late: it ends at once
        (Hint(6 * FRAME_SAMPLES, complete=False), 2, 8),
        (Hint(6 * FRAME_SAMPLES, complete=False), 4, 8),
        (Hint(5 * FRAME_SAMPLES, complete=True), 2, 5),  # of an earlier pause
        (Hint(6 * FRAME_SAMPLES, complete=True), 1, 5),  # nobody asked yet
    ],
)
def test_a_hint_ends_an_utterance_sooner_or_later(hint: Hint | None, after: int, silence: int) -> None:
    assert silence_until_the_end(hint, after) == silence


def test_a_hint_is_forgotten_when_speech_goes_on() -> None:
    segmenter = Segmenter(HINTED, is_loud)
    segmenter.push(0, sound("#" * 6 + ".."))
    segmenter.take(Hint(6 * FRAME_SAMPLES, complete=False))
    signals = segmenter.push(8 * FRAME_SAMPLES, sound("#" + "." * HANG))
    assert [type(signal) for signal in signals] == [Resumed, Paused, Span]
    assert [frames(span)[1:3] for span in spans(signals)] == [(0, 9)]


def test_a_hint_to_silence_is_ignored() -> None:
    segmenter = Segmenter(HINTED, is_loud)
    segmenter.take(Hint(0, complete=True))
    assert spans(segmenter.push(0, sound("#" * 6 + "." * HANG)))


@pytest.mark.parametrize(("bounds"), [(600, 800), (100, 400)])
def test_bounds_that_do_not_enclose_the_hangover_are_refused(bounds: tuple[int, int]) -> None:
    low, high = bounds
    with pytest.raises(ValueError, match=f"hangover_ms 500 is not within hangover_min_ms {low} and .* {high}"):
        SegmenterConfig(adaptive=True, hangover_min_ms=low, hangover_max_ms=high)
    SegmenterConfig(hangover_min_ms=low, hangover_max_ms=high)  # they are not read


@pytest.mark.parametrize(("speculate_ms", "tail_ms"), [(500, 200), (200, 500)])
def test_adaptive_is_refused_where_the_words_would_come_too_late(speculate_ms: int, tail_ms: int) -> None:
    with pytest.raises(ValueError, match=r"before hangover_ms 500 is over.* asked for after 500"):
        SegmenterConfig(adaptive=True, speculate_ms=speculate_ms, tail_ms=tail_ms)
    SegmenterConfig(adaptive=True, hangover_ms=510, speculate_ms=speculate_ms, tail_ms=tail_ms)
    SegmenterConfig(speculate_ms=speculate_ms, tail_ms=tail_ms)


# ------------------------------------------------------------------------------------------- forced cuts


def test_a_forced_cut_falls_on_the_quietest_frame_of_the_last_third() -> None:
    soft = 48
    pattern = "#" * 10 + "+" + "#" * (soft - 11) + "+" + "#" * (MAX - soft - 1)
    head, rest = spans(signals_of(pattern))
    assert frames(head) == (0, 0, soft, soft)
    assert head.forced
    assert frames(rest) == (soft, soft, MAX, MAX)
    assert not rest.forced


def test_a_forced_cut_looks_at_the_last_third_to_the_frame() -> None:
    third = MAX * 2 // 3
    head, rest = spans(signals_of("#" * (third - 1) + "." + "+" + "#" * (MAX - third - 1)))
    assert frames(head) == (0, 0, third - 1, third)
    assert frames(rest) == (third, third, MAX, MAX)


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


@pytest.mark.parametrize("word", ["#", "w" * MIN])
@pytest.mark.parametrize("pause", range(1, 9))
def test_a_word_within_the_hangover_of_a_forced_cut_is_speech_and_a_later_one_is_not(pause: int, word: str) -> None:
    """Before the cut the voice had stopped; without a cut one word within the hangover would have been kept."""
    last = MAX - 1
    found = spans(signals_of("#" * last + "." * pause + word + "." * 10))
    assert found[0].forced
    assert [frames(span)[1:3] for span in found[1:]] == [(last + pause, last + pause + len(word))] * (pause < HANG)


@pytest.mark.parametrize("pause", range(3, 9))
def test_the_hangover_behind_a_forced_cut_counts_from_the_last_voiced_frame(pause: int) -> None:
    """The cut falls on the quietest frame, which may lie behind that one."""
    last = MAX - 3
    found = spans(signals_of("#" * last + "..," + "." * (pause - 3) + "#" + "." * 10))
    assert found[0].end == (MAX - 1) * FRAME_SAMPLES
    assert len(found[1:]) == (pause < HANG)


@pytest.mark.parametrize(("complete", "pause"), [(False, HANG + 1), (True, HANG - 1)])
def test_the_hangover_behind_a_forced_cut_is_the_one_in_force_but_not_less_than_the_fixed_one(
    complete: bool, pause: int
) -> None:
    """Where the words did not end a sentence, more silence would have been waited for without a cut."""
    segmenter = Segmenter(msgspec.structs.replace(HINTED, speculate_ms=30, tail_ms=30), is_loud)
    last = MAX - 2
    segmenter.push(0, sound("#" * last + "."))
    segmenter.take(Hint(last * FRAME_SAMPLES, complete))
    signals = segmenter.push((last + 1) * FRAME_SAMPLES, sound("." * (pause - 1) + "#" + "." * 10))
    head, word = spans(signals)
    assert head.forced
    assert frames(word)[1:3] == (last + pause, last + pause + 1)


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


# ---------------------------------------------------------------------------------------- the real detector


def test_two_utterances_in_noise_are_found_however_they_are_cut() -> None:
    """Real speech of the example, over the hiss of a room and over a fan."""
    clips = [clip.pcm for clip in example_clips()[2:4]]
    random = np.random.default_rng(1)
    rest = np.zeros(24_000, np.int16)
    quiet = np.concatenate((rest, clips[0], rest, clips[1], rest))
    config = SegmenterConfig()
    for rms in (20, 300):
        pcm = (quiet + random.normal(0, rms, len(quiet))).astype(np.int16)
        results = []
        for size in (len(pcm), 480, 333):
            segmenter = Segmenter(config, SpeechDetector(config.aggressiveness))
            found: list[Signal] = []
            for first in range(0, len(pcm), size):
                found += segmenter.push(first, pcm[first : first + size])
            results.append(found + segmenter.flush())
        assert results[0] == results[1] == results[2]
        first_end = len(rest) + len(clips[0])
        edges = ((len(rest), first_end), (first_end + len(rest), first_end + len(rest) + len(clips[1])))
        for span, (begin, end) in zip(spans(results[0]), edges, strict=True):  # clips have pre-roll and tail
            assert abs(span.voiced_start - begin - ms_to_samples(300)) < ms_to_samples(150)
            assert abs(span.voiced_end - end + ms_to_samples(200)) < ms_to_samples(200)
            assert span.voiced_start - span.start == ms_to_samples(config.pre_roll_ms)
