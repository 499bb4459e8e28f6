"""What the capture process sends and gives up, without sockets, devices or Whisper."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from stream import bus, capture, wire
from stream.asr import Transcription
from stream.asr_thread import Transcribed
from stream.capture import Reporter, Sender
from stream.config import SegmenterConfig, SpeakersConfig
from stream.items import Draft, Interim, Missing, Pcm, Utterance
from stream.speakers import Conversation, OneSpeaker, SpeakersByVoice
from stream.voice import Voice
from tests.stream.hearing import FakeSource, heard

pytestmark = pytest.mark.usefixtures("level_detector")


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
