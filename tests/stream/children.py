"""What the supervisor's tests run in real processes. Each takes the child's end of the line last."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Barrier, Event, Thread
from types import SimpleNamespace

import stream
from stream.config import Config
from stream.control import Control, hear
from stream.items import Session
from stream.processes import capture_main, worker_main

FAILURE = {"seen": "no microphone", "expected": "one", "remedy": "plug one in", "exit_code": "2"}


def obedient(line: Connection) -> None:
    """Ready, then `went` once told to go; ends when told to stop."""
    control = Control(line)
    control.ready({"state": "ready"})
    if control.wait_go():
        control.ready({"state": "went"})
        control.wait_stop()


def named(name: str, line: Connection) -> None:
    """Says its argument; ends when told to stop."""
    control = Control(line)
    control.ready({"name": name})
    control.wait_stop()


def heir(name: str, line: Connection) -> None:
    """Says its argument; asks for a longer one to be remembered; ends when told to stop."""
    control = Control(line)
    control.remember({"name": f"{name}, then"})
    control.remember({"name": f"{name}, again"})
    control.ready({"name": name})
    control.wait_stop()


def slow_to_start(line: Connection) -> None:
    """Says three times that it is preparing, each time once it is told something; then it is ready."""
    control = Control(line)
    for _ in range(3):
        control.preparing()
        hear(line)
    control.ready({"state": "ready"})
    control.wait_stop()


def talkative(line: Connection) -> None:
    """Says how many new dialogues it was told of; ends when told to stop."""
    control = Control(line)
    told: list[int] = []
    control.ready({"dialogues": "0"})

    def on_dialogue() -> None:
        told.append(len(told))
        control.ready({"dialogues": str(len(told))})

    if control.wait_go():
        control.wait_stop(on_dialogue)


def brief(line: Connection) -> None:
    """Ends by itself once told to go."""
    control = Control(line)
    control.ready({})
    control.wait_go()


def brief_worker(_config: Config, _folder: Path, _debug: bool, line: Connection) -> None:
    """In the place of the worker's main; ends by itself once told to go."""
    brief(line)


def failing(line: Connection) -> None:
    """Says why it ends, once told to go."""
    control = Control(line)
    control.ready({})
    control.wait_go()
    control.failed(FAILURE)
    sys.exit(1)


def failing_at_stop(line: Connection) -> None:
    """Says why it ends, once told to stop."""
    control = Control(line)
    control.ready({})
    control.wait_stop()
    control.failed(FAILURE)
    sys.exit(1)


def failing_at_start(line: Connection) -> None:
    """Says why it ends, before it is ready."""
    Control(line).failed(FAILURE)
    sys.exit(1)


def dying(line: Connection) -> None:
    """Killed once told to go."""
    control = Control(line)
    control.ready({})
    control.wait_go()
    os.kill(os.getpid(), signal.SIGKILL)


def dying_at_start(_line: Connection) -> None:
    """Ends with code 3 before it is ready."""
    sys.exit(3)


def mute(line: Connection) -> None:
    """Never ready."""
    Control(line).wait_stop()


def deaf(line: Connection) -> None:
    """Hears the word to stop, says so, and goes on."""
    control = Control(line)
    control.ready({"state": "ready"})
    control.wait_stop()
    control.ready({"state": "heard"})
    Event().wait()


def over(line: Connection) -> None:
    """A worker whose work is over at once, and which does not end."""
    setattr(stream, "worker", SimpleNamespace(run=lambda *given: given[-1].ready({"state": "ready"})))  # noqa: B010
    worker_main(Config(), Path(), False, line)
    Event().wait()


def counting_heaps(line: Connection) -> None:
    """A capture that is ready once it knows how many heaps its threads allocate from."""
    setattr(stream, "capture", SimpleNamespace(run=lambda *given: given[-1].ready({"heaps": str(heaps())})))  # noqa: B010
    capture_main(Config(), Session(None, fast=False, pictures=False), Path(), False, line)


def heaps() -> int:
    """Heaps of glibc's that four threads and this one have memory from."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    together = Barrier(4)

    def allocate() -> None:
        together.wait()  # so that none takes over the heap of one that has ended
        libc.malloc(ctypes.c_size_t(100))
        together.wait()

    threads = [Thread(target=allocate) for _ in range(together.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    libc.fopen.restype = ctypes.c_void_p
    with NamedTemporaryFile("r", encoding="ascii") as report:
        told = ctypes.c_void_p(libc.fopen(os.fsencode(report.name), b"w"))
        libc.malloc_info(0, told)
        libc.fclose(told)
        return report.read().count("<heap nr=")


def failing_for_ever(line: Connection) -> None:
    """Says why it ends before it is ready, and does not end."""
    Control(line).failed(FAILURE)
    Event().wait()


def ready_and_failing_for_ever(line: Connection) -> None:
    """Says why it ends once told to go, and does not end."""
    control = Control(line)
    control.ready({})
    control.wait_go()
    control.failed(FAILURE)
    Event().wait()


def done_for_ever(line: Connection) -> None:
    """Says that it is done once told to go, and does not end."""
    control = Control(line)
    control.ready({})
    control.wait_go()
    control.done()
    Event().wait()


def done_and_ending(line: Connection) -> None:
    """Says that it is done once told to go, and ends once told to stop."""
    control = Control(line)
    control.ready({})
    control.wait_go()
    control.done()
    control.wait_stop()


def done_and_failing(line: Connection) -> None:
    """Says that it is done once told to go, and then why it fails."""
    control = Control(line)
    control.ready({})
    control.wait_go()
    control.done()
    control.failed(FAILURE)
    sys.exit(1)


def done_and_dying(line: Connection) -> None:
    """Says that it is done once told to go or to stop, and is killed, as by a library that ends badly."""
    control = Control(line)
    control.ready({})
    control.wait_go()
    control.done()
    os.kill(os.getpid(), signal.SIGKILL)


def masked(line: Connection) -> None:
    """Says whether what the whole group gets was blocked from its first instruction on."""
    group = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
    blocked = group <= set(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    Control(line).ready({"blocked": str(blocked)})
