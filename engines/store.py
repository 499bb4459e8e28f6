"""Cached engines: one folder each, named by what it was built from, with a manifest that says so.

    ROOT/<name>/             the artifact's files and manifest.json; <name> is a digest of the key
    ROOT/<name>.building/    an artifact in the making; renamed when it is whole, so no half one is ever seen
    ROOT/<name>.lock         held by whoever looks for, builds or mends <name>

The key's fields say everything that an artifact depends on. Whatever may be used is checked first: the key in its
manifest and the SHA-256 of its files. What does not hold is named and built anew. Where the root may not be written, as
in an image or of another user, what holds is taken without its lock: a folder appears whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import filelock
import msgspec
import platformdirs

from telme.errors import EngineError

MANIFEST_FILE = "manifest.json"
_BUILDING, _LOCK = ".building", ".lock"
_NAME = re.compile(r"[0-9a-f]{24}")
_FREE_SPACE = "free some space, or let XDG_CACHE_HOME name a folder elsewhere"
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)
# Artifacts that agree in these were made of the same thing: where no artifact fits, the reason is told by them.
_SUBJECT = ("weights", "graph")

_log = logging.getLogger(__name__)


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of an artifact."""

    sha256: str
    size_bytes: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lies beside an artifact's files.

    Attributes:
        key: Field -> value, all that the artifact depends on.
        files: Name within the folder -> its digest and size.
        built: When, ISO 8601, UTC.
        build_s: How long it took.
    """

    key: dict[str, str]
    files: dict[str, File]
    built: str
    build_s: float

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files.values())


def default_root() -> Path:
    """The user's cache folder for engines."""
    return platformdirs.user_cache_path("telme-stream") / "engines"


class Store:
    """Artifacts under one folder, shared by all processes of a user.

    Args:
        root: The folder; made when the first artifact is.
        at_work: Makes what is open while an artifact is looked for, waited for or built.
    """

    def __init__(self, root: Path, at_work: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        self.root = root
        self._at_work = at_work

    def get_or_build(self, key: Mapping[str, str], build: Callable[[Path], None]) -> Path:
        """The folder of an artifact, built when there is none that is whole.

        When another process builds the same one, this waits for it and takes what it made.

        Args:
            key: Field -> value, all that the artifact depends on.
            build: Writes the artifact's files into the folder that it is given.

        Raises:
            EngineError: The cache cannot be written and has none that is whole, or `build` raised it. Nothing half made
                is left.
        """
        folder = self.root / _name(key)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self._at_work(), self._locked(folder.with_name(folder.name + _LOCK)):
                if not self._usable(folder, key):
                    _build(folder, key, build)
        except FileNotFoundError as error:
            raise EngineError(
                f"the engine cache {self.root} went away in the middle: {error}", "a folder that stays", "run it again"
            ) from error
        except OSError as error:
            if error.errno in _NOT_OURS:
                return self._as_it_is(folder, key, error)
            raise EngineError(
                f"the engine cache {self.root} cannot be used: {error}", "a folder with room", _FREE_SPACE
            ) from error
        return folder

    def replace(self, key: Mapping[str, str], build: Callable[[Path], None]) -> Path:
        """The folder of an artifact, built now in the place of the one that is there.

        Args:
            key: Field -> value, all that the artifact depends on.
            build: Writes the artifact's files into the folder that it is given.

        Raises:
            EngineError: The cache cannot be written; the one that was there may be gone, but no half one is left.
        """
        folder = self.root / _name(key)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self._locked(folder.with_name(folder.name + _LOCK)):
                _build(folder, key, build)
        except OSError as error:
            raise EngineError(
                f"the engine cache {self.root} cannot be written: {error}",
                "a folder of one's own with room",
                _FREE_SPACE,
            ) from error
        return folder

    def has(self, key: Mapping[str, str]) -> bool:
        """Whether an artifact was made from this; `get_or_build` finds out whether it is still whole."""
        try:
            read_manifest(self.root / _name(key))
        except EngineError:
            return False
        return True

    def find(self, key: Mapping[str, str]) -> Path | None:
        """The folder of an artifact that is whole; None where there is none, which is no reason to build one."""
        if not self.has(key):
            return None
        folder = self.root / _name(key)
        try:
            verify(folder, key)
        except EngineError as error:
            _log.warning("%s; it is not used", error.seen)
            return None
        return folder

    def folders(self) -> list[Path]:
        """Folders of all artifacts, whole or not; what else lies there is somebody else's.

        Raises:
            EngineError: The cache cannot be read.
        """
        return [path for path in self._entries() if _NAME.fullmatch(path.name) and path.is_dir()]

    def _entries(self) -> list[Path]:
        try:
            return sorted(self.root.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise EngineError(
                f"the engine cache cannot be read: {error}",
                "a folder of one's own",
                "let XDG_CACHE_HOME name a folder elsewhere",
            ) from error

    def remove(self, folder: Path, why_useless: Callable[[Path], str]) -> str:
        """Remove an artifact that is useless, unless somebody builds or mends it now, or has just mended it.

        A process that has loaded it keeps what it has.

        Args:
            folder: The artifact's.
            why_useless: Says of a folder why nothing will take it; empty where something may.

        Returns:
            Why it is gone; empty where it stays, or another process removed it.

        Raises:
            EngineError: The cache cannot be written.
        """
        try:
            with filelock.FileLock(folder.with_name(folder.name + _LOCK), timeout=0):
                why = why_useless(folder) if folder.exists() else ""
                if why:
                    _clear(folder)
        except filelock.Timeout:
            return ""
        except OSError as error:
            raise EngineError(f"{folder} cannot be removed: {error}", "a folder of one's own", "remove it") from error
        return why

    def remove_unfinished(self) -> list[Path]:
        """Remove what processes that were killed left half made, and say what it was; what is being made stays.

        Raises:
            EngineError: The cache cannot be read or written.
        """
        removed = []
        for partial in (path for path in self._entries() if path.suffix == _BUILDING):
            try:
                with filelock.FileLock(partial.with_suffix(_LOCK), timeout=0):
                    if not os.path.lexists(partial):
                        continue  # another process was here
                    _clear(partial)
            except filelock.Timeout:
                continue
            except OSError as error:
                raise EngineError(
                    f"{partial} cannot be removed: {error}", "a folder of one's own", "remove it"
                ) from error
            removed.append(partial)
        return removed

    def _as_it_is(self, folder: Path, key: Mapping[str, str], refusal: OSError) -> Path:
        """The folder, where nothing may be written beside it."""
        try:
            verify(folder, key)
        except EngineError as error:
            raise EngineError(
                f"the engine cache {self.root} may not be written: {refusal}; the engine is not there: {error.seen}",
                "a folder that may be written",
                "let XDG_CACHE_HOME name one, or let who may write this one run telme-stream engines build",
            ) from refusal
        return folder

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        # flock: the kernel lets go of it when its holder dies, however that happens.
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            _log.warning("another process builds the engine %s; waiting for it", path.stem)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _usable(self, folder: Path, key: Mapping[str, str]) -> bool:
        if not folder.exists():
            self._explain_miss(key)
            return False
        try:
            verify(folder, key)
        except EngineError as error:
            _log.warning("%s; it is built anew", error.seen)
            return False
        return True

    def _explain_miss(self, key: Mapping[str, str]) -> None:
        """Say which fields keep the nearest artifact of the same subject from being used."""
        nearest: list[str] | None = None
        for folder in self.folders():
            try:
                kept = read_manifest(folder).key
            except EngineError:
                continue  # told by verify
            if all(kept.get(field) == key.get(field) for field in _SUBJECT):
                fields = _differences(kept, key)
                nearest = fields if nearest is None or len(fields) < len(nearest) else nearest
        if nearest:
            _log.info("no cached engine fits, the nearest has %s", ", ".join(nearest))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact.

    Raises:
        EngineError: There is none, or it is damaged.
    """
    path = folder / MANIFEST_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EngineError(f"cached engine {path}: {error}", "its manifest", f"remove {folder}") from error


def verify(folder: Path, key: Mapping[str, str] | None = None) -> Manifest:
    """Check an artifact: the key that its manifest names, and every file against its digest.

    Args:
        folder: Its folder.
        key: What it must have been built from; None where only its name must agree with its manifest.

    Raises:
        EngineError: It does not hold; the field or file is named.
    """
    manifest = read_manifest(folder)
    remedy = f"remove {folder}; it is built anew when it is needed"
    wanted = manifest.key if key is None else key
    if manifest.key != wanted:
        said = ", ".join(_differences(manifest.key, wanted))
        raise EngineError(f"cached engine {folder} has {said}", "the same", remedy)
    if folder.name != _name(wanted):
        raise EngineError(
            f"cached engine {folder} with the manifest of another one", f"the folder {_name(wanted)}", remedy
        )
    for name, recorded in manifest.files.items():
        try:
            found = _facts(folder / name)
        except OSError as error:
            raise EngineError(f"cached engine {folder}: {name} cannot be read: {error}", "it", remedy) from error
        if found != recorded:
            raise EngineError(
                f"cached engine {folder}: {name} is damaged, sha256 {found.sha256[:12]} of {found.size_bytes} bytes",
                f"{recorded.sha256[:12]} of {recorded.size_bytes} bytes",
                remedy,
            )
    return manifest


def _name(key: Mapping[str, str]) -> str:
    return hashlib.sha256(msgspec.json.encode(dict(key), order="sorted")).hexdigest()[:24]


def _differences(kept: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    fields = sorted(field for field in {*kept, *wanted} if kept.get(field) != wanted.get(field))
    return [f"{field} {kept.get(field)!r} instead of {wanted.get(field)!r}" for field in fields]


def _build(folder: Path, key: Mapping[str, str], build: Callable[[Path], None]) -> None:
    partial = folder.with_name(folder.name + _BUILDING)
    _clear(partial)  # of a process that was killed
    partial.mkdir()
    started_s = time.monotonic()
    try:
        build(partial)
        files = {str(path.relative_to(partial)): path for path in sorted(partial.rglob("*")) if path.is_file()}
        manifest = Manifest(
            key=dict(key),
            files={name: _facts(path) for name, path in files.items()},
            built=datetime.now(UTC).isoformat(timespec="seconds"),
            build_s=round(time.monotonic() - started_s, 1),
        )
        (partial / MANIFEST_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        for path in (*files.values(), partial / MANIFEST_FILE, partial):
            _sync(path)
        _clear(folder)  # what did not hold
        partial.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _clear(path: Path) -> None:
    """Remove a folder, or what stands in its place, as a link to one on another disk.

    Raises:
        OSError: It cannot be removed.
    """
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _facts(path: Path) -> File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return File(digest, os.fstat(file.fileno()).st_size)


def _sync(path: Path) -> None:
    """Bring a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
