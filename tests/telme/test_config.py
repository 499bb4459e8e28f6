"""TelmeConfig as transformers and its users read it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig

from telme.config import TelmeConfig
from telme.errors import BundleError
from telme.labels import LABEL_SETS
from telme.modes import CLEAN, PUBLISHED_MELD, Mode


@pytest.mark.parametrize("dataset", list(LABEL_SETS))
def test_the_classes_are_those_of_the_data_set(tmp_path: Path, dataset: str) -> None:
    names = LABEL_SETS[dataset].names
    made = TelmeConfig(dataset=dataset)
    made.save_pretrained(tmp_path / "new")
    # Bundles that were made before say nothing of their classes.
    (tmp_path / "old").mkdir()
    older = {"model_type": "telme", "dataset": dataset}
    (tmp_path / "old" / "config.json").write_text(json.dumps(older), encoding="utf-8")
    loaded = [AutoConfig.from_pretrained(tmp_path / age) for age in ("new", "old")]
    for config in (made, *loaded):
        assert config.num_labels == len(names)
        assert config.id2label == dict(enumerate(names))
        assert config.label2id == {name: place for place, name in enumerate(names)}


def test_an_unknown_data_set_is_left_to_who_asks_for_its_classes() -> None:
    config = TelmeConfig(dataset="emory")
    with pytest.raises(BundleError, match="dataset 'emory'"):
        config.label_set  # noqa: B018


@pytest.mark.parametrize("mode", [CLEAN, PUBLISHED_MELD])
def test_a_left_pad_of_the_bundle_takes_the_place_of_the_modes(tmp_path: Path, mode: Mode) -> None:
    assert TelmeConfig(mode=mode.name).input_mode is mode
    TelmeConfig(mode=mode.name, audio_left_pad_ms=1500).save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path).input_mode
    assert read == replace(mode, audio_left_pad=3 * mode.audio_rate_hz // 2)


@pytest.mark.parametrize("pad_ms", [-1, 30_001, 1.5, "batch"])
def test_a_left_pad_that_is_none_is_refused(pad_ms: object) -> None:
    config = TelmeConfig(audio_left_pad_ms=0)
    config.audio_left_pad_ms = pad_ms  # type: ignore[assignment]
    with pytest.raises(BundleError, match=rf"audio_left_pad_ms {pad_ms!r}; expected 0 to 30000"):
        config.input_mode  # noqa: B018
