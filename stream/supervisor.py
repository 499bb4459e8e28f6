"""Starts, watches and stops the processes.

    start   worker -> ready -> capture -> ready -> (console subscribed) -> go
    watch   a process that dies is started again, at most 5 times in 60 s of work; a replay, which began anew, is not
    stop    capture drains and ends -> worker says its last word and ends; who misses a deadline is named, then killed;
            who is not ready yet is killed; a worker that dies meanwhile is started again
    Ctrl-C  once: stop; twice: kill
    USR1    the capture process is told that a new dialogue begins

Children are spawned, never forked, with SIGINT, SIGTERM, SIGHUP and SIGUSR1 blocked, so that a terminal's Ctrl-C or
end, the stop of a service manager and a shell's `kill -USR1 %1`, which all go to the whole group, reach this process
only. A child whose supervisor dies sees its control line end, and stops.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal

from stream.control import Word, hear, say
from stream.interrupts import STOPS, Interrupts
from telme.errors import ProcessError

_log = logging.getLogger(__name__)

RESTARTS = 5
RESTART_WINDOW_S = 60.0
READY_DEADLINE_S = 120.0
# The capture process drains its recognizer and waits for the worker's answers within this.
CAPTURE_STOP_DEADLINE_S = 55.0
WORKER_STOP_DEADLINE_S = 10.0
END_DEADLINE_S = 10.0  # of one that has failed or done all, which may hang as a library ends

_SUPERVISORS = {*STOPS, signal.SIGUSR1}  # what no other process of the group may act on
_spawn = multiprocessing.get_context("spawn")


class RestartBudget:
    """At most RESTARTS in RESTART_WINDOW_S of work; starts, which may take longer than that, are none."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def take(self, worked_s: float) -> bool:
        """Spend one restart after so much work in all; False when there is none left."""
        while self._times and self._times[0] <= worked_s - RESTART_WINDOW_S:
            self._times.popleft()
        if len(self._times) == RESTARTS:
            return False
        self._times.append(worked_s)
        return True


@dataclass
class Child:
    """One process and the line to it.

    Attributes:
        name: For messages.
        target: What runs in it; the last argument is the child's end of the line.
        arguments: The arguments before that.
        restarts: True when it may be started again.
        stop_deadline_s: How long it may take to end once told.
        again: Gives its arguments when it is started again, of what the one before it told to remember; None: as at
            first.
        remembered: That.
        ready_at_s: When it said that it was ready, on the monotonic clock.
        worked_s: How long those before it were ready, in all.
        preparing: It has said that its start goes on, and its deadline has not been moved yet.
        done: It has said that only its end is left, which takes seconds on a machine that is busy.
    """

    name: str
    target: Callable[..., None]
    arguments: tuple[Any, ...]
    restarts: bool
    stop_deadline_s: float
    again: Callable[[dict[str, str]], tuple[Any, ...]] | None = None
    remembered: dict[str, str] = field(default_factory=dict)
    process: SpawnProcess | None = None
    line: Connection | None = None
    ready: dict[str, str] | None = None
    ready_at_s: float = 0.0
    worked_s: float = 0.0
    failure: dict[str, str] | None = None
    preparing: bool = False
    done: bool = False
    budget: RestartBudget = field(default_factory=RestartBudget)

    def start(self) -> None:
        """Spawn the process.

        Raises:
            ProcessError: The system gives no process, or no files for it.
        """
        self.ready = None
        self.done = False
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SUPERVISORS)
        try:
            self.line, far = _spawn.Pipe()
            with far:
                process = _spawn.Process(target=self.target, args=(*self.arguments, far), name=self.name)
                resource_tracker.ensure_running()  # the first spawn would start it, which lifts some of the block
                signal.pthread_sigmask(signal.SIG_BLOCK, _SUPERVISORS)
                process.start()
        except OSError as error:
            seen = f"{self.name} cannot be started: {error}"
            raise ProcessError(seen, "room for a process and its files", "see ulimit -u and -n") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self.process = process

    def tell(self, word: Literal["go", "dialogue", "stop"]) -> None:
        """Say a word; a child that is gone does not hear it."""
        if self.line is not None:
            try:
                say(self.line, Word(word, {}))
            except OSError:
                _log.debug("%s is gone", self.name)

    def listen(self) -> None:
        """Take what the child said."""
        try:
            while self.line is not None and self.line.poll():
                word = hear(self.line)
                if word.kind == "ready":
                    self.ready, self.ready_at_s = word.facts, time.monotonic()
                elif word.kind == "remember":
                    self.remembered = word.facts
                elif word.kind == "failed":
                    self.failure = word.facts
                elif word.kind == "preparing":
                    self.preparing = True
                elif word.kind == "done":
                    self.done = True
        except (EOFError, OSError):
            self.line = None

    def end(self) -> None:
        """Wait for the end of one that has nothing left to do, or end it."""
        if self.process is not None:
            self.process.join(END_DEADLINE_S)
            self.kill()

    def kill(self) -> None:
        """End it now."""
        if self.process is not None:
            self.process.kill()
            self.process.join()

    @property
    def has_said_all(self) -> bool:
        """True once only its end is left, which can hang in a library."""
        return self.done or self.failure is not None

    @property
    def has_done_its_work(self) -> bool:
        """True of one that has ended well, or in whatever way once it had said that it was done."""
        return self.failure is None and (self.done or (self.process is not None and self.process.exitcode == 0))

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self.process is not None and self.process.is_alive()


class Supervisor:
    """Runs children until they end, fail, or a signal comes.

    Args:
        interrupts: Where signals are counted.

    Attributes:
        exit_code: Of the first failure while stopping, which was logged; 0 for none.
    """

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self.exit_code = 0
        self._patience = 1  # so many signals end a wait
        self.children: list[Child] = []
        self._dialogues_told = 0

    @property
    def interrupted(self) -> bool:
        """True once a signal asked to stop."""
        return self._interrupts.count > 0

    def start(self, child: Child) -> dict[str, str] | None:
        """Start a child and wait until it is ready; its facts, or None when a signal came first.

        Raises:
            ProcessError: It failed, ended or was not ready in time.
        """
        self.children.append(child)
        child.start()
        self._wait_ready(child)
        if child.ready is None and not self.interrupted:
            raise _failed(child)
        return child.ready

    def wait_until(self, done: Callable[[], bool], timeout_s: float) -> None:
        """Wait for a condition, a signal or the end of a child, looking ten times a second."""
        deadline_s = time.monotonic() + timeout_s
        while not done() and not self.interrupted and time.monotonic() < deadline_s:
            if not all(child.alive for child in self.children):
                return
            self._wait(0.1, self.children)

    def watch(self, last: Child) -> None:
        """Until `last` has ended or a signal came: keep the others running.

        Raises:
            ProcessError: A child failed for good.
        """
        while not self.interrupted:
            while self._dialogues_told < self._interrupts.dialogues:
                self._dialogues_told += 1
                last.tell("dialogue")
            is_over, has_ended = not last.alive, False
            for child in self.children:
                if child.alive and not child.has_said_all:
                    continue
                child.end()
                child.listen()  # after its end, so that its last word is heard
                if child is last and child.has_done_its_work:
                    has_ended = is_over
                    continue
                self._revive(child)
            if has_ended:
                return  # and the others live, to say what is left
            self._wait(1.0, self.children)

    def stop(self) -> None:
        """Stop the children, the last started first; a second signal kills them."""
        self._patience = 2
        for child in reversed(self.children):
            if self._interrupts.count < 2:
                self._stop_or_kill(child)
        for child in self.children:
            if child.alive:
                child.kill()

    def _stop_or_kill(self, child: Child) -> None:
        child.listen()
        if child.ready is None and child.failure is None:
            child.kill()  # it is still loading, hears nothing, and has nothing to finish
            return
        was_alive = child.alive
        child.tell("stop")
        deadline_s = time.monotonic() + child.stop_deadline_s
        try:
            while child.alive and self._interrupts.count < 2 and time.monotonic() < deadline_s:
                self._wait(0.2, [child])
                self._keep_alive_before(child)
            if was_alive and self._interrupts.count < 2:
                self._check_end(child)
        except ProcessError as error:
            child.kill()
            # Nobody is left to be told otherwise.
            _log.error("%s; what %s still had is lost", error, child.name)
            self.exit_code = self.exit_code or error.exit_code

    def _keep_alive_before(self, child: Child) -> None:
        """What a child that drains waits for is started again."""
        for other in self.children[: self.children.index(child)]:
            other.listen()
            if child.alive and (other.has_said_all or not other.alive):
                other.end()
                other.listen()
                self._revive(other)

    def _check_end(self, child: Child) -> None:
        """Raise where it is still alive with something to lose, or has failed."""
        child.listen()
        if child.has_done_its_work:
            child.kill()
        elif child.failure is not None or not child.alive:
            raise _failed(child)
        else:
            seen = f"{child.name} missed its stop deadline of {child.stop_deadline_s:.0f} s and is killed"
            raise ProcessError(seen, "an end in time", "run again with --debug")

    def _revive(self, child: Child) -> None:
        if child.failure is not None or not child.restarts:
            raise _failed(child)
        child.worked_s += time.monotonic() - child.ready_at_s if child.ready is not None else 0.0
        if not child.budget.take(child.worked_s):
            raise ProcessError(
                f"{child.name} died {RESTARTS + 1} times in {RESTART_WINDOW_S:.0f} s of work, last with {_exit(child)}",
                "a process that stays up",
                "run telme-stream doctor, then again with --debug",
            )
        _log.warning("%s died with %s and is started again", child.name, _exit(child))
        child.arguments = child.arguments if child.again is None else child.again(child.remembered)
        child.start()
        self._wait_ready(child)
        child.tell("go")

    def _wait_ready(self, child: Child) -> None:
        """Until the child is ready or has ended, or a signal came. A child that is preparing gets its time anew.

        Raises:
            ProcessError: It does neither in time.
        """
        deadline_s = time.monotonic() + READY_DEADLINE_S
        while child.ready is None and child.failure is None and child.alive and self._interrupts.count < self._patience:
            if child.preparing:
                child.preparing, deadline_s = False, time.monotonic() + READY_DEADLINE_S
            if time.monotonic() > deadline_s:
                raise ProcessError(f"{child.name} was not ready in {READY_DEADLINE_S:.0f} s", "a start", "see the log")
            self._wait(deadline_s - time.monotonic(), [child])
        if child.failure is not None:
            child.end()
        child.listen()  # what it said before it ended

    def _wait(self, timeout_s: float, children: list[Child]) -> None:
        """Until a signal, a word from one of these children or the end of one; one that has ended does not wait."""
        handles: list[Any] = [self._interrupts.wakeup.receiver]
        for child in children:
            if child.process is not None:
                handles.append(child.process.sentinel)
            if child.line is not None:
                handles.append(child.line)
        ready = wait(handles, max(timeout_s, 0))
        if self._interrupts.wakeup.receiver in ready:
            self._interrupts.wakeup.take()
        for child in children:
            child.listen()


def _exit(child: Child) -> str:
    code = child.process.exitcode if child.process is not None else None
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _failed(child: Child) -> ProcessError:
    if child.failure is not None:
        error = ProcessError(child.failure["seen"], child.failure["expected"], child.failure["remedy"])
        error.exit_code = int(child.failure["exit_code"])
        return error
    return ProcessError(f"{child.name} died with {_exit(child)}", "a process that stays up", "run again with --debug")
