"""Ears without devices, networks or Whisper: blocks in, utterances out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from stream.asr import Transcription
from stream.config import Config, SegmenterConfig
from stream.ears import Ears, Heard, Onward
from stream.frames import FrameRing
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Draft, Interim, Missing, Pcm, Stalled, Utterance, VideoFrame
from stream.segmenter import Started
from tests.stream.hearing import NS_PER_SAMPLE, START_NS, FakeSource, heard, silence, speech

pytestmark = pytest.mark.usefixtures("level_detector")


def test_utterances_carry_their_own_sound_and_times(conversation: Pcm) -> None:
    items = heard(FakeSource(conversation), Missing("no camera"), SegmenterConfig())
    assert [type(item) for item in items] == [Started, Draft, Utterance, Started, Draft, Utterance]
    first, second = (item for item in items if isinstance(item, Utterance))
    assert [first.seq, second.seq] == [0, 1]
    for utterance in (first, second):
        span = utterance.span
        assert np.array_equal(utterance.pcm, conversation[span.start : span.end])
        assert utterance.heard_ns == START_NS + span.voiced_end * NS_PER_SAMPLE
        assert utterance.frames == Missing("no camera")
    assert first.span.start <= 1.0 * SAMPLE_RATE_HZ <= first.span.voiced_start + 480
    assert first.span.voiced_end >= 2.4 * SAMPLE_RATE_HZ
    assert second.span.start >= first.span.end


def test_the_end_of_the_source_closes_what_is_open() -> None:
    items = heard(FakeSource(np.concatenate((silence(0.5), speech(1)))), Missing("none"), SegmenterConfig())
    assert isinstance(items[-1], Utterance)


def test_a_stall_closes_what_is_open() -> None:
    source = FakeSource(np.concatenate((silence(0.5), speech(1.5))))
    ears = Ears(Config(), source, Missing("none"))
    items = [item for block in source.blocks() for item in ears.hear(block)]
    assert not any(isinstance(item, Utterance) for item in items)
    (utterance,) = (item for item in ears.hear(Stalled(START_NS)) if isinstance(item, Utterance))
    assert not utterance.span.forced
    assert list(ears.hear(Stalled(START_NS))) == []


@pytest.mark.parametrize("hole_s", [1, 25, 59])
def test_lost_sound_closes_what_is_open_however_much_it_is(hole_s: int) -> None:
    before, after = speech(1.5), speech(1.2)
    hole = hole_s * SAMPLE_RATE_HZ
    ears = Ears(Config(), FakeSource(before), Missing("none"))
    items: list[Heard] = []
    for first, pcm in ((0, before), (len(before) + hole, after)):
        for channel in (0, 1):
            items += ears.hear(AudioBlock(first, pcm, START_NS + first * NS_PER_SAMPLE, START_NS, channel))
    utterances = [item for item in [*items, *ears.end()] if isinstance(item, Utterance)]
    assert [item.channel for item in utterances] == [0, 1, 0, 1]
    for item, expected in zip(utterances, (before, before, after, after), strict=True):
        assert np.array_equal(item.pcm[: len(expected)], expected[: len(item.pcm)])
    assert utterances[2].start_ns - utterances[0].start_ns == (len(before) + hole) * NS_PER_SAMPLE


def test_pictures_are_kept_as_long_as_an_utterance_may_last() -> None:
    segmenter = SegmenterConfig(max_ms=60_000)
    sound, fps = speech(61), 10
    ring = FrameRing(fps, segmenter.kept_ms)
    for number in range(61 * fps):
        ring.put(VideoFrame(START_NS + number * 1_000_000_000 // fps, np.zeros((4, 4, 3), np.uint8)))
    found = [item for item in heard(FakeSource(sound), ring, segmenter) if isinstance(item, Utterance)]
    assert found[0].span.forced
    assert not any(isinstance(item.frames, Missing) for item in found)


def test_frames_are_those_of_the_utterances_own_time(conversation: Pcm) -> None:
    ring = FrameRing(fps=10)
    for tick in range(60):  # the picture's colour says its time in tenths of a second
        image = np.full((224, 224, 3), tick, np.uint8)
        ring.put(VideoFrame(START_NS + tick * 100_000_000, image))
    items = heard(FakeSource(conversation), ring, SegmenterConfig())
    first = next(item for item in items if isinstance(item, Utterance))
    assert not isinstance(first.frames, Missing)
    assert first.frames.shape == (8, 224, 224, 3)
    tenths = [int(frame[0, 0, 0]) for frame in first.frames]
    assert tenths == sorted(tenths)
    assert tenths[0] >= first.span.start * 10 // SAMPLE_RATE_HZ - 1
    assert tenths[-1] <= first.span.end * 10 // SAMPLE_RATE_HZ + 1


def test_stale_frames_are_missing_not_served(conversation: Pcm) -> None:
    ring = FrameRing(fps=10)
    ring.put(VideoFrame(START_NS - 10_000_000_000, np.zeros((224, 224, 3), np.uint8)))
    items = heard(FakeSource(conversation), ring, SegmenterConfig())
    first = next(item for item in items if isinstance(item, Utterance))
    assert isinstance(first.frames, Missing)
    assert "missing" in first.frames.reason


def test_a_draft_is_the_utterance_that_follows_unless_speech_goes_on() -> None:
    pcm = np.concatenate((silence(1), speech(1), silence(0.35), speech(1), silence(1)))
    items = heard(FakeSource(pcm), Missing("none"), SegmenterConfig())
    assert [type(item) for item in items] == [Started, Draft, Onward, Draft, Utterance]
    early, late, whole = items[1], items[3], items[4]
    assert isinstance(early, Draft)
    assert isinstance(late, Draft)
    assert isinstance(whole, Utterance)
    assert early.span.end < whole.span.end
    assert late.span == whole.span
    assert np.array_equal(late.pcm, whole.pcm)
    assert late.channel == whole.channel


@pytest.mark.parametrize(
    ("adaptive", "said", "hangover_ms"),
    [
        (True, Transcription("It is over.", None), 420),
        (True, Transcription("It goes", None), 800),
        (True, Transcription("Thank you.", "too little speech"), 500),
        (True, Transcription("It is over.", None, certain=False), 500),
        (False, Transcription("It is over.", None), 500),
    ],
)
def test_the_words_of_a_draft_tell_when_the_utterance_ends(
    adaptive: bool, said: Transcription, hangover_ms: int
) -> None:
    source = FakeSource(np.concatenate((silence(1), speech(1), silence(2))), size=480)
    ears = Ears(Config(segmenter=SegmenterConfig(adaptive=adaptive)), source, Missing("none"))
    for block in source.blocks():
        for item in ears.hear(block):
            if isinstance(item, Draft):
                ears.take(item, said)
            if isinstance(item, Utterance):
                silent_ms = (block.first_sample + len(block.pcm) - item.span.voiced_end) * 1000 / SAMPLE_RATE_HZ
                assert hangover_ms <= silent_ms < hangover_ms + 30
                return
    raise AssertionError("no utterance")


def test_interims_come_each_second_with_the_number_of_the_utterance_and_end_with_it() -> None:
    pcm = np.concatenate((silence(1), speech(0.8), silence(1), speech(3.5), silence(1)))
    source = FakeSource(pcm)
    items = heard(source, Missing("none"), SegmenterConfig(), interim=True)
    interims = [item.so_far for item in items if isinstance(item, Interim)]
    whole = [item for item in items if isinstance(item, Utterance)][1]
    assert [interim.seq for interim in interims] == [1, 1, 1]
    assert [round((interim.end_ns - interim.start_ns) / 1e9) for interim in interims] == [1, 2, 3]
    for interim in interims:
        assert interim.span.start == whole.span.start
        assert np.array_equal(interim.pcm, whole.pcm[: len(interim.pcm)])
        assert isinstance(interim.frames, Missing)
    assert not any(isinstance(item, Interim) for item in heard(source, Missing("none"), SegmenterConfig()))


def test_channels_number_their_utterances_as_speech_begins() -> None:
    """The one that begins first may end last: an interim must know its number."""
    long, short = (
        np.concatenate((silence(at), speech(length), silence(6 - at - length))) for at, length in ((1, 4), (2, 1))
    )
    ears = Ears(Config(), FakeSource(long), Missing("none"))
    found: list[Heard] = []
    for block in FakeSource(long, 480).blocks():
        found += ears.hear(block)
        other = short[block.first_sample : block.first_sample + 480]
        found += ears.hear(AudioBlock(block.first_sample, other, block.captured_ns, block.arrived_ns, channel=1))
    assert [(item.channel, item.seq) for item in found if isinstance(item, Utterance)] == [(1, 1), (0, 0)]


def test_a_channel_that_gets_no_more_sound_ends_what_is_open_on_it() -> None:
    """As when its sound turns out to be a copy of the first channel's; else it would stay open for ever."""

    class OneLeaves(FakeSource):
        def blocks(self) -> Iterator[AudioBlock]:
            for number, block in enumerate(super().blocks()):
                yield block
                if number < 30:  # 1.5 s
                    yield replace(block, channel=1)

    pcm = np.concatenate([speech(2.0), silence(25.0)])
    items = heard(OneLeaves(pcm), Missing("no camera"), SegmenterConfig())
    first, second = (item for item in items if isinstance(item, Utterance))
    assert (first.channel, second.channel) == (1, 0)
    assert first.span.voiced_end == pytest.approx(30 * 777, abs=480)
    assert second.span.voiced_end == pytest.approx(2.0 * SAMPLE_RATE_HZ, abs=480)


# ------------------------------------------------------------------------------------------------ what is sent
