"""Real sockets: what is sent arrives, in order, however often the worker dies."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from stream import flight
from stream import link as link_module
from stream.bus import Status
from stream.journal import Outbox
from stream.link import Received, WorkerLink
from stream.wire import Media, Utterance, make_report
from tests.live import eventually
from tests.stream.links import (
    DEADLINE_S,
    HELLO,
    answer,
    capture_to,
    collect,
    pending,
    report,
    send,
    seqs,
    utterances,
    utterances_of,
    worker_at,
)
from tests.stream.samples import AUDIO, SESSION, VIDEO, WALL_NS, utterance
from tests.stream.workers import interim

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("everything_ends")]


# ----------------------------------------------------------------------------------------------- utterances


def test_an_utterance_is_journalled_before_it_arrives_and_forgotten_when_answered(address: str, tmp_path: Path) -> None:
    media: tuple[Media, Media] = (AUDIO, VIDEO)
    with worker_at(address) as worker, capture_to(worker.utterances, tmp_path) as capture:
        capture.send(utterance(3, media=media), media)
        hello, received = collect(worker, 2)
        assert isinstance(hello, Received)
        assert isinstance(received, Received)
        assert hello.message == HELLO
        assert received.message == utterance(3, media=media)
        np.testing.assert_array_equal(received.media[0], AUDIO)
        np.testing.assert_array_equal(received.media[1], VIDEO)
        assert pending(tmp_path) == capture.unanswered == 1
        answer(worker, received)
        assert capture.wait_answered(threading.TIMEOUT_MAX) == 0
        assert pending(tmp_path) == capture.unanswered == 0


def test_the_lag_is_of_the_oldest_utterance_of_this_run_without_an_answer(address: str, tmp_path: Path) -> None:
    with capture_to(address, tmp_path) as capture:
        send(capture, 0)  # and left for the next run
    with worker_at(address) as worker, capture_to(address, tmp_path) as capture:
        (left,) = utterances(worker, 1)
        assert capture.answer_lag_ms(10**18) == 0
        before_ns = time.monotonic_ns()
        send(capture, 1)
        between_ns = time.monotonic_ns()
        send(capture, 2)
        after_ns = time.monotonic_ns()
        found = [left, *utterances(worker, 2)]
        for oldest_ns, answered in (((before_ns, between_ns), left), ((between_ns, after_ns), found[1])):
            answer(worker, answered)
            while capture.unanswered > 3 - found.index(answered) - 1:
                capture.wait_answered(0.01)
            now_ns = after_ns + 10**9
            least, most = ((now_ns - given_ns) // 10**6 for given_ns in reversed(oldest_ns))
            assert least <= capture.answer_lag_ms(now_ns) <= most
        answer(worker, found[2])
        assert capture.wait_answered(DEADLINE_S) == 0
        assert capture.answer_lag_ms(10**18) == 0


def test_a_worker_that_starts_later_gets_everything_in_order(address: str, tmp_path: Path) -> None:
    with capture_to(address, tmp_path) as capture:
        send(capture, 0, 1, 2)
        with worker_at(address) as worker:
            found = utterances(worker, 3)
            assert seqs(found) == [0, 1, 2]
            answer(worker, *found)
            assert capture.wait_answered(DEADLINE_S) == 0


def test_a_worker_that_comes_back_gets_what_was_not_answered_then_what_is_new(address: str, tmp_path: Path) -> None:
    with capture_to(address, tmp_path) as capture:
        with worker_at(address) as worker:
            send(capture, 0, 1, 2)
            answer(worker, utterances(worker, 3)[1])
            assert capture.wait_answered(0) > 0
            while capture.unanswered > 2:
                capture.wait_answered(0.01)
        send(capture, 3, 4)
        with worker_at(address) as worker:
            found = utterances(worker, 4)
            send(capture, 5)
            found += utterances(worker, 1)
            assert seqs(found) == [0, 2, 3, 4, 5]
            answer(worker, *found)
            assert capture.wait_answered(DEADLINE_S) == 0


def test_a_capture_process_that_comes_back_sends_what_it_left(address: str, tmp_path: Path) -> None:
    with capture_to(address, tmp_path) as capture:
        send(capture, 0, 1)
    with Outbox(tmp_path / "outbox") as outbox:
        assert outbox.pending() == 2
        outbox.put(SESSION, 9, [b"of an earlier version"])
    with worker_at(address) as worker, capture_to(address, tmp_path) as capture:
        send(capture, 2)
        found = utterances(worker, 3)
        assert seqs(found) == [0, 1, 2]
        assert capture.unanswered == 3
        answer(worker, *found)
        assert capture.wait_answered(DEADLINE_S) == 0


def test_a_slow_worker_is_not_given_more_than_the_window(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "WINDOW", 2)
    with worker_at(address) as worker, capture_to(address, tmp_path) as capture:
        send(capture, *range(7))
        order = []
        for _ in range(7):
            found = utterances(worker, 1)
            while worker._router.poll(50):
                found += utterances(worker, 1)
            assert len(found) <= 2
            order += seqs(found)
            answer(worker, *found)
            if len(order) == 7:
                break
        assert order == list(range(7))
        assert capture.wait_answered(DEADLINE_S) == 0


def test_workers_that_come_and_go_lose_and_reorder_nothing(address: str, tmp_path: Path) -> None:
    """Each life takes some and answers some, then dies; the next leaves out none of the rest."""
    total = 120
    random = np.random.default_rng(5)
    answered: set[int] = set()

    def talk() -> None:
        for seq in range(total):
            send(capture, seq)
            capture.send(report(seq))

    def live(worker: WorkerLink, takes: int) -> None:
        life: list[int] = []
        while len(life) < takes:
            for item in utterances(worker, 1):
                life += seqs([item])
                if random.random() < 0.8:
                    answer(worker, item)
                    answered.update(seqs([item]))
        assert life == sorted(set(life))
        assert set(range(life[-1])) <= before | set(life)

    with capture_to(address, tmp_path) as capture:
        talker = threading.Thread(target=talk)
        talker.start()
        while len(answered) < total - 16:
            before = set(answered)
            with worker_at(address) as worker:
                live(worker, int(random.integers(1, 16)))
        talker.join()
        with worker_at(address) as worker:
            while capture.wait_answered(0.01):
                answer(worker, *utterances_of(list(worker.receive())))
    assert pending(tmp_path) == 0


# -------------------------------------------------------------------------------------------------- reports


def test_reports_made_while_the_worker_is_away_arrive_later(
    address: str, tmp_path: Path, parted: threading.Event
) -> None:
    with capture_to(address, tmp_path) as capture:
        with worker_at(address) as worker:
            collect(worker, 1)
        assert parted.wait(DEADLINE_S)
        for number in range(3):
            capture.send(report(number))
        with worker_at(address) as worker:
            found = [item.message for item in collect(worker, 4) if isinstance(item, Received)]
    assert found == [HELLO, report(0), report(1), report(2)]


def test_guesses_and_heartbeats_are_not_kept_for_a_worker_that_is_away(
    address: str, tmp_path: Path, parted: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_MAX_REPORTS_HELD", 5)
    beat = make_report(SESSION, Status("capture", "running", {}, {}), WALL_NS)
    with capture_to(address, tmp_path) as capture:
        with worker_at(address) as worker:
            collect(worker, 1)
            capture.send(beat)
            assert [item.message for item in collect(worker, 1) if isinstance(item, Received)] == [beat]
        assert parted.wait(DEADLINE_S)
        capture.send(report(0))
        for seq in range(10):
            capture.send(beat)
            capture.send(interim(seq, "so far"))
        capture.send(report(1))
        send(capture, 0)
        eventually(lambda: pending(tmp_path) == 1, "the link has taken all of it")
        with worker_at(address) as worker:
            found = [item.message for item in collect(worker, 4) if isinstance(item, Received)]
    assert [message for message in found if not isinstance(message, Utterance)] == [HELLO, report(0), report(1)]


def test_only_the_newest_reports_are_held_and_the_others_are_told_of(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link_module, "_MAX_REPORTS_HELD", 5)
    with capture_to(address, tmp_path) as capture:
        for number in range(20):
            capture.send(report(number))
        with worker_at(address) as worker:
            found = [item.message for item in collect(worker, 6) if isinstance(item, Received)]
    assert found == [HELLO, *(report(number) for number in range(15, 20))]
    told = [record.getMessage() for record in caplog.records if "are lost" in record.getMessage()]
    assert told == ["no worker for 5 reports; expected one; the oldest are lost"] * 3  # 15 of them, 5 at a time


def test_reports_are_taken_while_the_link_is_busy(address: str, tmp_path: Path) -> None:
    """Each wakes it, and a socket holds so many wake-ups."""
    capture = capture_to(address, tmp_path)
    for number in range(900):
        capture.send(report(number))
    with worker_at(address) as worker, capture:
        found = [item.message for item in collect(worker, 901) if isinstance(item, Received)]
    assert found == [HELLO, *map(report, range(900))]


def test_the_last_reports_leave_before_the_link_closes(address: str, tmp_path: Path) -> None:
    with worker_at(address) as worker:
        with capture_to(address, tmp_path) as capture:
            collect(worker, 1)
            for number in range(50):
                capture.send(report(number))
        assert len(collect(worker, 50)) == 50


def test_reports_of_a_run_that_is_over_before_it_has_met_the_worker_arrive(address: str, tmp_path: Path) -> None:
    """A file of a moment: it was never said to be opened, nor to have ended."""
    with worker_at(address) as worker:
        for run in range(5):
            with capture_to(worker.utterances, tmp_path) as capture:
                capture.send(report(run))
            _, received = collect(worker, 2)
            assert isinstance(received, Received)
            assert received.message == report(run)
