"""Waking a thread that waits on sockets or descriptors."""

from __future__ import annotations

import socket
from contextlib import suppress


class Wakeup:
    """Wakes whoever waits for `receiver` to become readable, from any thread or signal handler.

    Attributes:
        receiver: What to wait for.
    """

    def __init__(self) -> None:
        self.receiver, self._sender = socket.socketpair()
        self.receiver.setblocking(False)
        self._sender.setblocking(False)

    def wake(self) -> None:
        """End the wait, or the next one.

        Raises:
            OSError: It is closed.
        """
        with suppress(BlockingIOError):  # full of wake-ups that nobody has taken yet
            self._sender.send(b"!")

    def take(self) -> None:
        """Take the wake-ups so far; there must be one."""
        self.receiver.recv(4096)

    def close(self) -> None:
        """Wake nobody any more."""
        self.receiver.close()
        self._sender.close()
