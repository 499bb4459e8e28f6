"""The folder of a run."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from stream import app, bus
from stream.app import SinkThread, capture_child, run_folder
from stream.bus import Event, make_event, read_event
from stream.config import Config, JournalConfig
from stream.interrupts import Interrupts
from stream.items import Chosen, Session
from telme.errors import JournalError, OutputError
from tests.live import eventually
from tests.stream import children


def test_a_private_folder_is_gone_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with run_folder(Config()) as folder:
        (folder / "events.sqlite").touch()
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_journal_stays_and_serves_one_run_at_a_time(tmp_path: Path) -> None:
    config = Config(journal=JournalConfig(folder=str(tmp_path / "kept")))
    with run_folder(config) as folder:
        (folder / "events.sqlite").touch()
        with pytest.raises(JournalError, match="another telme-stream"), run_folder(config):
            pass
        (folder / "torchinductor").mkdir()
        (folder / "utterances.ipc").touch()
    with run_folder(config) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["events.sqlite", "lock"]


def test_a_new_journal_is_for_its_owner_alone_and_one_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o750)
    for name, mode in (("new", 0o700), ("there", 0o750)):
        with run_folder(Config(journal=JournalConfig(folder=str(tmp_path / name)))) as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == mode


def test_a_journal_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(JournalError, match="file"),
        run_folder(Config(journal=JournalConfig(folder=str(tmp_path / "file" / "journal")))),
    ):
        pass


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with (
        pytest.raises(JournalError, match="--journal"),
        run_folder(Config(journal=JournalConfig(folder=str(tmp_path)))),
    ):
        pass


def test_a_private_folder_that_went_away_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As XDG_RUNTIME_DIR does when its user logs out; what ended the run is still what is told."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def run() -> None:
        with run_folder(Config()) as folder:
            folder.rmdir()
            raise OutputError("nothing", "something", "try")

    with pytest.raises(OutputError):
        run()


@pytest.mark.parametrize("name", ["~nobody-has-this-name/journal", os.fsdecode(b"caf\xe9")])
def test_a_journal_in_nobodys_home_or_with_a_name_that_is_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(JournalError, match="a name in UTF-8; check --journal"),
        run_folder(Config(journal=JournalConfig(folder=name))),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_private_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "file"))
    with pytest.raises(JournalError, match=r"no private folder .* give --journal FOLDER"), run_folder(Config()):
        pass


def test_a_signal_while_the_private_folder_is_removed_keeps_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is tired of waiting presses Ctrl-C again and again; what was said would stay on the disk."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(app, "worker_main", children.brief_worker)
    remove = shutil.rmtree

    def remove_interrupted(folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        remove(folder)

    monkeypatch.setattr(shutil, "rmtree", remove_interrupted)
    try:
        app.run_worker(Config(), debug=False)
    except KeyboardInterrupt:
        pytest.fail(f"it left {list(tmp_path.iterdir())}")
    assert list(tmp_path.iterdir()) == []


def test_only_a_capture_process_that_is_started_again_waits_for_its_devices(tmp_path: Path) -> None:
    live = Session(file=None, fast=False, pictures=True)
    capture = capture_child(Config(), live, tmp_path, debug=False)
    assert capture.restarts
    assert capture.arguments == (Config(), live, tmp_path, False)
    assert capture.again is not None
    assert capture.again({}) == (Config(), replace(live, resumed=True), tmp_path, False)


def test_a_capture_process_that_is_started_again_gets_the_microphone_that_an_index_meant(tmp_path: Path) -> None:
    chosen = Chosen("USB mic", "ALSA", 0, 1)
    capture = capture_child(Config(), Session(file=None, fast=False, pictures=True), tmp_path, debug=False)
    assert capture.again is not None
    _, session, _, _ = capture.again({"microphone": msgspec.json.encode(chosen).decode()})
    assert session.microphone == chosen


class FakeSubscriber:
    """In the place of stream.link.Subscriber: three events, then silence."""

    def __init__(self, address: str) -> None:
        events = (make_event("s", number, bus.Fault(f"fault {number}", None), 0, str(number)) for number in (1, 2, 3))
        self._left = [(read_event(json), json) for json in events]

    def __enter__(self) -> FakeSubscriber:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def receive(self, timeout_ms: int) -> tuple[Event, bytes] | None:
        return self._left.pop(0) if self._left else None


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupts]:
    """Of a run whose worker is the fake one, and whose output stands still after a twentieth of a second."""
    monkeypatch.setattr(app, "Subscriber", FakeSubscriber)
    monkeypatch.setattr(app, "_SINK_DEADLINE_S", 0.05)
    counted = Interrupts()
    with counted.installed():
        yield counted


def test_what_is_handed_over_slowly_is_waited_for(interrupts: Interrupts) -> None:
    written: list[int] = []
    slow = threading.Event()

    def sink(event: Event, json: bytes) -> None:
        slow.wait(0.2)  # four times what counts as standing still
        written.append(event.seq)

    thread = SinkThread("fake", sink, interrupts)
    with thread:
        pass
    assert written == [1, 2, 3]
    assert thread.failure is None
    assert interrupts.count == 0


@pytest.mark.parametrize("before", [True, False])
def test_output_that_stands_still_ends_with_an_error_once_somebody_asked_to_stop(
    interrupts: Interrupts, before: bool, caplog: pytest.LogCaptureFixture
) -> None:
    never = threading.Event()

    def sink(event: Event, json: bytes) -> None:
        never.wait()

    def ask_when_told() -> None:
        eventually(lambda: bool(caplog.text), "it says that it waits")
        interrupts.request()

    thread = SinkThread("fake", sink, interrupts)
    asking = threading.Thread(target=ask_when_told)
    if before:
        interrupts.request()
    else:
        asking.start()
    with thread:
        pass
    if not before:
        asking.join()
        assert "standard output takes no more; what is left waits for it, until Ctrl-C" in caplog.text
    assert isinstance(thread.failure, OutputError)
    never.set()


def test_output_that_nobody_reads_asks_for_no_more_than_the_signal_did(
    interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second signal would kill what is still being transcribed; `telme-stream | tee` gets its Ctrl-C together."""
    monkeypatch.setattr(app, "drop_output", lambda: None)
    os.kill(os.getpid(), signal.SIGINT)

    def sink(event: Event, json: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")  # of a terminal that was closed

    thread = SinkThread("fake", sink, interrupts)
    with thread:
        eventually(lambda: thread.failure is not None, "the sink fails")
    assert interrupts.count == 1


def test_a_sink_that_fails_ends_the_run(interrupts: Interrupts) -> None:
    def sink(event: Event, json: bytes) -> None:
        raise UnicodeEncodeError("ascii", "x", 0, 1, "no such character")

    thread = SinkThread("fake", sink, interrupts)
    with thread:
        eventually(lambda: interrupts.count == 1, "the run is asked to end")
    assert isinstance(thread.failure, OutputError)
    assert "an event cannot be written: UnicodeEncodeError" in str(thread.failure)
