"""What goes from capture to worker: given, held and on its way. No socket in here.

Backlog       what was given to the link by any thread, and how much of it is not answered
HeldReports   what is no utterance, while there is no worker
Flight        what is on its way over one connection: a window onto the outbox
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from threading import Condition

from stream.journal import Outbox
from stream.wire import Ack, Frame, Message, Utterance, decode
from telme.errors import LinkError, WireError

_log = logging.getLogger(__name__)

# Utterances on their way at a time; the others wait in the outbox, so that a slow worker fills no memory.
WINDOW = 16


def forget_unreadable(outbox: Outbox) -> None:
    """Drop what is damaged or an earlier version kept, so that it cannot be read: no worker would ever answer it."""
    position = 0
    while some := outbox.after(position, WINDOW):
        for kept in some:
            position = kept.position
            try:
                decode(kept.frames)
            except WireError as error:
                _log.warning("utterance %d of session %s is lost: %s", kept.seq, kept.session, error)
                outbox.answered(kept.session, kept.seq)


class Backlog:
    """What the link was given: messages that its thread has not taken yet, and utterances that are not answered.

    All but `taken`, `settle` and `fail`, which are the link's thread's, are for any thread.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[Message, list[Frame]]] = deque()
        self._changed = Condition()
        self._unanswered = 0
        self._given_ns: deque[int] = deque()  # when those of this run that are not answered were given
        self._failure: Exception | None = None

    @property
    def waits(self) -> bool:
        """Whether there is a message to take."""
        return bool(self._queue)

    @property
    def unanswered(self) -> int:
        """Utterances whose answer has not come.

        Raises:
            LinkError: The link has stopped; says why.
        """
        self.check()
        return self._unanswered

    def check(self) -> None:
        """Raise what `unanswered` does."""
        if self._failure is not None:
            raise LinkError(f"the link stopped: {self._failure}", "a running link", "see the log") from self._failure

    def lag_ms(self, now_ns: int) -> int:
        """How long the oldest utterance of this run has waited for its answer; answers come in order."""
        with self._changed:
            return (now_ns - self._given_ns[0]) // 1_000_000 if self._given_ns else 0

    def give(self, message: Message, frames: list[Frame]) -> None:
        """Add a message, and count it if it wants an answer."""
        with self._changed:
            if isinstance(message, Utterance):
                self._unanswered += 1
                self._given_ns.append(time.monotonic_ns())
            self._queue.append((message, frames))

    def taken(self) -> Iterator[tuple[Message, list[Frame]]]:
        """Take the messages, oldest first, until there are none."""
        while self._queue:
            yield self._queue.popleft()

    def settle(self, outbox: Outbox) -> None:
        """Count anew what is not answered: what is in the outbox, and what is on its way there."""
        with self._changed:
            self._unanswered = outbox.pending() + sum(isinstance(message, Utterance) for message, _ in self._queue)
            while len(self._given_ns) > self._unanswered:
                self._given_ns.popleft()
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """Say that the link has stopped, to those who wait and to those who ask."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def wait_answered(self, patience_s: float) -> int:
        """Wait until every utterance is answered, or no answer came for so long; returns how many are not answered.

        Raises:
            LinkError: The link has stopped; says why.
        """
        with self._changed:
            while self._unanswered and self._failure is None and self._changed.wait(patience_s):
                pass
            return self.unanswered


class HeldReports:
    """What is no utterance, for a worker that is away: the newest so many.

    Attributes:
        frames: The messages, in order.
    """

    def __init__(self, most: int) -> None:
        self.frames: deque[list[Frame]] = deque(maxlen=most)
        self._lost = 0

    def hold(self, frames: list[Frame]) -> None:
        """Keep a message; the oldest makes room for it."""
        if len(self.frames) == self.frames.maxlen:
            if self._lost % len(self.frames) == 0:
                _log.warning("no worker for %d reports; expected one; the oldest are lost", len(self.frames))
            self._lost += 1
        else:
            self._lost = 0
        self.frames.append(frames)


class Flight:
    """Utterances sent and not answered yet. It begins anew with each connection, from the outbox's beginning.

    Args:
        send: Sends a message at once; False when the peer is gone.
        outbox: What was not answered.
    """

    def __init__(self, send: Callable[[list[Frame]], bool], outbox: Outbox) -> None:
        self._send = send
        self._outbox = outbox
        self._position = 0
        self._airborne: set[tuple[str, int]] = set()

    def pass_on(self, reports: deque[list[Frame]]) -> bool:
        """Send the reports, and utterances as far as the window allows; False when the peer is gone."""
        while reports:
            if not self._send(reports[0]):
                return False
            reports.popleft()
        for kept in self._outbox.after(self._position, max(WINDOW - len(self._airborne), 0)):
            if not self._send(list(kept.frames)):
                return False
            self._position = kept.position
            self._airborne.add((kept.session, kept.seq))
        return True

    def take_ack(self, frames: Sequence[Frame]) -> bool:
        """Take what the worker answered out of the outbox; False when this is no answer."""
        try:
            message, _ = decode(frames)
        except WireError as error:
            _log.warning("from the worker: %s", error)
            return False
        if not isinstance(message, Ack):
            return False
        self._outbox.answered(message.session, message.seq)
        self._airborne.discard((message.session, message.seq))
        return True
