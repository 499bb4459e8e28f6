"""The worker on real sockets, with a fake predictor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from stream import wire
from stream.journal import EventStore
from stream.link import Subscriber, WorkerLink
from stream.machine import clock_id
from stream.worker import Model, Worker
from telme.dialogue import SPEAKER_TOKENS
from telme.errors import PredictorError
from telme.features import FeatureMaker, Features
from telme.labels import MELD, LabelSet
from telme.predictor import Prediction
from tests.bundles import tiny_config, tiny_tokenizer

DEADLINE_MS = 10_000
SESSION = "s1"


class FakePredictor:
    """Answers from the prompt: joy where its last turn says "happy", else neutral; fails on "break"."""

    labels: LabelSet = MELD
    model_id = "fake-0"
    backend = "fake"

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self._tokenizer = tiny_tokenizer()

    def predict(self, batch: Sequence[Features]) -> list[Prediction]:
        answers = []
        for features in batch:
            prompt = str(self._tokenizer.decode(list(features.prompt_ids)))
            self.prompts.append(prompt)
            if "is it" in prompt.rsplit("[SEP]")[0][-12:]:
                raise PredictorError("the fake broke", "an answer", "nothing")
            joy = 0.7 if "happy" in prompt.rsplit("[SEP]")[0][-12:] else 0.1
            answers.append(Prediction((0.05, 0.05, 0.05, joy, 0.75 - joy, 0.05, 0.05), features.missing))
        return answers


class Bench:
    """A worker, a DEALER that plays the capture process, and a subscriber."""

    def __init__(self, folder: Path) -> None:
        self.predictor = FakePredictor()
        tokenizer = tiny_tokenizer()
        maker = FeatureMaker(tokenizer, tiny_config(len(tokenizer)))
        self.store = EventStore(folder / "events.sqlite")
        self.link = WorkerLink(f"ipc://{folder}/u", f"ipc://{folder}/e", 1_000_000)
        self.worker = Worker(self.link, self.store, Model(maker, self.predictor, 24))
        self.context = zmq.Context()
        self.dealer = self.context.socket(zmq.DEALER)
        self.dealer.connect(self.link.utterances)
        self.subscriber = Subscriber(self.link.events)
        while not self.link.new_subscribers():
            self.link.wait(DEADLINE_MS)

    def send(self, message: wire.Message, media: Sequence[wire.Media] = ()) -> None:
        self.dealer.send_multipart(wire.encode(message, media))
        self.link.wait(DEADLINE_MS)
        self.worker.step()

    def events(self, count: int) -> list[wire.Event]:
        """The next events that are no heartbeat."""
        found: list[wire.Event] = []
        while len(found) < count:
            received = self.subscriber.receive(DEADLINE_MS)
            assert received is not None, f"only {[event.type for event in found]}"
            if received[0].type != "status":
                found.append(received[0])
        return found

    def emotion(self) -> wire.Emotion:
        transcript, emotion = self.events(2)
        assert transcript.type == "transcript"
        data = emotion.payload()
        assert isinstance(data, wire.Emotion)
        return data

    def acks(self) -> list[int]:
        found = []
        while self.dealer.poll(200):
            message, _ = wire.decode(self.dealer.recv_multipart())
            assert isinstance(message, wire.Ack)
            found.append(message.seq)
        return found

    def close(self) -> None:
        self.subscriber.__exit__()
        self.context.destroy(linger=0)
        self.link.__exit__()
        self.store.__exit__()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def utterance(seq: int, text: str, **changes: object) -> wire.Utterance:
    message = wire.Utterance(
        protocol=wire.PROTOCOL,
        session=SESSION,
        seq=seq,
        speaker="ann",
        speaker_certain=True,
        dialogue=0,
        text=text,
        start_ns=1_000_000_000,
        end_ns=2_500_000_000,
        started_wall_ns=1_700_000_000_000_000_000,
        clock_id=clock_id(),
        heard_ns=1_000_000,
        decided_ns=501_000_000,
        asr_started_ns=502_000_000,
        asr_ended_ns=802_000_000,
        audio=wire.Absent("the test is silent"),
        video=wire.Absent("the test is blind"),
    )
    return msgspec.structs.replace(message, **changes)


ABSENT = (wire.Absent("the test is silent"), wire.Absent("the test is blind"))


def test_an_utterance_becomes_an_emotion_and_an_ack(bench: Bench) -> None:
    bench.send(utterance(0, "i am so happy"), ABSENT)
    emotion = bench.emotion()
    assert emotion.label == "joy"
    assert emotion.confidence == pytest.approx(0.7)
    assert sum(emotion.probabilities.values()) == pytest.approx(1)
    assert list(emotion.probabilities) == list(MELD.names)
    assert emotion.sentiment == "positive"
    assert emotion.utterance == "s1/0"
    assert emotion.start == "2023-11-14T22:13:21.000000Z"
    assert emotion.end == "2023-11-14T22:13:22.500000Z"
    assert emotion.stages_ms.hangover == 500
    assert emotion.stages_ms.asr_wait == 1
    assert emotion.stages_ms.asr == 300
    assert emotion.final
    assert bench.acks() == [0]


def test_absence_is_said_not_faked(bench: Bench) -> None:
    sound = np.ones(1600, np.int16)
    bench.send(utterance(0, "hello", audio=wire.describe(sound)), (sound, ABSENT[1]))
    modalities = bench.emotion().modalities
    assert modalities["text"] == wire.Modality(captured=True, used=True, reason=None)
    assert modalities["audio"] == wire.Modality(captured=True, used=False, reason="the bundle has no audio student")
    assert modalities["video"] == wire.Modality(captured=False, used=False, reason="the test is blind")


def test_the_dialogue_rolls_and_sessions_are_apart(bench: Bench) -> None:
    bench.send(utterance(0, "hello"), ABSENT)
    bench.send(utterance(1, "yes", speaker="ben"), ABSENT)
    bench.send(utterance(0, "no", session="s2"), ABSENT)
    assert bench.predictor.prompts == [
        "<s1> hello [SEP] now <s1> feels [MASK]",
        "<s1> hello <s2> yes [SEP] now <s2> feels [MASK]",
        "<s1> no [SEP] now <s1> feels [MASK]",
    ]


def test_a_repeated_utterance_is_acknowledged_but_not_answered_twice(bench: Bench) -> None:
    for _ in range(3):
        bench.send(utterance(0, "hello"), ABSENT)
    assert len(bench.predictor.prompts) == 1
    assert bench.acks() == [0, 0, 0]
    bench.send(utterance(1, "yes"), ABSENT)
    assert [event.seq for event in bench.events(4)] == [1, 2, 3, 4]


def test_a_worker_started_again_remembers_the_dialogue_and_what_it_answered(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.send(utterance(0, "hello"), ABSENT)
    first.close()
    second = Bench(tmp_path)
    second.send(utterance(0, "hello"), ABSENT)
    second.send(utterance(1, "yes", speaker="ben"), ABSENT)
    assert second.predictor.prompts == ["<s1> hello <s2> yes [SEP] now <s2> feels [MASK]"]
    assert second.acks() == [0, 1]
    second.close()


def test_a_new_dialogue_begins_without_context_and_says_its_number(bench: Bench) -> None:
    bench.send(utterance(0, "hello"), ABSENT)
    bench.send(utterance(1, "yes", speaker="ben", dialogue=1, speaker_certain=False), ABSENT)
    bench.send(utterance(2, "no", dialogue=1), ABSENT)
    assert bench.predictor.prompts == [
        "<s1> hello [SEP] now <s1> feels [MASK]",
        "<s1> yes [SEP] now <s1> feels [MASK]",
        "<s1> yes <s2> no [SEP] now <s2> feels [MASK]",
    ]
    found = [event.payload() for event in bench.events(6)]
    said = [(data.dialogue, data.speaker_certain) for data in found if isinstance(data, wire.Transcript | wire.Emotion)]
    assert said == [(0, True)] * 2 + [(1, False)] * 2 + [(1, True)] * 2


def test_a_worker_started_again_remembers_the_last_dialogue_alone(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.send(utterance(0, "hello"), ABSENT)
    first.send(utterance(1, "yes", speaker="ben", dialogue=1), ABSENT)
    first.close()
    second = Bench(tmp_path)
    second.send(utterance(2, "no", dialogue=1), ABSENT)
    assert second.predictor.prompts == ["<s1> yes <s2> no [SEP] now <s2> feels [MASK]"]
    second.close()


def test_a_model_that_fails_is_a_fault_and_the_worker_goes_on(bench: Bench) -> None:
    bench.send(utterance(0, "what is it"), ABSENT)
    transcript, fault = bench.events(2)
    assert transcript.type == "transcript"
    assert fault.payload() == wire.Fault("the fake broke; expected an answer; nothing", 0)
    bench.send(utterance(1, "i am so happy"), ABSENT)
    assert bench.emotion().label == "joy"
    assert bench.acks() == [0, 1]


def test_text_that_is_only_markers_is_a_fault_and_never_enters_the_dialogue(bench: Bench) -> None:
    bench.send(utterance(0, "<>"), ABSENT)
    assert [event.type for event in bench.events(2)] == ["transcript", "fault"]
    bench.send(utterance(1, "hello"), ABSENT)
    assert bench.predictor.prompts == ["<s1> hello [SEP] now <s1> feels [MASK]"]


def test_garbage_is_counted_named_and_survived(bench: Bench) -> None:
    bench.dealer.send_multipart([b"\xc1garbage"])
    bench.link.wait(DEADLINE_MS)
    bench.worker.step()
    (fault,) = bench.events(1)
    payload = fault.payload()
    assert isinstance(payload, wire.Fault)
    assert "does not decode" in payload.message
    bench.send(utterance(0, "hello"), ABSENT)
    assert bench.emotion().label == "neutral"


def test_reports_of_the_capture_side_reach_the_bus(bench: Bench) -> None:
    bench.send(wire.make_report(SESSION, wire.Rejected(3, "no words were recognised"), 5))
    (event,) = bench.events(1)
    assert event.type == "utterance.rejected"
    assert event.session == SESSION
    assert event.payload() == wire.Rejected(3, "no words were recognised")
    bench.send(wire.Report(wire.PROTOCOL, SESSION, "nonsense", 5, msgspec.Raw(b"\xc0")))
    assert bench.events(1)[0].type == "fault"


def test_latency_of_another_machine_is_not_made_up(bench: Bench) -> None:
    bench.send(utterance(0, "hello", clock_id="elsewhere"), ABSENT)
    stages = bench.emotion().stages_ms
    assert stages.total is None
    assert stages.link is None
    assert stages.asr == 300


def test_heartbeats_repeat_the_last_number_and_say_goodbye(bench: Bench) -> None:
    bench.send(utterance(0, "hello"), ABSENT)
    bench.worker.heartbeat("stopped")
    states: list[tuple[int, str]] = []
    while not states or states[-1][1] != "stopped":
        received = bench.subscriber.receive(DEADLINE_MS)
        assert received is not None
        status = received[0].payload()
        if isinstance(status, wire.Status):
            states.append((received[0].seq, status.state))
    assert states[-1] == (2, "stopped")


def test_speaker_tokens_fit_the_fake() -> None:
    assert set(SPEAKER_TOKENS) <= set(tiny_tokenizer().get_vocab())
