"""What is on its way from capture to worker over one connection: a window onto the outbox. No socket in here."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from stream.journal import Outbox
from stream.wire import Ack, Frame, decode
from telme.errors import WireError

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
