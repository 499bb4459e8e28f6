"""The command on a microphone that was named by index, while devices come and go and its capture process dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream.bus import Device
from tests.commands import ANY_PORT, Run, running
from tests.stream.plugged import Sockets


@pytest.fixture
def sockets(tmp_path: Path) -> Sockets:
    folder = tmp_path / "sockets"
    folder.mkdir()
    return Sockets(folder)


def told(run: Run) -> Iterator[tuple[str, str]]:
    """What is said of the microphone: name and state."""
    for event in run.events():
        data = event.payload()
        if isinstance(data, Device):
            yield data.name, data.state


def kill_capture(run: Run) -> None:
    os.kill(run.pid_with("outbox.sqlite"), signal.SIGKILL)


def test_a_capture_that_is_started_again_hears_the_microphone_that_the_index_meant(
    sockets: Sockets, tmp_path: Path
) -> None:
    sockets.hold(["built-in", "USB mic"])
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = ("--mic", "1", "--no-camera", "--events", "jsonl", *ANY_PORT)
    with running(folder, *arguments, surroundings=sockets.environment) as run:
        changes = told(run)
        assert next(changes) == ("USB mic", "opened")
        sockets.hold(["built-in", "headset", "USB mic"])
        kill_capture(run)
        assert next(changes) == ("USB mic", "opened")
        sockets.hold(["built-in", "headset"])
        kill_capture(run)
        assert next(changes) == ("USB mic", "lost")
        sockets.hold(["USB mic", "built-in", "headset"])
        assert next(changes) == ("USB mic", "found")
        run.interrupt()
        assert list(changes) == [("USB mic", "ended")]
        assert run.end() == 130
