"""The window onto the outbox, without a socket."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from select import select

import numpy as np
import pytest

from stream.flight import WINDOW, Backlog, Flight, forget_unreadable
from stream.journal import Outbox
from stream.wakeup import Wakeup
from stream.wire import PROTOCOL, Absent, Ack, Frame, encode
from telme.errors import LinkError
from tests.stream.samples import SESSION, utterance


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "outbox.sqlite") as made:
        for seq in range(WINDOW + 3):
            made.put(SESSION, seq, [str(seq).encode()])
        yield made


def ack(seq: int) -> list[Frame]:
    return encode(Ack(PROTOCOL, SESSION, seq))


def test_answers_open_the_window_and_empty_the_outbox(outbox: Outbox) -> None:
    sent: list[list[Frame]] = []

    def send(frames: list[Frame]) -> bool:
        sent.append(frames)
        return True

    flight = Flight(send, outbox)
    assert flight.pass_on(deque([[b"report"]]))
    assert sent == [[b"report"], *([str(seq).encode()] for seq in range(WINDOW))]
    assert flight.take_ack(ack(1))
    assert flight.take_ack(ack(0))
    assert flight.pass_on(deque())
    assert sent[WINDOW + 1 :] == [[b"16"], [b"17"]]
    assert outbox.pending() == WINDOW + 1


def test_what_an_earlier_version_left_is_told_and_forgotten(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    media = (np.zeros(8, np.int16), Absent("no camera"))
    for seq in (5, 18):
        outbox.put(SESSION, seq, encode(utterance(seq, media=media), media))
    forget_unreadable(outbox)
    assert [kept.seq for kept in outbox.after(0, 100)] == [5, 18]
    assert len(caplog.records) == WINDOW + 1
    assert caplog.messages[0].startswith(f"utterance 0 of session {SESSION} is lost: ")


def test_what_is_damaged_is_told_and_forgotten(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    media = (np.zeros(8, np.int16), Absent("no camera"))
    for seq in range(WINDOW + 3):
        outbox.put(SESSION, seq, encode(utterance(seq, media=media), media))
    outbox._database.execute("UPDATE outbox SET frames = x'ffff' WHERE seq = 2")
    forget_unreadable(outbox)
    assert [kept.seq for kept in outbox.after(0, 4)] == [0, 1, 3, 4]
    (message,) = caplog.messages
    assert message.startswith(f"utterance 2 of session {SESSION} is lost: an utterance in the outbox that does not")


def test_what_is_no_answer_takes_nothing_out(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    flight = Flight(lambda frames: True, outbox)
    assert not flight.take_ack([b"garbage"])
    assert "from the worker: " in caplog.text
    assert outbox.pending() == WINDOW + 3


@pytest.mark.parametrize("room", [0, 1, 5])
def test_a_peer_that_is_gone_keeps_the_rest(outbox: Outbox, room: int) -> None:
    sent: list[list[Frame]] = []

    def send(frames: list[Frame]) -> bool:
        if len(sent) == room:
            return False
        sent.append(frames)
        return True

    reports: deque[list[Frame]] = deque([[b"a"], [b"b"]])
    assert not Flight(send, outbox).pass_on(reports)
    assert len(sent) == room
    assert list(reports) == [[b"a"], [b"b"]][room:]
    assert outbox.pending() == WINDOW + 3  # the next connection begins with them


def test_a_backlog_counts_what_waits_in_it_and_what_waits_in_the_outbox(tmp_path: Path) -> None:
    backlog = Backlog()
    with Outbox(tmp_path / "outbox.sqlite") as outbox:
        for seq in range(2):
            backlog.give(utterance(seq), [b"frames"])
        backlog.give(Ack(PROTOCOL, SESSION, 0), [b"no utterance"])
        assert (backlog.unanswered, backlog.waits) == (2, True)
        taken = backlog.taken()
        outbox.put(SESSION, 0, next(taken)[1])
        backlog.settle(outbox)
        assert (backlog.unanswered, backlog.waits) == (2, True)
        outbox.answered(SESSION, 0)
        backlog.settle(outbox)
        assert backlog.unanswered == 1
        assert [frames for _, frames in taken] == [[b"frames"], [b"no utterance"]]
        backlog.settle(outbox)
    assert (backlog.wait_answered(0.0), backlog.waits, backlog.lag_ms(0)) == (0, False, 0)


def test_who_waits_for_a_backlog_hears_why_the_link_has_stopped() -> None:
    backlog = Backlog()
    backlog.give(utterance(0), [])
    assert backlog.wait_answered(0.0) == 1
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(backlog.wait_answered, 60.0)
        backlog.fail(OSError("no room"))
        with pytest.raises(LinkError, match="the link stopped: no room"):
            waits.result(30)


def test_wake_ups_that_nobody_takes_hold_nobody_up() -> None:
    wakeup = Wakeup()
    try:
        for _ in range(100_000):
            wakeup.wake()
        wakeup.take()
        wakeup.wake()
        assert select([wakeup.receiver], [], [], 0)[0]
    finally:
        wakeup.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        wakeup.wake()
