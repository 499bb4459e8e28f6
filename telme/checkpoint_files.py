"""The authors' four checkpoint files: found in a folder or an archive, and read.

A file is known by its name where it has one of the authors' own, and otherwise, or where several have one, by the names
and shapes of its parameters. Two that would do are never chosen from.

Nobody is trusted: of an archive only such files are unpacked, none outside the folder given, and nothing but tensors is
read from any.
"""

from __future__ import annotations

import errno
import lzma
import pickle
import shutil
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn

from telme.config import Part
from telme.errors import BundleError
from telme.labels import LABEL_SETS
from telme.modeling import TelmeModel
from telme.published import PARTS, differences, listed

SOURCE = "the authors' archive, or the folder it unpacks to"
_SUFFIX = ".bin"
_AGAIN = "fetch the file again, from the authors"
_FOUR = (
    f"one of each: {', '.join(' or '.join(item.names) for item in PARTS.values())}, or {_SUFFIX} files of other names"
)


@dataclass(frozen=True)
class CheckpointFile:
    """One file: its name in the folder or archive it came from, and where it lies on this disk."""

    name: str
    path: Path


def files_in_folder(source: Path, dataset: str, model: TelmeModel) -> dict[Part, CheckpointFile]:
    """The four files in a folder.

    Args:
        source: The folder; it may hold those of several data sets.
        dataset: Key of `telme.labels.LABEL_SETS`.
        model: The published networks for it, whose parameters the files must have; their values do not matter.

    Raises:
        BundleError: One is missing, or several would do.
    """
    names = [path.relative_to(source).as_posix() for path in source.rglob(f"*{_SUFFIX}") if path.is_file()]
    search = _Search(source, dataset, model)
    chosen = search.chosen(sorted(names), lambda wanted: {name: source / name for name in wanted})
    return {part: CheckpointFile(name, source / name) for part, name in chosen.items()}


def files_in_archive(source: Path, dataset: str, model: TelmeModel, staging: Path) -> dict[Part, CheckpointFile]:
    """The four files in a tar archive, unpacked.

    Args:
        source: The archive; the rest as in `files_in_folder`.
        dataset: Whose files.
        model: The published networks for it.
        staging: Folder for what is unpacked, under names of our own: what an archive calls it decides nothing here.

    Raises:
        BundleError: One is missing, or several would do; or the archive is damaged or leads outside its folder.
    """
    search = _Search(source, dataset, model)
    try:
        with tarfile.open(source) as tar:
            # What is no file under a name that nobody knows, as a folder or a link, is none of the four.
            members = {
                member.name: member
                for member in tar
                if member.name.endswith(_SUFFIX) and (member.isreg() or _is_known(member.name))
            }
            archive = _Archive(source, tar, members, staging)
            chosen = search.chosen(list(members), archive.unpacked)
            paths = archive.unpacked(chosen.values())
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        # A damaged gzip is an OSError too, without a number.
        no_room = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        expected, remedy = ("room beside --out", "free some space") if no_room else (SOURCE, "fetch it again")
        raise BundleError(f"{source} cannot be unpacked: {error}", expected, remedy) from error
    return {part: CheckpointFile(name, paths[name]) for part, name in chosen.items()}


class _Archive:
    """Unpacks members of a tar archive, each once.

    Args:
        source: The archive's path, for errors.
        tar: It.
        members: Its members by name.
        staging: Where they go.
    """

    def __init__(
        self, source: Path, tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], staging: Path
    ) -> None:
        self._source = source
        self._tar = tar
        self._members = members
        self._staging = staging
        self._unpacked: dict[str, Path] = {}

    def unpacked(self, names: Iterable[str]) -> dict[str, Path]:
        """Where those members lie now.

        Raises:
            BundleError: One is no file, or its name leads outside the archive's own folder.
        """
        # In the archive's order, so that a compressed one is read once more and not once for each.
        for name in sorted(set(names) - set(self._unpacked), key=lambda name: self._members[name].offset):
            self._check(self._members[name])
            content = self._tar.extractfile(self._members[name])
            assert content is not None  # a plain file has one
            path = self._staging / f"{len(self._unpacked)}{_SUFFIX}"
            with content, path.open("wb") as file:
                shutil.copyfileobj(content, file)
            self._unpacked[name] = path
        return self._unpacked

    def _check(self, member: tarfile.TarInfo) -> None:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise BundleError(
                f"{self._source} with {member.name!r}, a path outside the archive's own folder",
                "plain names",
                "do not use it",
            )
        if not member.isreg():
            raise BundleError(f"{self._source} in which {member.name} is no file", "a plain file", "fetch it again")


class _Search:
    """Which of many files are the four.

    Args:
        source: Where they are from, for errors.
        dataset: Whose are wanted.
        model: The published networks for it.
    """

    def __init__(self, source: Path, dataset: str, model: TelmeModel) -> None:
        self._source = source
        self._dataset = dataset
        self._networks = {part: _network(model, part) for part in PARTS}

    def chosen(
        self, names: Sequence[str], unpacked: Callable[[Collection[str]], Mapping[str, Path]]
    ) -> dict[Part, str]:
        """The name of each part's file.

        Args:
            names: All there are.
            unpacked: Some of them -> where they lie on this disk; asked for where a name does not tell enough.

        Raises:
            BundleError: A part has none, or several.
        """
        ours = [name for name in names if not self._is_of_another(name)]
        named = {part: [name for name in ours if _ends(name, item.names)] for part, item in PARTS.items()}
        others = [name for name in ours if not any(name in found for found in named.values())]
        considered = {part: found or others for part, found in named.items() if len(found) != 1}
        asked = sorted({name for found in considered.values() for name in found})
        paths = unpacked(asked)
        contents = {name: _Content.of(CheckpointFile(name, paths[name])) for name in asked}
        told = {name: f"{name} ({content.told(self._networks)})" for name, content in contents.items()}
        for part, found in considered.items():
            # One that cannot be read is not passed over where its name says that it is such a file.
            may_be = [
                name
                for name in found
                if contents[name].fits(part, self._networks[part]) or (contents[name].unreadable and named[part])
            ]
            if len(may_be) > 1:
                raise self._too_many(part, [told[name] for name in may_be])
            if not may_be:
                raise self._none(part, [told[name] for name in found], len(names) - len(ours))
            named[part] = may_be
        return {part: found[0] for part, found in named.items()}

    def _is_of_another(self, name: str) -> bool:
        """Whether it is under a folder of another data set's name, and none of the one that is wanted."""
        folders = {folder.lower() for folder in PurePosixPath(name).parts[:-1]}
        return self._dataset not in folders and not folders.isdisjoint(LABEL_SETS)

    def _wanted(self, part: Part) -> str:
        return f"the {PARTS[part].title} of {self._dataset}"

    def _too_many(self, part: Part, found: Sequence[str]) -> BundleError:
        return BundleError(
            f"{self._source} with {len(found)} files that may be {self._wanted(part)}: {listed(found)}",
            "one, since none is chosen in silence",
            "remove the others, or give a folder with the four files alone",
        )

    def _none(self, part: Part, considered: Sequence[str], elsewhere: int) -> BundleError:
        if considered:
            others = f"none of {len(considered)} {_SUFFIX} files holds it: {listed(considered)}"
        else:
            others = f"there is no {' or '.join(PARTS[part].names)}, nor a {_SUFFIX} file of another name"
        more = f"; {elsewhere} more are under folders of another data set" if elsewhere else ""
        return BundleError(f"{self._source} without {self._wanted(part)}: {others}{more}", _FOUR, f"give {SOURCE}")


@dataclass(frozen=True)
class _Content:
    """What is in a file: tensors by name, without their values, or why it cannot be read."""

    tensors: Mapping[str, Tensor]
    unreadable: str = ""

    @classmethod
    def of(cls, file: CheckpointFile) -> _Content:
        """Read names and shapes alone."""
        try:
            return cls(_tensors(file, "meta"))
        except BundleError as error:
            return cls({}, error.seen.removeprefix(f"{file.name} "))

    def fits(self, part: Part, network: nn.Module) -> bool:
        """Whether it has a network's parameters."""
        return not self.unreadable and not differences(part, self.tensors, network)

    def told(self, networks: Mapping[Part, nn.Module]) -> str:
        """What it is, or is most like."""
        if self.unreadable:
            return self.unreadable
        alike = {part: len(self.tensors.keys() & network.state_dict().keys()) for part, network in networks.items()}
        part = max(alike, key=alike.__getitem__)
        if not alike[part]:
            return "other parameters"
        found = differences(part, self.tensors, networks[part])
        return f"{PARTS[part].title}, {found.counted}" if found else PARTS[part].title


def _network(model: TelmeModel, part: Part) -> nn.Module:
    network = model.network(part)
    assert network is not None
    return network


def _is_known(name: str) -> bool:
    return any(_ends(name, item.names) for item in PARTS.values())


def _ends(name: str, tails: Iterable[str]) -> bool:
    parts = PurePosixPath(name).parts
    return any(parts[-len(tail) :] == tail for tail in (PurePosixPath(known).parts for known in tails))


def read_checkpoint(file: CheckpointFile) -> dict[str, Tensor]:
    """The tensors of a file by name. Nothing in it is ever run.

    Raises:
        BundleError: It is damaged, holds anything but named tensors, or a number in them is not finite.
    """
    with _reading(file):
        if zipfile.is_zipfile(file.path):
            with zipfile.ZipFile(file.path) as archive:
                # torch itself does not compare checksums.
                if damaged := archive.testzip():
                    raise BundleError(f"{file.name} is damaged in {damaged}", "its checksum to hold", _AGAIN)
    loaded = _tensors(file, "cpu")
    broken = [name for name, value in loaded.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise BundleError(f"{file.name} with numbers that are not finite in {', '.join(broken)}", "finite ones", _AGAIN)
    return loaded


def _tensors(file: CheckpointFile, device: str) -> dict[str, Tensor]:
    with _reading(file), warnings.catch_warnings():
        # Of pickle protocols that torch does not write; what is wrong with such a file is said below.
        warnings.simplefilter("ignore", UserWarning)
        loaded: object = torch.load(file.path, map_location=device, weights_only=True)
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise BundleError(f"{file.name} holds a {type(loaded).__name__}", "tensors by name, a state dict", _AGAIN)
    return dict(loaded)


@contextmanager
def _reading(file: CheckpointFile) -> Iterator[None]:
    """Say what is wrong with a file that cannot be read."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise BundleError(f"{file.name} holds code or is damaged, and was not run", "plain tensors", _AGAIN) from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise BundleError(f"{file.name} is truncated or damaged: {reason}", "a file of torch.save", _AGAIN) from error
