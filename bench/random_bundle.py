"""Bundles with random weights, for what depends on size alone: `python bench/random_bundle.py DIR`.

`--size published` has the published model's 580 million parameters (arXiv 2401.12987); `small` is its shape in little.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from telme.backbones import PUBLISHED_BACKBONES, Backbones, published_config
from telme.bundle import save_bundle
from telme.config import Part
from telme.dialogue import SPEAKER_TOKENS
from telme.errors import TelmeStreamError
from telme.modeling import TelmeModel

_LITTLE = {"num_hidden_layers": 2, "intermediate_size": 128}
_SMALL = Backbones(
    text={**PUBLISHED_BACKBONES.text, **_LITTLE, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 500},
    # As wide as the features that the fusion takes.
    audio={**PUBLISHED_BACKBONES.audio, **_LITTLE, "conv_dim": [32] * 7},
    video={**PUBLISHED_BACKBONES.video, **_LITTLE, "image_size": 64},
)
SIZES = {"published": PUBLISHED_BACKBONES, "small": _SMALL}
CARD = "# Random weights\n\nMade by bench/random_bundle.py to measure time and memory. Its answers mean nothing.\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="published")
    options = parser.parse_args(arguments)
    try:
        make_random_bundle(options.folder, options.size)
    except TelmeStreamError as error:
        sys.stderr.write(f"random_bundle: error: {error}\n")
        return error.exit_code
    return 0


def make_random_bundle(folder: Path, size: str, seed: int = 0) -> Path:
    """Write a bundle of all four networks and return its folder.

    Raises:
        BundleError: The folder cannot be written.
    """
    config = published_config("meld", SIZES[size])
    torch.manual_seed(seed)
    model = TelmeModel(config)
    students: dict[Part, nn.Module] = {
        part: network for part in config.parts if part != "text" and (network := model.network(part))
    }
    save_bundle(folder, config, model.text, _tokenizer(), CARD, students)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Letters and TelME's tokens: prompts of any length, far below every vocabulary's size."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = [chr(code) for code in range(32, 127)]
    raw = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*special, *letters])}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return speaking(raw, bos_token="<s>", pad_token="<pad>", sep_token="</s>", unk_token="<unk>", mask_token="<mask>")


def speaking(raw: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers with TelME's speaker tokens, of one of tokenizers.

    Args:
        raw: What cuts.
        special: pad_token, mask_token and so on -> the token.
    """
    make: Any = PreTrainedTokenizerFast  # its constructor has no types
    tokenizer: PreTrainedTokenizerFast = make(tokenizer_object=raw, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPEAKER_TOKENS)})
    return tokenizer


if __name__ == "__main__":
    sys.exit(main())
