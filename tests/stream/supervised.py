"""Fixtures and helpers of the supervisor's tests, which run real processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stream.interrupts import Interrupts
from stream.supervisor import Child, Supervisor
from tests.live import eventually

DEADLINE_S = 60.0


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    made = Interrupts()
    with made.installed():
        yield made


@pytest.fixture
def supervisor(interrupts: Interrupts) -> Iterator[Supervisor]:
    made = Supervisor(interrupts)
    yield made
    for child in made.children:
        if child.process is not None:
            child.process.kill()
            child.process.join()


def child(target: Callable[..., None], restarts: bool = False, stop_deadline_s: float = DEADLINE_S) -> Child:
    return Child(target.__name__, target, (), restarts, stop_deadline_s)


def pid_of(one: Child) -> int:
    assert one.process is not None
    assert one.process.pid is not None
    return one.process.pid


def exit_code(one: Child) -> int | None:
    assert one.process is not None
    one.process.join(DEADLINE_S)
    return one.process.exitcode


def when(holds: Callable[[], bool], then: Callable[[], Any]) -> threading.Thread:
    """Do something from another thread once a condition holds, while the test waits in the supervisor."""

    def main() -> None:
        eventually(holds, "what the test waits for")
        then()

    thread = threading.Thread(target=main)
    thread.start()
    return thread
