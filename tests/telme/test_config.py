"""TelmeConfig as transformers and its users read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from telme.config import TelmeConfig
from telme.errors import BundleError
from telme.labels import LABEL_SETS


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
