"""Runs the telme-stream command as a user does, and sees what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as ThreadEvent

import msgspec
import pytest

from stream.bus import Emotion, Event, read_event
from stream.cli import main
from tests.live import eventually

COMMAND = (sys.executable, "-m", "stream")
DEADLINE_S = 150
EXAMPLES = Path(__file__).parents[1] / "examples"
ANY_PORT = ("--events-address", "tcp://127.0.0.1:*")
_LEFT_DEADLINE_S = 5.0
_MARK = "TELME_TEST_RUN"


@dataclass
class Run:
    """A running command.

    Attributes:
        folder: The only place where it may make temporary files.
        process: The command; leader of its own process group, as in a terminal.
    """

    folder: Path
    process: subprocess.Popen[str]
    mark: str
    lines: list[str] = field(default_factory=list)

    def events(self) -> Iterator[Event]:
        """Events from --events jsonl, as they are printed; ends with the output."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            yield read_event(line.encode())

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Ctrl-C: SIGINT to the whole group; the terminal's end is SIGHUP."""
        os.killpg(self.process.pid, number)

    def end(self) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(DEADLINE_S)

    def left_running(self) -> list[str]:
        """Command lines of processes of this run that still live some seconds after its end.

        Python's resource tracker ends by itself, an instant after the process whose pipe it reads.
        """
        deadline_s = time.monotonic() + _LEFT_DEADLINE_S
        while (left := [line for _, line in self._processes()]) and time.monotonic() < deadline_s:
            ThreadEvent().wait(0.02)
        return left

    def abort(self) -> None:
        """Ctrl-C until it has ended: two that come at once can count as one."""
        self.interrupt()
        while self.process.poll() is None:
            self.interrupt()
            ThreadEvent().wait(0.5)

    def worker_pid(self) -> int:
        """The process that has the event journal open."""
        return self.pid_with("events.sqlite")

    def pid_with(self, name: str) -> int:
        """The process of this run that has a file of this name open; waits for one that is being started."""
        found: list[int] = []

        def is_there() -> bool:
            found[:] = [pid for pid, _ in self._processes() if _has_open(pid, name)]
            return bool(found)

        eventually(is_there, f"a process has {name} open")
        return found[0]

    def _processes(self) -> Iterator[tuple[int, str]]:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{_MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it ended while we looked, or is not ours


def _has_open(pid: int, name: str) -> bool:
    return any(os.path.realpath(link).endswith(name) for link in Path(f"/proc/{pid}/fd").glob("*"))


@contextmanager
def running(folder: Path, *arguments: str, surroundings: Mapping[str, str] | None = None) -> Iterator[Run]:
    """Start the command with a private folder for temporary files; whatever is left of it is killed at the end.

    Args:
        folder: For temporary files.
        arguments: Of the command.
        surroundings: Environment variables; None takes this process's.
    """
    mark = uuid.uuid4().hex
    environment = dict(os.environ if surroundings is None else surroundings)
    if surroundings is None:
        environment.pop("XDG_RUNTIME_DIR", None)  # so that the run's own folder is made in `folder`
    environment |= {_MARK: mark, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    run = Run(folder, process, mark)
    try:
        yield run
    finally:
        for pid, _ in list(run._processes()):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()


def run_here(*arguments: str) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([*arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def emotions(events: list[Event]) -> list[Emotion]:
    """The emotion events among these."""
    return [data for event in events if isinstance(data := event.payload(), Emotion)]


def as_json(line: str) -> object:
    """One line of JSON."""
    return msgspec.json.decode(line)
