"""The event bus on real sockets."""

from __future__ import annotations

import socket

import pytest
import zmq

from stream.bus import Fault
from stream.link import Subscriber, WorkerLink
from telme.errors import LinkError, WireError
from tests.stream.links import (
    DEADLINE_MS,
    worker_at,
)
from tests.stream.samples import event_json

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("everything_ends")]


# ------------------------------------------------------------------------------------------------ event bus


def joined(worker: WorkerLink) -> None:
    while not worker.new_subscribers():
        worker.wait(DEADLINE_MS)


def test_subscribers_get_the_types_they_asked_for() -> None:
    with worker_at("tcp://127.0.0.1:*") as worker:
        with Subscriber(worker.events) as everything, Subscriber(worker.events, ["fault"]) as faults:
            while worker.subscribers < 2:
                worker.wait(DEADLINE_MS)
                worker.new_subscribers()
            sent = [event_json(Fault(f"{number}", None), number) for number in range(3)]
            worker.publish("status", "s", sent[0])
            worker.publish("fault", "s", sent[1])
            worker.publish("fault", "t", sent[2])
            heard = [everything.receive(DEADLINE_MS) for _ in range(3)]
            assert [item[1] for item in heard if item] == sent
            told = [faults.receive(DEADLINE_MS) for _ in range(2)]
            assert [item[1] for item in told if item] == sent[1:]
            assert faults.receive(0) is None
        while worker.subscribers:
            worker.wait(DEADLINE_MS)
            assert not worker.new_subscribers()


def test_a_slow_subscriber_loses_its_own_events_only() -> None:
    total, large = 6_000, "x" * 5_000
    with zmq.Context() as context, worker_at("tcp://127.0.0.1:*") as worker, Subscriber(worker.events) as quick:
        joined(worker)
        with context.socket(zmq.SUB) as slow:
            slow.setsockopt(zmq.LINGER, 0)
            slow.setsockopt(zmq.RCVHWM, 1)
            slow.setsockopt(zmq.RCVBUF, 4096)
            slow.connect(worker.events)
            slow.setsockopt(zmq.SUBSCRIBE, b"")
            joined(worker)
            heard = []
            for seq in range(total):
                worker.publish("fault", "s", event_json(Fault(large, None), seq))
                received = quick.receive(DEADLINE_MS)
                assert received is not None
                heard.append(received[0].seq)
            assert heard == list(range(total))
            lost = total
            while slow.poll(200):
                slow.recv_multipart()
                lost -= 1
            assert 0 < lost < total


def test_a_subscriber_that_talks_back_is_not_counted() -> None:
    with zmq.Context() as context, worker_at("tcp://127.0.0.1:*") as worker, context.socket(zmq.XSUB) as talker:
        talker.setsockopt(zmq.LINGER, 0)
        talker.connect(worker.events)
        for said in (b"hello", b"", b"\x01telme."):
            talker.send(said)
        joined(worker)
        assert worker.subscribers == 1


@pytest.mark.parametrize("frames", [[b"telme.fault.s"], [b"telme.fault.s", b"{}"], [b"telme.fault.s", b"{}", b"{}"]])
def test_what_is_no_event_is_an_error_for_the_subscriber(frames: list[bytes]) -> None:
    with zmq.Context() as context, context.socket(zmq.XPUB) as bus:
        bus.setsockopt(zmq.LINGER, 0)
        port = bus.bind_to_random_port("tcp://127.0.0.1")
        with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
            assert bus.recv() == b"\x01telme."
            bus.send_multipart(frames)
            with pytest.raises(WireError):
                subscriber.receive(DEADLINE_MS)
            bus.send_multipart([b"telme.fault.s", event_json(Fault("x", None))])
            assert subscriber.receive(DEADLINE_MS) is not None


def test_waiting_ends_for_a_watched_descriptor() -> None:
    near, far = socket.socketpair()
    with near, far, worker_at("tcp://127.0.0.1:*") as worker:
        worker.watch(near.fileno())
        far.send(b"!")
        worker.wait(600_000)
        assert near.recv(1) == b"!"


def test_a_subscriber_of_what_is_no_address_is_refused() -> None:
    with pytest.raises(LinkError, match="cannot connect to nowhere"):
        Subscriber("nowhere")
