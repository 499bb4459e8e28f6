"""Real sockets: what is bad harms its sender only, and what cannot be is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from stream import link as link_module
from stream.journal import Outbox
from stream.link import CaptureLink, Received
from stream.wire import PROTOCOL, Ack, Media, encode
from telme.errors import LinkError, WireError
from tests.live import eventually
from tests.stream.links import (
    DEADLINE_MS,
    DEADLINE_S,
    HELLO,
    MAX_BYTES,
    answer,
    capture_to,
    collect,
    pending,
    send,
    utterances,
    utterances_of,
    worker_at,
)
from tests.stream.samples import AUDIO, NO_VIDEO, SESSION, VIDEO, utterance

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("everything_ends")]


# ------------------------------------------------------------------------------------------------- bad peers


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([b"garbage"], "does not decode"),
        ([b""], "does not decode"),
        ([b"\xff" * 1000], "does not decode"),
        ([*encode(HELLO), *[b"a"] * 999], "999 frames more than the header describes"),
        (encode(utterance(), (AUDIO, VIDEO))[:2], "no frame for the pictures"),
    ],
)
def test_a_bad_message_is_an_error_and_the_others_go_on(
    address: str, tmp_path: Path, stranger: zmq.Socket[bytes], frames: list[bytes], says: str
) -> None:
    with worker_at(address) as worker, capture_to(address, tmp_path) as capture:
        stranger.connect(address)
        stranger.send_multipart(frames)
        found = collect(worker, 2)
        errors = [item for item in found if isinstance(item, WireError)]
        assert [says in str(error) for error in errors] == [True]
        send(capture, 0)
        answer(worker, *utterances(worker, 1))
        assert capture.wait_answered(DEADLINE_S) == 0


def test_a_link_that_dies_of_anything_ends_its_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object) -> None:
        raise MemoryError("no room for it")

    monkeypatch.setattr(link_module, "Flight", break_down)
    address = f"ipc://{tmp_path}/utterances"
    with worker_at(address), capture_to(address, tmp_path) as capture:
        eventually(lambda: not capture._thread.is_alive(), "its end")
        with pytest.raises(LinkError, match="the link stopped: no room for it"):
            send(capture, 0)


def test_a_frame_beyond_the_limit_parts_its_sender_only(
    address: str, tmp_path: Path, stranger: zmq.Socket[bytes]
) -> None:
    with worker_at(address) as worker, capture_to(address, tmp_path) as capture:
        monitor = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        stranger.connect(address)
        stranger.send(b"x" * (MAX_BYTES + 1))
        assert monitor.poll(DEADLINE_MS)
        stranger.disable_monitor()
        monitor.close()
        send(capture, 0)
        found = collect(worker, 2)
        assert [type(item) for item in found] == [Received, Received]
        answer(worker, *utterances_of(found))
        assert capture.wait_answered(DEADLINE_S) == 0


def test_a_message_beyond_the_limit_is_refused_at_once(address: str, tmp_path: Path) -> None:
    """Sent, it would be refused by the worker, and sent again, for ever."""
    loud: tuple[Media, Media] = (np.zeros(MAX_BYTES // 2 + 1, np.int16), NO_VIDEO)
    with capture_to(address, tmp_path) as capture:
        with pytest.raises(LinkError, match=r"100002 bytes; expected at most 100000 \(link\.max_message_bytes\)"):
            capture.send(utterance(0, media=loud), loud)
        assert capture.unanswered == 0
    assert pending(tmp_path) == 0


def test_a_message_of_the_limit_arrives(address: str, tmp_path: Path) -> None:
    loud: tuple[Media, Media] = (np.zeros(MAX_BYTES // 2, np.int16), NO_VIDEO)
    with worker_at(address) as worker, capture_to(address, tmp_path) as capture:
        capture.send(utterance(0, media=loud), loud)
        answer(worker, *utterances(worker, 1))
        assert capture.wait_answered(DEADLINE_S) == 0


def test_garbage_from_a_worker_is_survived(address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as router,
        capture_to(address, tmp_path) as capture,
    ):
        router.setsockopt(zmq.LINGER, 0)
        router.bind(address)
        send(capture, 0)
        peer = router.recv_multipart()[0]
        for frames in (
            [b"garbage"],
            encode(HELLO),
            encode(Ack(PROTOCOL, SESSION, 99)),
            encode(Ack(PROTOCOL, SESSION, 0)),
        ):
            router.send_multipart([peer, *frames])
        assert capture.wait_answered(DEADLINE_S) == 0
    assert "from the worker: a header that does not decode" in caplog.text


def test_a_peer_that_has_just_gone_is_not_waited_for(stranger: zmq.Socket[bytes]) -> None:
    assert not link_module._sender(stranger)([b"nobody is there"])


def test_a_flood_does_not_keep_the_worker_from_its_clock(address: str, stranger: zmq.Socket[bytes]) -> None:
    with worker_at(address) as worker:
        stranger.connect(address)
        for _ in range(1000):
            stranger.send(b"noise")
        turns: list[int] = []
        while sum(turns) < 1000:
            worker.wait(DEADLINE_MS)
            turns.append(len(list(worker.receive())))
        assert max(turns) <= 64


# A worker in a process of its own that says what comes.
_WORKER = """
import sys
from stream.link import WorkerLink
with WorkerLink(sys.argv[1], "tcp://127.0.0.1:*", 100_000) as worker:
    while True:
        worker.wait(60_000)
        for received in worker.receive():
            sys.stdout.write(type(received.message).__name__ + "\\n")
            sys.stdout.flush()
"""


def test_a_worker_that_froze_is_noticed_and_greeted_again(
    address: str, tmp_path: Path, parted: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose machine lost its network: nothing closes, nothing comes."""
    monkeypatch.setattr(link_module, "_HEARTBEAT_MS", 100)
    with ExitStack() as stack:
        worker = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", _WORKER, address], stdout=subprocess.PIPE, text=True)
        )
        stack.callback(worker.kill)
        stack.enter_context(capture_to(address, tmp_path))
        assert worker.stdout is not None
        assert worker.stdout.readline() == "Hello\n"
        os.kill(worker.pid, signal.SIGSTOP)
        assert parted.wait(DEADLINE_S)
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.stdout.readline() == "Hello\n"


# ------------------------------------------------------------------------------------------ what cannot be


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released with each connection that a capture link begins."""
    begun = threading.Semaphore(0)
    connect = link_module._connect

    def count(handle: zmq.Socket[Any], address: str) -> None:
        begun.release()
        connect(handle, address)

    monkeypatch.setattr(link_module, "_connect", count)
    return begun


def test_an_address_in_use_is_named() -> None:
    with worker_at("tcp://127.0.0.1:*") as worker, pytest.raises(LinkError, match="Address already in use") as error:
        worker_at(worker.utterances)
    assert worker.utterances in str(error.value)
    assert worker.utterances.startswith("tcp://127.0.0.1:")


@pytest.mark.parametrize(
    "address", ["nowhere", "tcp://127.0.0.1:http", "ipc:///no/such/folder/socket", "tcp://1.2.3.4:1"]
)
def test_an_address_that_cannot_be_bound_is_named(address: str) -> None:
    with pytest.raises(LinkError, match="cannot listen on") as error:
        worker_at(address)
    assert address in str(error.value)


def test_a_port_that_is_none_is_refused_at_both_ends(tmp_path: Path) -> None:
    """ZeroMQ would take 34463 for 99999."""
    with pytest.raises(LinkError, match=r"port 99999 in tcp.*; expected at most 65535"):
        worker_at("tcp://127.0.0.1:99999")
    with capture_to("tcp://127.0.0.1:99999", tmp_path) as capture:
        capture._thread.join(DEADLINE_S)
        with pytest.raises(LinkError, match="port 99999"):
            capture.wait_answered(DEADLINE_S)
    with worker_at(f"ipc://{tmp_path}/of:99999") as worker:
        assert worker.utterances.endswith("of:99999")  # a path


def test_an_address_that_is_none_ends_the_link_with_its_reason(tmp_path: Path) -> None:
    with capture_to("nowhere", tmp_path) as capture:
        capture._thread.join(DEADLINE_S)
        with pytest.raises(LinkError, match="cannot connect to nowhere"):
            capture.wait_answered(DEADLINE_S)
        with pytest.raises(LinkError, match="the link stopped: cannot connect to nowhere"):
            send(capture, 0)


def test_a_worker_that_is_not_there_is_told_of_once_each_time(
    address: str,
    tmp_path: Path,
    tries: threading.Semaphore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "_GREETING_DEADLINE_S", 0.1)
    with capture_to(address, tmp_path) as capture:
        eventually(lambda: "no worker at" in caplog.text, "a warning")
        assert all(tries.acquire(timeout=DEADLINE_S) for _ in range(5))
        send(capture, 0)
        told = f"no worker at {address}; expected one; what is said waits for it"
        with worker_at(address) as worker:
            assert len(utterances(worker, 1)) == 1
            assert caplog.text.count(told) == 1
        eventually(lambda: caplog.text.count(told) == 2, "another warning, since there was a worker")


def test_an_outbox_that_cannot_be_written_ends_the_link_with_its_reason(tmp_path: Path) -> None:
    with CaptureLink(f"ipc://{tmp_path}/u", HELLO, tmp_path / "none" / "outbox", MAX_BYTES) as capture:
        capture._thread.join(DEADLINE_S)
        with pytest.raises(LinkError, match=r"the link stopped: .*unable to open database file"):
            send(capture, 0)


def test_waiting_ends_when_the_link_fails(tmp_path: Path) -> None:
    """The disk is gone while an utterance waits for its answer."""
    with worker_at(f"ipc://{tmp_path}/u") as worker, capture_to(worker.utterances, tmp_path) as capture:
        send(capture, 0)
        found = utterances(worker, 1)
        with Outbox(tmp_path / "outbox") as other:
            other._rows("DROP TABLE outbox")
        answer(worker, *found)
        with pytest.raises(LinkError, match="no such table"):
            capture.wait_answered(threading.TIMEOUT_MAX)
        with pytest.raises(LinkError, match="no such table"):
            send(capture, 1)


def test_a_host_that_has_no_address_is_tried_again(
    tmp_path: Path, tries: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_GREETING_DEADLINE_S", 0.0)
    monkeypatch.setattr(link_module, "_POLL_MS", 10)
    with capture_to("tcp://no-such-host.invalid:5555", tmp_path):
        assert all(tries.acquire(timeout=DEADLINE_S) for _ in range(3))
