"""The authors' four checkpoint files -> a bundle.

`telme.checkpoint_files` finds and reads them. The bundle appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, RobertaTokenizer

from telme.backbones import PUBLISHED_BACKBONES, Backbones, published_config
from telme.bundle import check_tokenizer_files, write_bundle
from telme.checkpoint_files import SOURCE, CheckpointFile, files_in_archive, files_in_folder, read_checkpoint
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


def _check_source(source: Path) -> None:
    if not source.exists():
        raise BundleError(f"no file or folder {source}", SOURCE, "check the path")
    if source.is_file() and not _may_be_archive(source):
        raise BundleError(f"{source} is no archive", SOURCE, f"give {SOURCE}")


def _may_be_archive(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (EOFError, OSError, zlib.error, lzma.LZMAError):  # one that is damaged, which will be said when it is read
        return True


def import_published(
    source: Path,
    dataset: str,
    out: Path,
    tokenizer_folder: Path | None = None,
    processors_folder: Path | None = None,
    backbones: Backbones = PUBLISHED_BACKBONES,
    left_pad_ms: int | None = None,
) -> None:
    """Make a bundle in published mode.

    Args:
        source: Folder or tar archive with the four files, whatever they are called; it may hold those of several
            data sets.
        dataset: Key of `telme.labels.LABEL_SETS`.
        out: Folder of the bundle; must not exist, or be empty.
        tokenizer_folder: roberta-large's tokenizer files; None fetches them from the hub.
        processors_folder: Holds the folders of the students' processors, named as their repositories; None fetches
            them from the hub, if the tokenizer comes from there too, and otherwise leaves them out.
        backbones: Other ones than the published, for tests at toy size.
        left_pad_ms: `TelmeConfig.audio_left_pad_ms` of the bundle.

    Raises:
        UsageError: The data set is unknown, or `out` is taken.
        BundleError: A file is missing or there are several of a kind, or one is damaged, holds more than tensors or
            does not fit the published networks; the tokenizer or a processor cannot be had or is another; the bundle
            cannot be written.
    """
    check_target(dataset, out)
    _check_source(source)
    config = published_config(dataset, backbones)
    config.audio_left_pad_ms = left_pad_ms
    with torch.device("meta"):
        model = TelmeModel(config)
    # A folder without the files is said before anything is asked of the hub; to unpack an archive takes longer.
    found = files_in_folder(source, dataset, model) if source.is_dir() else None
    tokenizer = published_tokenizer(tokenizer_folder, config)
    processors = published_processors(processors_folder, from_hub=tokenizer_folder is None)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as staging:
            made = Path(staging) / "bundle"
            made.mkdir()
            for student, file in processors.items():
                shutil.copyfile(file, made / bundle_file(student))
            files = found or files_in_archive(source, dataset, model, Path(staging))
            write_bundle(made, config, _fitting(files, model), tokenizer, _card(config, files), torch.float32)
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


def _fitting(files: Mapping[Part, CheckpointFile], model: TelmeModel) -> Iterator[tuple[Part, dict[str, Tensor]]]:
    """Part after part under our names, each checked against the published network."""
    for part, file in files.items():
        network = model.network(part)
        assert network is not None
        weights = read_checkpoint(file)
        if differing := differences(part, weights, network):
            raise BundleError(
                f"{file.name} with {differing}",
                "the parameters of the published network",
                f"check the file, and that it is for {model.config.dataset}",
            )
        names = published_names(part, weights, network.state_dict())
        yield part, {ours: weights[name] for name, ours in names.items()}


def _card(config: TelmeConfig, files: Mapping[Part, CheckpointFile]) -> str:
    lines = [
        f"| {PARTS[part].title} | {PurePosixPath(file.name).name} | {_digest(file.path)} |"
        for part, file in files.items()
    ]
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
- Training: the files do not say how, from what or with which seed they were trained.
- Licence: the authors state none for their weights; ask them before you pass this bundle on. {name}'s annotations and
  clips have terms of their own.
- Limits: acted English speech; emotions as television or actors play them. Not for decisions about people.

| holds | file | SHA-256 |
|---|---|---|
{chr(10).join(lines)}
"""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
