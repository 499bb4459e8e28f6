"""A worker on real sockets with a fake predictor, and the two that it talks to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from pathlib import Path

import msgspec
import pytest
import zmq

from stream import bus, wire
from stream.control import Control
from stream.journal import EventStore
from stream.link import Received, Subscriber, WorkerLink
from stream.machine import clock_id
from stream.recognise import Model
from stream.worker import Worker
from telme.errors import PredictorError, WireError
from telme.features import FeatureMaker, Features
from telme.labels import MELD, LabelSet
from telme.predictor import Prediction
from tests.bundles import tiny_config, tiny_tokenizer

DEADLINE_MS = 10_000
SESSION = "s1"


class FakePredictor:
    """Answers from the prompt: joy where its last turn says "happy", else neutral; fails on "is it"."""

    labels: LabelSet = MELD
    model_id = "fake-0"
    backend = "fake"

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.on_batch: Callable[[], None] = lambda: None
        self.batches: list[int] = []
        self._tokenizer = tiny_tokenizer()

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        answers = []
        self.batches.append(len(batch))
        self.on_batch()
        for features in batch:
            prompt = str(self._tokenizer.decode(list(features.prompt_ids)))
            self.prompts.append(prompt)
            if "is it" in prompt.rsplit("[SEP]")[0][-12:]:
                raise PredictorError("the fake broke", "an answer", "nothing")
            joy = 0.7 if "happy" in prompt.rsplit("[SEP]")[0][-12:] else 0.1
            answers.append(Prediction((0.05, 0.05, 0.05, joy, 0.75 - joy, 0.05, 0.05), features.missing))
        return answers


class Bench:
    """A worker, a DEALER that plays the capture process, and a subscriber.

    Args:
        folder: For the journal and the sockets.
        subscribed: Whether the subscriber is there from the start; else `subscribe` brings it.
    """

    def __init__(self, folder: Path, subscribed: bool = True) -> None:
        self.predictor = FakePredictor()
        tokenizer = tiny_tokenizer()
        maker = FeatureMaker(tokenizer, tiny_config(len(tokenizer)))
        self.store = EventStore(folder / "events.sqlite")
        self.link = WorkerLink(f"ipc://{folder}/u", f"ipc://{folder}/e", 1_000_000)
        self.worker = Worker(self.link, self.store, Model(maker, self.predictor, 24))
        self.context = zmq.Context()
        self.dealer = self.context.socket(zmq.DEALER)
        self.dealer.connect(self.link.utterances)
        if subscribed:
            self.subscribe()
            while not self.link.new_subscribers():
                self.link.wait(DEADLINE_MS)

    def subscribe(self) -> None:
        self.subscriber = Subscriber(self.link.events)

    def send(self, message: wire.Message, media: Sequence[wire.Media] = ()) -> None:
        self.dealer.send_multipart(wire.encode(message, media))
        self.link.wait(DEADLINE_MS)
        self.worker.step()

    def send_at_once(self, *messages: wire.Message) -> None:
        """All are there before the worker looks."""
        for message in messages:
            self.dealer.send_multipart(wire.encode(message, ABSENT if isinstance(message, wire.Utterance) else ()))
        received: list[Received | WireError] = []
        while len(received) < len(messages):
            self.link.wait(DEADLINE_MS)
            received += self.link.receive()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.link, "receive", lambda: iter(received))
            self.worker.step()

    def events(self, count: int) -> list[bus.Event]:
        """The next events that are no heartbeat."""
        found: list[bus.Event] = []
        while len(found) < count:
            received = self.subscriber.receive(DEADLINE_MS)
            assert received is not None, f"only {[event.type for event in found]}"
            if received[0].type != "status":
                found.append(received[0])
        return found

    def emotion(self) -> bus.Emotion:
        transcript, emotion = self.events(2)
        assert transcript.type == "transcript"
        data = emotion.payload()
        assert isinstance(data, bus.Emotion)
        return data

    def counters(self) -> dict[str, int]:
        """What the worker counts, by a heartbeat of this moment: the next that says "stopped"."""
        self.worker.heartbeat("stopped")
        while received := self.subscriber.receive(DEADLINE_MS):
            status = received[0].payload()
            if isinstance(status, bus.Status) and status.state == "stopped":
                return status.counters
        raise AssertionError("no heartbeat")

    def beats(self) -> int:
        """How many heartbeats came since the last that was looked for."""
        self.worker.heartbeat("stopped")
        found = 0
        while received := self.subscriber.receive(DEADLINE_MS):
            status = received[0].payload()
            if isinstance(status, bus.Status):
                if status.state == "stopped":
                    return found
                found += 1
        raise AssertionError("no heartbeat")

    def acks(self, count: int) -> list[int]:
        """The acknowledgements that came, which are so many and no more."""
        found: list[int] = []
        while self.dealer.poll(DEADLINE_MS if len(found) < count else 200):
            message, _ = wire.decode(self.dealer.recv_multipart())
            assert isinstance(message, wire.Ack)
            found.append(message.seq)
        return found

    def close(self) -> None:
        self.subscriber.__exit__()
        self.context.destroy(linger=0)
        self.link.__exit__()
        self.store.__exit__()


class Lines:
    """Both ends of the line between a supervisor and its worker."""

    def __init__(self) -> None:
        self.supervisor, far = Pipe()
        self.child = Control(far)


def utterance(seq: int, text: str, **changes: object) -> wire.Utterance:
    message = wire.Utterance(
        protocol=wire.PROTOCOL,
        session=SESSION,
        seq=seq,
        speaker="ann",
        speaker_certain=True,
        dialogue=0,
        text=text,
        text_certain=True,
        start_ns=1_000_000_000,
        end_ns=2_500_000_000,
        started_wall_ns=1_700_000_000_000_000_000,
        clock_id=clock_id(),
        heard_ns=1_000_000,
        decided_ns=501_000_000,
        asr_started_ns=502_000_000,
        asr_ended_ns=802_000_000,
        asr_hidden_ns=250_000_000,
        audio=wire.Absent("the test is silent"),
        video=wire.Absent("the test is blind"),
    )
    return msgspec.structs.replace(message, **changes)


ABSENT = (wire.Absent("the test is silent"), wire.Absent("the test is blind"))


def interim(seq: int, text: str, **changes: object) -> wire.Interim:
    said = msgspec.structs.asdict(utterance(seq, text, **changes))
    return wire.Interim(**{name: said[name] for name in wire.Interim.__struct_fields__})
