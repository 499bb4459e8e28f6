"""Real processes: started, watched and started again."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from types import SimpleNamespace

import pytest

from stream import supervisor as supervisor_module
from stream.interrupts import Interrupts
from stream.supervisor import Child, Supervisor
from telme.errors import ProcessError
from tests.live import eventually
from tests.stream import children
from tests.stream.supervised import DEADLINE_S, child, exit_code, pid_of, when

pytestmark = pytest.mark.timeout(120)


def listens_late(one: Child) -> None:
    """Let the child speak and end between two looks at it."""
    listen = one.listen

    def late() -> None:
        if one.alive:
            exit_code(one)  # until its end, having heard nothing
        else:
            listen()

    one.listen = late  # type: ignore[method-assign]


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


def test_a_wait_ends_when_a_child_has_died_and_that_one_may_be_told_things(supervisor: Supervisor) -> None:
    one = child(children.obedient)
    supervisor.start(one)
    os.kill(pid_of(one), signal.SIGKILL)
    exit_code(one)
    one.tell("go")
    supervisor.wait_until(lambda: False, 3600)
    assert one.ready == {"state": "ready"}


def test_a_wait_ends_in_time_and_with_a_signal(supervisor: Supervisor, interrupts: Interrupts) -> None:
    supervisor.start(child(children.obedient))
    supervisor.wait_until(lambda: False, 0)
    interrupts.request()
    supervisor.wait_until(lambda: False, 3600)


def test_a_child_may_end_with_words_that_it_never_heard() -> None:
    one = child(children.dying_at_start)
    one.start()
    one.tell("go")
    assert exit_code(one) == 3
    one.listen()
    one.tell("stop")
    one.listen()


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


@pytest.mark.parametrize("ask", [Interrupts.request, lambda _: os.kill(os.getpid(), signal.SIGINT)])
def test_a_signal_ends_a_start_at_once(
    supervisor: Supervisor,
    interrupts: Interrupts,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[Interrupts], None],
) -> None:
    monkeypatch.setattr(supervisor_module, "READY_DEADLINE_S", 3600)
    one = child(children.mute)
    thread = when(lambda: one.alive, lambda: ask(interrupts))
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


def test_a_child_may_have_other_arguments_when_it_is_started_again(
    supervisor: Supervisor, interrupts: Interrupts
) -> None:
    one = Child("named", children.named, ("first",), True, DEADLINE_S, again=lambda facts: (f"{facts}",))
    assert supervisor.start(one) == {"name": "first"}
    os.kill(pid_of(one), signal.SIGKILL)
    thread = when(lambda: one.ready == {"name": "{}"}, interrupts.request)
    supervisor.watch(one)
    thread.join()
    supervisor.stop()


def test_what_a_child_asked_to_be_remembered_reaches_the_next_ones_though_it_was_killed(
    supervisor: Supervisor, interrupts: Interrupts
) -> None:
    one = Child("heir", children.heir, ("first",), True, DEADLINE_S, again=lambda facts: (facts["name"],))
    supervisor.start(one)
    os.kill(pid_of(one), signal.SIGKILL)

    def kill_the_second() -> None:
        os.kill(pid_of(one), signal.SIGKILL)
        eventually(lambda: one.ready == {"name": "first, again, again"}, "the third one knows of both")
        interrupts.request()

    thread = when(lambda: one.ready == {"name": "first, again"}, kill_the_second)
    supervisor.watch(one)
    thread.join()
    supervisor.stop()


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


@pytest.mark.parametrize("target", [children.failing_for_ever, children.ready_and_failing_for_ever])
def test_a_child_that_fails_and_does_not_end_is_not_waited_for(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, target: Callable[..., None]
) -> None:
    """Its libraries may hang when they are ended."""
    monkeypatch.setattr(supervisor_module, "END_DEADLINE_S", 0.1)
    one = child(target, restarts=True)

    def run() -> None:
        supervisor.start(one)
        one.tell("go")
        supervisor.watch(one)

    with pytest.raises(ProcessError, match="no microphone"):
        run()
    assert exit_code(one) == -signal.SIGKILL


@pytest.mark.parametrize("target", [children.done_for_ever, children.done_and_dying])
def test_a_child_that_is_done_may_end_badly_or_not_at_all(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, target: Callable[..., None]
) -> None:
    monkeypatch.setattr(supervisor_module, "END_DEADLINE_S", 0.1)
    other, last = child(children.obedient), child(target)
    supervisor.start(other)
    supervisor.start(last)
    last.tell("go")
    supervisor.watch(last)
    assert exit_code(last) == -signal.SIGKILL
    assert other.alive


def test_a_child_that_is_done_has_time_to_end(supervisor: Supervisor) -> None:
    last = child(children.done_and_ending)
    supervisor.start(last)
    last.tell("go")
    thread = when(lambda: last.done, lambda: last.tell("stop"))
    supervisor.watch(last)
    thread.join()
    assert exit_code(last) == 0


def test_what_a_child_says_of_a_failure_counts_after_its_work_is_done_too(supervisor: Supervisor) -> None:
    last = child(children.done_and_failing)
    supervisor.start(last)
    last.tell("go")
    with pytest.raises(ProcessError, match="no microphone"):
        supervisor.watch(last)


def test_a_child_that_the_system_has_no_room_for_is_named(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(SpawnProcess, "_Popen", no_room)
    with pytest.raises(ProcessError, match=r"obedient cannot be started: .*Too many open files.*ulimit"):
        supervisor.start(child(children.obedient))
    supervisor.stop()


def test_a_child_that_may_not_be_started_again_is_named(supervisor: Supervisor) -> None:
    one = child(children.dying)
    supervisor.start(one)
    one.tell("go")
    with pytest.raises(ProcessError, match="dying died with signal SIGKILL"):
        supervisor.watch(one)
