"""A bundle: one folder that holds a TelME model, its tokenizer and its card, and loads without a network.

config.json            TelmeConfig
text.safetensors       the text teacher (float16 or float32), and likewise audio, video and fusion where there are
tokenizer.json, tokenizer_config.json
training.json          what each network was trained with, where that is recorded (telme.record)
README.md              the model card: data, licences, figures, limits
SHA256SUMS             digests of the files above but for the card, as `sha256sum --check` reads them
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from telme.config import Part, TelmeConfig
from telme.errors import BundleError
from telme.modeling import CONFIG_FILE, PART_FILES, TelmeModel, model_folder, read_config, write_part
from telme.models import TextTeacher
from telme.record import RECORD_FILE, Record, encoded

TEXT_FILE = PART_FILES["text"]
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "README.md"
SUMS_FILE = "SHA256SUMS"
REQUIRED_FILES = (CONFIG_FILE, TEXT_FILE, TOKENIZER_FILE, "tokenizer_config.json", CARD_FILE)
PACKAGED = ("compact",)
_TOKENIZER_CHECKS: Mapping[str, Callable[[dict[str, Any]], bool]] = {
    "vocab.json": lambda content: all(isinstance(number, int) for number in content.values()),
    TOKENIZER_FILE: lambda content: isinstance(content.get("model"), dict),
    "tokenizer_config.json": lambda content: True,
}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Bundle:
    """A bundle.

    Attributes:
        model_id: Its name and the first 12 hex digits of the SHA-256 of the weights, part after part.
        weights: That SHA-256 in full.
        config: Its configuration.
        tokenizer: Its tokenizer.
        folder: Where it lies.
    """

    model_id: str
    weights: str
    config: TelmeConfig
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    @cached_property
    def model(self) -> TelmeModel:
        """Its networks in eval mode, float32, on the CPU; read from the folder when they are first asked for.

        Raises:
            BundleError: They are damaged or do not fit the configuration.
        """
        return TelmeModel.from_pretrained(self.folder, config=self.config)

    @property
    def logit_offsets(self) -> list[float]:
        """What was added to the text teacher's logits [C] after training: who learns from it takes it off again.

        Raises:
            BundleError: It tells of a share of the prior instead, as bundles did before, or of other classes.
        """
        classes = len(self.config.label_set.names)
        path = self.folder / CONFIG_FILE
        told = self.config.logit_offsets
        prior = getattr(self.config, "logit_prior", 0.0)
        if told is None and prior:
            raise BundleError(
                f"{path} with logit_prior {prior} and no logit_offsets",
                "what was added to each class's logit",
                f"put logit_offsets there: -{prior} times the logarithm of each class's frequency in the training"
                " split",
            )
        if told is None:
            return [0.0] * classes
        if len(told) != classes:
            raise BundleError(f"{path} with logit_offsets {told!r}", f"{classes} numbers", "mend them")
        return told


def packaged_folder(name: str) -> Path:
    """Folder of a bundle that ships in the package."""
    return Path(str(files("telme"))) / "bundles" / name


def bundle_path(name: str) -> Path:
    """Folder of a bundle, given as the name of a packaged one, as a folder or as a hub id, which is downloaded once.

    Raises:
        BundleError: It is none of these, or lacks a file.
    """
    folder = packaged_folder(name) if name in PACKAGED else Path(name).expanduser()
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(name):
            raise BundleError(
                f"no bundle {name!r}", f"a folder, a hub id or one of: {', '.join(PACKAGED)}", "check the name"
            )
        folder = model_folder(name)
    lacking = [file for file in REQUIRED_FILES if not (folder / file).is_file()]
    if lacking:
        raise BundleError(
            f"bundle {folder} lacks {', '.join(lacking)}",
            f"the files {', '.join(REQUIRED_FILES)}",
            "copy the bundle again",
        )
    return folder


def load_bundle(name: str) -> Bundle:
    """Load a bundle by packaged name, folder or hub id, its networks included.

    Raises:
        BundleError: It is missing, incomplete, damaged, or its weights do not fit its configuration.
    """
    bundle = open_bundle(name)
    _ = bundle.model
    return bundle


def open_bundle(name: str) -> Bundle:
    """Open a bundle by packaged name, folder or hub id; its weights are digested, but no network is made yet.

    Raises:
        BundleError: It is missing or incomplete, or its configuration or tokenizer is damaged.
    """
    folder = bundle_path(name)
    config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    rows = (config.text_config or {}).get("vocab_size", 0)
    if not isinstance(rows, int) or len(tokenizer) > rows:
        raise BundleError(
            f"{folder / TOKENIZER_FILE} with {len(tokenizer)} tokens",
            f"at most the {rows!r} of {TEXT_FILE} (vocab_size in {CONFIG_FILE})",
            "copy the bundle again",
        )
    weights = _digest_of_parts(folder, config)
    model_id = f"{Path(name).expanduser().resolve().name}-{weights[:12]}"
    return Bundle(model_id, weights, config, tokenizer, folder)


def _digest_of_parts(folder: Path, config: TelmeConfig) -> str:
    files = [PART_FILES[part] for part in config.parts]
    try:
        return sha256_of(*(folder / name for name in files))
    except OSError as error:
        raise BundleError(
            f"bundle {folder}: {error.strerror}: {Path(error.filename).name}",
            f"the weights that its {CONFIG_FILE} names: {', '.join(files)}",
            "copy the bundle again",
        ) from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        BundleError: There is none, or it is damaged.
    """
    check_tokenizer_files(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder}: {error}", "a tokenizer", "copy the bundle again") from error
    return tokenizer


def check_tokenizer_files(folder: Path) -> None:
    """Check that a tokenizer's files can be read; the tokenizers library has no exception of its own for that.

    Raises:
        BundleError: One is not JSON of its kind, or a merge is none.
    """
    remedy = "fetch the tokenizer's files again"
    for name, holds in _TOKENIZER_CHECKS.items():
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BundleError(f"{path}: {error}", "JSON", remedy) from error
        if not isinstance(content, dict) or not holds(content):
            raise BundleError(f"{path} holds something else", "what a tokenizer saves under that name", remedy)
    merges = folder / "merges.txt"
    if merges.is_file():
        lines = merges.read_text(encoding="utf-8", errors="replace").splitlines()
        odd = [line for line in lines if line and not line.startswith("#version") and line.count(" ") != 1]
        if odd:
            raise BundleError(f"{merges} with the line {odd[0]!r}", "two tokens a line", remedy)


def save_bundle(
    folder: Path,
    config: TelmeConfig,
    teacher: TextTeacher,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    others: Mapping[Part, nn.Module] = MappingProxyType({}),
    record: Record = MappingProxyType({}),
) -> None:
    """Write a bundle, its weights in float16.

    Args:
        folder: Where; made if need be.
        config: Must name the parts that are given and no others.
        teacher: The text teacher.
        tokenizer: Its tokenizer, with the speaker tokens.
        card: Text of the model card.
        others: The students and the fusion, where there are.
        record: How the networks were trained, as far as that is known.

    Raises:
        BundleError: The parts are not those of the configuration, or the folder cannot be written.
    """
    networks: dict[Part, nn.Module] = {"text": teacher, **others}
    if set(networks) != set(config.parts):
        raise BundleError(
            f"the parts {', '.join(networks)}", f"those of the configuration: {', '.join(config.parts)}", "mend either"
        )
    weights = ((part, networks[part].state_dict()) for part in config.parts)
    write_bundle(folder, config, weights, tokenizer, card, torch.float16, record)


def write_bundle(
    folder: Path,
    config: TelmeConfig,
    parts: Iterable[tuple[Part, Mapping[str, Tensor]]],
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    dtype: torch.dtype,
    record: Record = MappingProxyType({}),
) -> None:
    """Write a bundle from parameters by name, one part at a time.

    Raises:
        BundleError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Written aside and then moved: a bundle that is there already stays whole until all of the new one is written.
        with TemporaryDirectory(dir=folder, prefix=".unfinished-") as made:
            beside = Path(made)
            for part, weights in parts:
                write_part(beside, part, weights, dtype)
            config.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
            (beside / CARD_FILE).write_text(card, encoding="utf-8")
            (beside / RECORD_FILE).write_bytes(encoded(record))
            mode = (beside / RECORD_FILE).stat().st_mode
            for path in beside.iterdir():
                # safetensors makes its files for their owner alone; the others are as the user's mask has them. Where
                # the mount decides the modes (FAT), all are alike, and who is not its owner may change none.
                if path.stat().st_mode != mode:
                    path.chmod(mode)
            for path in beside.iterdir():
                path.replace(folder / path.name)
            lines = [f"{digest}  {name}\n" for name, digest in digests(folder).items()]
            (beside / SUMS_FILE).write_text("".join(lines), encoding="utf-8")
            (beside / SUMS_FILE).replace(folder / SUMS_FILE)
    except OSError as error:
        raise BundleError(f"{folder} cannot be written: {error}", "a folder with room", "free some space") from error


def digests(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 of all files of a bundle but its card and the sums themselves."""
    return {
        path.name: sha256_of(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in (CARD_FILE, SUMS_FILE)
    }


def sha256_of(*paths: Path) -> str:
    """Of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
