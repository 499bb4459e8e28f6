"""Real processes: started, watched, started again, stopped, and never left behind."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import supervisor as supervisor_module
from stream.supervisor import RESTART_WINDOW_S, RESTARTS, Child, Interrupts, RestartBudget, Supervisor
from telme.errors import ProcessError
from tests.live import eventually
from tests.stream import children

DEADLINE_S = 60.0
pytestmark = pytest.mark.timeout(120)


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


def listens_late(one: Child) -> None:
    """Let the child speak and end between two looks at it."""
    listen = one.listen

    def late() -> None:
        if one.alive:
            exit_code(one)  # until its end, having heard nothing
        else:
            listen()

    one.listen = late  # type: ignore[method-assign]


def when(holds: Callable[[], bool], then: Callable[[], Any]) -> threading.Thread:
    """Do something from another thread once a condition holds, while the test waits in the supervisor."""

    def main() -> None:
        eventually(holds, "what the test waits for")
        then()

    thread = threading.Thread(target=main)
    thread.start()
    return thread


# --------------------------------------------------------------------------------------------- restart budget


@given(st.lists(st.floats(0, 40), max_size=60).map(lambda steps: list(accumulate(steps))))
def test_no_window_holds_more_restarts_than_the_budget(times_s: list[float]) -> None:
    budget = RestartBudget()
    granted: list[float] = []
    for now_s in times_s:
        recent = [time_s for time_s in granted if time_s > now_s - RESTART_WINDOW_S]
        assert budget.take(now_s) == (len(recent) < RESTARTS)
        if len(recent) < RESTARTS:
            granted.append(now_s)


# ------------------------------------------------------------------------------------------------- start


def test_a_child_says_its_facts_goes_and_stops(supervisor: Supervisor) -> None:
    one = child(children.obedient)
    assert supervisor.start(one) == {"state": "ready"}
    one.tell("go")
    supervisor.wait_until(lambda: one.ready == {"state": "went"}, DEADLINE_S)
    assert one.ready == {"state": "went"}
    supervisor.stop()
    assert exit_code(one) == 0
    supervisor.stop()  # again is no harm


def test_a_child_that_fails_at_its_start_says_why(supervisor: Supervisor) -> None:
    with pytest.raises(ProcessError, match="no microphone; expected one; plug one in") as error:
        supervisor.start(child(children.failing_at_start, restarts=True))
    assert error.value.exit_code == 2


def test_the_reason_of_a_child_that_ended_at_its_start_is_heard(supervisor: Supervisor) -> None:
    one = child(children.failing_at_start)
    listens_late(one)
    with pytest.raises(ProcessError, match="no microphone"):
        supervisor.start(one)


def test_a_child_that_dies_at_its_start_is_named(supervisor: Supervisor) -> None:
    with pytest.raises(ProcessError, match="dying_at_start died with exit code 3"):
        supervisor.start(child(children.dying_at_start, restarts=True))


def test_a_child_that_is_never_ready_is_named_and_stopped(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "READY_DEADLINE_S", 0.1)
    one = child(children.mute)
    with pytest.raises(ProcessError, match="mute was not ready in"):
        supervisor.start(one)
    supervisor.stop()
    assert exit_code(one) == -signal.SIGKILL


def test_a_child_whose_start_goes_on_gets_its_time_anew(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by two thirds of the deadline with each word."""
    now_s = 0.0
    monkeypatch.setattr(supervisor_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    one = child(children.slow_to_start)
    listen = one.listen

    def listen_and_pass_time() -> None:
        nonlocal now_s
        listen()
        if one.preparing:
            now_s += supervisor_module.READY_DEADLINE_S * 2 / 3
            one.tell("dialogue")

    monkeypatch.setattr(one, "listen", listen_and_pass_time)
    assert supervisor.start(one) == {"state": "ready"}
    assert now_s == supervisor_module.READY_DEADLINE_S * 2


def test_a_signal_ends_a_start_at_once(
    supervisor: Supervisor, interrupts: Interrupts, caplog: pytest.LogCaptureFixture
) -> None:
    one = child(children.mute)
    thread = when(lambda: one.alive, interrupts.request)
    assert supervisor.start(one) is None
    thread.join()
    assert supervisor.interrupted
    supervisor.stop()
    assert exit_code(one) == -signal.SIGKILL
    assert caplog.text == ""  # no deadline was missed


# ------------------------------------------------------------------------------------------------- watch


def test_a_killed_child_is_started_again_and_told_to_go(
    supervisor: Supervisor, interrupts: Interrupts, caplog: pytest.LogCaptureFixture
) -> None:
    one, last = child(children.obedient, restarts=True), child(children.obedient)
    supervisor.start(one)
    supervisor.start(last)
    killed = pid_of(one)
    os.kill(killed, signal.SIGKILL)
    thread = when(lambda: one.ready == {"state": "went"}, interrupts.request)
    supervisor.watch(last)
    thread.join()
    assert pid_of(one) != killed
    assert "obedient died with signal SIGKILL and is started again" in caplog.text
    supervisor.stop()
    assert (exit_code(one), exit_code(last)) == (0, 0)


def test_watching_ends_when_the_last_child_has_done_its_work(supervisor: Supervisor) -> None:
    other, last = child(children.obedient), child(children.brief)
    supervisor.start(other)
    supervisor.start(last)
    last.tell("go")
    supervisor.watch(last)
    assert exit_code(last) == 0
    assert other.alive
    supervisor.stop()
    assert exit_code(other) == 0


def test_one_that_died_while_the_last_child_ended_is_there_again_when_watching_ends(supervisor: Supervisor) -> None:
    other, last = child(children.obedient, restarts=True), child(children.brief)
    supervisor.start(other)
    supervisor.start(last)
    last.tell("go")
    assert exit_code(last) == 0
    killed = pid_of(other)
    os.kill(killed, signal.SIGKILL)
    exit_code(other)
    supervisor.watch(last)
    assert other.alive
    assert pid_of(other) != killed
    supervisor.stop()


def test_a_child_that_said_why_it_failed_is_not_started_again(supervisor: Supervisor) -> None:
    one = child(children.failing, restarts=True)
    supervisor.start(one)
    first = pid_of(one)
    one.tell("go")
    with pytest.raises(ProcessError, match="no microphone") as error:
        supervisor.watch(one)
    assert error.value.exit_code == 2
    assert pid_of(one) == first


def test_the_last_word_of_a_child_that_has_ended_is_heard(supervisor: Supervisor) -> None:
    one = child(children.failing, restarts=True)
    supervisor.start(one)
    first = pid_of(one)
    listens_late(one)
    one.tell("go")
    with pytest.raises(ProcessError, match="no microphone"):
        supervisor.watch(one)
    assert pid_of(one) == first


def test_a_child_that_may_not_be_started_again_is_named(supervisor: Supervisor) -> None:
    one = child(children.dying)
    supervisor.start(one)
    one.tell("go")
    with pytest.raises(ProcessError, match="dying died with signal SIGKILL"):
        supervisor.watch(one)


def test_a_child_that_dies_too_often_ends_the_run(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "RESTARTS", 2)
    one = child(children.dying, restarts=True)
    supervisor.start(one)
    one.tell("go")
    with pytest.raises(ProcessError, match="dying died 3 times in 60 s, last with signal SIGKILL") as error:
        supervisor.watch(one)
    assert error.value.exit_code == 1


def test_a_restarted_child_that_is_never_ready_ends_the_run(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = child(children.dying, restarts=True)
    supervisor.start(one)
    monkeypatch.setattr(supervisor_module, "READY_DEADLINE_S", 0.1)
    one.target = children.mute
    one.tell("go")
    with pytest.raises(ProcessError, match="dying was not ready in"):
        supervisor.watch(one)


# -------------------------------------------------------------------------------------------------- stop


def test_a_child_that_misses_its_stop_deadline_is_named_and_ended(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    one = child(children.deaf, stop_deadline_s=0.1)
    supervisor.start(one)
    supervisor.stop()
    assert exit_code(one) == -signal.SIGKILL
    assert "deaf missed its stop deadline of 0 s and is killed" in caplog.text


def test_children_stop_in_reverse_order(supervisor: Supervisor) -> None:
    first, second = child(children.obedient), child(children.deaf, stop_deadline_s=1000)
    supervisor.start(first)
    supervisor.start(second)
    alive: list[bool] = []

    def end_the_second() -> None:
        alive.append(first.alive)
        os.kill(pid_of(second), signal.SIGKILL)

    thread = when(lambda: second.ready == {"state": "heard"}, end_the_second)
    supervisor.stop()
    thread.join()
    assert alive == [True]
    assert exit_code(first) == 0


def test_one_that_dies_while_another_drains_is_started_again(supervisor: Supervisor) -> None:
    first, second = child(children.obedient, restarts=True), child(children.deaf, stop_deadline_s=1000)
    supervisor.start(first)
    supervisor.start(second)
    os.kill(os.getpid(), signal.SIGINT)
    supervisor.watch(second)
    dead = pid_of(first)
    thread = when(lambda: second.ready == {"state": "heard"}, lambda: os.kill(dead, signal.SIGKILL))

    def is_there_again() -> bool:
        return first.process is not None and first.process.pid not in (None, dead) and first.ready is not None

    other = when(is_there_again, lambda: os.kill(pid_of(second), signal.SIGKILL))
    supervisor.stop()
    thread.join()
    other.join()
    assert pid_of(first) != dead
    assert exit_code(first) == 0


def test_what_drains_into_one_that_is_dead_for_good_is_not_waited_for(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = child(children.obedient), child(children.deaf, stop_deadline_s=1000)
    supervisor.start(first)
    supervisor.start(second)
    thread = when(lambda: second.ready == {"state": "heard"}, lambda: os.kill(pid_of(first), signal.SIGKILL))
    with caplog.at_level(logging.ERROR):
        supervisor.stop()
    thread.join()
    assert exit_code(second) == -signal.SIGKILL
    assert "obedient died with signal SIGKILL" in caplog.text
    assert "what deaf still had is lost" in caplog.text


def test_a_second_signal_kills_what_is_still_stopping(supervisor: Supervisor, caplog: pytest.LogCaptureFixture) -> None:
    one, other = child(children.deaf, stop_deadline_s=1000), child(children.deaf, stop_deadline_s=1000)
    supervisor.start(one)
    supervisor.start(other)
    os.kill(os.getpid(), signal.SIGINT)
    supervisor.watch(one)
    thread = when(lambda: other.ready == {"state": "heard"}, lambda: os.kill(os.getpid(), signal.SIGINT))
    with caplog.at_level(logging.ERROR):
        supervisor.stop()
    thread.join()
    assert (exit_code(one), exit_code(other)) == (-signal.SIGKILL, -signal.SIGKILL)
    assert caplog.text == ""


# ----------------------------------------------------------------------------------------------- signals


def test_signals_are_counted_and_handlers_given_back() -> None:
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in stops]
    interrupts = Interrupts()
    with interrupts.installed():
        for count, number in enumerate(stops, 1):
            os.kill(os.getpid(), number)
            eventually(lambda count=count: interrupts.count == count, "the signal is counted")  # type: ignore[misc]
    assert [signal.getsignal(number) for number in stops] == before


def test_what_nohup_made_deaf_stays_deaf() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts().installed():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_any_number_of_requests_is_taken_even_after_the_end() -> None:
    interrupts = Interrupts()
    with interrupts.installed():
        for _ in range(10_000):
            interrupts.request()
    interrupts.request()
    assert interrupts.count == 10_001


_FIRST_CHILD = """
from stream.supervisor import Child
from tests.stream.children import masked
child = Child("masked", masked, (), False, 10.0)
for _ in range(2):
    child.start()
    child.process.join()
    child.listen()
    print(child.ready)
"""


def test_the_first_child_too_is_started_with_sigint_blocked() -> None:
    """multiprocessing starts its resource tracker with the first child, and lifts the block when it does."""
    run = subprocess.run(
        [sys.executable, "-c", _FIRST_CHILD], capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    assert run.stdout.splitlines() == ["{'blocked': 'True'}"] * 2


_SUPERVISOR = """
from stream.supervisor import Child, Interrupts, Supervisor
from tests.stream.children import mute, obedient
supervisor = Supervisor(Interrupts())
ready, waiting = (Child(target.__name__, target, (), True, 10.0) for target in (obedient, mute))
supervisor.start(ready)
ready.tell("go")
waiting.start()
print(ready.process.pid, waiting.process.pid, flush=True)
supervisor.watch(ready)
"""


def test_children_end_by_themselves_when_their_supervisor_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", _SUPERVISOR], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ends = [os.pidfd_open(int(pid)) for pid in process.stdout.readline().split()]
        process.kill()
        process.wait(DEADLINE_S)
        try:
            for end in ends:
                poller = select.poll()
                poller.register(end, select.POLLIN)
                assert poller.poll(DEADLINE_S * 1000), "a child outlives its supervisor"
        finally:
            for end in ends:
                os.close(end)
        assert len(ends) == 2


# --------------------------------------------------------------------------------------------- a new dialogue


def test_usr1_tells_the_last_child_that_a_new_dialogue_begins(interrupts: Interrupts, supervisor: Supervisor) -> None:
    first, last = child(children.talkative), child(children.talkative)
    for one in (first, last):
        supervisor.start(one)
        one.tell("go")
    os.kill(os.getpid(), signal.SIGUSR1)
    thread = when(lambda: last.ready == {"dialogues": "1"}, interrupts.request)
    supervisor.watch(last)
    thread.join(DEADLINE_S)
    supervisor.stop()
    assert last.ready == {"dialogues": "1"}
    assert first.ready == {"dialogues": "0"}
    assert exit_code(last) == 0
