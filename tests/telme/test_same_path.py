"""One dialogue through the trainer's loader and through the live worker: equal tensors, equal answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from stream import bus, wire
from stream.recognise import Model
from stream.worker import Worker
from telme.bundle import load_bundle
from telme.cache import MediaCache, prepare
from telme.data import find_clip, read_split, windows
from telme.features import FeatureMaker, Features, Missing
from telme.labels import LabelSet
from telme.learners import ClipExamples
from telme.models import EncoderOutput
from telme.modes import MODES, Student
from telme.predictor import Prediction, TorchPredictor
from tests.bundles import make_full_bundle
from tests.miniature import write_clip
from tests.stream.workers import Bench, utterance

# Straight apostrophes, as recognizers write them; the published mode wants U+0092.
TEXTS = ("Hello there.", "I'm so happy!", "What is it?  No, no.", "It isn't")
SPEAKERS = ("ann", "ben", "ann", "cleo")
CHANCE = np.random.default_rng(9)
SOUNDS = [CHANCE.integers(-9_000, 9_000, 12_000 + 500 * turn).astype(np.int16) for turn in range(len(TEXTS))]
CLIPS = [CHANCE.integers(0, 256, (8, 40, 48, 3)).astype(np.uint8) for _ in TEXTS]
# There is no sound in the third turn and there are no pictures in the fourth.
HEARD = [*SOUNDS[:2], None, SOUNDS[3]]
SEEN = [*CLIPS[:3], None]
# As a clip says it, so that both sides give the same reason.
SILENT, BLIND = "its file has no sound", "its file has no pictures"


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


def make_data(root: Path, apostrophe: str) -> Path:
    """The dialogue as a MELD of one dialogue, its clips in files that lose nothing."""
    lines = [
        f'{number},"{text.replace(chr(39), apostrophe)}",{speaker},joy,positive,0,{number}'
        for number, (speaker, text) in enumerate(zip(SPEAKERS, TEXTS, strict=True))
    ]
    for turn, (pcm, frames) in enumerate(zip(HEARD, SEEN, strict=True)):
        write_clip(root / "train_splits" / f"dia0_utt{turn}.mp4", pcm, frames, exact=True)
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID"
    (root / "train_meld_emo.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return root


def loaded(root: Path, maker: FeatureMaker) -> list[Features]:
    """The dialogue as the trainer loads it: clips decoded and cached, the cached ones read again."""
    rows = read_split(root, "train")
    sources = [find_clip(row, root, "train", mode=maker.mode) for row in rows]
    cache = MediaCache(root / "cache", maker)
    missing = prepare(cache, sources, workers=0).missing
    features = [
        maker.features(window, cache.media(source))
        for window, source in zip(windows(rows, 24, maker.mode), sources, strict=True)
    ]
    students: tuple[Student, Student] = ("audio", "video")
    nothing = torch.zeros((len(rows), 1))
    for student in students:
        kept = [row for row, lacking in enumerate(missing) if student not in lacking]
        taught = EncoderOutput(nothing, nothing)
        examples = ClipExamples(cache, maker, student, [sources[row] for row in kept], [0] * len(kept), taught)
        for index, row in enumerate(kept):
            given = features[row].sound if student == "audio" else features[row].pixels
            np.testing.assert_array_equal(np.asarray(examples[index]["inputs"]), np.asarray(given))
    return features


@pytest.mark.parametrize("mode", [name for name in MODES if name != "published-iemocap"])
def test_the_worker_makes_the_tensors_that_the_trainer_loads(tmp_path: Path, bench: Bench, mode: str) -> None:
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

    root = make_data(tmp_path / "meld", "\x92" if mode == "published-meld" else "'")
    expected = loaded(root, maker)
    assert len(recorder.asked) == len(expected) == len(TEXTS)
    for live, read in zip(recorder.asked, expected, strict=True):
        assert live.prompt_ids == read.prompt_ids
        assert live.context_turns == read.context_turns
        assert live.missing == read.missing
        if not isinstance(read.sound, Missing):
            np.testing.assert_array_equal(live.sound, read.sound)
        if not isinstance(read.pixels, Missing):
            assert isinstance(live.pixels, torch.Tensor)
            assert isinstance(read.pixels, torch.Tensor)
            assert torch.equal(live.pixels, read.pixels)
    assert recorder.answered == [TorchPredictor(bundle).predict([features])[0] for features in expected]

    used, silent, blind = (
        bus.Modality(captured=True, used=True, reason=None),
        bus.Modality(captured=False, used=False, reason=SILENT),
        bus.Modality(captured=False, used=False, reason=BLIND),
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
