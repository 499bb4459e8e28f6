"""Configurations of the published model's three backbones, so that importing its weights downloads none.

They are those of roberta-large with nine speaker tokens, facebook/data2vec-audio-base-960h and
facebook/timesformer-base-finetuned-k400, the initial weights of arXiv 2401.12987.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from telme.config import PUBLISHED_FUSION, TelmeConfig
from telme.dialogue import SPEAKER_TOKENS
from telme.modes import published_mode

_ROBERTA_TOKENS = 50_265
# The published code cuts prompts at 512 tokens and evicts no turn. A live dialogue has no end, so it is capped at what
# the weights have read: hardly more than 24 turns in MELD, and at most 110 in IEMOCAP.
_TURNS = {"meld": 24, "iemocap": 110}


@dataclass(frozen=True)
class Backbones:
    """transformers configurations of the three backbones, as dicts with `model_type`."""

    text: Mapping[str, Any]
    audio: Mapping[str, Any]
    video: Mapping[str, Any]


PUBLISHED_BACKBONES = Backbones(
    text={
        "model_type": "roberta",
        "vocab_size": _ROBERTA_TOKENS + len(SPEAKER_TOKENS),
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    audio={
        "model_type": "data2vec-audio",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "conv_dim": [512] * 7,
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_pos_kernel_size": 19,
        "num_conv_pos_embeddings": 5,
        "num_conv_pos_embedding_groups": 16,
        "layer_norm_eps": 1e-5,
        # Training masks 5 % of the time frames. Without, the network has no mask vector, which inference never reads.
        "mask_time_prob": 0.0,
    },
    video={
        "model_type": "timesformer",
        "image_size": 224,
        "patch_size": 16,
        "num_frames": 8,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-6,
        "attention_type": "divided_space_time",
    },
)


def published_config(dataset: str, backbones: Backbones = PUBLISHED_BACKBONES) -> TelmeConfig:
    """Configuration of the authors' weights for a data set.

    Args:
        dataset: Key of `telme.labels.LABEL_SETS`.
        backbones: Other ones than the published, for tests at toy size.

    Raises:
        ConfigError: The authors published none for it.
    """
    return TelmeConfig(
        mode=published_mode(dataset).name,
        dataset=dataset,
        text_config=dict(backbones.text),
        audio_config=dict(backbones.audio),
        video_config=dict(backbones.video),
        fusion=asdict(PUBLISHED_FUSION[dataset]),
        max_prompt_tokens=512,
        max_turns=_TURNS[dataset],
    )
