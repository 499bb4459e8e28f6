"""The signals that a run obeys. Its processes hear none of them; commands without processes end by Python's own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from stream.wakeup import Wakeup

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Counts SIGINT, SIGTERM and SIGHUP, and SIGUSR1 apart, and wakes a waiter; the handlers do nothing else."""

    def __init__(self) -> None:
        self.dialogues = 0
        self._signals = 0
        self._requested = False
        self.wakeup = Wakeup()

    @property
    def count(self) -> int:
        """Signals to stop. A request is as the first of them, and never the second: what reads standard output often
        ends by the very Ctrl-C that this process gets too.
        """
        return max(self._signals, int(self._requested))

    def request(self) -> None:
        """Ask for a stop from within."""
        self._requested = True
        self._wake()

    def _wake(self) -> None:
        with suppress(OSError):  # closed: nobody waits any more
            self.wakeup.wake()

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        self._wake()

    def _handle_dialogue(self, _number: int, _frame: FrameType | None) -> None:
        self.dialogues += 1
        self._wake()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside."""
        # What nohup made deaf stays so.
        heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._handle) for number in heard}
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._handle_dialogue)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.wakeup.close()
