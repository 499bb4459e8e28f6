"""Process 2: utterances in, emotions out. One thread owns the sockets, the journal and the model."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stream.clock import iso_utc
from stream.config import Config
from stream.control import Control
from stream.journal import EventStore, StoredEvent, StoredTurn
from stream.link import Received, WorkerLink
from stream.machine import clock_id
from stream.wire import (
    EVENT_TYPES,
    PROTOCOL,
    Absent,
    Ack,
    Emotion,
    EventData,
    Fault,
    Hello,
    Media,
    Modality,
    Report,
    Stages,
    Status,
    Transcript,
    Utterance,
    make_event,
    report_data,
)
from telme.bundle import load_bundle
from telme.dialogue import DialogueWindow, Turn
from telme.errors import FeatureError, PredictorError, WireError
from telme.features import CAPTURE_RATE_HZ, FeatureMaker, Missing
from telme.frames import FRAMES
from telme.predictor import Prediction, Predictor, TorchPredictor

_log = logging.getLogger(__name__)

HEARTBEAT_MS = 1000
# A worker that was started again gives subscribers so long to come back before it speaks.
_SUBSCRIBER_GRACE_MS = 2000


@dataclass(frozen=True)
class Model:
    """A bundle made ready: turns -> features -> probabilities."""

    maker: FeatureMaker
    predictor: Predictor
    max_turns: int


def load_model(bundle_name: str, threads: int) -> Model:
    """Load a bundle and answer once, so that the first utterance does not pay for the start.

    Raises:
        BundleError: It cannot be loaded.
    """
    # By default half of the cores: the recognizer works at the same time as the model.
    torch.set_num_threads(threads or max((os.cpu_count() or 1) // 2, 1))
    bundle = load_bundle(bundle_name)
    maker = FeatureMaker(bundle.tokenizer, bundle.config)
    predictor = TorchPredictor(bundle)
    silence = np.zeros(CAPTURE_RATE_HZ, dtype=np.int16)
    darkness = np.zeros((FRAMES, 224, 224, 3), dtype=np.uint8)
    predictor.predict([maker.make(maker.window([Turn("warm", "up")]), silence, darkness)])
    return Model(maker, predictor, bundle.config.max_turns)


def run(config: Config, folder: Path, control: Control) -> None:
    """The worker process.

    Args:
        config: All sections.
        folder: Where the journal lies.
        control: The supervisor's line.
    """
    link_config = config.link
    assert link_config.utterances is not None
    model = load_model(config.worker.bundle, config.worker.threads)
    with (
        EventStore(folder / "events.sqlite") as store,
        WorkerLink(link_config.utterances, link_config.events, link_config.max_message_bytes) as link,
    ):
        control.ready({"utterances": link.utterances, "events": link.events, "model": model.predictor.model_id})
        link.watch(control.fileno())
        worker = Worker(link, store, model)
        worker.take_over(control)
        while not control.stop_asked():
            link.wait(worker.heartbeat_due_ms())
            worker.step()
        worker.step()
        worker.heartbeat("stopped")


class Worker:
    """Answers what the link brings.

    Args:
        link: Sockets.
        store: Events.
        model: Features and predictor.
    """

    def __init__(self, link: WorkerLink, store: EventStore, model: Model) -> None:
        self._link = link
        self._store = store
        self._model = model
        self._dialogues: dict[str, tuple[int, DialogueWindow]] = {}  # of each session the number and the turns
        self._clock_id = clock_id()
        self._session = f"worker-{secrets.token_hex(4)}"  # source of events that are of no capture session
        self._answered = self._bad_messages = 0
        self._beat_ns = 0

    def take_over(self, control: Control) -> None:
        """Publish what an earlier worker stored and could not say, once a subscriber is back."""
        if self._store.last_seq:
            deadline_ns = time.monotonic_ns() + _SUBSCRIBER_GRACE_MS * 1_000_000
            while not self._link.subscribers and not control.stop_asked() and time.monotonic_ns() < deadline_ns:
                self._link.wait(max((deadline_ns - time.monotonic_ns()) // 1_000_000, 1))
                self._link.new_subscribers()
        for event in self._store.unpublished():
            self._publish(event)

    def heartbeat_due_ms(self) -> int:
        """How long until the next heartbeat."""
        return max((self._beat_ns - time.monotonic_ns()) // 1_000_000, 0)

    def step(self) -> None:
        """Handle all that waits."""
        if self._link.new_subscribers() or time.monotonic_ns() >= self._beat_ns:
            self.heartbeat("running")
        for received in self._link.receive():
            if isinstance(received, WireError):
                self._bad_messages += 1
                self._say(self._session, Fault(f"a message was refused: {received}", None))
            else:
                self._handle(received)

    def heartbeat(self, state: str) -> None:
        """Say that the worker lives; not stored."""
        self._beat_ns = time.monotonic_ns() + HEARTBEAT_MS * 1_000_000
        counters = {"answered": self._answered, "bad_messages": self._bad_messages}
        status = Status("worker", "stopped" if state == "stopped" else "running", {}, counters)
        self._pass_on(self._session, status, time.time_ns())

    def _handle(self, received: Received) -> None:
        match received.message:
            case Utterance() as utterance:
                if not self._store.is_answered(utterance.session, utterance.seq):
                    self._answer(utterance, received.media)
                self._link.answer(received.peer, Ack(PROTOCOL, utterance.session, utterance.seq))
            case Report() as report:
                self._report(report)
            case Hello() as hello:
                _log.info("capture connected: session %s", hello.session)
            case Ack():
                self._say(self._session, Fault("a message was refused: an ack sent to the worker", None))

    def _report(self, report: Report) -> None:
        try:
            data = report_data(report)
        except WireError as error:
            self._bad_messages += 1
            self._say(report.session, Fault(f"a report was refused: {error}", None))
            return
        if isinstance(data, Status):
            self._pass_on(report.session, data, report.wall_ns)
        else:
            self._say(report.session, data, report.wall_ns)

    def _answer(self, utterance: Utterance, media: tuple[Media, ...]) -> None:
        """Context, features, model; the answer is stored before it is published."""
        received_ns = time.monotonic_ns()
        data: EventData
        turn: StoredTurn | None = StoredTurn(utterance.speaker, utterance.text, utterance.dialogue)
        try:
            data = self._recognise(utterance, media, received_ns)
        except PredictorError as error:
            data = Fault(str(error), utterance.seq)
        except FeatureError as error:
            data, turn = Fault(str(error), utterance.seq), None
        transcript = Transcript(
            seq=utterance.seq,
            speaker=utterance.speaker,
            speaker_certain=utterance.speaker_certain,
            dialogue=utterance.dialogue,
            text=utterance.text,
            start_ns=utterance.start_ns,
            end_ns=utterance.end_ns,
        )
        with self._store.transaction():
            events = [
                self._keep(utterance.session, transcript),
                self._keep(utterance.session, data, answers=utterance.seq, turn=turn),
            ]
        for event in events:
            self._publish(event)
        self._answered += 1

    def _recognise(self, utterance: Utterance, media: tuple[Media, ...], received_ns: int) -> Emotion:
        dialogue = self._dialogue(utterance.session, utterance.dialogue)
        maker, predictor = self._model.maker, self._model.predictor
        dialogue.append(maker.heard(Turn(utterance.speaker, utterance.text)))
        audio, video = (Missing(item.reason) if isinstance(item, Absent) else item for item in media)
        features = maker.make(dialogue, audio, video)
        (prediction,) = predictor.predict([features])
        probabilities = dict(zip(predictor.labels.names, prediction.probabilities, strict=True))
        label = max(probabilities, key=probabilities.__getitem__)
        return Emotion(
            utterance=f"{utterance.session}/{utterance.seq}",
            seq=utterance.seq,
            speaker=utterance.speaker,
            speaker_certain=utterance.speaker_certain,
            dialogue=utterance.dialogue,
            text=utterance.text,
            start_ns=utterance.start_ns,
            end_ns=utterance.end_ns,
            start=iso_utc(utterance.started_wall_ns + utterance.start_ns),
            end=iso_utc(utterance.started_wall_ns + utterance.end_ns),
            label=label,
            probabilities=probabilities,
            confidence=probabilities[label],
            sentiment=predictor.labels.sentiment(label),
            modalities=dict(_modalities(media, prediction)),
            context_turns=features.context_turns,
            stages_ms=self._stages(utterance, received_ns),
            model=predictor.model_id,
            backend=predictor.backend,
            final=True,
        )

    def _dialogue(self, session: str, number: int) -> DialogueWindow:
        """The turns so far of one dialogue; of each session only the newest one stays in memory."""
        kept = self._dialogues.get(session)
        if kept is None or kept[0] != number:
            turns = self._store.turns(session, number, self._model.max_turns)
            kept = number, self._model.maker.window(Turn(turn.speaker, turn.text) for turn in turns)
            self._dialogues[session] = kept
        return kept[1]

    def _stages(self, utterance: Utterance, received_ns: int) -> Stages:
        now_ns = time.monotonic_ns()
        same_machine = utterance.clock_id == self._clock_id
        return Stages(
            hangover=_ms(utterance.decided_ns - utterance.heard_ns),
            asr_wait=_ms(utterance.asr_started_ns - utterance.decided_ns),
            asr=_ms(utterance.asr_ended_ns - utterance.asr_started_ns),
            link=_ms(received_ns - utterance.asr_ended_ns) if same_machine else None,
            compute=_ms(now_ns - received_ns),
            total=_ms(now_ns - utterance.heard_ns) if same_machine else None,
        )

    def _say(self, session: str, data: EventData, wall_ns: int | None = None) -> None:
        """Store an event, then publish it."""
        self._publish(self._keep(session, data, wall_ns))

    def _keep(
        self,
        session: str,
        data: EventData,
        wall_ns: int | None = None,
        answers: int | None = None,
        turn: StoredTurn | None = None,
    ) -> StoredEvent:
        when = time.time_ns() if wall_ns is None else wall_ns
        return self._store.add(
            session,
            EVENT_TYPES[type(data)],
            lambda seq: make_event(session, seq, data, when, f"{session}-{seq}"),
            answers,
            turn,
        )

    def _publish(self, event: StoredEvent) -> None:
        self._link.publish(event.type, event.session, event.json)
        self._store.mark_published(event.seq)

    def _pass_on(self, session: str, status: Status, wall_ns: int) -> None:
        """Publish a heartbeat; it is not stored."""
        json = make_event(session, self._store.last_seq, status, wall_ns, f"{session}-{wall_ns}")
        self._link.publish("status", session, json)


def _modalities(media: tuple[Media, ...], prediction: Prediction) -> Iterator[tuple[str, Modality]]:
    yield "text", Modality(captured=True, used=True, reason=None)
    for name, item in zip(("audio", "video"), media, strict=True):
        reason = prediction.unused.get(name)
        yield name, Modality(not isinstance(item, Absent), used=reason is None, reason=reason)


def _ms(duration_ns: int) -> float:
    return round(duration_ns / 1e6, 3)
