"""The mains of the two processes: the only places that catch every exception.

What a process needs is imported inside it: torch must not reach the capture process, nor either the supervisor.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from stream.config import Config
from stream.control import Control
from stream.items import Session
from stream.machine import keep_no_caches, keep_one_heap, stop_telemetry
from telme.errors import ProcessError, TelmeStreamError


def set_up_logging(debug: bool) -> None:
    """Log to standard error: warnings and the addresses of a process that runs alone, or everything with --debug."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if debug else logging.WARNING,
        format="telme-stream: %(processName)s: %(levelname)s: %(message)s",
    )
    logging.getLogger("stream.app").setLevel(logging.INFO)  # what a process that runs alone listens on


def capture_main(config: Config, session: Session, folder: Path, debug: bool, line: Connection) -> None:
    """Process 1."""
    control = Control(line)
    keep_no_caches()
    keep_one_heap()
    with _reported(control, debug):
        from stream import capture

        capture.run(config, session, folder, control)


def worker_main(config: Config, folder: Path, debug: bool, line: Connection) -> None:
    """Process 2."""
    control = Control(line)
    # torch makes this folder when it is imported, else in the common temporary folder, and leaves it there.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torchinductor"))
    with _reported(control, debug):
        from stream import worker

        worker.run(config, folder, control)


@contextmanager
def _reported(control: Control, debug: bool) -> Iterator[None]:
    for number in (signal.SIGINT, signal.SIGUSR1):  # the supervisor's, also when the whole group is sent one
        signal.signal(number, signal.SIG_IGN)
    stop_telemetry()
    set_up_logging(debug)
    log = logging.getLogger(__name__)
    try:
        yield
        control.done()
    except TelmeStreamError as error:
        log.info("ended by an error", exc_info=True)
        facts = {"seen": error.seen, "expected": error.expected, "remedy": error.remedy}
        try:
            control.failed(facts | {"exit_code": str(error.exit_code)})
        except ProcessError:  # nobody hears it
            log.error("%s", error)
        sys.exit(1)
    except Exception as error:  # what nobody foresaw, at the outermost border: one line instead of a traceback
        log.error("unexpected %s: %s", type(error).__name__, error, exc_info=debug)
        sys.exit(1)
