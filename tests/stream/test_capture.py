"""The capture side in one process, without sockets, devices or Whisper: blocks in, utterances out."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from stream.asr import Transcription
from stream.capture import AsrThread, Ears
from stream.config import AsrConfig, CameraConfig, Config, SegmenterConfig
from stream.frames import FrameRing
from stream.items import SAMPLE_RATE_HZ, AudioBlock, Missing, Pcm, Span, Utterance, VideoFrame
from stream.segmenter import Started
from telme.errors import LinkError, TranscriptionError

NS_PER_SAMPLE = 62_500
START_NS = 5_000_000_000


def speech(seconds: float) -> Pcm:
    """Sound that WebRTC's detector takes for a voice: a buzz with the formants of a vowel, slowly shaken."""
    time = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    buzz = sum(
        np.sin(2 * np.pi * 120 * k * time) * gain for k, gain in ((1, 1), (5, 0.8), (6, 0.9), (9, 0.5), (20, 0.2))
    )
    return (3000 * buzz * (0.7 + 0.3 * np.sin(2 * np.pi * 4 * time))).astype(np.int16)


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


def heard(source: FakeSource, frames: FrameRing | Missing, segmenter: SegmenterConfig) -> list[Started | Utterance]:
    ears = Ears(Config(segmenter=segmenter, camera=CameraConfig()), source, frames)
    found = [item for block in source.blocks() for item in ears.hear(block)]
    return [*found, *ears.end()]


@pytest.fixture
def conversation() -> Pcm:
    return np.concatenate((silence(1), speech(1.5), silence(1), speech(1.2), silence(0.2)))


def test_utterances_carry_their_own_sound_and_times(conversation: Pcm) -> None:
    items = heard(FakeSource(conversation), Missing("no camera"), SegmenterConfig())
    assert [type(item) for item in items] == [Started, Utterance, Started, Utterance]
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


class FakeTranscriber:
    """Says the number of samples; fails on request; can be held back."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.fail = False
        self.busy = threading.Event()

    def transcribe(self, pcm: Pcm) -> Transcription:
        self.busy.set()
        self.go.wait()
        if self.fail:
            raise TranscriptionError("the fake failed", "a transcript", "nothing")
        return Transcription(str(len(pcm)), None)


class Sent:
    """Collects what the thread sends; can fail."""

    def __init__(self) -> None:
        self.results: list[tuple[int, Transcription]] = []
        self.broken = False

    def __call__(self, utterance: Utterance, said: Transcription, started_ns: int) -> None:
        if self.broken:
            raise LinkError("the link stopped", "a link", "nothing")
        self.results.append((utterance.seq, said))


def utterance(seq: int) -> Utterance:
    return Utterance(seq, 0, Span(0, 9, 0, 9, False), 0, 562_500, np.zeros(seq + 1, np.int16), Missing("none"), 1, 2)


def test_utterances_are_transcribed_in_order() -> None:
    sent = Sent()
    with AsrThread(FakeTranscriber(), AsrConfig(queue_utterances=2), sent, waits=True) as asr:
        for seq in range(20):
            asr.submit(utterance(seq))
        asr.drain(30)
    assert [(seq, said.text) for seq, said in sent.results] == [(seq, str(seq + 1)) for seq in range(20)]


def test_a_live_source_never_waits_and_says_what_it_leaves_out() -> None:
    sent, transcriber = Sent(), FakeTranscriber()
    transcriber.go.clear()
    with AsrThread(transcriber, AsrConfig(queue_utterances=2), sent, waits=False) as asr:
        asr.submit(utterance(0))
        assert transcriber.busy.wait(30)
        for seq in range(1, 5):
            asr.submit(utterance(seq))
        left_out = [(seq, said.rejected) for seq, said in sent.results]
        transcriber.go.set()
        asr.drain(30)
    assert [seq for seq, _ in left_out] == [3, 4]
    assert all("2 utterances behind" in str(reason) for _, reason in left_out)
    assert sorted(seq for seq, said in sent.results if said.rejected is None) == [0, 1, 2]


def test_an_utterance_the_recognizer_fails_on_is_rejected_and_the_next_is_not() -> None:
    sent, transcriber = Sent(), FakeTranscriber()
    transcriber.fail = True
    with AsrThread(transcriber, AsrConfig(), sent, waits=True) as asr:
        asr.submit(utterance(0))
        asr.drain(30)
    assert sent.results[0][1].rejected == "the fake failed; expected a transcript; nothing"


def test_a_broken_link_ends_the_capture_and_does_not_hang_it() -> None:
    sent = Sent()
    sent.broken = True

    def listen() -> None:
        with AsrThread(FakeTranscriber(), AsrConfig(queue_utterances=1), sent, waits=True) as asr:
            for seq in range(10):
                asr.submit(utterance(seq))
            asr.drain(30)

    with pytest.raises(LinkError):
        listen()
