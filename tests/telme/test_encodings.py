"""What frozen encoders say, kept under a key: made again only when something that it depends on has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from telme.bundle import load_bundle
from telme.cache import MediaCache
from telme.data import find_clip, read_split
from telme.encodings import kept_tensors, student_features, teacher_answers
from telme.errors import DataError
from telme.features import FeatureMaker
from telme.modes import Student
from telme.predictor import TorchNetworks
from tests.bundles import make_full_bundle
from tests.miniature import make_meld

MADE = {"feature": torch.arange(6.0).reshape(2, 3)}


class Maker:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> dict[str, Tensor]:
        self.asked += 1
        return MADE


def test_kept_until_the_key_changes_or_the_file_is_damaged(tmp_path: Path) -> None:
    make, path = Maker(), tmp_path / "a.safetensors"
    for key, asked in (("one", 1), ("one", 1), ("two", 2)):
        assert torch.equal(kept_tensors(path, {"weights": key}, make)["feature"], MADE["feature"])
        assert make.asked == asked
    path.write_bytes(path.read_bytes()[:-3])
    assert torch.equal(kept_tensors(path, {"weights": "two"}, make)["feature"], MADE["feature"])
    assert make.asked == 3


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("telme.encodings.save_file", full)
    with pytest.raises(DataError, match="No space left on device"):
        kept_tensors(tmp_path / "a.safetensors", {}, Maker())
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_teachers_answers_are_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    bundle = load_bundle(str(make_full_bundle(tmp_path / "bundle")))
    networks = TorchNetworks(bundle.model)
    prompts = [tuple(range(5, 5 + length)) for length in (9, 2, 30, 4)]
    together = teacher_answers(networks, prompts, 0, "test")
    for row, prompt in enumerate(prompts):
        alone = teacher_answers(networks, [prompt], 0, "test")
        torch.testing.assert_close(together["feature"][row], alone["feature"][0])
        torch.testing.assert_close(together["logits"][row], alone["logits"][0])


@pytest.mark.parametrize("student", ["audio", "video"])
@pytest.mark.parametrize("mode", ["clean", "published-meld"])
def test_features_of_clips_some_of_which_are_missing(tmp_path: Path, mode: str, student: Student) -> None:
    bundle = load_bundle(str(make_full_bundle(tmp_path / "bundle", mode=mode)))
    root = make_meld(tmp_path / "meld", train=2, dev=1)
    (root / "train_splits" / "dia0_utt1.mp4").unlink()
    maker, networks = FeatureMaker(bundle.tokenizer, bundle.config), TorchNetworks(bundle.model)
    sources = [find_clip(row, root, "train") for row in read_split(root, "train")]
    cache = MediaCache(tmp_path / "cache", maker)
    found = student_features(networks, cache, maker, student, sources, group=4, workers=0)
    assert found["present"].tolist() == [True, False, *[True] * 6]
    assert not found["feature"][1].any()
    again = student_features(networks, cache, maker, student, sources[4:5], group=4, workers=0)
    torch.testing.assert_close(found["feature"][4], again["feature"][0])
