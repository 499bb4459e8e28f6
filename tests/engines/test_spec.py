"""Interfaces of graphs: sizes found, bad input named, profiles within the limits, keys that tell settings apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines.spec import BuildSettings, GraphSpec, Range, default_profiles, graph_spec
from telme.backbones import published_config
from telme.config import Part
from telme.errors import PredictorError

CONFIG = published_config("meld")
PARTS: tuple[Part, ...] = ("text", "audio", "video", "fusion")
TEXT = graph_spec(CONFIG, "text")


def prompt(batch: int, tokens: int, dtype: str = "int64") -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.ones((batch, tokens), dtype)


def test_sizes_of_good_input() -> None:
    both = {"input_ids": prompt(3, 40), "attention_mask": prompt(3, 40)}
    assert TEXT.sizes(both) == {"batch": 3, "tokens": 40}
    largest = {"input_ids": prompt(16, 512), "attention_mask": prompt(16, 512)}
    assert TEXT.sizes(largest) == {"batch": 16, "tokens": 512}
    video = graph_spec(CONFIG, "video")
    assert video.sizes({"pixel_values": np.zeros((2, 8, 3, 224, 224), np.float32)}) == {"batch": 2}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "given nothing"),
        ({"input_ids": prompt(1, 4)}, r"input_ids int64 \[1, 4\]; expected input_ids int64 \[batch, tokens\]"),
        ({"input_ids": prompt(1, 4), "attention_mask": prompt(1, 5)}, r"attention_mask int64 \[1, 5\]"),
        ({"input_ids": prompt(1, 4), "attention_mask": prompt(1, 4, "int32")}, r"attention_mask int32"),
        ({"input_ids": prompt(1, 4)[0], "attention_mask": prompt(1, 4)}, r"input_ids int64 \[4\]"),
        ({"input_ids": prompt(1, 600), "attention_mask": prompt(1, 600)}, "tokens up to 512"),
        ({"input_ids": prompt(0, 4), "attention_mask": prompt(0, 4)}, r"input_ids int64 \[0, 4\]"),
        ({"input_ids": prompt(1, 4), "attention_mask": prompt(1, 4), "more": prompt(1, 4)}, "more int64"),
    ],
)
def test_bad_input_is_named(arrays: dict[str, np.ndarray[tuple[int, int], np.dtype[np.int64]]], said: str) -> None:
    with pytest.raises(PredictorError, match=said):
        TEXT.sizes(arrays)


def test_tensors_of_torch_are_sized_like_arrays() -> None:
    tensors = {name: torch.ones(3, 9, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    assert TEXT.sizes(tensors) == {"batch": 3, "tokens": 9}
    with pytest.raises(PredictorError, match=r"attention_mask float32 \[3, 9\]"):
        TEXT.sizes({**tensors, "attention_mask": torch.ones(3, 9)})


@pytest.mark.parametrize("part", PARTS)
def test_profiles_lie_within_the_limits_and_cover_them(part: Part) -> None:
    spec = graph_spec(CONFIG, part)
    profiles = default_profiles(spec)
    for profile in profiles:
        assert set(profile) == set(spec.limits)
        for name, size in profile.items():
            assert spec.limits[name].least <= size.least <= size.typical <= size.most <= spec.limits[name].most
    for name, limit in spec.limits.items():
        assert max(profile[name].most for profile in profiles) == limit.most
        assert min(profile[name].least for profile in profiles) == limit.least


def test_a_short_prompt_limit_still_has_profiles() -> None:
    config = published_config("meld")
    config.max_prompt_tokens = 96
    spec: GraphSpec = graph_spec(config, "text")
    assert {profile["tokens"].most for profile in default_profiles(spec)} == {96}


def test_settings_that_differ_have_other_keys() -> None:
    profile = {"batch": Range(1, 1, 16)}
    settings = [
        BuildSettings(),
        BuildSettings("fp16"),
        BuildSettings("fp16", (profile,)),
        BuildSettings("fp16", ({"batch": Range(1, 2, 16)},)),
    ]
    assert len({tuple(sorted(one.key().items())) for one in settings}) == len(settings)
    assert BuildSettings("fp16", ({"batch": Range(1, 1, 16)},)).key() == settings[2].key()


def test_the_order_in_which_a_profile_names_its_dimensions_is_no_difference() -> None:
    batch, tokens = Range(1, 1, 16), Range(2, 96, 512)
    one = BuildSettings("fp16", ({"batch": batch, "tokens": tokens},))
    assert BuildSettings("fp16", ({"tokens": tokens, "batch": batch},)).key() == one.key()
