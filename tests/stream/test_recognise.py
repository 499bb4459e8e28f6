"""Recognition without sockets: pictures that did not change, memory that runs out, backends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import engines.onnx
import stream.control
from engines.export import export_graph
from engines.predictor import EnginePredictor
from stream import bus, recognise
from stream.config import WorkerConfig
from stream.journal import StoredTurn
from stream.recognise import UNCHANGED, Model, Recognizer, Said, load_model
from telme.bundle import Bundle, load_bundle
from telme.errors import FeatureError, OutOfMemory
from telme.features import FeatureMaker, Features
from telme.predictor import NetworkPredictor, Prediction, TorchNetworks
from tests.bundles import make_full_bundle, make_tiny_bundle
from tests.stream.workers import utterance

CHANCE = np.random.default_rng(3)
FIRST, SECOND = (CHANCE.integers(0, 256, (8, 48, 64, 3)).astype(np.uint8) for _ in range(2))
SOUND = CHANCE.integers(-9_000, 9_000, 16_000).astype(np.int16)


class Watching(TorchNetworks):
    """Networks that count the pictures they watch."""

    watched = 0

    def video(self, pixels: Tensor) -> Tensor:
        self.watched += len(pixels)
        return super().video(pixels)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(str(make_full_bundle(tmp_path_factory.mktemp("bundle"))))


@pytest.fixture
def networks(bundle: Bundle) -> Watching:
    return Watching(bundle.model)


@pytest.fixture
def recognizer(bundle: Bundle, networks: Watching) -> Recognizer:
    maker = FeatureMaker(bundle.tokenizer, bundle.config)
    return Recognizer(Model(maker, NetworkPredictor(bundle, networks), 24), lambda *_: [])


def said(pictures: object, session: str = "s1", sound: object = SOUND) -> Said:
    media = (sound, pictures)
    return Said(utterance(0, "hello", session=session), media, 0)  # type: ignore[arg-type]


def emotion(answers: list[bus.Emotion | Exception]) -> bus.Emotion:
    (answer,) = answers
    assert isinstance(answer, bus.Emotion)
    return answer


def test_pictures_that_did_not_change_are_not_watched_again_and_the_event_says_so(
    recognizer: Recognizer, networks: Watching, bundle: Bundle
) -> None:
    first = emotion([*recognizer.recognise([said(FIRST)])])
    assert first.modalities["video"] == bus.Modality(captured=True, used=True, reason=None)
    again = emotion([*recognizer.recognise([said(FIRST.copy())])])
    assert networks.watched == 1
    assert again.modalities["video"] == bus.Modality(captured=True, used=True, reason=UNCHANGED)
    other = Recognizer(recognizer._model, lambda *_: [])
    other.recognise([said(SECOND)])
    whole = emotion([*other.recognise([said(FIRST)])])
    assert whole.probabilities == pytest.approx(again.probabilities, abs=1e-6)


def test_pictures_of_another_session_or_that_changed_are_watched(recognizer: Recognizer, networks: Watching) -> None:
    recognizer.recognise([said(FIRST)])
    recognizer.recognise([said(FIRST, session="s2")])
    changed = emotion([*recognizer.recognise([said(SECOND)])])
    assert networks.watched == 3
    assert changed.modalities["video"].reason is None


def test_a_session_is_forgotten_after_many_others_and_goes_on_from_the_journal(
    bundle: Bundle, networks: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognise, "_MOST_SESSIONS", 2)
    asked: list[str] = []

    def turns(session: str, number: int, most: int) -> list[StoredTurn]:
        asked.append(session)
        return []

    maker = FeatureMaker(bundle.tokenizer, bundle.config)
    recognizer = Recognizer(Model(maker, NetworkPredictor(bundle, networks), 24), turns)
    for session in ("s1", "s2", "s1", "s3", "s1", "s2"):
        recognizer.recognise([said(FIRST, session=session)])
    assert asked == ["s1", "s2", "s3", "s2"]
    assert networks.watched == 4


def test_pictures_beside_a_sound_that_is_too_long_are_not_kept(recognizer: Recognizer, networks: Watching) -> None:
    recognizer.recognise([said(FIRST)])
    long = emotion([*recognizer.recognise([said(FIRST, sound=np.tile(SOUND, 31))])])
    assert not long.modalities["video"].used
    assert networks.watched == 1


def test_a_device_without_room_is_said_for_each_and_the_next_is_answered(
    recognizer: Recognizer, networks: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutOfMemory("the device is full", "room", "free some")

    with monkeypatch.context() as patch:
        patch.setattr(networks, "text", full)
        answers = recognizer.recognise([said(FIRST), said(FIRST, session="s2")])
    assert all(isinstance(answer, OutOfMemory) for answer in answers)
    assert "torch-cpu has no room for one utterance" in str(answers[0])
    assert emotion([*recognizer.recognise([said(FIRST)])]).label


def test_nothing_but_markers_is_no_utterance(recognizer: Recognizer) -> None:
    marker = Said(utterance(0, "<>"), said(FIRST).media, 0)
    (answer,) = recognizer.recognise([marker])
    assert isinstance(answer, FeatureError)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_the_backend_that_is_asked_for_answers(tmp_path: Path, backend: str) -> None:
    folder = make_full_bundle(tmp_path / "bundle", ("audio", "video", "fusion"))
    settings = WorkerConfig(str(folder), threads=1, backend=backend)  # type: ignore[arg-type]
    told: list[str] = []
    model = load_model(settings, lambda: told.append("preparing"))
    assert told, "also where no engine is built: the bundle may be a hub's"
    assert model.predictor.backend.startswith(backend)
    answer = emotion([*Recognizer(model, lambda *_: []).recognise([said(FIRST)])])
    assert answer.backend == model.predictor.backend


def test_a_long_build_is_told_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One network of the published size may take longer than the two minutes that a start has from the last word."""
    said_often, building = threading.Event(), threading.Event()
    told: list[str] = []

    def preparing() -> None:
        told.append("preparing")
        if building.is_set() and len(told) > 3:
            said_often.set()

    def long(*given: Any) -> Path:
        told.clear()
        building.set()
        assert said_often.wait(60), "the build is not told"
        return export_graph(*given)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(stream.control, "_TELL_EVERY_S", 0.01)
    monkeypatch.setattr(engines.onnx, "export_graph", long)
    load_model(WorkerConfig(str(make_tiny_bundle(tmp_path / "tiny")), threads=1, backend="onnx"), preparing)
    assert not any(thread.name == "preparing" for thread in threading.enumerate())


def test_what_the_first_answer_compiled_is_kept_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a worker that is killed; and what came later when it ends."""
    done: list[str] = []
    predict = EnginePredictor.predict

    def noted(self: EnginePredictor, batch: Sequence[Features]) -> list[Prediction]:
        done.append("answered")
        return predict(self, batch)

    monkeypatch.setattr(EnginePredictor, "predict", noted)
    monkeypatch.setattr(EnginePredictor, "keep", lambda self: done.append("kept"))
    folder = make_full_bundle(tmp_path / "bundle", ("audio", "video", "fusion"))
    model = load_model(WorkerConfig(str(folder), threads=1, backend="torch"))
    assert done == ["answered", "kept"]
    model.keep()
    assert done == ["answered", "kept", "kept"]
