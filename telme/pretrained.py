"""Encoders to start training from: a folder or a hub id, as transformers keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from telme.bundle import check_tokenizer_files
from telme.config import FEATURE_DIM, TelmeConfig
from telme.dialogue import SPEAKER_TOKENS
from telme.errors import BundleError, UsageError
from telme.frames import FRAMES
from telme.models import AudioStudent, TextTeacher, VideoStudent
from telme.modes import Student
from telme.recipes import Recipe

# Files of which a tokenizer has one at least.
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")


def pretrained_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a text encoder, with the speaker tokens added.

    Raises:
        BundleError: It cannot be had, or is damaged.
    """
    _check_there(name)
    if (folder := Path(name)).is_dir():
        # Where there is none, transformers makes up a tokenizer that knows no word.
        if not any(path for pattern in _VOCABULARIES for path in folder.glob(pattern)):
            raise BundleError(
                f"{folder} without a tokenizer", f"one of {', '.join(_VOCABULARIES)}", "save it beside the encoder"
            )
        check_tokenizer_files(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise _unavailable(name, error) from error
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPEAKER_TOKENS)})
    return tokenizer


def pretrained_config(name: str, kinds: tuple[str, ...] = (), **settings: Any) -> dict[str, Any]:
    """The configuration of an encoder, as `TelmeConfig` takes it.

    Args:
        name: Folder or hub id.
        kinds: Its model type must be one of these, where any are given. Such encoders must be 768 wide: their hidden
            state is the feature.
        settings: What is to be otherwise than there.

    Raises:
        BundleError: It cannot be had, or is of another kind or width.
    """
    _check_there(name)
    try:
        found = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise _unavailable(name, error) from error
    width = getattr(found, "hidden_size", None)
    if kinds and (found.model_type not in kinds or width != FEATURE_DIM):
        raise BundleError(
            f"encoder {name} of type {found.model_type}, {width} wide",
            f"{' or '.join(kinds)}, {FEATURE_DIM} wide",
            "name another encoder",
        )
    return {**found.to_diff_dict(), "model_type": found.model_type, **settings}


def pretrained_encoder(name: str, settings: Mapping[str, Any], **options: Any) -> PreTrainedModel:
    """An encoder with its pretrained weights, float32.

    Args:
        name: Folder or hub id.
        settings: Its configuration, of `pretrained_config`.
        options: For the model's class.

    Raises:
        BundleError: It cannot be had.
    """
    rest = dict(settings)
    config = AutoConfig.for_model(rest.pop("model_type"), **rest)
    try:
        encoder: PreTrainedModel = AutoModel.from_pretrained(name, config=config, dtype=torch.float32, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unavailable(name, error) from error
    return encoder


def check_positions(teacher: TextTeacher, name: str, tokens: int, flag: str = "--max-tokens") -> None:
    """Check that the text encoder of that name has positions for prompts of so many tokens, which a flag asked for.

    Raises:
        UsageError: It has fewer.
    """
    positions = int(teacher.text_model.config.max_position_embeddings) - teacher.first_position
    if tokens > positions:
        raise UsageError(
            f"prompts of {tokens} tokens",
            f"at most the {positions} that {name} has positions for",
            f"give {flag} {positions} or less",
        )


def student_config(recipe: Recipe, student: Student) -> dict[str, Any]:
    """The configuration of the encoder that a student begins as.

    Raises:
        BundleError: It cannot be had, is of another kind or width, or takes another number of pictures.
    """
    if student == "audio":
        masked = {"mask_time_length": recipe.audio_mask_frames}
        return pretrained_config(recipe.audio_init, ("data2vec-audio",), **masked)
    settings = pretrained_config(recipe.video_init, ("timesformer",))
    if (frames := settings.get("num_frames", FRAMES)) != FRAMES:
        raise BundleError(f"encoder {recipe.video_init} of {frames} pictures", f"one of {FRAMES}", "name another one")
    return settings


def new_student(recipe: Recipe, config: TelmeConfig, student: Student) -> AudioStudent | VideoStudent:
    """A student that begins as the recipe's encoder, its classifier random.

    Raises:
        BundleError: The encoder cannot be had.
    """
    if student == "audio":
        heard = AudioStudent(config)
        heard.model = pretrained_encoder(recipe.audio_init, config.audio_config or {})
        return heard
    seen = VideoStudent(config)
    seen.model = pretrained_encoder(recipe.video_init, config.video_config or {})
    return seen


def _check_there(name: str) -> None:
    """One question to the hub or its cache: transformers asks a dozen, each five times, before it gives up."""
    if Path(name).is_dir():
        return
    try:
        snapshot_download(name, allow_patterns=["config.json"])
    except (OSError, HFValidationError) as error:
        raise _unavailable(name, error) from error


def _unavailable(name: str, error: Exception) -> BundleError:
    return BundleError(
        f"no encoder {name!r}: neither a folder with one nor to be had from the hub ({type(error).__name__})",
        "a folder or hub id that transformers reads",
        "check the name given to --init, --audio-init or --video-init, and the network",
    )
