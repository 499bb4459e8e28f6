"""TorchPredictor: what is used and what is not, and rows that do not depend on their neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from telme.bundle import Bundle, load_bundle
from telme.config import Part
from telme.dialogue import Turn
from telme.errors import PredictorError
from telme.features import FeatureMaker, Features, Missing, collate_prompts
from telme.predictor import TorchPredictor
from telme.sound import pad_left
from tests.bundles import make_full_bundle

CHANCE = np.random.default_rng(6)
MEDIA = {
    samples: (
        CHANCE.integers(-20_000, 20_000, samples).astype(np.int16),
        CHANCE.integers(0, 256, (8, 48, 64, 3)).astype(np.uint8),
    )
    for samples in (8_000, 16_000, 24_000)
}
SILENT, BLIND = Missing("silent"), Missing("blind")


def loaded(folder: Path, without: tuple[Part, ...] = (), mode: str = "clean") -> Bundle:
    return load_bundle(str(make_full_bundle(folder / "bundle", without, mode)))


def features(bundle: Bundle, *media: Any, text: str = "i am so happy") -> Features:
    maker = FeatureMaker(bundle.tokenizer, bundle.config)
    return maker.make(maker.window([Turn("a", "hello"), Turn("b", text)]), *media)


def mixed(bundle: Bundle) -> list[Features]:
    """Utterances of which some lack sound, pictures or both."""
    (first, second, third) = MEDIA.values()
    return [
        features(bundle, *first),
        features(bundle, SILENT, second[1], text="no"),
        features(bundle, third[0], BLIND, text="what is it ?"),
        features(bundle, SILENT, BLIND, text="yes yes yes"),
        features(bundle, *third, text="so sad !"),
    ]


@pytest.mark.parametrize("mode", ["clean", "published-meld"])
def test_neighbours_change_no_answer(tmp_path: Path, mode: str) -> None:
    bundle = loaded(tmp_path, mode=mode)
    predictor, batch = TorchPredictor(bundle), mixed(bundle)
    together = predictor.predict(batch)
    backwards = predictor.predict(batch[::-1])[::-1]
    alone = [predictor.predict([item])[0] for item in batch]
    for one, two, three in zip(together, backwards, alone, strict=True):
        assert sum(one.probabilities) == pytest.approx(1, abs=1e-12)
        assert one.probabilities == pytest.approx(three.probabilities, abs=1e-6)
        assert two.probabilities == pytest.approx(three.probabilities, abs=1e-6)
        assert one.unused == two.unused == three.unused


def test_each_answer_says_what_it_did_not_use(tmp_path: Path) -> None:
    bundle = loaded(tmp_path)
    said = [prediction.unused for prediction in TorchPredictor(bundle).predict(mixed(bundle))]
    assert said == [{}, {"audio": "silent"}, {"video": "blind"}, {"audio": "silent", "video": "blind"}, {}]


@pytest.mark.parametrize("mode", ["clean", "published-meld"])
def test_the_answer_is_the_fusion_of_one_row(tmp_path: Path, mode: str) -> None:
    bundle = loaded(tmp_path, mode=mode)
    item = features(bundle, *MEDIA[16_000])
    model = bundle.model
    assert model.audio is not None
    assert model.video is not None
    assert model.fusion is not None
    assert not isinstance(item.sound, Missing)
    with torch.inference_mode():
        text = model.text(*collate_prompts([item.prompt_ids], 0)).feature
        heard = model.audio(pad_left([item.sound], bundle.config.input_mode)).feature
        logits = model.fusion(text, heard, model.video(item.pixels).feature).logits
    (prediction,) = TorchPredictor(bundle).predict([item])
    assert prediction.probabilities == pytest.approx(logits.double().softmax(1)[0].tolist(), abs=1e-6)


def test_sound_and_pictures_change_the_answer_where_they_are_used(tmp_path: Path) -> None:
    bundle = loaded(tmp_path)
    sound, pictures = MEDIA[16_000]
    cases = [features(bundle, *media) for media in ((sound, pictures), (sound, BLIND), (SILENT, pictures), ())]
    answers = {prediction.probabilities for prediction in TorchPredictor(bundle).predict(cases)}
    assert len(answers) == len(cases)


@pytest.mark.parametrize("without", [("fusion",), ("audio", "video", "fusion")])
def test_without_a_fusion_the_teacher_answers(tmp_path: Path, without: tuple[Part, ...]) -> None:
    bundle = loaded(tmp_path, without)
    item = features(bundle, *MEDIA[16_000])
    with torch.inference_mode():
        logits = bundle.model.text(*collate_prompts([item.prompt_ids], 0)).logits
    (prediction,) = TorchPredictor(bundle).predict([item])
    assert prediction.probabilities == pytest.approx(logits.double().softmax(1)[0].tolist(), abs=1e-6)
    assert set(prediction.unused) == {"audio", "video"}


def test_features_that_another_bundle_would_read_are_said_to_be_unused(tmp_path: Path) -> None:
    whole, deaf = loaded(tmp_path / "whole"), loaded(tmp_path / "deaf", ("audio",))
    (prediction,) = TorchPredictor(deaf).predict([features(whole, *MEDIA[8_000])])
    assert prediction.unused == {"audio": "the bundle has no audio student"}


def test_no_utterances_have_no_answers(tmp_path: Path) -> None:
    assert TorchPredictor(loaded(tmp_path)).predict([]) == []


def test_a_model_that_fails_says_so(tmp_path: Path) -> None:
    predictor = TorchPredictor(loaded(tmp_path))
    with pytest.raises(PredictorError, match="bundle-"):
        predictor.predict([Features((10_000,), 1)])
