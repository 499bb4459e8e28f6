"""A recognizer that is held back by hand, who takes its results, and the thread between the two."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from stream.asr import Transcription
from stream.asr_thread import AsrThread, Transcribed
from stream.config import AsrConfig
from stream.items import Draft, Interim, Missing, Pcm, Span, Utterance
from telme.errors import LinkError, TranscriptionError

DEADLINE_S = 30.0
LONG_AGO_NS, FAR_AHEAD_NS = 2, 2**62


class FakeTranscriber:
    """Says the number of samples; fails on request; can be held back. `calls`: what it was asked, in order."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.fail = self.dies = self.rejects = False
        self.busy = threading.Event()
        self.calls: list[int] = []
        self.failures = 0

    def transcribe(self, pcm: Pcm) -> Transcription:
        self.calls.append(len(pcm))
        self.busy.set()
        assert self.go.wait(DEADLINE_S)
        if self.fail:
            self.failures += 1
            raise TranscriptionError("the fake failed", "a transcript", "nothing")
        if self.dies:
            raise MemoryError("std::bad_alloc")
        return Transcription(str(len(pcm)), "too unsure" if self.rejects else None)

    def glance(self, pcm: Pcm) -> Transcription:
        return self.transcribe(pcm)


class Delivered:
    """Collects what the thread delivers; can fail."""

    def __init__(self) -> None:
        self.results: list[tuple[int, Transcribed]] = []
        self.lost_ones: list[tuple[int, str]] = []
        self.interims: list[tuple[int, str]] = []
        self.drafts: list[int] = []
        self.came = threading.Event()
        self.broken = False

    def utterance(self, utterance: Utterance, transcribed: Transcribed) -> None:
        if self.broken:
            raise LinkError("the link stopped", "a link", "nothing")
        self.results.append((utterance.seq, transcribed))

    def lost(self, utterance: Utterance, reason: str) -> None:
        self.lost_ones.append((utterance.seq, reason))

    def interim(self, interim: Interim, transcribed: Transcribed) -> None:
        self.interims.append((interim.so_far.seq, transcribed.said.rejected or transcribed.said.text))
        self.came.set()

    def drafted(self, draft: Draft) -> None:
        self.drafts.append(draft.span.end)

    @property
    def texts(self) -> list[tuple[int, str]]:
        return [(seq, transcribed.said.text) for seq, transcribed in self.results]


def span(end: int) -> Span:
    return Span(0, end, 0, end, False)


def utterance(seq: int, end: int | None = None, channel: int = 0, decided_ns: int = LONG_AGO_NS) -> Utterance:
    """An utterance of `end` samples, one more than its number unless said otherwise."""
    length = seq + 1 if end is None else end
    pcm = np.zeros(length, np.int16)
    return Utterance(seq, channel, span(length), 0, 562_500, pcm, Missing("none"), 1, decided_ns, 0, 0)


def draft(end: int, channel: int = 0) -> Draft:
    return Draft(channel, span(end), np.zeros(end, np.int16))


class Room:
    """A thread with its fakes."""

    def __init__(self, queue_utterances: int, waits: bool) -> None:
        self.transcriber, self.delivered = FakeTranscriber(), Delivered()
        config = AsrConfig(queue_utterances=queue_utterances)
        self.asr = AsrThread(self.transcriber, config, self.delivered, waits)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """While this lasts, a first call does not end: utterance 99 of 1000 samples."""
        self.transcriber.go.clear()
        self.transcriber.busy.clear()
        self.asr.submit(utterance(99, 1000))
        assert self.transcriber.busy.wait(DEADLINE_S)
        yield
        self.transcriber.go.set()


@contextmanager
def room(queue_utterances: int = 32, waits: bool = True) -> Iterator[Room]:
    made = Room(queue_utterances, waits)
    with made.asr:
        yield made
        made.transcriber.go.set()
