"""The thread that transcribes: what is on trial, and guesses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from stream.asr_thread import AsrThread
from stream.items import Interim
from tests.live import eventually
from tests.stream.transcribers import DEADLINE_S, FAR_AHEAD_NS, LONG_AGO_NS, Room, draft, room, utterance

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
