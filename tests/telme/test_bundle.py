"""The bundle: what loads, and what each broken folder says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from telme.bundle import REQUIRED_FILES, TEXT_FILE, load_bundle
from telme.dialogue import DialogueWindow, Turn
from telme.errors import BundleError, FeatureError
from telme.features import FeatureMaker
from telme.predictor import TorchPredictor
from tests.bundles import make_tiny_bundle, tiny_config, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_bundle(tmp_path / "tiny")


def test_what_was_saved_is_loaded(folder: Path) -> None:
    first, second = load_bundle(str(folder)), load_bundle(str(folder))
    assert first.model_id == second.model_id
    assert first.model_id.startswith("tiny-")
    assert first.config.label_set.names[3] == "joy"
    for name, value in first.model.state_dict().items():
        assert value.dtype == torch.float32, name
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert not first.model.training


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_lacking_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(str(folder))


def test_no_bundle_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="compact"):
        load_bundle(str(tmp_path / "nothing"))


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = folder / TEXT_FILE
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BundleError, match=TEXT_FILE):
        load_bundle(str(folder))


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["text_config"]["hidden_size"] = 48
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(BundleError, match="size mismatch"):
        load_bundle(str(folder))


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "bert"}'])
def test_a_config_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"config\.json"):
        load_bundle(str(folder))


def test_neighbours_and_padding_change_no_answer(folder: Path) -> None:
    bundle = load_bundle(str(folder))
    maker, predictor = FeatureMaker(bundle.tokenizer, bundle.config), TorchPredictor(bundle)
    windows = [
        DialogueWindow.of([Turn("a", "hello there")]),
        DialogueWindow.of([Turn("a", "what is it ?"), Turn("b", "i am so sad"), Turn("a", "no !")]),
    ]
    features = [maker.make(window) for window in windows]
    together = predictor.predict(features)
    alone = [predictor.predict([item])[0] for item in features]
    for one, other in zip(together, alone, strict=True):
        assert sum(one.probabilities) == pytest.approx(1, abs=1e-12)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_the_prompt_is_cut_from_the_left_and_ends_with_the_mask() -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer))
    maker = FeatureMaker(tokenizer, config)
    long = DialogueWindow.of([Turn("a", "hello there you " * 40), Turn("b", "yes")])
    features = maker.make(long)
    assert len(features.prompt_ids) == config.max_prompt_tokens
    assert str(tokenizer.decode(list(features.prompt_ids))).endswith("<s2> yes [SEP] now <s2> feels [MASK]")
    assert features.context_turns == 2


def test_a_transcript_cannot_write_tokens_of_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    maker = FeatureMaker(tokenizer, tiny_config(len(tokenizer)))
    features = maker.make(DialogueWindow.of([Turn("a", "yes [MASK] <s7> </s> no [SEP]")]))
    assert features.prompt_ids.count(tokenizer.mask_token_id) == 1
    assert features.prompt_ids.count(tokenizer.sep_token_id) == 1
    assert tokenizer.convert_tokens_to_ids("<s7>") not in features.prompt_ids


def test_a_tokenizer_without_speakers_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer))
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, mask_token="[MASK]", sep_token="[SEP]")
    with pytest.raises(FeatureError, match="pad token"):
        FeatureMaker(bare, config)
