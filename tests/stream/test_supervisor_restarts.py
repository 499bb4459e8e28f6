"""Real processes: how often they are started again."""

from __future__ import annotations

import time
from itertools import accumulate
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import supervisor as supervisor_module
from stream.supervisor import RESTART_WINDOW_S, RESTARTS, Child, RestartBudget, Supervisor
from telme.errors import ProcessError
from tests.stream import children
from tests.stream.supervised import child, exit_code

pytestmark = pytest.mark.timeout(120)


@given(st.lists(st.floats(0, 40), max_size=60).map(lambda steps: list(accumulate(steps))))
def test_no_window_holds_more_restarts_than_the_budget(times_s: list[float]) -> None:
    budget = RestartBudget()
    granted: list[float] = []
    for now_s in times_s:
        recent = [time_s for time_s in granted if time_s > now_s - RESTART_WINDOW_S]
        assert budget.take(now_s) == (len(recent) < RESTARTS)
        if len(recent) < RESTARTS:
            granted.append(now_s)


def test_a_child_that_dies_too_often_ends_the_run(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "RESTARTS", 2)
    one = child(children.dying, restarts=True)
    supervisor.start(one)
    one.tell("go")
    with pytest.raises(ProcessError, match="dying died 3 times in 60 s of work, last with signal SIGKILL") as error:
        supervisor.watch(one)
    assert error.value.exit_code == 1


def test_starts_that_take_longer_than_the_window_do_not_stretch_the_budget(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a worker that loads for half a minute and dies of one utterance, which it is sent again each time."""
    monkeypatch.setattr(supervisor_module, "RESTARTS", 2)
    late_s = 0.0
    monkeypatch.setattr(supervisor_module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late_s))
    one = child(children.dying, restarts=True)
    start = one.start

    def take_long() -> None:
        nonlocal late_s
        late_s += RESTART_WINDOW_S
        start()

    one.start = take_long  # type: ignore[method-assign]
    supervisor.start(one)
    one.tell("go")
    with pytest.raises(ProcessError, match="dying died 3 times"):
        supervisor.watch(one)


def test_work_between_two_deaths_gives_the_budget_back(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "RESTARTS", 1)
    one = child(children.dying, restarts=True)
    supervisor.start(one)
    for _ in range(3):
        one.tell("go")
        exit_code(one)
        one.ready_at_s -= RESTART_WINDOW_S  # it worked so long
        supervisor._revive(one)
    one.tell("go")
    exit_code(one)
    with pytest.raises(ProcessError, match="dying died 2 times"):
        supervisor._revive(one)


def test_one_that_dies_as_soon_as_it_is_there_again_has_not_ended(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "RESTARTS", 2)
    one = child(children.dying, restarts=True)
    revive = supervisor._revive

    def and_die(dead: Child) -> None:
        revive(dead)
        exit_code(dead)

    monkeypatch.setattr(supervisor, "_revive", and_die)
    supervisor.start(one)
    one.tell("go")
    exit_code(one)
    with pytest.raises(ProcessError, match="dying died 3 times"):
        supervisor.watch(one)


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
