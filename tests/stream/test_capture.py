"""The capture side in one process, without sockets, devices, networks or Whisper: blocks in, utterances out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from stream import bus, capture, wire
from stream.asr import Transcription
from stream.asr_thread import Transcribed
from stream.capture import Ears, Heard, Onward, Reporter, Sender
from stream.config import AsrConfig, CameraConfig, Config, SegmenterConfig, SpeakersConfig
from stream.frames import FrameRing
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Draft, Interim, Missing, Pcm, Stalled, Utterance, VideoFrame
from stream.segmenter import Started
from stream.speakers import Conversation, OneSpeaker, SpeakersByVoice
from stream.vad import Evidence
from stream.voice import Voice

NS_PER_SAMPLE = 62_500
START_NS = 5_000_000_000


@pytest.fixture(autouse=True)
def level_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the real speech decision: what is loud is speech."""
    monkeypatch.setattr(
        capture,
        "SpeechDetector",
        lambda aggressiveness: lambda frame: Evidence.STRONG if np.abs(frame).max() > 500 else Evidence.NONE,
    )


def speech(seconds: float) -> Pcm:
    """Loud noise, so that no two pieces of it are alike."""
    count = int(seconds * SAMPLE_RATE_HZ)
    return np.random.default_rng(count).normal(0, 3000, count).clip(-32768, 32767).astype(np.int16)


def silence(seconds: float) -> Pcm:
    return np.zeros(int(seconds * SAMPLE_RATE_HZ), np.int16)


class FakeSource:
    """A conversation in memory."""

    def __init__(self, pcm: Pcm, size: int = 777) -> None:
        self.overflows = 0
        self._pcm = pcm
        self._size = size

    def blocks(self) -> Iterator[AudioBlock]:
        for first in range(0, len(self._pcm), self._size):
            stamp = START_NS + first * NS_PER_SAMPLE
            arrived = stamp + self._size * NS_PER_SAMPLE
            yield AudioBlock(first, self._pcm[first : first + self._size], stamp, arrived)

    def stop(self) -> None:
        raise AssertionError("nobody stops this source")


def heard(
    source: FakeSource, frames: FrameRing | Missing, segmenter: SegmenterConfig, interim: bool = False
) -> list[Heard]:
    ears = Ears(Config(segmenter=segmenter, camera=CameraConfig(), asr=AsrConfig(interim=interim)), source, frames)
    found = [item for block in source.blocks() for item in ears.hear(block)]
    return [*found, *ears.end()]


@pytest.fixture
def conversation() -> Pcm:
    return np.concatenate((silence(1), speech(1.5), silence(1), speech(1.2), silence(0.2)))


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


class FakeLink:
    """Keeps what it is given; `unanswered` as a test says, and less by one with each look."""

    def __init__(self, unanswered: int = 0, worker_answers: bool = True) -> None:
        self.messages: list[wire.Message] = []
        self.looks = 0
        self.lag_ms = 0
        self._unanswered = unanswered
        self._worker_answers = worker_answers

    @property
    def unanswered(self) -> int:
        self.looks += 1
        return self._unanswered - self.looks * self._worker_answers

    def answer_lag_ms(self, now_ns: int) -> int:
        return self.lag_ms

    def send(self, message: wire.Message, media: Sequence[wire.Media] = ()) -> None:
        self.messages.append(message)


def sender_to(link: FakeLink, hurries: threading.Event) -> Sender:
    hello = wire.Hello(wire.PROTOCOL, "s1", 1)
    return Sender(link, Reporter(link, "s1"), hello, Conversation(OneSpeaker(), 0), hurries)


def test_a_voice_is_encoded_once_with_the_draft(conversation: Pcm) -> None:
    encoded: list[int] = []

    def encode(pcm: Pcm) -> Voice:
        encoded.append(len(pcm))
        return np.ones(2, np.float32)

    link = FakeLink()
    by_voice = Conversation(SpeakersByVoice(encode, SpeakersConfig(mode="cluster")), 0)
    sender = replace(sender_to(link, threading.Event()), conversation=by_voice)
    for item in heard(FakeSource(conversation), Missing("no camera"), SegmenterConfig()):
        if isinstance(item, Draft):
            sender.drafted(item)
        elif isinstance(item, Utterance):
            count = len(encoded)
            sender.utterance(item, said("hello"))
            assert len(encoded) == count
    assert len(encoded) == 2


def said(text: str) -> Transcribed:
    return Transcribed(Transcription(text, None), 7)


@pytest.fixture
def spoken(conversation: Pcm) -> Utterance:
    items = heard(FakeSource(conversation), Missing("no camera"), SegmenterConfig())
    return next(item for item in items if isinstance(item, Utterance))


def test_a_file_waits_for_the_worker_and_a_live_source_does_not(
    spoken: Utterance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "_ROOM_POLL_S", 0)
    slow, dead = FakeLink(capture.MOST_UNANSWERED + 10), FakeLink(capture.MOST_UNANSWERED, worker_answers=False)
    hurries = threading.Event()
    sender_to(slow, hurries).utterance(spoken, said("hello"))
    assert slow.looks == 11 + 1  # the last one is for what is kept of it
    hurries.set()
    sender_to(dead, hurries).utterance(spoken, said("hello"))
    for link in (slow, dead):
        (message,) = link.messages
        assert isinstance(message, wire.Utterance)
        assert (message.text, message.seq) == ("hello", spoken.seq)


@pytest.mark.parametrize(
    ("waiting", "pictures", "kept"),
    [
        (capture.MOST_WITH_PICTURES - 1, True, True),
        (capture.MOST_WITH_PICTURES, False, True),
        (capture.MOST_KEPT - 1, False, True),
        (capture.MOST_KEPT, False, False),
    ],
)
def test_a_live_source_without_a_worker_gives_up_pictures_first_and_then_utterances(
    spoken: Utterance, waiting: int, pictures: bool, kept: bool
) -> None:
    link = FakeLink(waiting, worker_answers=False)
    hurries = threading.Event()
    hurries.set()
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    sender_to(link, hurries).utterance(replace(spoken, frames=frames), said("hello"))
    (message,) = link.messages
    if kept:
        assert isinstance(message, wire.Utterance)
        told = wire.Absent("the worker is so far behind that pictures are left out")
        assert message.video == (wire.describe(frames) if pictures else told)
    else:
        assert isinstance(message, wire.Report)
        why = "512 utterances wait for the worker, at most 512 are kept for it"
        assert wire.report_data(message) == bus.Fault(why, spoken.seq)


def test_a_file_waits_for_what_an_earlier_run_left_and_loses_nothing(
    spoken: Utterance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "_ROOM_POLL_S", 0)
    link = FakeLink(capture.MOST_KEPT + 10)
    seen = replace(spoken, frames=np.zeros((1, 4, 4, 3), np.uint8))
    sender_to(link, threading.Event()).utterance(seen, said("hello"))
    (message,) = link.messages
    assert isinstance(message, wire.Utterance)
    assert isinstance(message.video, wire.Buffer)


def test_a_worker_that_falls_behind_is_told_once_until_it_has_caught_up(caplog: pytest.LogCaptureFixture) -> None:
    link, lateness = FakeLink(7, worker_answers=False), capture.Lateness()
    for link.lag_ms in (9_999, 10_000, 25_000, 100, 12_000):
        lateness.look(link)
    told = [record.getMessage() for record in caplog.records]
    assert [line.split(";")[0] for line in told] == [
        f"an utterance has waited {seconds} s for its answer, 7 wait" for seconds in (10, 12)
    ]
    assert all("smaller --bundle" in line for line in told)


def test_an_utterance_says_when_its_session_began_by_the_wall_clock_of_now(spoken: Utterance) -> None:
    link = FakeLink()
    hurries = threading.Event()
    late = replace(spoken, started_wall_ns=spoken.started_wall_ns + 8 * 3600 * 10**9)
    for utterance in (spoken, late):
        sender_to(link, hurries).utterance(utterance, said("hello"))
    first, second = (message.started_wall_ns for message in link.messages if isinstance(message, wire.Utterance))
    assert second - first == 8 * 3600 * 10**9


@pytest.mark.parametrize("certain", [True, False])
def test_unsure_words_are_sent_and_marked_but_make_no_guess(spoken: Utterance, certain: bool) -> None:
    link = FakeLink()
    transcribed = Transcribed(Transcription("hello", None, certain=certain), 7)
    sender = sender_to(link, threading.Event())
    sender.interim(Interim(spoken), transcribed)
    sender.utterance(spoken, transcribed)
    said = [(type(one), one.text, one.text_certain) for one in link.messages if isinstance(one, wire.Spoken)]
    guess = [(wire.Interim, "hello", True)] if certain else []
    assert said == [*guess, (wire.Utterance, "hello", certain)]


def test_what_is_lost_is_a_fault_that_names_its_utterance(spoken: Utterance) -> None:
    link = FakeLink()
    sender_to(link, threading.Event()).lost(spoken, "Whisper failed")
    (message,) = link.messages
    assert isinstance(message, wire.Report)
    assert wire.report_data(message) == bus.Fault("Whisper failed", spoken.seq)
