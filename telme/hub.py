"""What a bundle of the authors' weights takes from the hub: roberta-large's tokenizer and the students' two processors.

The processors are a record for other code and a check of ours: nothing here reads them to make inputs, so what they say
must be what `telme.sound` and `telme.pixels` do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # of the HTTP library it uses
from transformers import Wav2Vec2FeatureExtractor
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from telme.errors import BundleError
from telme.modes import Student
from telme.pixels import image_processor

TOKENIZER_HUB_ID = "FacebookAI/roberta-large"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")
_PROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class Processor:
    """A student's processor.

    Attributes:
        hub_id: Its repository; its name is also that of its folder in `--processors`.
        read: Folder -> what it says.
        expected: What our code does, as far as it does it.
    """

    hub_id: str
    read: Callable[[Path], Mapping[str, Any]]
    expected: Mapping[str, Any]


def _sound_settings(folder: Path) -> Mapping[str, Any]:
    settings: dict[str, Any] = Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True).to_dict()
    return settings


def _picture_settings(folder: Path) -> Mapping[str, Any]:
    settings: dict[str, Any] = VideoMAEImageProcessorPil.from_pretrained(folder, local_files_only=True).to_dict()
    return settings


PROCESSORS: Mapping[Student, Processor] = {
    # Its padding is not compared: the published code pads by itself. Its rate is what the student takes any input for.
    "audio": Processor(
        "facebook/data2vec-audio-base-960h",
        _sound_settings,
        {"do_normalize": True, "sampling_rate": 16_000, "feature_size": 1},
    ),
    "video": Processor("MCG-NJU/videomae-base", _picture_settings, image_processor(224).to_dict()),
}


def tokenizer_from_hub() -> Path:
    """Folder with roberta-large's tokenizer, downloaded once.

    Raises:
        BundleError: It cannot be had.
    """
    return _from_hub(
        TOKENIZER_HUB_ID,
        TOKENIZER_FILES,
        "try again with a network, or name that folder with models import --tokenizer",
    )


def processors_from_hub() -> dict[Student, Path]:
    """The processors' files, downloaded once.

    Raises:
        BundleError: One cannot be had.
    """
    remedy = "try again with a network, or name that folder with models import --processors"
    return {
        student: _from_hub(processor.hub_id, (_PROCESSOR_FILE,), remedy) / _PROCESSOR_FILE
        for student, processor in PROCESSORS.items()
    }


def processors_in(folder: Path) -> dict[Student, Path]:
    """The processors' files in a folder that holds one folder for each, named as its repository."""
    return {
        student: folder / processor.hub_id.rpartition("/")[2] / _PROCESSOR_FILE
        for student, processor in PROCESSORS.items()
    }


def bundle_file(student: Student) -> str:
    """Name of a processor's file in a bundle."""
    return f"{student}_{_PROCESSOR_FILE}"


def check_processor(student: Student, file: Path) -> None:
    """Check that a processor does what our code does.

    Raises:
        BundleError: It is missing, no processor, or another one.
    """
    processor = PROCESSORS[student]
    remedy = f"give {_PROCESSOR_FILE} of {processor.hub_id}"
    try:
        said = processor.read(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise BundleError(f"{file}: {reason}", f"the processor of {processor.hub_id}", remedy) from error
    differing = [name for name, value in processor.expected.items() if said.get(name) != value]
    if differing:
        raise BundleError(
            f"{file} with {', '.join(f'{name} {said.get(name)!r}' for name in differing)}",
            ", ".join(f"{name} {processor.expected[name]!r}" for name in differing),
            remedy,
        )


def _from_hub(hub_id: str, files: Sequence[str], remedy: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(files)))
    except (OSError, HTTPError, HFValidationError) as error:
        reason = str(error.__cause__ or error).split("\n", maxsplit=1)[0]
        raise BundleError(
            f"{', '.join(files)} of {hub_id} cannot be had from the hub: {reason}",
            "a network, or those files in a folder",
            remedy,
        ) from error
