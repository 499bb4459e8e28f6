"""The thread that transcribes what is confirmed: order, room, failures and lag."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from stream.asr_thread import AsrThread
from stream.items import Interim
from telme.errors import LinkError, TranscriptionError
from tests.live import eventually
from tests.stream.transcribers import DEADLINE_S, draft, room, utterance


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
