"""The thread that transcribes: order, room, drafts and guesses, with a recognizer that is held back by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from stream.asr import Transcription
from stream.asr_thread import AsrThread, Transcribed
from stream.config import AsrConfig
from stream.items import Draft, Interim, Missing, Pcm, Span, Utterance
from telme.errors import LinkError, TranscriptionError
from tests.live import eventually

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


# ---------------------------------------------------------------------------------------------- confirmed work


def test_utterances_are_transcribed_in_order() -> None:
    with room(queue_utterances=2) as here:
        for seq in range(20):
            here.asr.submit(utterance(seq))
        here.asr.drain(DEADLINE_S)
        assert not here.asr._thread.is_alive()  # it was woken to end
    assert here.delivered.texts == [(seq, str(seq + 1)) for seq in range(20)]


def test_a_live_source_never_waits_and_says_what_it_leaves_out() -> None:
    with room(queue_utterances=2, waits=False) as here:
        with here.held_back():
            for seq in range(4):
                here.asr.submit(utterance(seq))
            left_out = list(here.delivered.lost_ones)
        here.asr.drain(DEADLINE_S)
    assert [seq for seq, _ in left_out] == [2, 3]
    assert all("2 utterances behind" in reason for _, reason in left_out)
    assert [seq for seq, _ in here.delivered.results] == [99, 0, 1]


def test_an_utterance_the_recognizer_fails_on_is_lost_aloud_and_the_next_is_not() -> None:
    with room() as here:
        here.transcriber.fail = True
        here.asr.submit(utterance(0))
        here.asr.submit(utterance(1))
        eventually(lambda: len(here.delivered.lost_ones) == 2, "both are lost")
        here.transcriber.fail = False
        here.asr.submit(utterance(2))
        here.asr.drain(DEADLINE_S)
    reason = "the fake failed; expected a transcript; nothing"
    assert here.delivered.lost_ones == [(0, reason), (1, reason)]
    assert here.delivered.texts == [(2, "3")]


def test_after_a_draft_that_the_recognizer_failed_on_it_is_asked_again() -> None:
    with room() as here:
        here.transcriber.fail = True
        here.asr.try_out(draft(1))
        here.asr.settle()
        here.transcriber.fail = False
        here.asr.submit(utterance(0))
        here.asr.drain(DEADLINE_S)
    assert here.delivered.texts == [(0, "1")]
    assert here.transcriber.calls == [1, 1]
    assert here.asr.tried() == []
    assert (here.asr.counters["drafts"], here.asr.counters["drafts_used"]) == (0, 0)


@pytest.mark.parametrize("wait", [lambda asr: asr.drain(DEADLINE_S), lambda asr: asr.settle()], ids=["drain", "settle"])
def test_a_broken_link_ends_the_capture_and_does_not_hang_it(wait: Callable[[AsrThread], None]) -> None:
    def listen() -> None:
        with room(queue_utterances=1) as here:
            here.delivered.broken = True
            for seq in range(10):
                here.asr.submit(utterance(seq))
            here.asr.try_out(draft(1))
            wait(here.asr)

    with pytest.raises(LinkError):
        listen()


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize(
    "wait", [lambda asr: asr.drain(DEADLINE_S), lambda asr: asr.settle(), lambda asr: asr.submit(utterance(9))]
)
def test_a_recognizer_that_dies_ends_the_capture_and_does_not_hang_it(
    wait: Callable[[AsrThread], None], waits: bool
) -> None:
    def listen() -> None:
        with room(queue_utterances=1, waits=waits) as here:
            here.transcriber.dies = True
            here.asr.try_out(draft(1))
            with pytest.raises(TranscriptionError):
                here.asr.settle()
            wait(here.asr)

    with pytest.raises(TranscriptionError, match=r"the recognizer died of MemoryError: std::bad_alloc"):
        listen()


def test_who_waits_for_room_hears_that_the_recognizer_died() -> None:
    refused: list[str] = []

    def submit() -> None:
        try:
            here.asr.submit(utterance(1))
        except TranscriptionError as error:
            refused.append(str(error))

    with room(queue_utterances=1) as here:
        here.transcriber.dies = True
        waiter = threading.Thread(target=submit, daemon=True)
        with here.held_back():
            here.asr.submit(utterance(0))
            waiter.start()
        waiter.join(DEADLINE_S)
    assert ["the recognizer died" in reason for reason in refused] == [True]


def test_a_thread_that_is_left_without_draining_ends_and_leaves_what_waits() -> None:
    with room() as here:
        with here.held_back():
            here.asr.submit(utterance(0))
            here.asr.__exit__()
        here.asr._thread.join(DEADLINE_S)
    assert not here.asr._thread.is_alive()
    assert here.transcriber.calls == [1000]


def test_what_is_lost_when_the_recognizer_hangs_is_counted_and_a_guess_is_no_loss() -> None:
    with room(waits=False) as here, here.held_back():
        here.asr.submit(utterance(1))
        with pytest.raises(TranscriptionError, match="2 utterances are lost"):
            here.asr.drain(0.01)
    with room() as here:
        here.transcriber.go.clear()
        here.asr.guess(Interim(utterance(3)), worker_busy=False)
        assert here.transcriber.busy.wait(DEADLINE_S)
        here.asr.drain(0.01)


def test_the_lag_is_that_of_the_oldest_utterance_not_transcribed() -> None:
    with room() as here:
        assert here.asr.lag_ms(10**9) == 0
        with here.held_back():
            here.asr.submit(utterance(1, decided_ns=10**9))
            assert here.asr.lag_ms(5_000_002) == 5
            assert here.asr.waiting == 1
        here.asr.drain(DEADLINE_S)
        assert here.asr.lag_ms(10**9) == 0


@pytest.mark.parametrize(("waits", "warnings"), [(False, 1), (True, 0)], ids=["live", "file"])
def test_only_a_source_that_does_not_wait_warns_of_a_lag(
    waits: bool, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    now_ns = time.monotonic_ns()
    with room(waits=waits) as here, caplog.at_level("WARNING"):
        here.asr.submit(utterance(0, decided_ns=now_ns - 6_000_000_000))
        here.asr.submit(utterance(1, decided_ns=now_ns + 60_000_000_000))
        here.asr.drain(DEADLINE_S)
    assert ["ms behind" in record.message for record in caplog.records] == [True] * warnings


# ----------------------------------------------------------------------------------------------------- drafts


def test_a_draft_that_was_the_end_is_not_transcribed_again() -> None:
    with room() as here:
        here.asr.try_out(draft(5))
        here.asr.settle()
        here.asr.submit(utterance(0, 5, decided_ns=FAR_AHEAD_NS))
        here.asr.drain(DEADLINE_S)
    assert here.transcriber.calls == [5]
    assert here.delivered.texts == [(0, "5")]
    assert here.asr.counters == {"drafts": 1, "drafts_used": 1, "interims_skipped": 0}
    assert [(drafted.span.end, said.text) for drafted, said in here.asr.tried()] == [(5, "5")]
    assert here.asr.tried() == []


def test_settling_waits_for_the_draft_that_runs() -> None:
    with room() as here:
        here.transcriber.go.clear()
        here.asr.try_out(draft(5))
        assert here.transcriber.busy.wait(DEADLINE_S)
        threading.Timer(0.05, here.transcriber.go.set).start()
        here.asr.settle()
        assert [said.text for _, said in here.asr.tried()] == ["5"]


def test_only_a_draft_with_words_is_worth_doing_more_ahead() -> None:
    with room() as here:
        here.transcriber.rejects = True
        here.asr.try_out(draft(4))
        here.asr.settle()
        here.transcriber.rejects = False
        here.asr.try_out(draft(5))
        here.asr.settle()
    assert here.delivered.drafts == [5]


def test_a_draft_of_another_span_or_channel_is_dropped() -> None:
    with room() as here:
        here.asr.try_out(draft(5))
        here.asr.try_out(draft(6, channel=1))
        here.asr.settle()
        here.asr.submit(utterance(0, 7))
        here.asr.submit(utterance(1, 5, channel=2))
        here.asr.submit(utterance(2, 5))  # a draft is of the utterance that comes next
        here.asr.drain(DEADLINE_S)
    assert here.transcriber.calls == [5, 6, 7, 5, 5]
    assert here.asr.counters["drafts_used"] == 0


def test_a_draft_waits_for_all_that_is_confirmed_and_only_the_newest_waits() -> None:
    with room() as here:
        with here.held_back():
            here.asr.try_out(draft(50))
            here.asr.try_out(draft(51))
            here.asr.try_out(draft(60, channel=1))
            here.asr.submit(utterance(0, 7, channel=2))
        here.asr.settle()
        here.asr.drain(DEADLINE_S)
    assert here.transcriber.calls == [1000, 7, 51, 60]


def test_a_draft_is_withdrawn_when_speech_goes_on() -> None:
    with room() as here:
        with here.held_back():
            here.asr.try_out(draft(50))
            here.asr.try_out(draft(60, channel=1))
            here.asr.withdraw(0)
        here.asr.settle()
        here.asr.drain(DEADLINE_S)
    assert here.transcriber.calls == [1000, 60]


def test_a_draft_whose_utterance_is_confirmed_first_is_not_run_twice() -> None:
    with room() as here:
        with here.held_back():
            here.asr.try_out(draft(5))
            here.asr.submit(utterance(0, 5))
        here.asr.settle()
        here.asr.drain(DEADLINE_S)
    assert here.transcriber.calls == [1000, 5]


def test_an_end_decided_while_its_draft_runs_waits_for_it_and_says_how_much_was_hidden() -> None:
    with room() as here:
        here.transcriber.go.clear()
        here.asr.try_out(draft(5))
        assert here.transcriber.busy.wait(DEADLINE_S)
        decided_ns = time.monotonic_ns()
        here.asr.submit(utterance(0, 5, decided_ns=decided_ns))
        here.transcriber.go.set()
        here.asr.drain(DEADLINE_S)
    assert here.transcriber.calls == [5]
    ((_, transcribed),) = here.delivered.results
    assert transcribed.started_ns == decided_ns
    assert transcribed.hidden_ns > 0


def test_what_ran_before_the_decision_is_hidden_and_what_ran_after_is_not() -> None:
    with room() as here:
        here.asr.try_out(draft(5))
        here.asr.settle()
        here.asr.submit(utterance(0, 5, decided_ns=FAR_AHEAD_NS))
        here.asr.submit(utterance(1, 6))
        eventually(lambda: len(here.delivered.results) == 2, "both are there")
        here.asr.try_out(draft(7))
        here.asr.settle()
        here.asr.submit(utterance(2, 7))
        here.asr.drain(DEADLINE_S)
    before, without, after = (transcribed for _, transcribed in here.delivered.results)
    assert before.hidden_ns > 0
    assert without.hidden_ns == after.hidden_ns == 0
    assert after.started_ns > LONG_AGO_NS
    assert here.transcriber.calls == [5, 6, 7]


def test_the_end_does_not_wait_for_drafts() -> None:
    with room() as here:
        with here.held_back():
            here.asr.try_out(draft(50))
        here.asr.drain(DEADLINE_S)
    assert here.transcriber.calls[0] == 1000
    assert here.delivered.texts == [(99, "1000")]


# ----------------------------------------------------------------------------------------------------- interims


def test_an_idle_thread_guesses() -> None:
    with room() as here:
        here.asr.guess(Interim(utterance(3)), worker_busy=False)
        assert here.delivered.came.wait(DEADLINE_S)
    assert here.delivered.interims == [(3, "4")]
    assert here.delivered.results == []
    assert here.asr.counters["interims_skipped"] == 0


def test_a_busy_thread_or_worker_does_not_guess_and_counts_it() -> None:
    with room() as here:
        with here.held_back():
            here.asr.guess(Interim(utterance(3)), worker_busy=False)
        here.asr.drain(DEADLINE_S)
    assert here.transcriber.calls == [1000]
    assert here.asr.counters["interims_skipped"] == 1
    with room() as here:
        here.asr.guess(Interim(utterance(3)), worker_busy=True)
        here.asr.drain(DEADLINE_S)
    assert here.transcriber.calls == []
    assert here.asr.counters["interims_skipped"] == 1


@pytest.mark.parametrize(
    "give",
    [
        lambda asr: asr.submit(utterance(1)),
        lambda asr: asr.try_out(draft(5)),
        lambda asr: asr.guess(Interim(utterance(2)), worker_busy=False),
    ],
    ids=["utterance", "draft", "guess"],
)
def test_nothing_is_guessed_while_anything_waits(give: Callable[[AsrThread], None]) -> None:
    here = Room(queue_utterances=32, waits=True)  # not started, so that what is given waits
    give(here.asr)
    here.asr.guess(Interim(utterance(3)), worker_busy=False)
    assert here.asr.counters["interims_skipped"] == 1


@pytest.mark.parametrize(("over", "guessed"), [(3, []), (4, [(3, "4")])])
def test_a_guess_that_waits_is_dropped_when_its_utterance_is_over(over: int, guessed: list[tuple[int, str]]) -> None:
    with room() as here:
        with here.held_back():
            here.asr._interim = Interim(utterance(3))  # it waits: the thread has not seen it yet
            here.asr.submit(utterance(over))
        eventually(lambda: not (here.asr.waiting or here.asr._running or here.asr._interim), "nothing waits or runs")
    assert here.delivered.texts == [(99, "1000"), (over, str(over + 1))]
    assert here.delivered.interims == guessed


def test_a_guess_that_fails_ends_nothing() -> None:
    with room() as here:
        here.transcriber.fail = True
        here.asr.guess(Interim(utterance(3)), worker_busy=False)
        eventually(lambda: here.transcriber.failures == 1, "it was asked")
        here.transcriber.fail = False
        here.asr.submit(utterance(4))
        here.asr.drain(DEADLINE_S)
    assert here.delivered.interims == []
    assert here.delivered.texts == [(4, "5")]
