"""Tiny networks with random weights, for tests of what the networks do rather than of what they know."""

from __future__ import annotations

from typing import Any

import torch

from telme.config import TelmeConfig

TEXT_FAMILIES: dict[str, dict[str, Any]] = {
    family: {
        "model_type": family,
        "vocab_size": 120,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 80,
        "pad_token_id": pad_id,
    }
    for family, pad_id in (("roberta", 1), ("bert", 0), ("mpnet", 1))
}
AUDIO: dict[str, Any] = {
    "model_type": "data2vec-audio",
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "conv_pos_kernel_size": 5,
    "num_conv_pos_embedding_groups": 4,
    "num_conv_pos_embeddings": 2,
}
VIDEO: dict[str, Any] = {
    "model_type": "timesformer",
    "image_size": 32,
    "patch_size": 16,
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def config(family: str = "roberta", **settings: Any) -> TelmeConfig:
    """A configuration with three tiny backbones."""
    return TelmeConfig(
        **{"text_config": TEXT_FAMILIES[family], "audio_config": AUDIO, "video_config": VIDEO, **settings}
    )


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
