"""The entry point. What `stream.cli` imports takes most of a second; Ctrl-C within it is no traceback either."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from telme.errors import INTERRUPTED


def main() -> None:
    """Run the `telme-stream` command."""
    # `pkill -USR1 telme-stream` asks those that listen for a new dialogue; it must not end the others, such as `watch`.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        from stream import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception:
        # A library that is being imported may swallow the interrupt, and then fail as it is half imported.
        if not interrupts:
            raise
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
