"""The entry point. What `stream.cli` imports takes most of a second; Ctrl-C within it is no traceback either."""

from __future__ import annotations

import signal
import sys

from telme.errors import INTERRUPTED


def main() -> None:
    """Run the `telme-stream` command."""
    # `pkill -USR1 telme-stream` asks those that listen for a new dialogue; it must not end the others, such as `watch`.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        from stream import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
