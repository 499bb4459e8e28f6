"""What bundles there are, what is in one, and whether it is whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from telme.bundle import CARD_FILE, PACKAGED, SUMS_FILE, Bundle, bundle_path, digests, load_bundle, packaged_folder
from telme.config import UNFIT_SETTINGS, Part, TelmeConfig
from telme.dialogue import Turn
from telme.errors import BundleError, TelmeStreamError
from telme.features import CAPTURE_RATE_HZ, FeatureMaker
from telme.frames import FRAMES
from telme.hub import PROCESSORS, bundle_file, check_processor
from telme.modeling import CONFIG_FILE, PART_FILES, read_config
from telme.predictor import TorchPredictor
from telme.record import Record, read_record

_EDGE = 224


@dataclass(frozen=True)
class PartFacts:
    """One part's file: how many numbers of which types, and its size in bytes."""

    part: Part
    parameters: int
    dtypes: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True)
class Facts:
    """A bundle as its files describe it; no weights are loaded.

    Attributes:
        name: As given: a packaged name, a folder or a hub id.
        folder: Where it lies.
        config: Its configuration.
        parts: Its parts.
        sums: File name -> SHA-256 as recorded when it was written; empty where nothing was recorded.
        card: The model card's text.
        record: How its parts were trained, as far as that was recorded.
    """

    name: str
    folder: Path
    config: TelmeConfig
    parts: tuple[PartFacts, ...]
    sums: dict[str, str]
    card: str
    record: Record


@dataclass(frozen=True)
class Finding:
    """One check: what was seen, or what is wrong."""

    name: str
    seen: str
    wrong: bool = False


def bundles_in(folder: Path | None) -> Iterator[str]:
    """Names to load by: the packaged bundles that are there, then a folder, if one is given, or the bundles in it.

    What has a bundle's weights is one, even if its configuration cannot be read.

    Raises:
        BundleError: There is no such folder.
    """
    yield from (name for name in PACKAGED if (packaged_folder(name) / CONFIG_FILE).is_file())
    if folder is None:
        return
    if not folder.is_dir():
        raise BundleError(f"no folder {folder}", "a folder of bundles", "check the path")
    yield from (str(path) for path in (folder, *sorted(folder.iterdir())) if _is_telme(path))


def facts(name: str) -> Facts:
    """What a bundle's files say.

    Raises:
        BundleError: It is missing, incomplete or damaged.
    """
    folder = bundle_path(name)
    config = read_config(folder)
    card = (folder / CARD_FILE).read_text(encoding="utf-8", errors="replace")
    parts = tuple(_part_facts(folder, part) for part in config.parts)
    return Facts(name, folder, config, parts, _sums(folder), card, read_record(folder))


def verify(name: str) -> Iterator[Finding]:
    """Check a bundle, one finding after the other; an answer is only asked of one that loads.

    Raises:
        BundleError: It is missing, or lacks a file.
    """
    folder = bundle_path(name)
    loaded: list[Bundle] = []

    def load() -> str:
        loaded.append(load_bundle(name))
        return f"{', '.join(loaded[0].config.parts)}: every parameter in its place"

    yield _checked("digests", lambda: _check_sums(folder))
    yield _checked("card", lambda: _check_card(folder))
    yield _checked("labels", lambda: ", ".join(read_config(folder).label_set.names))
    yield _checked("mode", lambda: read_config(folder).input_mode.name)
    if any((folder / bundle_file(student)).is_file() for student in PROCESSORS):
        yield _checked("inputs", lambda: _check_processors(folder))
    yield _checked("parts", load)
    if loaded:
        yield _checked("numbers", lambda: _check_numbers(loaded[0]))
        yield _checked("answer", lambda: _check_answer(loaded[0]))


def _is_telme(folder: Path) -> bool:
    if (folder / PART_FILES["text"]).is_file():
        return True
    try:
        read_config(folder)
    except BundleError:
        return False
    return True


def _part_facts(folder: Path, part: Part) -> PartFacts:
    path = folder / PART_FILES[part]
    try:
        with safe_open(path, framework="numpy") as file:
            slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118  # no mapping
            parameters = sum(math.prod(item.get_shape()) for item in slices)
            dtypes = tuple(sorted({item.get_dtype() for item in slices}))
        return PartFacts(part, parameters, dtypes, path.stat().st_size)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: {error}", "a safetensors file", "copy the bundle again") from error


def _sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS_FILE
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = [line.partition("  ") for line in lines if line]
    return {name: digest for digest, _, name in pairs}


def _checked(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, check())
    except TelmeStreamError as error:
        return Finding(name, str(error), wrong=True)


def _check_sums(folder: Path) -> str:
    recorded, found = _sums(folder), digests(folder)
    if not recorded:
        raise BundleError(f"{folder} without {SUMS_FILE}", "the digests of its files", "import or save it again")
    changed = [file for file, digest in found.items() if recorded.get(file, digest) != digest]
    wrong = {
        "changed": changed,
        "gone": [file for file in recorded if file not in found],
        "not recorded": [file for file in found if file not in recorded],
    }
    if any(wrong.values()):
        said = "; ".join(f"{what} {', '.join(names)}" for what, names in wrong.items() if names)
        raise BundleError(f"{folder}: {said}", f"the files of {SUMS_FILE}", "copy the bundle again")
    return f"{len(found)} files as recorded"


def _check_card(folder: Path) -> str:
    text = (folder / CARD_FILE).read_text(encoding="utf-8", errors="replace").strip()
    if not text.startswith("#"):
        raise BundleError(
            f"{CARD_FILE} without a heading", "data, licences, figures and limits", "write the model card"
        )
    return text.splitlines()[0].lstrip("# ")


def _check_processors(folder: Path) -> str:
    for student in PROCESSORS:
        check_processor(student, folder / bundle_file(student))
    return f"made as the processors say of {', '.join(processor.hub_id for processor in PROCESSORS.values())}"


def _check_numbers(bundle: Bundle) -> str:
    broken = [name for name, value in bundle.model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise BundleError(f"numbers that are not finite in {', '.join(broken)}", "finite ones", "copy the bundle again")
    return f"{sum(value.numel() for value in bundle.model.state_dict().values()):,}, all finite"


def _check_answer(bundle: Bundle) -> str:
    """One made-up utterance with a second of noise and eight grey pictures."""
    maker = FeatureMaker(bundle.tokenizer, bundle.config)
    noise = np.random.default_rng(0).normal(0, 0.1, CAPTURE_RATE_HZ).astype(np.float32)
    grey = np.full((FRAMES, _EDGE, _EDGE, 3), 127, dtype=np.uint8)
    try:
        features = maker.make(maker.window([Turn("somebody", "Hello, how are you?")]), noise, grey)
        (prediction,) = TorchPredictor(bundle).predict([features])
    except UNFIT_SETTINGS as error:
        raise BundleError(
            f"{bundle.folder / CONFIG_FILE} describes networks that cannot answer: {error}",
            "those of the weights",
            "mend it or copy the bundle again",
        ) from error
    if not math.isclose(sum(prediction.probabilities), 1, abs_tol=1e-6):
        raise BundleError(f"probabilities {prediction.probabilities}", "a sum of 1", "import the bundle again")
    used = [name for name in ("text", "audio", "video") if name not in prediction.unused]
    return f"probabilities sum to 1, from {', '.join(used)}"
