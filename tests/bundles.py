"""Bundles of toy size with random weights, for tests that need a whole model but not a good one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.random_bundle import speaking
from telme.bundle import save_bundle
from telme.config import PUBLISHED_FUSION, Part, TelmeConfig
from telme.modeling import TelmeModel
from telme.models import TextTeacher
from tests.telme import tiny

_WORDS = ["now", "feels", "hello", "there", "i", "am", "so", "happy", "sad", "the", "a", "you", "what", "is", "it"]
_SIGNS = ["no", "yes", ".", ",", "!", "?", "'"]
_LETTERS = [letter for base in "abcdefghijklmnopqrstuvwxyz0123456789" for letter in (base, f"##{base}")]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-case word-piece tokenizer over a few words and all letters, with TelME's tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate([*special, *_WORDS, *_SIGNS, *_LETTERS])}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return speaking(
        raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


def tiny_config(vocabulary_size: int) -> TelmeConfig:
    """Two layers of 32."""
    backbone = {
        "model_type": "bert",
        "vocab_size": vocabulary_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
    }
    return TelmeConfig(text_config=backbone, max_prompt_tokens=96, max_turns=24)


def make_tiny_bundle(folder: Path) -> Path:
    """Write the bundle and return its folder."""
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer))
    torch.manual_seed(7)
    save_bundle(folder, config, TextTeacher(config), tokenizer, "# A toy for tests: random weights.\n")
    return folder


def make_full_bundle(folder: Path, without: Collection[Part] = (), mode: str = "clean") -> Path:
    """Write a bundle with students and fusion, but for the parts in `without`, and return its folder."""
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer))
    config.mode = mode
    # As wide as the features that the fusion takes.
    config.audio_config = None if "audio" in without else {**tiny.AUDIO, "hidden_size": 768, "mask_time_prob": 0.0}
    config.video_config = None if "video" in without else {**tiny.VIDEO, "hidden_size": 768}
    config.fusion = None if "fusion" in without else asdict(PUBLISHED_FUSION["meld"])
    torch.manual_seed(8)
    model = TelmeModel(config)
    networks = {part: network for part in config.parts if (network := model.network(part)) is not None}
    save_bundle(
        folder,
        config,
        model.text,
        tokenizer,
        "# A toy for tests: random weights.\n",
        {part: network for part, network in networks.items() if part != "text"},
    )
    return folder
