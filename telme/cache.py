"""Sound and pictures of clips, made once and kept on disk: one file a clip under a key made of all its settings.

A file is written under another name and then renamed, so that a process which is killed, or a disk which is full,
leaves no half file under the right name.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from telme.clips import read_clip
from telme.data import ClipSource
from telme.errors import DataError
from telme.features import FeatureMaker, Media, Missing

# How sound and pictures are made; raised with every change of what comes out.
FORMAT = 3
# What decodes, resamples and resizes; another version may give other tensors.
_LIBRARIES = ("av", "numpy", "pillow", "soxr", "transformers")
_META = "telme"
_NUMBER = re.compile(r"\d+(\.\d+)?")


class MediaCache:
    """`FeatureMaker.media` of clips, from disk where it is there.

    Args:
        folder: Where files are kept; made if need be. Several makers and processes may share it, and one that is whole
            may lie where nothing can be written.
        maker: Makes what is not there.
    """

    def __init__(self, folder: Path, maker: FeatureMaker) -> None:
        self._maker = maker
        self._settings = {
            "format": FORMAT,
            **maker.media_settings,
            "libraries": {name: version(name) for name in _LIBRARIES},
            "machine": platform.machine(),
        }
        self._folder = folder / digest_of(self._settings)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _keep(self._folder / "settings.json", json.dumps(self._settings, indent=2).encode())
        except OSError as error:
            raise unwritable(self._folder, error) from error

    def path(self, source: ClipSource) -> Path:
        """A clip's file; its name and its folder's are made of all that its content depends on."""
        return self._folder / f"{digest_of(_described(source))}.safetensors"

    def media(self, source: ClipSource) -> Media:
        """Sound and pictures of a clip.

        Raises:
            DataError: The cache cannot be written, for instance because the disk is full, or the clip cannot be read.
        """
        path = self.path(source)
        kept = _kept(path)
        if kept is not None:
            return kept
        wanted = self._settings["read"]
        # The sound in any case: it tells whether the clip is too long.
        clip = read_clip(source, audio=True, video="video" in wanted)
        media = self._maker.media(clip.sound, clip.frames, clip.sound_rate_hz)
        try:
            write_whole(path, _packed(media))
        except OSError as error:
            raise unwritable(path, error) from error
        return media


@dataclass(frozen=True)
class ClipReport:
    """What the clips of a split hold.

    Attributes:
        clips: How many utterances there are.
        audio: How many have sound.
        video: How many have pictures.
        reasons: Why others have not: `audio: reason` or `video: reason` -> how many, numbers left out.
        missing: For each utterance, `audio` and `video` where missing, and why.
    """

    clips: int
    audio: int
    video: int
    reasons: dict[str, int]
    missing: tuple[dict[str, str], ...]

    def __str__(self) -> str:
        told = "".join(f"; {count} without {reason}" for reason, count in self.reasons.items())
        return f"{self.clips} utterances, {self.audio} with sound, {self.video} with pictures{told}"


def prepare(cache: MediaCache, sources: Sequence[ClipSource], workers: int, what: str = "clips") -> ClipReport:
    """Make what the cache lacks of these clips, in worker processes, behind a progress bar.

    Args:
        cache: The cache.
        sources: The clips.
        workers: Processes; 0 does it in this one.
        what: The bar's title.

    Raises:
        DataError: The cache cannot be written, or the system does not let a clip be read.
    """
    loader: DataLoader[dict[str, str] | DataError] = DataLoader(_Reasons(cache, sources), None, num_workers=workers)
    missing: list[dict[str, str]] = []
    for found in tqdm(loader, desc=what, unit="clip"):
        if isinstance(found, DataError):
            raise found
        missing.append(found)
    reasons = Counter(
        f"{name}: {_NUMBER.sub('N', reason)}" for utterance in missing for name, reason in sorted(utterance.items())
    )
    return ClipReport(
        len(missing),
        sum("audio" not in utterance for utterance in missing),
        sum("video" not in utterance for utterance in missing),
        dict(reasons.most_common()),
        tuple(missing),
    )


class _Reasons(Dataset[dict[str, str] | DataError]):
    """For each clip, what is missing of it and why; making it fills the cache.

    An error is handed over as it is: the loader would raise another in its place.
    """

    def __init__(self, cache: MediaCache, sources: Sequence[ClipSource]) -> None:
        self._cache = cache
        self._sources = sources

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> dict[str, str] | DataError:
        try:
            return self._cache.media(self._sources[index]).missing
        except DataError as error:
            return error


def _described(source: ClipSource) -> dict[str, Any]:
    return {
        "sound": _file(source.sound),
        "pictures": _file(source.pictures),
        "span_s": source.span_s,
    }


def _file(path: Path | Missing) -> Any:
    if isinstance(path, Missing):
        return path.reason
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def digest_of(description: Any) -> str:
    """Of what JSON can hold: 32 hex digits."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


def _packed(media: Media) -> bytes:
    tensors: dict[str, NDArray[Any]] = {}
    missing = {}
    for name, item in (("sound", media.sound), ("pictures", media.pictures)):
        if isinstance(item, Missing):
            missing[name] = item.reason
        else:
            tensors[name] = np.ascontiguousarray(item)
    packed: bytes = save(tensors, {_META: json.dumps({"missing": missing, "blank": media.blank})})
    return packed


def _kept(path: Path) -> Media | None:
    """What a file holds; None where there is none, or a damaged one, as after a loss of power."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            said = json.loads((file.metadata() or {})[_META])
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        missing = {name: Missing(reason) for name, reason in said["missing"].items()}
        return Media(**held, **missing, blank=said["blank"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, content: bytes) -> None:
    """Write a file unless it says that already."""
    with suppress(FileNotFoundError):
        if path.read_bytes() == content:
            return
    write_whole(path, content)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it: nobody sees half of it.

    Raises:
        OSError: It cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def unwritable(path: Path, error: OSError) -> DataError:
    """The error for a file of the cache that cannot be written."""
    return DataError(
        f"{path} cannot be written: {error.strerror}",
        "room for the cached clips, about 1.5 MB each",
        "free some space, or name another folder with --cache; what is cached already stays good",
    )
