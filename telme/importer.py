"""The authors' four checkpoint files -> a bundle.

The archive is not trusted: only the four files are taken from it, none outside the folder they are unpacked to, and
nothing but tensors is read from them. The bundle appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import pickle
import shutil
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, RobertaTokenizer

from telme.backbones import PUBLISHED_BACKBONES, Backbones, published_config
from telme.bundle import check_tokenizer_files, write_bundle
from telme.config import Part, TelmeConfig
from telme.dialogue import SPEAKER_TOKENS
from telme.errors import BundleError, UsageError
from telme.hub import (
    TOKENIZER_FILES,
    TOKENIZER_HUB_ID,
    bundle_file,
    check_processor,
    processors_from_hub,
    processors_in,
    tokenizer_from_hub,
)
from telme.labels import LABEL_SETS
from telme.modeling import TelmeModel
from telme.modes import Student
from telme.published import PARTS, differences, published_names

_REPORTED_F1 = {"meld": "67.37", "iemocap": "70.48"}
_LABEL = "the authors' archive, or the folder it unpacks to"


def _may_be_archive(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (EOFError, OSError, zlib.error):  # one that is damaged, which will be said when it is read
        return True


def import_published(
    source: Path,
    dataset: str,
    out: Path,
    tokenizer_folder: Path | None = None,
    processors_folder: Path | None = None,
    backbones: Backbones = PUBLISHED_BACKBONES,
) -> None:
    """Make a bundle in published mode.

    Args:
        source: Folder or tar archive with the four files; it may hold those of several data sets.
        dataset: Key of `telme.labels.LABEL_SETS`.
        out: Folder of the bundle; must not exist, or be empty.
        tokenizer_folder: roberta-large's tokenizer files; None fetches them from the hub.
        processors_folder: Holds the folders of the students' processors, named as their repositories; None fetches
            them from the hub, if the tokenizer comes from there too, and otherwise leaves them out.
        backbones: Other ones than the published, for tests at toy size.

    Raises:
        UsageError: The data set is unknown, or `out` is taken.
        BundleError: A file is missing, damaged, holds more than tensors or does not fit the published networks; the
            tokenizer or a processor cannot be had or is another; the bundle cannot be written.
    """
    check_target(dataset, out)
    if not source.exists():
        raise BundleError(f"no file or folder {source}", _LABEL, "check the path")
    if source.is_file() and not _may_be_archive(source):
        raise BundleError(f"{source} is no archive", _LABEL, "give the authors' archive, or the folder it unpacks to")
    config = published_config(dataset, backbones)
    tokenizer = published_tokenizer(tokenizer_folder, config)
    processors = published_processors(processors_folder, from_hub=tokenizer_folder is None)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as staging:
            made = Path(staging) / "bundle"
            made.mkdir()
            for student, file in processors.items():
                shutil.copyfile(file, made / bundle_file(student))
            with _opened(source, dataset, Path(staging)) as files:
                card = _card(config, files)
                write_bundle(made, config, _fitting(files, config), tokenizer, card, torch.float32)
            made.replace(out)
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error}", "a folder with room", "check --out") from error


def check_target(dataset: str, out: Path) -> None:
    """Check that there can be a bundle of that data set in that folder.

    Raises:
        UsageError: The data set is unknown, or the folder is taken.
    """
    if dataset not in LABEL_SETS:
        raise UsageError(f"dataset {dataset!r}", f"one of {', '.join(LABEL_SETS)}", "name one of them")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists", "a new folder", "choose another --out, or remove it")


def published_processors(folder: Path | None, from_hub: bool) -> dict[Student, Path]:
    """The files of the students' processors, checked; none where they are neither given nor to be fetched.

    Raises:
        BundleError: One cannot be had, or is another.
    """
    files = processors_in(folder) if folder is not None else processors_from_hub() if from_hub else {}
    for student, file in files.items():
        check_processor(student, file)
    return files


def published_tokenizer(folder: Path | None, config: TelmeConfig) -> PreTrainedTokenizerBase:
    """roberta-large's tokenizer with the speaker tokens behind its own.

    Args:
        folder: Its files; None fetches them from the hub.
        config: Gives the number of tokens that the weights have.

    Raises:
        BundleError: It cannot be had, or is another one.
    """
    if folder is None:
        folder = tokenizer_from_hub()
    if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        raise BundleError(
            f"{folder} without vocab.json or tokenizer.json",
            f"the tokenizer files of {TOKENIZER_HUB_ID}: {', '.join(TOKENIZER_FILES)}",
            "check the folder given to --tokenizer",
        )
    check_tokenizer_files(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = RobertaTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer.add_special_tokens({"additional_special_tokens": list(SPEAKER_TOKENS)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder}: {error}", f"the tokenizer of {TOKENIZER_HUB_ID}", "fetch it again") from error
    assert config.text_config is not None
    size = int(config.text_config["vocab_size"])
    speakers = tokenizer.convert_tokens_to_ids(list(SPEAKER_TOKENS))
    if speakers != list(range(size - len(SPEAKER_TOKENS), size)) or len(tokenizer) != size:
        raise BundleError(
            f"{folder} with {len(tokenizer)} tokens, speakers at {speakers}",
            f"{size} tokens, the speakers last",
            f"give the tokenizer files of {TOKENIZER_HUB_ID}",
        )
    return tokenizer


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .bin file by name. Nothing in it is ever run.

    Raises:
        BundleError: It is damaged, holds anything but named tensors, or a number in them is not finite.
    """
    remedy = "fetch the file again, from the authors"
    loaded = _load(path, remedy)
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise BundleError(f"{path.name} holds a {type(loaded).__name__}", "tensors by name, a state dict", remedy)
    broken = [name for name, value in loaded.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise BundleError(f"{path.name} with numbers that are not finite in {', '.join(broken)}", "finite ones", remedy)
    return dict(loaded)


def _load(path: Path, remedy: str) -> object:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch itself does not compare checksums.
                if damaged := archive.testzip():
                    raise BundleError(f"{path.name} is damaged in {damaged}", "its checksum to hold", remedy)
        with warnings.catch_warnings():
            # Of pickle protocols that torch does not write; what is wrong with such a file is said below.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BundleError(f"{path.name} holds code or is damaged, and was not run", "plain tensors", remedy) from error
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
        raise BundleError(f"{path.name} is truncated or damaged: {reason}", "a file of torch.save", remedy) from error


def _fitting(files: Mapping[Part, Path], config: TelmeConfig) -> Iterator[tuple[Part, dict[str, Tensor]]]:
    """Part after part under our names, each checked against the published network."""
    with torch.device("meta"):
        model = TelmeModel(config)
    for part, path in files.items():
        network = model.network(part)
        assert network is not None
        weights = read_checkpoint(path)
        if differing := differences(part, weights, network):
            raise BundleError(
                f"{PARTS[part].file} with {differing}",
                "the parameters of the published network",
                f"check the file, and that it is for {config.dataset}",
            )
        names = published_names(part, weights, network.state_dict())
        yield part, {ours: weights[name] for name, ours in names.items()}


@contextmanager
def _opened(source: Path, dataset: str, staging: Path) -> Iterator[dict[Part, Path]]:
    """The four files, unpacked into `staging` if need be."""
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in source.rglob("*.bin") if path.is_file()]
        yield {part: source / name for part, name in _chosen(names, dataset, source).items()}
    else:
        yield _unpacked(source, dataset, staging)


def _unpacked(archive: Path, dataset: str, staging: Path) -> dict[Part, Path]:
    """The four files, written under names of our own: what the archive calls them decides nothing on this disk."""
    try:
        with tarfile.open(archive) as tar:
            members = {member.name: member for member in tar if member.name.endswith(".bin")}
            chosen = _chosen(members, dataset, archive)
            # In the archive's order, so that a compressed one is read once more and not four times.
            for part, name in sorted(chosen.items(), key=lambda item: members[item[1]].offset):
                _check_member(members[name], archive)
                content = tar.extractfile(members[name])
                assert content is not None  # a plain file has one
                with content, (staging / f"{part}.bin").open("wb") as file:
                    shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise BundleError(f"{archive} cannot be unpacked: {error}", _LABEL, "fetch it again") from error
    return {part: staging / f"{part}.bin" for part in chosen}


def _check_member(member: tarfile.TarInfo, archive: Path) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise BundleError(
            f"{archive} with {member.name!r}, a path outside the archive's own folder", "plain names", "do not use it"
        )
    if not member.isreg():
        raise BundleError(f"{archive} in which {member.name} is no file", "a plain file", "fetch it again")


def _chosen(names: Iterable[str], dataset: str, source: Path) -> dict[Part, str]:
    """The name of each part's file; where there are several, the one under a folder of the data set's name."""
    known = {name: PurePosixPath(name).parts for name in names}
    chosen: dict[Part, str] = {}
    for part, published in PARTS.items():
        tail = PurePosixPath(published.file).parts
        found = [name for name, parts in known.items() if parts[-len(tail) :] == tail]
        of_dataset = [name for name in found if dataset in (folder.lower() for folder in known[name])]
        if len(found) > 1:
            found = of_dataset
        if len(found) != 1:
            raise BundleError(
                f"{source} with {len(found) or 'no'} {published.file}" + (f" for {dataset}" if found else ""),
                f"one of each: {', '.join(item.file for item in PARTS.values())}",
                f"give {_LABEL}",
            )
        chosen[part] = found[0]
    return chosen


def _card(config: TelmeConfig, files: Mapping[Part, Path]) -> str:
    lines = [f"| {PARTS[part].file} | {_digest(path)} |" for part, path in files.items()]
    name = config.dataset.upper()
    return f"""# TelME for {name}, the authors' weights

Text teacher (roberta-large), audio student (data2vec-audio-base), video student (timesformer-base) and
attention-based modality shifting fusion of Yun et al., "TelME: Teacher-leading Multimodal Fusion Network for Emotion
Recognition in Conversation", NAACL 2024, arXiv 2401.12987, imported from the authors' checkpoints by
`telme-stream models import`.

- Labels: {", ".join(config.label_set.names)}.
- Mode: `{config.mode}`: sound, pictures and prompts are made as the authors' code makes them, oddities included.
- Figures: the paper reports a weighted F1 of {_REPORTED_F1[config.dataset]} on {name}'s test split, with a fusion that
  attends across each four consecutive utterances of the test file, later ones among them. Here each utterance is
  answered from itself and its past, so that figure does not carry over.
- Licence: the authors state none for their weights; ask them before you pass this bundle on. {name}'s annotations and
  clips have terms of their own.
- Limits: acted English speech; emotions as television or actors play them. Not for decisions about people.

| file | SHA-256 |
|---|---|
{chr(10).join(lines)}
"""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
