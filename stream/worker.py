"""Process 2: utterances in, emotions out. One thread owns the sockets, the journal and the model."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from stream.bus import (
    EVENT_TYPES,
    Emotion,
    EventData,
    Fault,
    Rejected,
    SpeechEnded,
    Status,
    Transcript,
    make_event,
)
from stream.config import Config
from stream.control import Control
from stream.journal import EventStore, StoredEvent, StoredTurn
from stream.link import Received, WorkerLink
from stream.recognise import Model, Recognizer, Said, load_model
from stream.wire import PROTOCOL, Absent, Ack, Hello, Interim, Report, Spoken, Utterance, report_data
from telme.errors import FeatureError, PredictorError, WireError

_log = logging.getLogger(__name__)

HEARTBEAT_MS = 1000
# A worker gives subscribers so long to find it before it speaks.
_SUBSCRIBER_GRACE_MS = 2000
_LOOK_EVERY_MS = 50  # for the word to stop, meanwhile
# Of utterances that wait together as many are answered at once as take so long: a capture process at its end must see
# that answers come, also from a model that takes seconds for each.
_TURN_NS = 2_000_000_000
_INTERIM_MEDIA: tuple[Absent, Absent] = (Absent("an interim guess reads the words alone"),) * 2


def run(config: Config, folder: Path, control: Control) -> None:
    """The worker process.

    Args:
        config: All sections.
        folder: Where the journal lies.
        control: The supervisor's line.
    """
    link_config = config.link
    assert link_config.utterances is not None
    model = load_model(config.worker, control.preparing)
    with EventStore(folder / "events.sqlite") as store:
        with WorkerLink(link_config.utterances, link_config.events, link_config.max_message_bytes) as link:
            control.ready(
                {
                    "utterances": link.utterances,
                    "events": link.events,
                    "model": model.predictor.model_id,
                    "backend": model.predictor.backend,
                }
            )
            link.watch(control.fileno())
            worker = Worker(link, store, model)
            worker.take_over(control)
            while not control.stop_asked():
                link.wait(worker.heartbeat_due_ms())
                worker.step()
            worker.step()
            worker.heartbeat("stopped")
        store.mark_published(store.last_seq)  # the sockets have lingered
    model.keep()


@dataclass(frozen=True, eq=False)
class _Waiting:
    """An utterance that waits for its answer, and the peer that waits for its acknowledgement."""

    peer: bytes
    utterance: Utterance
    said: Said


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
        self._recognizer = Recognizer(model, store.turns)
        self._waiting: dict[tuple[str, int], list[_Waiting]] = {}  # utterance -> its messages, in order of arrival
        self._session = f"worker-{secrets.token_hex(4)}"  # source of events that are of no capture session
        self._interims: dict[str, Interim] = {}  # of each session the newest one that waits
        self._answered = self._bad_messages = self._interims_skipped = 0
        self._beat_ns = 0
        self._most_at_once = 1  # as long as it is not known how long one takes
        self._given_seq = 0  # the last event given to the socket by the heartbeat before

    def take_over(self, control: Control) -> None:
        """Publish what an earlier worker stored and may not have said, once a subscriber is there.

        A worker with nothing to say yet waits as well: utterances may wait for it, and who listens for their events has
        to find its new socket first. The word to stop cuts this short only where nothing is left to say.
        """
        left = self._store.unpublished()
        deadline_ns = time.monotonic_ns() + _SUBSCRIBER_GRACE_MS * 1_000_000
        while not self._link.subscribers and time.monotonic_ns() < deadline_ns:
            if control.stop_asked() and not left:
                return
            self._link.wait_for_subscriber(_LOOK_EVERY_MS)  # not for messages, which may be there all the time
            self._link.new_subscribers()
        for event in left:
            self._publish(event)

    def heartbeat_due_ms(self) -> int:
        """How long until the next heartbeat."""
        return max((self._beat_ns - time.monotonic_ns()) // 1_000_000, 0)

    def step(self) -> None:
        """Handle all that waits."""
        somebody_came = self._link.new_subscribers()
        if not self._beat_when_due() and somebody_came:
            self.heartbeat("running")
        for received in self._link.receive():
            if isinstance(received, WireError):
                self._bad_messages += 1
                self._say(self._session, Fault(f"a message was refused: {received}", None))
            else:
                self._handle(received)
        self._answer_waiting()
        self._guess_interims()

    def _beat_when_due(self) -> bool:
        is_due = self.heartbeat_due_ms() == 0
        if is_due:
            self.heartbeat("running")
            self._settle()
        return is_due

    def heartbeat(self, state: str) -> None:
        """Say that the worker lives; not stored."""
        self._beat_ns = time.monotonic_ns() + HEARTBEAT_MS * 1_000_000
        counters = {
            "answered": self._answered,
            "bad_messages": self._bad_messages,
            "interims_skipped": self._interims_skipped,
        }
        status = Status("worker", "stopped" if state == "stopped" else "running", {}, counters)
        self._publish_unstored(self._session, status, time.time_ns())

    def _settle(self) -> None:
        """Take as published what the socket has had for a heartbeat: what it got just now dies with the process."""
        if self._given_seq:
            self._store.mark_published(self._given_seq)
        self._given_seq = self._store.last_seq

    def _handle(self, received: Received) -> None:
        match received.message:
            case Utterance() as utterance:
                waiting = _Waiting(received.peer, utterance, Said(utterance, received.media, time.monotonic_ns()))
                self._waiting.setdefault((utterance.session, utterance.seq), []).append(waiting)
            case Interim() as interim:
                self._interims_skipped += interim.session in self._interims
                self._interims[interim.session] = interim
            case Report() as report:
                if any(session == report.session for session, _ in self._waiting):
                    self._answer_waiting()  # a session's events keep the order of its messages
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
        if isinstance(data, SpeechEnded | Rejected):
            self._drop_interim(report.session, data.seq)
        if isinstance(data, Status):
            self._publish_unstored(report.session, data, report.wall_ns)
        else:
            self._say(report.session, data, report.wall_ns)

    def _answer_waiting(self) -> None:
        """Answer all utterances that wait, as many in one batch as take a moment."""
        waiting, self._waiting = list(self._waiting.values()), {}
        if waiting:
            self._skip_interims()
        while waiting:
            some, waiting = waiting[: self._most_at_once], waiting[self._most_at_once :]
            self._answer(some)
            if waiting:
                self._beat_when_due()

    def _answer(self, waiting: list[list[_Waiting]]) -> None:
        """Answer these in one batch; each answer is stored before it is published."""
        began_ns = time.monotonic_ns()
        utterances = [messages[0] for messages in waiting]
        new = [one for one in utterances if not self._store.is_answered(one.utterance.session, one.utterance.seq)]
        for one, answer in zip(new, self._recognizer.recognise([one.said for one in new]), strict=True):
            self._store_answer(one.utterance, answer)
        if new:
            each_ns = (time.monotonic_ns() - began_ns) // len(new)
            self._most_at_once = max(_TURN_NS // max(each_ns, 1), 1)
        for message in itertools.chain(*waiting):
            self._link.answer(message.peer, Ack(PROTOCOL, message.utterance.session, message.utterance.seq))

    def _store_answer(self, utterance: Utterance, answer: Emotion | FeatureError | PredictorError) -> None:
        data = answer if isinstance(answer, Emotion) else Fault(str(answer), utterance.seq)
        # What could not become tensors is no part of the dialogue.
        turn = StoredTurn(utterance.speaker, utterance.text, utterance.dialogue)
        with self._store.transaction():
            events = [
                self._keep(utterance.session, _transcript(utterance, final=True)),
                self._keep(
                    utterance.session,
                    data,
                    answers=utterance.seq,
                    turn=None if isinstance(answer, FeatureError) else turn,
                ),
            ]
        for event in events:
            self._publish(event)
        self._answered += 1

    def _skip_interims(self) -> None:
        """Answers go first: what waits beside one is old by the time it is given."""
        self._interims_skipped += len(self._interims)
        self._interims.clear()

    def _drop_interim(self, session: str, seq: int) -> None:
        """The utterance is over, perhaps rejected: no guess at it may follow."""
        if session in self._interims and self._interims[session].seq == seq:
            del self._interims[session]
            self._interims_skipped += 1

    def _guess_interims(self) -> None:
        """Guess at what is being said, when nothing else waits; neither stored nor part of the dialogue."""
        for interim in self._interims.values():
            if self._store.is_answered(interim.session, interim.seq):
                self._interims_skipped += 1
                continue
            (guess,) = self._recognizer.recognise([Said(interim, _INTERIM_MEDIA, time.monotonic_ns())])
            if not isinstance(guess, Emotion):
                self._say(interim.session, Fault(str(guess), interim.seq))
                continue
            for event in (_transcript(interim, final=False), guess):
                self._publish_unstored(interim.session, event, time.time_ns())
        self._interims.clear()

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
            lambda seq: make_event(session, seq, data, when, f"{session}-{self._store.id}-{seq}"),
            answers,
            turn,
        )

    def _publish(self, event: StoredEvent) -> None:
        self._link.publish(event.type, event.session, event.json)

    def _publish_unstored(self, session: str, data: EventData, wall_ns: int) -> None:
        """Publish what is only true for the moment: a heartbeat, an interim guess. It repeats the last number."""
        event_type = EVENT_TYPES[type(data)]
        json = make_event(session, self._store.last_seq, data, wall_ns, f"{session}-{event_type}-{wall_ns}")
        self._link.publish(event_type, session, json)


def _transcript(spoken: Spoken, final: bool) -> Transcript:
    return Transcript(
        seq=spoken.seq,
        speaker=spoken.speaker,
        speaker_certain=spoken.speaker_certain,
        dialogue=spoken.dialogue,
        text=spoken.text,
        text_certain=spoken.text_certain,
        start_ns=spoken.start_ns,
        end_ns=spoken.end_ns,
        final=final,
    )
