"""Loading published parameters: what is known to be unused is left out, every other difference is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from telme.errors import BundleError
from telme.fusion import AttentionShiftFusion
from telme.models import AudioStudent, TextTeacher, VideoStudent
from telme.published import PARTS, Part, differences, load_published
from tests.telme import tiny

NETWORKS: dict[Part, type[nn.Module]] = {
    "teacher": TextTeacher,
    "audio": AudioStudent,
    "video": VideoStudent,
    "fusion": AttentionShiftFusion,
}
UNUSED: dict[Part, dict[str, Tensor]] = {
    "teacher": {
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
def test_every_difference_is_named_and_nothing_is_loaded(part: Part) -> None:
    weights = checkpoint(part)
    network = NETWORKS[part](tiny.config())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    lost, bent = list(before)[0], list(before)[-1]
    del weights[lost]
    weights[bent] = torch.zeros(2, 3)
    weights["stranger.weight"] = torch.zeros(1)
    found = differences(part, weights, network)
    assert (found.missing, found.extra) == ((lost,), ("stranger.weight",))
    assert found.misshapen == (f"{bent}: [2, 3], expected {list(before[bent].shape)}",)
    with pytest.raises(BundleError) as caught:
        load_published(part, weights, network)
    for said in (PARTS[part].file, f"missing {lost}", "extra stranger.weight", f"mis-shaped {bent}"):
        assert said in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_speaker_tokens_of_another_vocabulary_are_a_difference() -> None:
    weights = checkpoint("teacher")
    name = "text_model.embeddings.word_embeddings.weight"
    weights[name] = torch.zeros(129, 32)
    found = differences("teacher", weights, TextTeacher(tiny.config()))
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
