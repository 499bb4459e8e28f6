"""One run of telme-stream: folder, processes, sink. Everything it makes is gone when it ends."""

from __future__ import annotations

import fcntl
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from stream.bus import Event, Status
from stream.config import Config
from stream.interrupts import Interrupts
from stream.items import Chosen, Session
from stream.link import Subscriber
from stream.machine import journal_folder, runs_folder
from stream.processes import capture_main, worker_main
from stream.sinks import drop_output
from stream.supervisor import (
    CAPTURE_STOP_DEADLINE_S,
    WORKER_STOP_DEADLINE_S,
    Child,
    Supervisor,
)
from telme.errors import INTERRUPTED, JournalError, LinkError, OutputError, TelmeStreamError, WireError

_log = logging.getLogger(__name__)

_SUBSCRIBED_DEADLINE_S = 10.0
_SINK_DEADLINE_S = 10.0
_POLL_MS = 100

Sink = Callable[[Event, bytes], None]


def run_all(config: Config, session: Session, sink: Sink, debug: bool) -> int:
    """Worker, capture and sink on this machine; returns the exit code.

    Raises:
        TelmeStreamError: What ended the run.
    """
    interrupts = Interrupts()
    with interrupts.installed(), run_folder(config) as folder:  # so that no signal keeps the folder from its removal
        config = _with_private_link(config, folder)
        supervisor = Supervisor(interrupts)
        worker = Child(
            "worker", worker_main, (config, folder, debug), restarts=True, stop_deadline_s=WORKER_STOP_DEADLINE_S
        )
        try:
            facts = supervisor.start(worker)
            if facts is None:
                return INTERRUPTED
            config = _with_addresses(config, facts)
            worker.again = lambda _: (config, folder, debug)
            capture = capture_child(config, session, folder, debug)
            with SinkThread(facts["events"], sink, interrupts) as sinking:
                try:
                    supervisor.start(capture)
                    supervisor.wait_until(sinking.subscribed.is_set, _SUBSCRIBED_DEADLINE_S)
                    capture.tell("go")
                    supervisor.watch(capture)
                finally:
                    supervisor.stop()
        finally:
            supervisor.stop()
        if sinking.failure is not None:
            raise sinking.failure
        return _exit_code(supervisor)


def run_worker(config: Config, debug: bool) -> int:
    """The worker alone, for capture processes elsewhere; until a signal."""
    interrupts = Interrupts()
    with interrupts.installed(), run_folder(config) as folder:
        config = _with_private_link(config, folder)
        worker = Child(
            "worker", worker_main, (config, folder, debug), restarts=True, stop_deadline_s=WORKER_STOP_DEADLINE_S
        )
        return _run_alone(worker, interrupts)


def run_capture(config: Config, session: Session, debug: bool) -> int:
    """The capture process alone, for a worker elsewhere."""
    interrupts = Interrupts()
    with interrupts.installed(), run_folder(config) as folder:
        return _run_alone(capture_child(config, session, folder, debug), interrupts)


def capture_child(config: Config, session: Session, folder: Path, debug: bool) -> Child:
    """The capture process. It must find its devices when it is started, and not when it is started again."""

    def again(facts: dict[str, str]) -> tuple[Config, Session, Path, bool]:
        microphone = msgspec.json.decode(facts.get("microphone", "null"), type=Chosen | None)
        return config, replace(session, resumed=True, microphone=microphone), folder, debug

    return Child(
        "capture",
        capture_main,
        (config, session, folder, debug),
        restarts=session.file is None,
        stop_deadline_s=CAPTURE_STOP_DEADLINE_S,
        again=again,
    )


def _run_alone(child: Child, interrupts: Interrupts) -> int:
    supervisor = Supervisor(interrupts)
    try:
        facts = supervisor.start(child)
        if facts is not None:
            _log.info("%s ready: %s", child.name, ", ".join(f"{key} {value}" for key, value in facts.items()))
        child.tell("go")
        supervisor.watch(child)
    finally:
        supervisor.stop()
    return _exit_code(supervisor)


def _exit_code(supervisor: Supervisor) -> int:
    """Of a run that nothing ended but a signal or its own end."""
    return supervisor.exit_code or (INTERRUPTED if supervisor.interrupted else 0)


@contextmanager
def run_folder(config: Config) -> Iterator[Path]:
    """A folder for sockets and journals: the configured one, or a private one that is removed at the end.

    Raises:
        JournalError: It cannot be made.
    """
    if config.journal.folder is not None:
        folder = journal_folder(config.journal.folder)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # one that is there keeps its mode
        except OSError as error:
            raise JournalError(f"{folder}: {error}", "a folder that can be written", "check --journal") from error
        with _locked(folder):
            try:
                yield folder
            finally:
                # What the processes leave beside the journals.
                shutil.rmtree(folder / "torchinductor", ignore_errors=True)
                (folder / "utterances.ipc").unlink(missing_ok=True)
        return
    try:
        folder = Path(tempfile.mkdtemp(prefix="telme-stream-", dir=runs_folder()))
    except OSError as error:
        raise JournalError(
            f"no private folder can be made: {error}", "room where temporary files go", "give --journal FOLDER"
        ) from error
    try:
        yield folder
    finally:
        if folder.is_dir():  # XDG_RUNTIME_DIR goes with the user's last login, also under a run that goes on
            shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One run at a time in a folder: two would take each other's sockets and events.

    Raises:
        JournalError: Another run has it.
    """
    try:
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise JournalError(f"{folder}: {error}", "a folder that can be written", "check --journal") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JournalError(
                f"{folder} is used by another telme-stream", "a folder of one's own", "give another --journal"
            ) from error
        yield


def _with_private_link(config: Config, folder: Path) -> Config:
    if config.link.utterances is not None:
        return config
    link = msgspec.structs.replace(config.link, utterances=f"ipc://{folder / 'utterances.ipc'}")
    return msgspec.structs.replace(config, link=link)


def _with_addresses(config: Config, facts: dict[str, str]) -> Config:
    """The addresses in full, so that a worker that is started again listens where it did."""
    link = msgspec.structs.replace(config.link, utterances=facts["utterances"], events=facts["events"])
    return msgspec.structs.replace(config, link=link)


class SinkThread:
    """Subscribes to this run's events and hands each to the sink, until the worker's last word.

    Args:
        address: Where the worker publishes.
        sink: Called in the thread.
        interrupts: Told when standard output is closed or cannot be written: then the run ends.

    Attributes:
        subscribed: Set once an event came.
        failure: Why nothing more was handed over, where that is an error.
    """

    def __init__(self, address: str, sink: Sink, interrupts: Interrupts) -> None:
        self.subscribed = threading.Event()
        self.failure: TelmeStreamError | None = None
        self._address = address
        self._sink = sink
        self._interrupts = interrupts
        self._stopping = threading.Event()
        self._last_seq = 0
        self._handed = 0
        self._thread = threading.Thread(target=self._main, name="sink", daemon=True)

    def __enter__(self) -> SinkThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until all is handed over. Output that stands still is waited for until somebody asks to stop."""
        self._stopping.set()
        handed, since_s, told = -1, 0.0, False
        signals = self._interrupts.count
        while self._thread.is_alive():
            self._thread.join(_POLL_MS / 1000)
            if handed != self._handed:
                handed, since_s = self._handed, time.monotonic()
            stands_still = time.monotonic() - since_s > _SINK_DEADLINE_S
            if self._interrupts.count > signals or (stands_still and self._interrupts.count):
                self.failure = OutputError("events that are not written yet", "output that takes them", "read faster")
                return
            if stands_still and not told:
                told = True
                _log.warning("standard output takes no more; what is left waits for it, until Ctrl-C")

    def _main(self) -> None:
        try:
            with Subscriber(self._address) as subscriber:
                # What the worker said is read to the end; then its silence for one poll is the end too.
                while (received := subscriber.receive(_POLL_MS)) or not self._stopping.is_set():
                    if received and self._take(*received):
                        return
        except OSError as error:
            if not isinstance(error, BrokenPipeError):  # which says that nobody reads any more
                self.failure = OutputError(f"standard output: {error}", "room for events", "see where it goes")
            drop_output()
            self._interrupts.request()
        except (LinkError, WireError) as error:
            self.failure = error
            self._interrupts.request()
        # A sink that ends in silence would leave a run that nobody hears.
        except Exception as error:  # noqa: BLE001
            _log.debug("the sink", exc_info=True)
            self.failure = OutputError(
                f"an event cannot be written: {type(error).__name__}: {error}", "an event", "try --events jsonl"
            )
            self._interrupts.request()

    def _take(self, event: Event, json: bytes) -> bool:
        """Hand an event over; True when it was the last."""
        self.subscribed.set()
        self._handed += 1
        if event.is_stored():
            # A worker that died between publishing and noting it says the event once more.
            if event.seq > self._last_seq:
                self._last_seq = event.seq
                self._sink(event, json)
            return False
        self._sink(event, json)
        status = event.payload()
        return isinstance(status, Status) and status.role == "worker" and status.state == "stopped"
