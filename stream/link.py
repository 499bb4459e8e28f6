"""Sockets. The only importer of zmq; each socket lives in the thread that made it.

CaptureLink   DEALER, in a thread of its own; sends again after a reconnect what was not answered
WorkerLink    ROUTER for utterances and XPUB for events, in the worker's one thread
Subscriber    SUB, for whoever wants the events
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from stream.bus import TOPIC_ROOT, Event, read_event, topic
from stream.flight import Backlog, Flight, HeldReports, forget_unreadable
from stream.journal import Outbox
from stream.wakeup import Wakeup
from stream.wire import Ack, Frame, Hello, Media, Message, Utterance, decode, encode, is_of_the_moment
from telme.errors import LinkError, TelmeStreamError, WireError

_log = logging.getLogger(__name__)

_RECONNECT_MS = 50
_GREETED = zmq.EVENT_HANDSHAKE_SUCCEEDED
_PARTED = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
# A connection that is not there after this is tried anew: a host name that does not resolve gives no event.
_GREETING_DEADLINE_S = 5.0
# At the end, reports wait so long for a worker that was not met yet, as in a run of a moment.
_LAST_REPORTS_S = 2.0
# A peer whose machine lost its power or network is noticed within twice this.
_HEARTBEAT_MS = 5000
_POLL_MS = 500
# Reports kept for a worker that is away; older ones are dropped, utterances never.
_MAX_REPORTS_HELD = 1000
_MAX_PORT = 65_535
# Messages handled before the worker looks at its clock and its supervisor again.
_MAX_TURN = 64
# Events a slow subscriber may lag behind before it loses its own.
_SUBSCRIBER_HIGH_WATER = 1000


def _options(handle: zmq.Socket[Any], max_message_bytes: int) -> None:
    handle.setsockopt(zmq.LINGER, 0)
    handle.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
    handle.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    handle.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)


def _bind(handle: zmq.Socket[Any], address: str) -> str:
    """Bind and return the address in full, with the port the system chose where `*` was given."""
    _check_port(address)
    try:
        handle.bind(address)
    except zmq.ZMQError as error:
        raise LinkError(
            f"cannot listen on {address}: {error}",
            "an address that is free and valid, such as tcp://127.0.0.1:5556",
            "stop the program that uses it or choose another with --utterances-address or --events-address",
        ) from error
    return handle.getsockopt_string(zmq.LAST_ENDPOINT)


def _connect(handle: zmq.Socket[Any], address: str) -> None:
    _check_port(address)
    try:
        handle.connect(address)
    except zmq.ZMQError as error:
        example = "an address such as tcp://HOST:5556"
        raise LinkError(f"cannot connect to {address}: {error}", example, "check it") from error


def _check_port(address: str) -> None:
    """Of a larger one ZeroMQ takes the lower 16 bits, without a word."""
    port = address.rpartition(":")[2]
    if address.startswith("tcp:") and port.isdecimal() and int(port) > _MAX_PORT:
        raise LinkError(f"port {port} in {address}", f"at most {_MAX_PORT}", "choose another")


class CaptureLink:
    """The capture side's end: give it messages from any thread, it keeps utterances until they are answered.

    Args:
        address: Where the worker listens.
        hello: Said at every (re)connect.
        outbox: File of the Outbox.
        max_message_bytes: Larger frames are refused, both ways.
    """

    def __init__(self, address: str, hello: Hello, outbox: Path, max_message_bytes: int) -> None:
        self._address = address
        self._hello = hello
        self._outbox_path = outbox
        self._max_message_bytes = max_message_bytes
        self._backlog = Backlog()
        self._held = HeldReports(_MAX_REPORTS_HELD)
        self._wakeup = Wakeup()
        self._stop = threading.Event()
        self._over_s = 0.0  # once `_stop` is set: when held reports are given up
        self._thread = threading.Thread(target=self._main, name="link", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over_s = time.monotonic() + _LAST_REPORTS_S
        self._stop.set()
        self._wakeup.wake()
        self._thread.join()
        self._wakeup.close()

    @property
    def unanswered(self) -> int:
        """Utterances whose answer has not come.

        Raises:
            LinkError: The link has stopped; says why.
        """
        return self._backlog.unanswered

    def answer_lag_ms(self, now_ns: int) -> int:
        """How long the oldest utterance of this run has waited for its answer; answers come in order."""
        return self._backlog.lag_ms(now_ns)

    def send(self, message: Message, media: Sequence[Media] = ()) -> None:
        """Send soon. An Utterance is journalled first and sent again until it is answered.

        Raises:
            LinkError: The message is too large, or the link has stopped; says why.
        """
        self._backlog.check()
        frames = encode(message, media)
        largest = max(len(frame) for frame in frames)
        if largest > self._max_message_bytes:
            limit = f"at most {self._max_message_bytes} (link.max_message_bytes)"
            raise LinkError(f"a message of {largest} bytes", limit, "raise it on both sides")
        self._backlog.give(message, frames)
        self._wakeup.wake()

    def wait_answered(self, patience_s: float) -> int:
        """Wait until every utterance is answered, or no answer came for so long; returns how many are not answered.

        Raises:
            LinkError: The link has stopped; says why.
        """
        return self._backlog.wait_answered(patience_s)

    def _main(self) -> None:
        try:
            with Outbox(self._outbox_path) as outbox, zmq.Context() as context:
                forget_unreadable(outbox)
                self._backlog.settle(outbox)
                apart_s, told = time.monotonic(), False
                while not self._is_over():
                    with context.socket(zmq.DEALER) as dealer:
                        met = self._converse(dealer, outbox)
                    if met:
                        apart_s, told = time.monotonic(), False
                    elif not told and time.monotonic() >= apart_s + _GREETING_DEADLINE_S:
                        _log.warning("no worker at %s; expected one; what is said waits for it", self._address)
                        told = True
                    time.sleep(_RECONNECT_MS / 1000)
                if self._held.frames:
                    _log.warning(
                        "no worker for the last %d reports; expected one; they are lost", len(self._held.frames)
                    )
        except (TelmeStreamError, zmq.ZMQError) as error:
            self._fail(error)
        # A link that ends in silence would leave a capture process that nobody hears.
        except Exception as error:  # noqa: BLE001
            _log.debug("the link's thread", exc_info=True)
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        _log.error("link: %s", error)
        self._backlog.fail(error)

    def _is_over(self) -> bool:
        """Whether to stop with all taken: what was sent just before the end is in the outbox for the next run."""
        if not self._stop.is_set() or self._backlog.waits:
            return False
        return not self._held.frames or time.monotonic() >= self._over_s

    def _converse(self, dealer: zmq.Socket[bytes], outbox: Outbox) -> bool:
        """One connection; False when there was none. The next one begins with what was not answered, in order.

        ZeroMQ's own reconnection is off: its pipe would deliver what was sent last before what is sent again.
        """
        _options(dealer, self._max_message_bytes)
        dealer.setsockopt(zmq.SNDHWM, 0)
        dealer.setsockopt(zmq.RECONNECT_IVL, -1)
        monitor = dealer.get_monitor_socket(_GREETED | _PARTED)
        poller = zmq.Poller()
        for handle in (dealer, monitor, self._wakeup.receiver):
            poller.register(handle, zmq.POLLIN)
        flight: Flight | None = None
        parted, deadline_s = False, time.monotonic() + _GREETING_DEADLINE_S
        try:
            _connect(dealer, self._address)
            while not parted and not self._is_over():
                ready = dict(poller.poll(None if flight else _POLL_MS))
                if monitor in ready:
                    happened = recv_monitor_message(monitor)["event"]
                    parted = bool(happened & _PARTED)
                    if happened & _GREETED:
                        flight = Flight(_sender(dealer), outbox)
                        parted = not flight.pass_on(deque([encode(self._hello)]))
                if dealer in ready and flight and _answered(dealer, flight):
                    self._backlog.settle(outbox)
                if self._wakeup.receiver.fileno() in ready:
                    self._wakeup.take()
                self._take_queued(outbox, has_peer=flight is not None and not parted)
                late = flight is None and time.monotonic() >= deadline_s
                parted = parted or late or (flight is not None and not flight.pass_on(self._held.frames))
        finally:
            dealer.disable_monitor()
            monitor.close()
            dealer.setsockopt(zmq.LINGER, 1000 if flight and not parted else 0)
        return flight is not None

    def _take_queued(self, outbox: Outbox, has_peer: bool) -> None:
        """Journal the utterances given to `send`; hold the rest until there is a peer, but what is of the moment."""
        for message, frames in self._backlog.taken():
            if isinstance(message, Utterance):
                outbox.put(message.session, message.seq, frames)
            elif has_peer or not is_of_the_moment(message):
                self._held.hold(frames)


def _sender(dealer: zmq.Socket[bytes]) -> Callable[[list[Frame]], bool]:
    """Sends a message without waiting: a DEALER whose peer has just gone would wait for another one for ever."""

    def send(frames: list[Frame]) -> bool:
        try:
            dealer.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    return send


def _answered(dealer: zmq.Socket[bytes], flight: Flight) -> bool:
    try:
        return flight.take_ack(dealer.recv_multipart(zmq.NOBLOCK))
    except zmq.Again:
        return False


@dataclass(frozen=True)
class Received:
    """A message with its sound and pictures, and the peer that sent it."""

    peer: bytes
    message: Message
    media: tuple[Media, ...]


class WorkerLink:
    """The worker's end: utterances in, answers and events out. For one thread.

    Args:
        utterances, events: Addresses to bind.
        max_message_bytes: A peer that sends a larger frame is disconnected.

    Raises:
        LinkError: An address cannot be bound.
    """

    def __init__(self, utterances: str, events: str, max_message_bytes: int) -> None:
        self._context = zmq.Context()
        try:
            self._router = self._context.socket(zmq.ROUTER)
            self._bus = self._context.socket(zmq.XPUB)
            _options(self._router, max_message_bytes)
            _options(self._bus, max_message_bytes)
            self._bus.setsockopt(zmq.SNDHWM, _SUBSCRIBER_HIGH_WATER)
            self._bus.setsockopt(zmq.XPUB_VERBOSER, 1)
            self.utterances = _bind(self._router, utterances)
            self.events = _bind(self._bus, events)
        except LinkError:
            self._context.destroy(linger=0)
            raise
        self.subscribers = 0
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._bus, zmq.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The last events are given a moment to leave.
        self._context.destroy(linger=1000)

    def watch(self, descriptor: int) -> None:
        """Let `wait` return when this file descriptor becomes readable."""
        self._poller.register(descriptor, zmq.POLLIN)

    def wait(self, timeout_ms: int) -> None:
        """Wait for a message, a subscriber or a watched descriptor."""
        self._poller.poll(timeout_ms)

    def wait_for_subscriber(self, timeout_ms: int) -> None:
        """Wait for a subscriber to come or go; messages stay where they are."""
        self._bus.poll(timeout_ms)

    def new_subscribers(self) -> bool:
        """Take note of who subscribed and left; True when somebody subscribed."""
        came = False
        while self._bus.poll(0):
            said = self._bus.recv()[:1]
            self.subscribers += (said == b"\x01") - (said == b"\x00")
            came = came or said == b"\x01"
        return came

    def receive(self) -> Iterator[Received | WireError]:
        """Messages that wait, at most _MAX_TURN; a bad one comes as the error that names what is wrong."""
        for _ in range(_MAX_TURN):
            if not self._router.poll(0):
                return
            peer, *frames = self._router.recv_multipart(copy=True)
            try:
                message, media = decode(frames)
            except WireError as error:
                yield error
            else:
                yield Received(peer, message, media)

    def answer(self, peer: bytes, ack: Ack) -> None:
        """Tell a capture process that an utterance is answered. One that is gone is told when it asks again."""
        self._router.send_multipart([peer, *encode(ack)])

    def publish(self, event_type: str, session: str, json: bytes) -> None:
        """Put an event on the bus; a subscriber that lags too far behind loses it."""
        self._bus.send_multipart([topic(event_type, session), json])


class Subscriber:
    """Receives events. For one thread.

    Args:
        address: Where the worker publishes.
        types: Event types wanted; none means all.

    Raises:
        LinkError: The address is not one.
    """

    def __init__(self, address: str, types: Sequence[str] = ()) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        _options(self._socket, -1)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        try:
            _connect(self._socket, address)
        except LinkError:
            self.__exit__()
            raise
        for prefix in [f"{TOPIC_ROOT}.{event_type}." for event_type in types] or [f"{TOPIC_ROOT}."]:
            self._socket.setsockopt_string(zmq.SUBSCRIBE, prefix)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def receive(self, timeout_ms: int) -> tuple[Event, bytes] | None:
        """The next event and its JSON, or None when none came in time.

        Raises:
            WireError: What came is not an event of this schema.
        """
        if not self._socket.poll(timeout_ms):
            return None
        frames = self._socket.recv_multipart()
        if len(frames) != 2:
            raise WireError(f"{len(frames)} frames on the event bus", "topic and JSON", "check the address")
        return read_event(frames[1]), frames[1]
