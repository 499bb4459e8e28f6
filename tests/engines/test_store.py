"""The cache of engines, with real processes: built once, waited for, found, told apart."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

import engines.store
from engines.store import MANIFEST_FILE, Store, read_manifest, verify
from telme.errors import EngineError
from tests.engines.stores import DEADLINE_S, KEY, left, line, refuses, start, writes


def test_an_artifact_is_built_once_and_found_again(tmp_path: Path) -> None:
    folder = Store(tmp_path / "cache").get_or_build(KEY, writes("a plan"))
    assert Store(tmp_path / "cache").get_or_build(dict(reversed(KEY.items())), refuses) == folder
    assert (folder / "plan").read_text() == "a plan"
    manifest = read_manifest(folder)
    assert manifest.key == KEY
    assert {name: file.size_bytes for name, file in manifest.files.items()} == {"plan": 6}
    assert Store(tmp_path / "cache").folders() == [folder]


def test_all_files_of_an_artifact_count(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "weights").mkdir()
        (folder / "weights" / "0").write_text("many")
        (folder / "plan").write_text("a plan")

    folder = Store(tmp_path).get_or_build(KEY, build)
    manifest = verify(folder, KEY)
    assert manifest.files.keys() == {"plan", "weights/0"}
    assert manifest.size_bytes == 10
    (folder / "weights" / "0").write_text("mane")
    with pytest.raises(EngineError, match="weights/0 is damaged"):
        verify(folder, KEY)


def test_a_manifest_says_when_an_artifact_was_built_and_how_long_that_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(engines.store, "time", SimpleNamespace(monotonic=lambda: now_s))

    def build(folder: Path) -> None:
        nonlocal now_s
        now_s += 72.34

    manifest = read_manifest(Store(tmp_path).get_or_build(KEY, build))
    assert manifest.build_s == 72.3
    assert datetime.fromisoformat(manifest.built).utcoffset() == timedelta(0)


def test_what_has_its_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the power fails then: first what is in the files, then which there are, at last their folder's name."""
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def noted_sync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    def noted_rename(path: Path, target: Path) -> Path:
        done.append(f"{path.name} renamed")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    folder = Store(tmp_path / "cache").get_or_build(KEY, writes("a plan"))
    partial = f"{folder.name}.building"
    assert done == ["plan", MANIFEST_FILE, partial, f"{partial} renamed", "cache"]


def test_a_build_leaves_no_file_open(tmp_path: Path) -> None:
    """A worker that runs for weeks writes what it has compiled again and again."""
    store, ours = Store(tmp_path), Path("/proc/self/fd")
    before = len(list(ours.iterdir()))
    store.replace(KEY, writes("a plan"))
    store.get_or_build(KEY, refuses)
    assert len(list(ours.iterdir())) == before


@pytest.mark.parametrize("field", KEY)
def test_every_field_of_the_key_counts(tmp_path: Path, field: str) -> None:
    store = Store(tmp_path)
    folder = store.get_or_build(KEY, writes("one"))
    other = store.get_or_build({**KEY, field: "another"}, writes("two"))
    assert other != folder
    assert (folder / "plan").read_text() == "one"
    assert store.folders() == sorted([folder, other])


def test_a_miss_names_the_fields_of_the_nearest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    store.get_or_build({**KEY, "gpu": "NVIDIA A10 8.6", "version": "1.0"}, writes("far"))
    store.get_or_build({**KEY, "version": "1.6.0"}, writes("near"))
    store.get_or_build({**KEY, "graph": "audio"}, writes("of something else"))
    with caplog.at_level(logging.INFO, "engines.store"):
        store.get_or_build(KEY, writes("now"))
    assert [record.message for record in caplog.records] == [
        "no cached engine fits, the nearest has version '1.6.0' instead of '1.7.1'"
    ]


def test_a_miss_names_fields_that_only_one_of_the_two_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    store.get_or_build({"weights": "0f", "graph": "text", "opset": "18"}, writes("of an older program"))
    with caplog.at_level(logging.INFO, "engines.store"):
        store.get_or_build({"weights": "0f", "graph": "text", "gpu": "NVIDIA L4 8.9"}, writes("now"))
    assert [record.message for record in caplog.records] == [
        "no cached engine fits, the nearest has gpu None instead of 'NVIDIA L4 8.9', opset '18' instead of None"
    ]


def test_other_weights_are_nothing_to_compare_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    store.get_or_build({**KEY, "weights": "1a"}, writes("of another bundle"))
    with caplog.at_level(logging.INFO, "engines.store"):
        store.get_or_build(KEY, writes("now"))
    assert caplog.text == ""


def test_a_damaged_manifest_keeps_no_other_from_being_the_nearest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    for version in ("1.5.0", "1.6.0"):
        store.get_or_build({**KEY, "version": version}, writes(version))
    damaged, whole = store.folders()
    (damaged / MANIFEST_FILE).write_bytes(b"{")
    with caplog.at_level(logging.INFO, "engines.store"):
        store.get_or_build(KEY, writes("now"))
    version = read_manifest(whole).key["version"]
    assert [record.message for record in caplog.records] == [
        f"no cached engine fits, the nearest has version '{version}' instead of '1.7.1'"
    ]


def test_two_processes_build_once_and_the_second_waits(tmp_path: Path) -> None:
    with start(tmp_path, "first") as first:
        assert line(first) == "building"
        with start(tmp_path, "second") as second:
            assert line(second).startswith("another process builds the engine")
            assert first.stdin is not None
            first.stdin.write("go\n")
            first.stdin.flush()
            assert line(first) == line(second) == str(Store(tmp_path).folders()[0])
            assert second.wait(DEADLINE_S) == first.wait(DEADLINE_S) == 0
    assert (Store(tmp_path).folders()[0] / "plan").read_text() == "first"


class Work:
    """What a store opens while it is at work.

    Attributes:
        times: How often it was opened.
        opened: Whether it is.
    """

    def __init__(self) -> None:
        self.times = 0
        self.opened = threading.Event()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.times += 1
        self.opened.set()
        try:
            yield
        finally:
            self.opened.clear()


def test_work_is_open_for_as_long_as_a_build_takes(tmp_path: Path) -> None:
    work = Work()
    store = Store(tmp_path, work)

    def build(folder: Path) -> None:
        assert work.opened.is_set()

    store.get_or_build(KEY, build)
    assert not work.opened.is_set()
    store.get_or_build(KEY, refuses)
    assert work.times == 2, "gigabytes are digested, which takes long too"

    def fails(folder: Path) -> None:
        assert work.opened.is_set()
        raise EngineError("node Conv_3 is not supported", "a supported graph", "use --backend onnx")

    with pytest.raises(EngineError, match="Conv_3"):
        store.get_or_build({**KEY, "graph": "audio"}, fails)
    assert not work.opened.is_set()


def test_work_is_open_while_another_process_is_waited_for(tmp_path: Path) -> None:
    work = Work()
    with start(tmp_path, "first") as first, ThreadPoolExecutor(1) as waiting:
        assert line(first) == "building"
        folder = waiting.submit(Store(tmp_path, work).get_or_build, KEY, refuses)
        assert work.opened.wait(DEADLINE_S)
        assert first.stdin is not None
        first.stdin.write("go\n")
        first.stdin.flush()
        assert (folder.result(DEADLINE_S) / "plan").read_text() == "first"
        assert not work.opened.is_set()
        assert first.wait(DEADLINE_S) == 0


def test_folders_of_others_are_no_artifacts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.get_or_build(KEY, writes("a plan"))
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "link").symlink_to(folder)
    assert store.folders() == [folder]


def test_nor_is_what_nearly_has_a_name_of_one(tmp_path: Path) -> None:
    """Pruning would remove it."""
    (tmp_path / "0123456789abcdef").mkdir()
    (tmp_path / "0123456789abcdef0123456789abcdef").mkdir()
    (tmp_path / "0123456789abcdef01234567").write_text("a file")
    assert Store(tmp_path).folders() == []


def test_an_artifact_is_found_without_building_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "cache")
    assert store.find(KEY) is None
    assert not store.root.exists()
    folder = store.get_or_build(KEY, writes("a plan"))
    assert store.has(KEY)
    assert store.find(KEY) == folder
    assert caplog.text == ""
    (folder / "plan").write_text("a plam")
    assert store.has(KEY)
    assert store.find(KEY) is None
    assert "plan is damaged" in caplog.text


def test_a_replaced_artifact_is_whole_and_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    folder = store.replace(KEY, writes("first"))
    assert store.replace(KEY, writes("second")) == folder
    assert (folder / "plan").read_text() == "second"
    assert store.find(KEY) == folder
    assert left(store.root) == [folder.name]


def test_an_artifact_under_another_name_does_not_hold(tmp_path: Path) -> None:
    folder = Store(tmp_path).get_or_build(KEY, writes("a plan"))
    folder.rename(tmp_path / "copied")
    with pytest.raises(EngineError, match="the manifest of another one"):
        verify(tmp_path / "copied")


def test_no_cache_holds_no_artifacts(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").folders() == []
