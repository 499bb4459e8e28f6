"""The line between the supervisor and a child process: preparing, ready, go, dialogue, remember, stop, done,
failed.

It ends when either end dies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Literal

import msgspec
from msgspec import Struct

from telme.errors import ProcessError

_TELL_EVERY_S = 10.0


class Word(Struct, frozen=True, forbid_unknown_fields=True):
    """What one end says to the other.

    "preparing": the start takes long, and goes on. "dialogue": a new one begins. "done": only the end of the process is
    left. `facts`: for "ready" addresses and names; for "remember" what a process that is started in the place of this
    one has to know; for "failed" the error.
    """

    kind: Literal["preparing", "ready", "go", "dialogue", "remember", "stop", "done", "failed"]
    facts: dict[str, str]


def say(connection: Connection, word: Word) -> None:
    """Send a word."""
    connection.send_bytes(msgspec.msgpack.encode(word))


def hear(connection: Connection) -> Word:
    """Receive a word; blocks until there is one."""
    return msgspec.msgpack.decode(connection.recv_bytes(), type=Word)


class Control:
    """The child's end.

    Attributes:
        orphaned: The supervisor is gone.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._go = False
        self._stop = False
        self._dialogues = 0
        self.orphaned = False

    def fileno(self) -> int:
        """For a poller."""
        return self._connection.fileno()

    def preparing(self) -> None:
        """Tell the supervisor that the start goes on, so that it waits longer: engines may take minutes to compile, and
        models to come.
        """
        self._send(Word("preparing", {}))

    def ready(self, facts: dict[str, str]) -> None:
        """Tell the supervisor that this process can work."""
        self._send(Word("ready", facts))

    def remember(self, facts: dict[str, str]) -> None:
        """Tell the supervisor what the next process in this one's place has to know, in the place of what was told
        before. A supervisor that is gone starts none.
        """
        with suppress(ProcessError):
            self._send(Word("remember", facts))

    def done(self) -> None:
        """Tell the supervisor that nothing is lost with this process from now on, if it is there to hear it."""
        with suppress(ProcessError):
            self._send(Word("done", {}))

    def failed(self, facts: dict[str, str]) -> None:
        """Tell the supervisor why this process ends."""
        self._send(Word("failed", facts))

    def wait_go(self) -> bool:
        """Wait for the word to begin; False when the word was to stop."""
        while not self._go and not self._stop:
            self._listen(None)
        return not self._stop

    def wait_stop(self, on_dialogue: Callable[[], None] = lambda: None) -> None:
        """Wait for the word to stop, or the supervisor's death.

        Args:
            on_dialogue: Called for each word that a new dialogue begins.
        """
        while not self._stop:
            for _ in range(self._dialogues):
                on_dialogue()
            self._dialogues = 0
            self._listen(None)

    def stop_asked(self) -> bool:
        """True once the supervisor said stop or is gone."""
        while not self._stop and self._listen(0):
            pass
        return self._stop

    def _send(self, word: Word) -> None:
        try:
            say(self._connection, word)
        except OSError as error:
            raise ProcessError("the supervisor is gone", "a running supervisor", "start telme-stream again") from error

    def _listen(self, timeout_s: float | None) -> bool:
        try:
            if not self._connection.poll(timeout_s):
                return False
            word = hear(self._connection)
        except (EOFError, OSError):
            self._stop = self.orphaned = True
            return True
        self._go = self._go or word.kind == "go"
        self._stop = self._stop or word.kind == "stop"
        self._dialogues += word.kind == "dialogue"
        return True


@contextmanager
def meanwhile(preparing: Callable[[], None]) -> Iterator[None]:
    """Tell that the start goes on for as long as what runs inside takes, which has no occasion to: a download.

    Args:
        preparing: Control.preparing; called in a thread. That the supervisor is gone is met by the next word.
    """
    over = threading.Event()

    def tell() -> None:
        with suppress(ProcessError):
            preparing()
            while not over.wait(_TELL_EVERY_S):
                preparing()

    thread = threading.Thread(target=tell, name="preparing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
