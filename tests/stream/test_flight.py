"""The window onto the outbox, without a socket."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stream.flight import WINDOW, Flight, forget_unreadable
from stream.journal import Outbox
from stream.wire import PROTOCOL, Absent, Ack, Frame, encode
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
