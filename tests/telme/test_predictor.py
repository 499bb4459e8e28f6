"""TorchPredictor: what is used and what is not, and rows that do not depend on their neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from telme.bundle import Bundle, load_bundle
from telme.config import FEATURE_DIM, Part
from telme.dialogue import Turn
from telme.errors import OutOfMemory, PredictorError
from telme.features import FeatureMaker, Features, Missing, collate_prompts
from telme.modeling import TelmeModel
from telme.models import EncoderOutput
from telme.predictor import NetworkPredictor, TorchNetworks, TorchPredictor
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


class Watching(TorchNetworks):
    """Networks that note what they are given, and when."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle.model)
        self.asked: list[str] = []
        self.pixels: list[Tensor] = []

    def text(self, ids: Tensor, mask: Tensor) -> EncoderOutput:
        self.asked.append("text")
        return super().text(ids, mask)

    def video(self, pixels: Tensor) -> Tensor:
        self.asked.append("video")
        self.pixels.append(pixels)
        return super().video(pixels)


def test_pictures_start_before_texts_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What puts texts of several lengths in order is a copy to the GPU, which waits for them."""
    bundle = loaded(tmp_path)
    networks = Watching(bundle)
    predictor = NetworkPredictor(bundle, networks)
    argsort = Tensor.argsort

    def noted(self: Tensor) -> Tensor:
        networks.asked.append("order")
        return argsort(self)

    monkeypatch.setattr(Tensor, "argsort", noted)
    sound, pictures = MEDIA[16_000]
    short, long = features(bundle, sound, pictures), features(bundle, sound, pictures, text=50 * "happy ")
    predictor.predict([long, short])
    assert networks.asked == ["text", "text", "video", "order"]
    predictor.predict([short])
    assert networks.pixels[-1] is short.pixels


class Cramped(TorchNetworks):
    """Networks whose device has room for a few rows at once."""

    def __init__(self, bundle: Bundle, room: int, error: Exception) -> None:
        super().__init__(bundle.model)
        self.room = room
        self.asked: list[int] = []
        self._error = error

    def text(self, ids: Tensor, mask: Tensor) -> EncoderOutput:
        self.asked.append(len(ids))
        if len(ids) > self.room:
            raise self._error
        return super().text(ids, mask)


NO_ROOM = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    OutOfMemory("the device is full", "room", "free some"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.AcceleratorError("CUDA error: out of memory"),
]


@pytest.mark.parametrize("error", NO_ROOM)
def test_a_batch_without_room_is_halved_for_good(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = loaded(tmp_path)
    batch = [features(bundle)] * 5
    networks = Cramped(bundle, 2, error)
    predictor = NetworkPredictor(bundle, networks)
    (expected,) = TorchPredictor(bundle).predict(batch[:1])
    for answer in predictor.predict(batch):
        assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
        assert answer.unused == expected.unused
    assert networks.asked == [5, 2, 2, 1]
    assert "no room for 5 utterances at once on torch-cpu; now at most 2" in caplog.text
    predictor.predict(batch)
    assert networks.asked[4:] == [2, 2, 1]


def test_one_utterance_without_room_is_a_clear_error_and_the_next_may_fit(tmp_path: Path) -> None:
    bundle = loaded(tmp_path)
    networks = Cramped(bundle, 0, NO_ROOM[0])
    predictor = NetworkPredictor(bundle, networks)
    with pytest.raises(OutOfMemory, match=r"torch-cpu has no room for one utterance of \d+ tokens: CUDA out of memory"):
        predictor.predict([features(bundle)] * 3)
    networks.room = 1
    assert len(predictor.predict([features(bundle)])) == 1


def test_a_gpu_that_is_lost_ends_the_process_and_another_error_costs_the_utterance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every later call would fail too, and each utterance be lost; the next worker is sent this one again."""
    bundle = loaded(tmp_path)
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    predictor = NetworkPredictor(bundle, Cramped(bundle, 0, lost))
    odd = NetworkPredictor(bundle, Cramped(bundle, 0, RuntimeError("CUDA error: an odd one")))
    with pytest.raises(PredictorError, match="illegal memory access"):
        predictor.predict([features(bundle)])  # there is no GPU that could be lost
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with pytest.raises(PredictorError, match="illegal memory access"):
        predictor.predict([features(bundle)])  # the GPU goes on
    monkeypatch.setattr(torch.cuda, "synchronize", Mock(side_effect=lost))
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        predictor.predict([features(bundle)])
    with pytest.raises(PredictorError, match=r"on torch-cpu failed: CUDA error: an odd one"):
        odd.predict([features(bundle)])


def test_a_gpu_without_room_for_the_networks_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the program may choose another backend."""

    def full(self: TelmeModel, device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    bundle = loaded(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(TelmeModel, "to", full)
    with pytest.raises(OutOfMemory, match=r"no room on cuda for the networks: CUDA out of memory.*uses cuda"):
        TorchNetworks(bundle.model)


def test_pictures_watched_before_are_not_watched_again(tmp_path: Path) -> None:
    bundle = loaded(tmp_path)
    assert bundle.model.video is not None
    sound, pictures = MEDIA[16_000]
    predictor = TorchPredictor(bundle)
    (first,) = predictor.predict([features(bundle, sound, pictures)])
    assert first.watched is not None
    bundle.model.video.forward = None  # type: ignore[assignment]  # it must not be called
    again = [features(bundle, sound, first.watched), features(bundle, sound, BLIND)]
    second, third = predictor.predict(again)
    assert second.probabilities == pytest.approx(first.probabilities, abs=1e-6)
    assert second.unused == {}
    assert third.watched is None


def test_no_utterances_have_no_answers(tmp_path: Path) -> None:
    assert TorchPredictor(loaded(tmp_path)).predict([]) == []


def test_a_model_that_fails_says_so(tmp_path: Path) -> None:
    predictor = TorchPredictor(loaded(tmp_path))
    with pytest.raises(PredictorError, match="bundle-"):
        predictor.predict([Features((10_000,), 1)])


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("without", [(), ("audio", "video")])
def test_an_answer_that_is_no_number_is_none(tmp_path: Path, without: tuple[Part, ...], number: float) -> None:
    """As where half precision overflows: an event that nobody can read came of it."""
    bundle = loaded(tmp_path, without)
    bundle.model.text.W.weight.data.fill_(number)
    with pytest.raises(PredictorError, match=r"on torch-c.* answered with what is no number; .*--precision fp32"):
        TorchPredictor(bundle).predict(mixed(bundle))


def test_a_gpu_gets_copies_and_takes_what_lies_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = loaded(make_full_bundle(tmp_path / "bundle"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # A device that is not the CPU: it has shapes, and refuses tensors of elsewhere as a GPU does.
    monkeypatch.setattr("telme.predictor.torch.device", lambda name: torch.empty(0, device="meta").device)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    networks = TorchNetworks(bundle.model)
    assert {parameter.device.type for parameter in bundle.model.parameters()} == {"cpu"}
    feature = torch.zeros(2, FEATURE_DIM)
    logits = networks.fusion(feature, feature, feature, torch.ones(2, 2, dtype=torch.bool))
    assert (logits.device.type, logits.shape) == ("meta", (2, 7))
    assert not torch.backends.cudnn.allow_tf32
