"""The cache of engines when something breaks: killed builders, a real full disk, real damage."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import filelock
import msgspec
import pytest

from engines.store import MANIFEST_FILE, Store, verify
from telme.errors import EngineError
from tests.engines.stores import DEADLINE_S, KEY, in_a_file_system, left, line, refuses, start, writes


def test_a_builder_killed_half_way_leaves_nothing_to_trip_over(tmp_path: Path) -> None:
    with start(tmp_path, "first") as first:
        assert line(first) == "building"
        with start(tmp_path, "second") as second:
            assert line(second).startswith("another process builds the engine")
            first.send_signal(signal.SIGKILL)
            assert line(second) == "building", "the lock dies with its holder"
            assert second.stdin is not None
            second.stdin.write("go\n")
            second.stdin.flush()
            assert second.wait(DEADLINE_S) == 0
    (folder,) = Store(tmp_path).folders()
    assert (folder / "plan").read_text() == "second"
    assert left(tmp_path) == [folder.name]


def test_what_a_killed_builder_left_can_be_removed_and_what_is_being_built_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with start(tmp_path, "first") as first:
        assert line(first) == "building"
        assert store.remove_unfinished() == []
        (partial,) = (path for path in tmp_path.iterdir() if path.is_dir())
        first.send_signal(signal.SIGKILL)
        first.wait(DEADLINE_S)
    assert store.remove_unfinished() == [partial]
    assert left(tmp_path) == []


def test_what_a_killed_builder_left_is_no_artifact(tmp_path: Path) -> None:
    with start(tmp_path, "first") as first:
        assert line(first) == "building"
        first.send_signal(signal.SIGKILL)
        first.wait(DEADLINE_S)
    assert Store(tmp_path).folders() == []
    assert len(left(tmp_path)) == 1
    folder = Store(tmp_path).get_or_build(KEY, writes("whole"))
    assert left(tmp_path) == [folder.name]


def test_a_build_that_fails_leaves_nothing_and_says_its_own_error(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "plan").write_text("half")
        raise EngineError("node Conv_3 is not supported", "a supported graph", "use --backend onnx")

    with pytest.raises(EngineError, match="node Conv_3"):
        Store(tmp_path).get_or_build(KEY, fails)
    assert left(tmp_path) == []


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    def fills(folder: Path) -> None:
        (folder / "plan").symlink_to("/dev/full")
        (folder / "plan").write_text("a plan")

    with pytest.raises(EngineError, match=r"No space left on device.*free some space.*XDG_CACHE_HOME"):
        Store(tmp_path).get_or_build(KEY, fills)
    assert left(tmp_path) == []


FULL_DISK = """
mount -t tmpfs -o size=64k tmpfs "$1" || exit 77
"$2" - "$1" <<'END'
import sys
from pathlib import Path
from engines.store import Store
from telme.errors import EngineError

root = Path(sys.argv[1])
try:
    Store(root).get_or_build({"weights": "0"}, lambda folder: (folder / "plan").write_bytes(bytes(65536)))
except EngineError as error:
    print(error)
print([path.name for path in root.iterdir() if path.suffix != ".lock"])
END
"""


def test_a_disk_that_has_no_room_for_the_manifest_either(tmp_path: Path) -> None:
    """A real file system of 64 KiB, in a name space of its own."""
    error, entries = in_a_file_system(FULL_DISK, tmp_path)
    assert "No space left on device" in error
    assert entries == "[]"


def test_a_cache_that_may_not_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(EngineError, match=r"cache .*cache cannot be used"):
        Store(tmp_path / "cache").get_or_build(KEY, writes("a plan"))


def lock_nothing(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the cache is another user's or in an image: permissions do not bind root, who may run the tests."""
    opened = os.open

    def refuse(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith(".lock"):
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_whole_artifact_is_taken_from_where_nothing_may_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    folder = Store(tmp_path).get_or_build(KEY, writes("a plan"))
    lock_nothing(code, monkeypatch)
    assert Store(tmp_path).get_or_build(KEY, refuses) == folder
    with pytest.raises(EngineError, match=r"may not be written: .*not there.*a folder that may be written.*XDG_CACHE"):
        Store(tmp_path).get_or_build({**KEY, "graph": "audio"}, refuses)
    (folder / "plan").write_text("a plam")
    with pytest.raises(EngineError, match=r"may not be written: .*plan is damaged.*a folder that may be written"):
        Store(tmp_path).get_or_build(KEY, refuses)
    assert (folder / "plan").read_text() == "a plam"


READ_ONLY = """
mount -t tmpfs tmpfs "$1" || exit 77
for option in rw ro; do
    mount -o remount,$option "$1" || exit 77
    "$2" - "$1" $option <<'END'
import sys
from pathlib import Path
from engines.store import Store
from telme.errors import EngineError

for weights in "01":
    def build(folder):
        print("built", weights)
    try:
        Store(Path(sys.argv[1]) / "cache").get_or_build({"weights": weights}, build)
        print("found", weights)
    except EngineError as error:
        print(error)
    if sys.argv[2] == "rw":
        break
END
done
"""


def test_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    """A real one, in a name space of its own."""
    first, *then = in_a_file_system(READ_ONLY, tmp_path)
    assert (first, then[:2]) == ("built 0", ["found 0"] * 2)
    assert "Read-only file system" in then[2]
    assert "a folder that may be written" in then[2]


def test_an_artifact_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    folder = store.replace(KEY, writes("first"))

    def fills(folder: Path) -> None:
        (folder / "plan").symlink_to("/dev/full")
        (folder / "plan").write_text("a plan")

    with pytest.raises(EngineError, match=r"cannot be written: .*No space left.*XDG_CACHE_HOME"):
        store.replace(KEY, fills)
    lock_nothing(errno.EROFS, monkeypatch)
    with pytest.raises(EngineError, match=r"cannot be written: .*Read-only"):
        store.replace(KEY, writes("third"))
    assert store.find(KEY) == folder
    assert left(tmp_path) == [folder.name]
    assert (folder / "plan").read_text() == "first"


def test_a_cache_that_goes_away_in_mid_build_says_so(tmp_path: Path) -> None:
    root = tmp_path / "cache"

    def build(folder: Path) -> None:
        shutil.rmtree(root)

    with pytest.raises(EngineError, match=r"went away in the middle.*run it again"):
        Store(root).get_or_build(KEY, build)
    assert (Store(root).get_or_build(KEY, writes("a plan")) / "plan").read_text() == "a plan"


def flip_a_byte(folder: Path) -> None:
    (folder / "plan").write_text("a plam")


def cut(folder: Path) -> None:
    (folder / "plan").write_text("a")


def lose(folder: Path) -> None:
    (folder / "plan").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()


def garble_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_bytes(b'{"key": 3, \xff')


def flip_a_letter_of_the_manifest(folder: Path) -> None:
    content = (folder / MANIFEST_FILE).read_bytes()
    (folder / MANIFEST_FILE).write_bytes(content.replace(b"tensorrt", b"tens\xefrrt"))


def from_another_gpu(folder: Path) -> None:
    content = msgspec.json.decode((folder / MANIFEST_FILE).read_bytes())
    content["key"]["gpu"] = "NVIDIA A10 8.6"
    (folder / MANIFEST_FILE).write_bytes(msgspec.json.encode(content))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (flip_a_byte, "plan is damaged, sha256"),
        (cut, "plan is damaged, sha256"),
        (lose, "plan cannot be read"),
        (lose_manifest, "manifest.json"),
        (garble_manifest, "manifest.json"),
        (flip_a_letter_of_the_manifest, "manifest.json"),
        (from_another_gpu, "gpu 'NVIDIA A10 8.6' instead of 'NVIDIA L4 8.9'"),
    ],
)
def test_what_does_not_hold_is_named_and_built_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None], named: str
) -> None:
    store = Store(tmp_path)
    folder = store.get_or_build(KEY, writes("a plan"))
    harm(folder)
    with pytest.raises(EngineError, match=named):
        verify(folder, KEY)
    assert store.get_or_build(KEY, writes("a new plan")) == folder
    assert named in caplog.text
    assert "built anew" in caplog.text
    assert (folder / "plan").read_text() == "a new plan"
    verify(folder, KEY)


def test_a_cache_that_cannot_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was made by another user; permissions do not bind root, who may run the tests."""

    def refuse(folder: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    store = Store(tmp_path / "cache")
    for look in (store.folders, store.remove_unfinished):
        with pytest.raises(EngineError, match=r"cannot be read: .*Permission denied: .*cache.*XDG_CACHE_HOME"):
            look()


def test_two_that_remove_what_is_unfinished_do_not_trip_over_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, partial = Store(tmp_path), tmp_path / "0123456789abcdef01234567.building"
    partial.mkdir()
    acquire = filelock.FileLock.acquire

    def after_another(lock: filelock.FileLock, *given: Any, **named: Any) -> Any:
        shutil.rmtree(partial)
        return acquire(lock, *given, **named)

    monkeypatch.setattr(filelock.FileLock, "acquire", after_another)
    assert store.remove_unfinished() == []


def why_damaged(folder: Path) -> str:
    try:
        verify(folder)
    except EngineError as error:
        return error.seen
    return ""


def test_what_is_useless_is_removed_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.get_or_build(KEY, writes("a plan"))
    assert store.remove(folder, why_damaged) == ""
    assert folder.exists()
    flip_a_byte(folder)
    assert "plan is damaged" in store.remove(folder, why_damaged)
    assert store.remove(folder, why_damaged) == "", "another process was quicker"
    assert left(tmp_path) == []


def test_what_is_being_mended_is_not_removed(tmp_path: Path) -> None:
    folder = Store(tmp_path).get_or_build(KEY, writes("first"))
    flip_a_byte(folder)
    with start(tmp_path, "second") as second:
        assert "plan is damaged" in line(second)
        assert line(second) == "building"
        assert why_damaged(folder)
        assert Store(tmp_path).remove(folder, why_damaged) == ""
        assert second.stdin is not None
        second.stdin.write("go\n")
        second.stdin.flush()
        assert line(second) == str(folder)
    assert Store(tmp_path).remove(folder, why_damaged) == ""
    assert (folder / "plan").read_text() == "second"


def useless(folder: Path) -> str:
    return "of another version"


@pytest.mark.parametrize("suffix", ["", ".building"])
@pytest.mark.parametrize("kind", ["a link", "a link to nowhere", "a file"])
def test_what_stands_in_the_place_of_an_artifact_makes_way(tmp_path: Path, kind: str, suffix: str) -> None:
    """As a link to a folder on another disk, whose engine is damaged."""
    store, elsewhere = Store(tmp_path / "cache"), tmp_path / "elsewhere"
    folder = store.get_or_build(KEY, writes("first"))
    folder.rename(elsewhere)
    place = folder.with_name(folder.name + suffix)
    if kind == "a file":
        place.write_text("a file", encoding="utf-8")
    else:
        place.symlink_to(elsewhere if kind == "a link" else tmp_path / "nowhere")
    flip_a_byte(elsewhere)
    assert store.get_or_build(KEY, writes("second")) == folder
    assert (folder / "plan").read_text() == "second"
    assert left(store.root) == [folder.name]
    assert not folder.is_symlink()


def test_a_link_in_an_artifacts_place_is_removed_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    store, elsewhere = Store(tmp_path / "cache"), tmp_path / "elsewhere"
    folder = store.get_or_build(KEY, writes("a plan"))
    folder.rename(elsewhere)
    half = store.root / "0123456789abcdef01234567.building"
    for place in (folder, half):
        place.symlink_to(elsewhere)
    assert store.remove(folder, useless) == useless(folder)
    assert store.remove_unfinished() == [half]
    assert left(store.root) == []
    assert (elsewhere / "plan").read_text() == "a plan"


def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    folder = store.get_or_build(KEY, writes("a plan"))
    half = tmp_path / "0123456789abcdef01234567.building"
    half.mkdir()

    def busy(path: Path) -> NoReturn:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        for path, remove in ((folder, lambda: store.remove(folder, useless)), (half, store.remove_unfinished)):
            with pytest.raises(EngineError, match=rf"{path} cannot be removed: .*busy"):
                remove()
    assert store.find(KEY) == folder
    lock_nothing(errno.EROFS, monkeypatch)
    with pytest.raises(EngineError, match=rf"{folder} cannot be removed: .*Read-only"):
        store.remove(folder, useless)
