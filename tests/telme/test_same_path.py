"""One dialogue through the offline reader and through the live worker: equal tensors, equal answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from stream import wire
from stream.worker import Model, Worker
from telme.bundle import load_bundle
from telme.data import read_rows, windows
from telme.features import FeatureMaker, Features, Missing
from telme.labels import LabelSet
from telme.modes import MODES
from telme.predictor import Prediction, TorchPredictor
from tests.bundles import make_full_bundle
from tests.stream.test_worker import Bench, utterance

# Straight apostrophes, as recognizers write them; the published mode wants U+0092.
TEXTS = ("Hello there.", "I'm so happy!", "What is it?  No, no.", "It isn't")
SPEAKERS = ("ann", "ben", "ann", "cleo")
CHANCE = np.random.default_rng(9)
SOUNDS = [CHANCE.integers(-9_000, 9_000, 12_000 + 500 * turn).astype(np.int16) for turn in range(len(TEXTS))]
CLIPS = [CHANCE.integers(0, 256, (8, 40, 48, 3)).astype(np.uint8) for _ in TEXTS]
# The microphone fails in the third turn and the camera in the fourth.
HEARD = [*SOUNDS[:2], None, SOUNDS[3]]
SEEN = [*CLIPS[:3], None]
SILENT, BLIND = "the microphone is off", "the camera is off"


class Recorder:
    """A predictor that keeps what it was asked."""

    def __init__(self, predictor: TorchPredictor) -> None:
        self._predictor = predictor
        self.asked: list[Features] = []
        self.answered: list[Prediction] = []

    @property
    def labels(self) -> LabelSet:
        return self._predictor.labels

    @property
    def model_id(self) -> str:
        return self._predictor.model_id

    @property
    def backend(self) -> str:
        return self._predictor.backend

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        self.asked += batch
        self.answered += self._predictor.predict(batch)
        return self.answered[-len(batch) :]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def offline(folder: Path, maker: FeatureMaker, apostrophe: str) -> list[Features]:
    lines = [
        f'{number},"{text.replace(chr(39), apostrophe)}",{speaker},joy,positive,0,{number}'
        for number, (speaker, text) in enumerate(zip(SPEAKERS, TEXTS, strict=True))
    ]
    csv = folder / "rows.csv"
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID"
    csv.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    made = zip(windows(read_rows(csv), 24, maker.mode), HEARD, SEEN, strict=True)
    return [
        maker.make(window, Missing(SILENT) if pcm is None else pcm, Missing(BLIND) if frames is None else frames)
        for window, pcm, frames in made
    ]


@pytest.mark.parametrize("mode", [name for name in MODES if name != "published-iemocap"])
def test_the_worker_makes_the_tensors_that_the_reader_makes(tmp_path: Path, bench: Bench, mode: str) -> None:
    bundle = load_bundle(str(make_full_bundle(tmp_path / "bundle", mode=mode)))
    maker, recorder = FeatureMaker(bundle.tokenizer, bundle.config), Recorder(TorchPredictor(bundle))
    bench.worker = Worker(bench.link, bench.store, Model(maker, recorder, bundle.config.max_turns))
    said = []
    for turn, (speaker, text) in enumerate(zip(SPEAKERS, TEXTS, strict=True)):
        pcm, frames = HEARD[turn], SEEN[turn]
        media: tuple[wire.Media, wire.Media] = (
            wire.Absent(SILENT) if pcm is None else pcm,
            wire.Absent(BLIND) if frames is None else frames,
        )
        described = {"audio": wire.describe(media[0]), "video": wire.describe(media[1])}
        bench.send(utterance(turn, text, speaker=speaker, **described), media)
        said.append(bench.emotion())

    expected = offline(tmp_path, maker, "\x92" if mode == "published-meld" else "'")
    assert len(recorder.asked) == len(expected) == len(TEXTS)
    for live, read in zip(recorder.asked, expected, strict=True):
        assert live.prompt_ids == read.prompt_ids
        assert live.context_turns == read.context_turns
        assert live.missing == read.missing
        if not isinstance(read.sound, Missing):
            np.testing.assert_array_equal(live.sound, read.sound)
        if not isinstance(read.pixels, Missing):
            assert isinstance(live.pixels, torch.Tensor)
            assert torch.equal(live.pixels, read.pixels)
    assert recorder.answered == [TorchPredictor(bundle).predict([features])[0] for features in expected]

    used, silent, blind = (
        wire.Modality(captured=True, used=True, reason=None),
        wire.Modality(captured=False, used=False, reason=SILENT),
        wire.Modality(captured=False, used=False, reason=BLIND),
    )
    assert [emotion.modalities for emotion in said] == [
        {"text": used, "audio": audio, "video": video}
        for audio, video in ((used, used), (used, used), (silent, used), (used, blind))
    ]
    assert [tuple(emotion.probabilities.values()) for emotion in said] == [
        prediction.probabilities for prediction in recorder.answered
    ]


def test_sound_that_is_captured_but_too_short_is_said_to_be_unused(tmp_path: Path, bench: Bench) -> None:
    bundle = load_bundle(str(make_full_bundle(tmp_path / "bundle")))
    maker = FeatureMaker(bundle.tokenizer, bundle.config)
    bench.worker = Worker(bench.link, bench.store, Model(maker, TorchPredictor(bundle), 24))
    pcm = SOUNDS[0][:399]
    bench.send(utterance(0, "hello", audio=wire.describe(pcm)), (pcm, wire.Absent(BLIND)))
    audio = bench.emotion().modalities["audio"]
    assert audio.captured
    assert not audio.used
    assert audio.reason == "a sound of 399 samples at 16000 Hz; expected at least 400; treat the audio as absent"
