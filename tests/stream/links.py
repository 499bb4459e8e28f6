"""Both ends of the link for its tests: fixtures (by way of conftest.py) and what reads and answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from stream import link as link_module
from stream.bus import Fault
from stream.journal import Outbox
from stream.link import CaptureLink, Received, WorkerLink
from stream.wire import PROTOCOL, Ack, Hello, Media, Report, Utterance, make_report
from telme.errors import WireError
from tests.stream.samples import AUDIO, NO_VIDEO, SESSION, WALL_NS, utterance

DEADLINE_MS = 20_000
DEADLINE_S = DEADLINE_MS / 1000
MAX_BYTES = 100_000
MEDIA: tuple[Media, Media] = (AUDIO, NO_VIDEO)
HELLO = Hello(PROTOCOL, SESSION, WALL_NS)


@pytest.fixture
def everything_ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A socket left open would keep its context from ending, and the program with it."""
    made: list[zmq.Context[Any]] = []
    make = zmq.Context

    def remember() -> zmq.Context[Any]:
        made.append(make())
        return made[-1]

    monkeypatch.setattr(zmq, "Context", remember)
    yield
    assert not [context for context in made if not context.closed]
    assert not [thread for thread in threading.enumerate() if thread.name == "link"]


@pytest.fixture(params=["ipc", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "ipc":
        return f"ipc://{tmp_path}/utterances"
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def parted(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a capture link has noticed that its worker is gone."""
    noticed = threading.Event()

    def watch(monitor: zmq.Socket[bytes]) -> Any:
        message = recv_monitor_message(monitor)
        if message["event"] & zmq.EVENT_DISCONNECTED:
            noticed.set()
        return message

    monkeypatch.setattr(link_module, "recv_monitor_message", watch)
    return noticed


def worker_at(address: str, max_bytes: int = MAX_BYTES) -> WorkerLink:
    return WorkerLink(address, "tcp://127.0.0.1:*", max_bytes)


def capture_to(address: str, folder: Path, max_bytes: int = MAX_BYTES) -> CaptureLink:
    return CaptureLink(address, HELLO, folder / "outbox", max_bytes)


def send(capture: CaptureLink, *seqs: int) -> None:
    for seq in seqs:
        capture.send(utterance(seq, media=MEDIA), MEDIA)


def report(number: int) -> Report:
    return make_report(SESSION, Fault(f"report {number}", number), WALL_NS)


def collect(worker: WorkerLink, count: int) -> list[Received | WireError]:
    """The next messages, Hello included."""
    found: list[Received | WireError] = []
    while len(found) < count:
        worker.wait(DEADLINE_MS)
        came = list(worker.receive())
        assert came, f"only {found}"
        found += came
    return found


def utterances_of(items: list[Received | WireError]) -> list[Received]:
    return [item for item in items if isinstance(item, Received) and isinstance(item.message, Utterance)]


def utterances(worker: WorkerLink, count: int) -> list[Received]:
    """The next utterances; what else comes is dropped."""
    found: list[Received] = []
    while len(found) < count:
        found += utterances_of(collect(worker, 1))
    return found


def seqs(items: list[Received]) -> list[int]:
    return [item.message.seq for item in items if isinstance(item.message, Utterance)]


def answer(worker: WorkerLink, *items: Received) -> None:
    for item in items:
        assert isinstance(item.message, Utterance)
        worker.answer(item.peer, Ack(PROTOCOL, item.message.session, item.message.seq))


def pending(folder: Path) -> int:
    with Outbox(folder / "outbox") as outbox:
        return outbox.pending()


@pytest.fixture
def stranger() -> Iterator[zmq.Socket[bytes]]:
    """A peer that speaks ZeroMQ and not our protocol."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        yield dealer
