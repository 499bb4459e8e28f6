"""A bundle: one folder that holds a TelME model, its tokenizer and its card, and loads without a network.

    config.json            TelmeConfig
    text.safetensors       the text teacher (float16 or float32)
    tokenizer.json, tokenizer_config.json
    README.md              the model card: data, licences, figures, limits
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from telme.config import TelmeConfig
from telme.errors import BundleError
from telme.models import TextTeacher

CONFIG_FILE = "config.json"
TEXT_FILE = "text.safetensors"
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "README.md"
REQUIRED_FILES = (CONFIG_FILE, TEXT_FILE, TOKENIZER_FILE, "tokenizer_config.json", CARD_FILE)
PACKAGED = ("compact",)


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        model_id: Folder name and the first 12 hex digits of the weights' SHA-256.
        config: Its configuration.
        tokenizer: Its tokenizer.
        teacher: The text teacher in eval mode, float32, on the CPU.
    """

    model_id: str
    config: TelmeConfig
    tokenizer: PreTrainedTokenizerBase
    teacher: TextTeacher


def bundle_path(name: str) -> Path:
    """Folder of a bundle, given as the name of a packaged one or as a path.

    Raises:
        BundleError: Neither a packaged name nor a folder, or a folder that lacks a file.
    """
    folder = Path(str(files("telme"))) / "bundles" / name if name in PACKAGED else Path(name).expanduser()
    if not folder.is_dir():
        raise BundleError(f"no bundle {name!r}", f"a folder or one of: {', '.join(PACKAGED)}", "check --bundle")
    lacking = [file for file in REQUIRED_FILES if not (folder / file).is_file()]
    if lacking:
        raise BundleError(
            f"bundle {folder} lacks {', '.join(lacking)}", f"the files {', '.join(REQUIRED_FILES)}", "copy the bundle again"
        )
    return folder


def load_bundle(name: str) -> Bundle:
    """Load a bundle by packaged name or path.

    Raises:
        BundleError: It is missing, incomplete, damaged, or its weights do not fit its configuration.
    """
    folder = bundle_path(name)
    config = _load_config(folder / CONFIG_FILE)
    teacher = TextTeacher(config)
    try:
        weights = load_file(folder / TEXT_FILE)
        teacher.load_state_dict({key: value.float() for key, value in weights.items()})
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(
            f"{folder / TEXT_FILE}: {error}", "the weights that config.json describes", "copy the bundle again"
        ) from error
    digest = hashlib.sha256((folder / TEXT_FILE).read_bytes()).hexdigest()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Bundle(f"{folder.name}-{digest[:12]}", config, tokenizer, teacher.eval())


def _load_config(path: Path) -> TelmeConfig:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.get("model_type") != TelmeConfig.model_type:
            raise BundleError(
                f"{path} with model_type {settings.get('model_type')!r}", "model_type 'telme'", "give a TelME bundle"
            )
        return TelmeConfig.from_dict(settings)
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise BundleError(f"{path}: {error}", "a TelME configuration", "copy the bundle again") from error


def save_bundle(
    folder: Path, config: TelmeConfig, teacher: TextTeacher, tokenizer: PreTrainedTokenizerBase, card: str
) -> None:
    """Write a bundle; the weights go to disk as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    weights = {key: value.to(torch.float16).contiguous() for key, value in teacher.state_dict().items()}
    save_file(weights, folder / TEXT_FILE, metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
