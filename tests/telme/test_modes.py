"""The named modes: where each differs. What each field does is tested beside the function that reads it."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from telme.errors import ConfigError, FeatureError
from telme.labels import LABEL_SETS
from telme.modes import CLEAN, MODES, PUBLISHED_IEMOCAP, PUBLISHED_MELD, mode_named, published_mode
from telme.sound import pad_left


def test_published_modes_are_named_after_their_data_sets() -> None:
    assert list(MODES.values()) == [CLEAN, PUBLISHED_MELD, PUBLISHED_IEMOCAP]
    assert list(MODES) == [mode.name for mode in MODES.values()]
    assert {published_mode(dataset) for dataset in LABEL_SETS} == {PUBLISHED_MELD, PUBLISHED_IEMOCAP}
    assert mode_named("clean") is CLEAN


@pytest.mark.parametrize("name", ["", "published", "published-emory"])
def test_an_unknown_mode_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="clean, published-meld, published-iemocap"):
        mode_named(name)


def test_clean_differs_from_published_in_all_but_the_frame_rule_and_the_order_of_training() -> None:
    clean, published = asdict(CLEAN), asdict(PUBLISHED_MELD)
    assert {field for field in clean if clean[field] == published[field]} == {"frame_rule", "student_order"}


def test_the_two_published_modes_differ_in_apostrophes_order_and_long_clips() -> None:
    meld, iemocap = asdict(PUBLISHED_MELD), asdict(PUBLISHED_IEMOCAP)
    assert {field for field in meld if meld[field] != iemocap[field]} == {
        "name",
        "apostrophes",
        "student_order",
        "long_clip",
    }


def test_the_left_pad_is_a_parameter() -> None:
    clips = [np.ones(500, dtype=np.float32)] * 2
    assert pad_left(clips, CLEAN).shape == (2, 500)
    padded = pad_left(clips, replace(CLEAN, audio_left_pad=120))
    assert padded.shape == (2, 620)
    assert not padded[:, :120].any()
    assert padded[:, 120:].all()
    with pytest.raises(FeatureError, match="one length"):
        pad_left([*clips, np.ones(600, dtype=np.float32)], CLEAN)
