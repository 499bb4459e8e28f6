"""Loading published parameters: what is known to be unused is left out, every other difference is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from telme.config import Part
from telme.fusion import AttentionShiftFusion
from telme.models import AudioStudent, TextTeacher, VideoStudent
from telme.published import PARTS, differences
from tests.telme import tiny
from tests.telme.checkpoints import load_published

NETWORKS: dict[Part, type[nn.Module]] = {
    "text": TextTeacher,
    "audio": AudioStudent,
    "video": VideoStudent,
    "fusion": AttentionShiftFusion,
}
UNUSED: dict[Part, dict[str, Tensor]] = {
    "text": {
        "text_model.embeddings.position_ids": torch.arange(80)[None],
        "text_model.pooler.dense.weight": torch.ones(32, 32),
        "text_model.pooler.dense.bias": torch.ones(32),
    },
    "audio": {},
    "video": {},
    "fusion": {},
}


def checkpoint(part: Part) -> dict[str, Tensor]:
    torch.manual_seed(6)
    return {**NETWORKS[part](tiny.config()).state_dict(), **UNUSED[part]}


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_loads_whole(part: Part) -> None:
    weights = checkpoint(part)
    network = NETWORKS[part](tiny.config())
    load_published(
        part, {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}, network
    )
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("part", PARTS)
def test_every_difference_is_named(part: Part) -> None:
    weights = checkpoint(part)
    network = NETWORKS[part](tiny.config())
    own = network.state_dict()
    lost, *_, bent = own
    del weights[lost]
    weights[bent] = torch.zeros(2, 3)
    weights["stranger.weight"] = torch.zeros(1)
    found = differences(part, weights, network)
    assert (found.missing, found.extra) == ((lost,), ("stranger.weight",))
    assert found.misshapen == (f"{bent}: [2, 3], expected {list(own[bent].shape)}",)
    for said in (f"missing {lost}", "extra stranger.weight", f"mis-shaped {bent}"):
        assert said in str(found)


def test_speaker_tokens_of_another_vocabulary_are_a_difference() -> None:
    weights = checkpoint("text")
    name = "text_model.embeddings.word_embeddings.weight"
    weights[name] = torch.zeros(129, 32)
    found = differences("text", weights, TextTeacher(tiny.config()))
    assert found.misshapen == (f"{name}: [129, 32], expected [120, 32]",)


@pytest.mark.parametrize("masking", [0.0, 0.05])
def test_the_mask_vector_loads_only_where_there_is_one(masking: float) -> None:
    config = tiny.config(audio_config={**tiny.AUDIO, "mask_time_prob": masking})
    network = AudioStudent(config)
    with_vector = {**network.state_dict(), "model.masked_spec_embed": torch.full((48,), 2.0)}
    load_published("audio", with_vector, network)
    own = network.state_dict()
    assert ("model.masked_spec_embed" in own) == (masking > 0)
    assert masking == 0 or bool((own["model.masked_spec_embed"] == 2).all())


FULL_SIZE: dict[str, Any] = {
    "text_config": {
        "model_type": "roberta",
        "vocab_size": 50265 + 9,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
    "audio_config": {"model_type": "data2vec-audio"},
    "video_config": {"model_type": "timesformer"},
}


@pytest.mark.parametrize(("part", "millions"), [("text", 355.4), ("audio", 93.2), ("video", 121.3), ("fusion", 12.4)])
def test_full_size_networks_have_the_published_sizes(part: Part, millions: float) -> None:
    with torch.device("meta"):
        network = NETWORKS[part](tiny.config(**FULL_SIZE))
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    if part == "text":
        # The published figure is roberta-large's own: with its pooler, without speaker tokens and heads.
        backbone = sum(size for name, size in sizes.items() if name.startswith("text_model."))
        sizes = {"backbone": backbone, "pooler": 1024 * 1025, "speaker tokens": -9 * 1024}
    assert sum(sizes.values()) == pytest.approx(millions * 1e6, abs=0.05e6)
