"""From what was said to emotions: context, features, model. Knows no sockets and stores nothing."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.predictor import EnginePredictor, choices
from engines.spec import RunSettings
from engines.store import Store, default_root
from stream.bus import Emotion, Modality, Stages
from stream.clock import iso_utc
from stream.config import WorkerConfig
from stream.control import meanwhile
from stream.journal import StoredTurn
from stream.machine import clock_id
from stream.wire import Absent, Media, Spoken, Utterance
from telme.bundle import open_bundle
from telme.dialogue import DialogueWindow, Turn
from telme.errors import FeatureError, PredictorError
from telme.features import CAPTURE_RATE_HZ, FeatureMaker, Features, Missing, Watched
from telme.frames import FRAMES
from telme.predictor import Prediction, Predictor
from telme.sound import too_long

_log = logging.getLogger(__name__)

# Sessions in memory; one that speaks again after so many others is read from the journal.
_MOST_SESSIONS = 64
UNCHANGED = "the pictures are those of the utterance before; what was made of them stands"


@dataclass(frozen=True)
class Model:
    """A bundle made ready: turns -> features -> probabilities.

    Attributes:
        maker: Turns, sound and pictures -> features.
        predictor: Features -> probabilities.
        max_turns: Of a dialogue.
        keep: Called at the end: keeps what the backend compiled for shapes that came, for the next start.
    """

    maker: FeatureMaker
    predictor: Predictor
    max_turns: int
    keep: Callable[[], None] = lambda: None


def load_model(settings: WorkerConfig, preparing: Callable[[], None] = lambda: None) -> Model:
    """Load a bundle and answer once, so that the first utterance does not pay for the start.

    Args:
        settings: What to load, and on which backend.
        preparing: Called every few seconds, in a thread, while it is downloaded or engines are built, which may take
            minutes.

    Raises:
        BundleError: It cannot be loaded.
        EngineError: The backend that was asked for cannot run it.
        MissingDependency: A package that the backend needs is not installed.
    """
    # By default half of the cores: the recognizer works at the same time as the model.
    threads = settings.threads or max((os.cpu_count() or 1) // 2, 1)
    torch.set_num_threads(threads)
    with meanwhile(preparing):  # it may be downloaded, and all of it is digested
        bundle = open_bundle(settings.bundle)
    maker = FeatureMaker(bundle.tokenizer, bundle.config)
    ranked = choices(settings.backend, settings.precision)
    store = Store(default_root(), partial(meanwhile, preparing))
    predictor = EnginePredictor(bundle, ranked, RunSettings(threads=threads), store)
    _log.info("%s runs on %s: %s", predictor.model_id, predictor.backend, predictor.choice.why)
    silence = np.zeros(CAPTURE_RATE_HZ, dtype=np.int16)
    darkness = np.zeros((FRAMES, 224, 224, 3), dtype=np.uint8)
    predictor.predict([maker.make(maker.window([Turn("warm", "up")]), silence, darkness)])
    predictor.keep()  # now too: a worker that is killed has no end
    return Model(maker, predictor, bundle.config.max_turns, predictor.keep)


@dataclass(frozen=True, eq=False)
class Said:
    """An utterance or an interim guess at one, its sound and pictures, and when it reached the worker."""

    spoken: Spoken
    media: tuple[Media, ...]
    received_ns: int


@dataclass(frozen=True, eq=False)
class _Made:
    """What was said, as the model takes it."""

    said: Said
    features: Features


class Recognizer:
    """Answers what was said, several sessions' utterances at once, each in its own dialogue.

    Args:
        model: Features and predictor.
        turns: The turns so far of a session's dialogue, at most so many.
    """

    def __init__(self, model: Model, turns: Callable[[str, int, int], list[StoredTurn]]) -> None:
        self._model = model
        self._turns = turns
        self._dialogues: dict[str, tuple[int, DialogueWindow]] = {}  # of each session the number and the turns
        # Of each session the last pictures and what the video student made of them.
        self._watched: dict[str, tuple[NDArray[Any], Watched]] = {}
        self._clock_id = clock_id()

    def recognise(self, batch: Sequence[Said]) -> list[Emotion | FeatureError | PredictorError]:
        """An emotion for each, or why there is none; one that fails costs the others nothing."""
        prepared = [self._prepared(said) for said in batch]
        made = [item for item in prepared if isinstance(item, _Made)]
        answers = iter(self._predicted([item.features for item in made]))
        return [item if isinstance(item, FeatureError) else self._emotion(item, next(answers)) for item in prepared]

    def _prepared(self, said: Said) -> _Made | FeatureError:
        spoken = said.spoken
        dialogue = self._dialogue(spoken.session, spoken.dialogue)
        if not isinstance(spoken, Utterance):
            dialogue = copy.deepcopy(dialogue)
        maker = self._model.maker
        audio, video = (Missing(item.reason) if isinstance(item, Absent) else item for item in said.media)
        try:
            dialogue.append(maker.heard(Turn(spoken.speaker, spoken.text)))
            return _Made(said, maker.make(dialogue, audio, self._watched_before(said) or video))
        except FeatureError as error:
            return error

    def _predicted(self, batch: Sequence[Features]) -> list[Prediction | PredictorError]:
        try:
            return [*self._model.predictor.predict(batch)]
        except PredictorError as error:
            if len(batch) == 1:
                return [error]
        return [answer for features in batch for answer in self._predicted([features])]

    def _emotion(self, made: _Made, prediction: Prediction | PredictorError) -> Emotion | PredictorError:
        if isinstance(prediction, PredictorError):
            return prediction
        said, spoken, predictor = made.said, made.said.spoken, self._model.predictor
        self._remember(said, prediction)
        probabilities = dict(zip(predictor.labels.names, prediction.probabilities, strict=True))
        label = max(probabilities, key=probabilities.__getitem__)
        return Emotion(
            utterance=f"{spoken.session}/{spoken.seq}",
            seq=spoken.seq,
            speaker=spoken.speaker,
            speaker_certain=spoken.speaker_certain,
            dialogue=spoken.dialogue,
            text=spoken.text,
            text_certain=spoken.text_certain,
            start_ns=spoken.start_ns,
            end_ns=spoken.end_ns,
            start=iso_utc(spoken.started_wall_ns + spoken.start_ns),
            end=iso_utc(spoken.started_wall_ns + spoken.end_ns),
            label=label,
            probabilities=probabilities,
            confidence=probabilities[label],
            sentiment=predictor.labels.sentiment(label),
            modalities=dict(_modalities(said.media, made.features, prediction)),
            context_turns=made.features.context_turns,
            stages_ms=self._stages(spoken, said.received_ns),
            model=predictor.model_id,
            backend=predictor.backend,
            final=isinstance(spoken, Utterance),
        )

    def _watched_before(self, said: Said) -> Watched | None:
        """What was made of the session's last pictures, where these are the same: the camera is covered or stands."""
        kept, pictures = self._watched.get(said.spoken.session), _pictures(said.media)
        return kept[1] if kept is not None and pictures is not None and np.array_equal(kept[0], pictures) else None

    def _remember(self, said: Said, prediction: Prediction) -> None:
        pictures = _pictures(said.media)
        if prediction.watched is not None and pictures is not None:
            self._watched[said.spoken.session] = pictures, prediction.watched

    def _dialogue(self, session: str, number: int) -> DialogueWindow:
        """The turns so far of one dialogue; of each session only the newest one stays in memory."""
        kept = self._dialogues.pop(session, None)
        if kept is None or kept[0] != number:
            turns = self._turns(session, number, self._model.max_turns)
            kept = number, self._model.maker.window(Turn(turn.speaker, turn.text) for turn in turns)
        self._dialogues[session] = kept  # the last one
        if len(self._dialogues) > _MOST_SESSIONS:
            oldest = next(iter(self._dialogues))
            del self._dialogues[oldest]
            self._watched.pop(oldest, None)
        return kept[1]

    def _stages(self, spoken: Spoken, received_ns: int) -> Stages:
        now_ns = time.monotonic_ns()
        same_machine = spoken.clock_id == self._clock_id
        return Stages(
            hangover=_ms(spoken.decided_ns - spoken.heard_ns),
            asr_wait=_ms(spoken.asr_started_ns - spoken.decided_ns),
            asr=_ms(spoken.asr_ended_ns - spoken.asr_started_ns),
            asr_hidden=_ms(spoken.asr_hidden_ns),
            link=_ms(received_ns - spoken.asr_ended_ns) if same_machine else None,
            compute=_ms(now_ns - received_ns),
            total=_ms(now_ns - spoken.heard_ns) if same_machine else None,
        )


def _pictures(media: tuple[Media, ...]) -> NDArray[Any] | None:
    """The pictures, unless the sound beside them is so long that the mode may take others for them."""
    sound, pictures = media
    if isinstance(pictures, Absent) or (not isinstance(sound, Absent) and too_long(sound, CAPTURE_RATE_HZ)):
        return None
    return pictures


def _modalities(media: tuple[Media, ...], features: Features, prediction: Prediction) -> Iterator[tuple[str, Modality]]:
    yield "text", Modality(captured=True, used=True, reason=None)
    for name, item in zip(("audio", "video"), media, strict=True):
        reason = prediction.unused.get(name)
        used = reason is None
        if used and name == "video" and isinstance(features.pixels, Watched):
            reason = UNCHANGED
        yield name, Modality(not isinstance(item, Absent), used=used, reason=reason)


def _ms(duration_ns: int) -> float:
    return round(duration_ns / 1e6, 3)
