"""Real processes: stopped, also by signals, and never left behind."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest

from stream import supervisor as supervisor_module
from stream.interrupts import Interrupts
from stream.supervisor import Supervisor
from tests.live import eventually
from tests.stream import children
from tests.stream.supervised import DEADLINE_S, child, exit_code, pid_of, when

pytestmark = pytest.mark.timeout(120)


# -------------------------------------------------------------------------------------------------- stop


def test_a_child_that_misses_its_stop_deadline_is_named_and_ended(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    one = child(children.deaf, stop_deadline_s=0.1)
    supervisor.start(one)
    supervisor.stop()
    assert exit_code(one) == -signal.SIGKILL
    assert "deaf missed its stop deadline of 0 s and is killed" in caplog.text
    assert supervisor.exit_code == 1


def test_a_child_with_nothing_left_to_lose_may_miss_its_stop_deadline(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    one = child(children.over, stop_deadline_s=0.1)
    supervisor.start(one)

    def is_done() -> bool:
        one.listen()
        return one.done

    eventually(is_done, "its work is over")
    supervisor.stop()
    assert exit_code(one) == -signal.SIGKILL
    assert (caplog.text, supervisor.exit_code) == ("", 0)
    one.start()
    assert not one.done  # the next in its place has all to do


def test_a_child_with_nothing_left_to_lose_may_end_badly(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    one = child(children.done_and_dying)
    supervisor.start(one)
    supervisor.stop()
    assert exit_code(one) == -signal.SIGKILL
    assert (caplog.text, supervisor.exit_code) == ("", 0)


def test_a_failure_while_stopping_is_said_though_its_end_hangs(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    one = child(children.ready_and_failing_for_ever, stop_deadline_s=0.1)
    supervisor.start(one)
    one.tell("go")
    eventually(lambda: one.line is not None and one.line.poll(), "it fails")
    supervisor.stop()
    assert "no microphone; expected one; plug one in; what ready_and_failing_for_ever still had is lost" in caplog.text
    assert (supervisor.exit_code, exit_code(one)) == (2, -signal.SIGKILL)


def test_a_failure_while_stopping_is_said_and_and_decides_the_exit_code(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = child(children.obedient), child(children.failing_at_stop)
    supervisor.start(first)
    supervisor.start(second)
    supervisor.stop()
    assert "no microphone; expected one; plug one in; what failing_at_stop still had is lost" in caplog.text
    assert (supervisor.exit_code, exit_code(first)) == (2, 0)


def test_the_first_failure_while_stopping_decides_the_exit_code(supervisor: Supervisor) -> None:
    supervisor.start(child(children.deaf, stop_deadline_s=0.1))  # told to stop last; by itself 1
    supervisor.start(child(children.failing_at_stop))
    supervisor.stop()
    assert supervisor.exit_code == 2


def test_a_child_that_is_killed_has_ended() -> None:
    one = child(children.mute)
    one.start()
    one.kill()
    assert not one.alive


def test_a_child_that_is_killed_while_it_stops_is_named(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    one = child(children.deaf, stop_deadline_s=1000)
    supervisor.start(one)
    thread = when(lambda: one.ready == {"state": "heard"}, lambda: os.kill(pid_of(one), signal.SIGKILL))
    supervisor.stop()
    thread.join()
    assert "deaf died with signal SIGKILL" in caplog.text
    assert supervisor.exit_code == 1


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


@pytest.mark.parametrize("failing", [children.failing, children.ready_and_failing_for_ever])
def test_one_that_fails_while_another_drains_is_not_started_again(
    failing: Callable[[Connection], None],
    supervisor: Supervisor,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor waited for, where its end hangs."""
    monkeypatch.setattr(supervisor_module, "END_DEADLINE_S", 0.1)
    first, second = child(failing, restarts=True), child(children.deaf, stop_deadline_s=1000)
    supervisor.start(first)
    supervisor.start(second)
    failed = pid_of(first)
    thread = when(lambda: second.ready == {"state": "heard"}, lambda: first.tell("go"))
    supervisor.stop()
    thread.join()
    assert "no microphone; expected one; plug one in; what deaf still had is lost" in caplog.text
    assert (pid_of(first), supervisor.exit_code) == (failed, 2)


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
    assert (caplog.text, supervisor.exit_code) == ("", 0)


# ----------------------------------------------------------------------------------------------- signals


@pytest.mark.usefixtures("hears_hangups")
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


def test_any_number_of_signals_and_requests_is_taken_even_after_the_end() -> None:
    interrupts = Interrupts()
    with interrupts.installed():
        for _ in range(1_000):  # more than wake-ups have room
            os.kill(os.getpid(), signal.SIGUSR1)
            interrupts.request()
    interrupts.request()
    assert interrupts.count == 1


@pytest.mark.parametrize("first", ["request", "signal"])
def test_a_request_to_stop_is_never_the_second_signal(interrupts: Interrupts, first: str) -> None:
    """The program that standard output goes to ends by the same Ctrl-C, as in `telme-stream | tee`."""
    if first == "request":
        interrupts.request()
    os.kill(os.getpid(), signal.SIGINT)
    interrupts.request()
    assert interrupts.count == 1
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.count == 2


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


def test_the_first_child_too_is_started_with_signals_blocked() -> None:
    """multiprocessing starts its resource tracker with the first child, and lifts the block when it does."""
    run = subprocess.run(
        [sys.executable, "-c", _FIRST_CHILD], capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    assert run.stdout.splitlines() == ["{'blocked': 'True'}"] * 2


_SUPERVISOR = """
from stream.interrupts import Interrupts
from stream.supervisor import Child, Supervisor
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


_WHOLE_GROUP = """
import os, signal
from stream.supervisor import Child
from tests.stream.children import obedient
signal.signal(signal.SIGUSR1, lambda *_: None)
for _ in range(2):
    child = Child("obedient", obedient, (), False, 10.0)
    child.start()
    os.killpg(0, signal.SIGUSR1)
    child.tell("stop")
    child.process.join()
    print(child.process.exitcode)
"""


def test_usr1_to_the_whole_group_ends_no_child_that_starts_and_no_helper() -> None:
    """A shell's `kill -USR1 %1`. A resource tracker that dies of it is a warning when the next child starts."""
    run = subprocess.run(
        [sys.executable, "-c", _WHOLE_GROUP],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
        start_new_session=True,
    )
    assert (run.stdout.split(), run.stderr) == (["0", "0"], "")
