"""The worker on real sockets, with a fake predictor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from stream import bus, wire
from stream import worker as worker_module
from stream.clock import iso_utc
from telme.dialogue import SPEAKER_TOKENS
from telme.labels import MELD
from tests.bundles import tiny_tokenizer
from tests.stream.workers import ABSENT, DEADLINE_MS, SESSION, Bench, interim, utterance


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


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
    assert emotion.stages_ms.asr_hidden == 250
    assert emotion.final
    assert bench.acks(1) == [0]


def test_the_stages_add_up_to_the_total_without_what_was_hidden(bench: Bench) -> None:
    bench.send(utterance(0, "hello"), ABSENT)
    stages = bench.emotion().stages_ms
    assert stages.link is not None
    assert stages.total == pytest.approx(
        stages.hangover + stages.asr_wait + stages.asr + stages.link + stages.compute, abs=0.01
    )


@pytest.mark.parametrize("over", [bus.Rejected(1, "too unsure"), bus.SpeechEnded(1, 0, 1, False)])
def test_no_guess_follows_the_end_of_its_utterance(bench: Bench, over: bus.EventData) -> None:
    other = interim(2, "yes", session="s2")
    bench.send_at_once(interim(1, "i am so happy"), other, wire.make_report(SESSION, over, 1))
    assert [(event.type, event.session) for event in bench.events(3)] == [
        (bus.EVENT_TYPES[type(over)], SESSION),
        ("transcript", "s2"),
        ("emotion", "s2"),
    ]
    assert bench.counters()["interims_skipped"] == 1


def test_an_interim_is_a_guess_from_the_words_that_leaves_no_trace(bench: Bench) -> None:
    bench.send(utterance(0, "hello"), ABSENT)
    bench.send(interim(1, "i am so happy", speaker="ben"))
    bench.send(utterance(1, "no", speaker="ben"), ABSENT)
    assert bench.predictor.prompts[1:] == [
        "<s1> hello <s2> i am so happy [SEP] now <s2> feels [MASK]",
        "<s1> hello <s2> no [SEP] now <s2> feels [MASK]",
    ]
    events = bench.events(6)
    assert [event.type for event in events] == ["transcript", "emotion"] * 3
    assert [event.seq for event in events] == [1, 2, 2, 2, 3, 4]
    assert len({event.id for event in events}) == 6
    said, felt = (event.payload() for event in events[2:4])
    assert isinstance(said, bus.Transcript)
    assert isinstance(felt, bus.Emotion)
    assert (said.text, said.final) == ("i am so happy", False)
    assert (felt.utterance, felt.label, felt.final, felt.context_turns) == ("s1/1", "joy", False, 2)
    reason = "an interim guess reads the words alone"
    assert felt.modalities["audio"] == bus.Modality(captured=False, used=False, reason=reason)
    assert bench.acks(2) == [0, 1]


def test_an_interim_gives_way_to_an_utterance_to_a_newer_one_and_to_its_answer(bench: Bench) -> None:
    bench.send_at_once(interim(0, "hello"), interim(0, "i am so happy"), interim(0, "yes", session="s2"))
    assert bench.counters()["interims_skipped"] == 1
    bench.send_at_once(interim(1, "no", session="s2"), utterance(0, "hello"))
    assert bench.counters()["interims_skipped"] == 2
    bench.send(interim(0, "hello"))
    assert bench.counters()["interims_skipped"] == 3
    texts = [prompt.split(" [SEP]")[0] for prompt in bench.predictor.prompts]
    assert texts == ["<s1> i am so happy", "<s1> yes", "<s1> hello"]


def test_an_interim_that_cannot_be_read_is_a_fault(bench: Bench) -> None:
    bench.send(interim(0, "<>"))
    bench.send(interim(1, "what is it"))
    assert [event.type for event in bench.events(2)] == ["fault", "fault"]


def test_absence_is_said_not_faked(bench: Bench) -> None:
    sound = np.ones(1600, np.int16)
    bench.send(utterance(0, "hello", audio=wire.describe(sound)), (sound, ABSENT[1]))
    modalities = bench.emotion().modalities
    assert modalities["text"] == bus.Modality(captured=True, used=True, reason=None)
    assert modalities["audio"] == bus.Modality(captured=True, used=False, reason="the bundle has no audio student")
    assert modalities["video"] == bus.Modality(captured=False, used=False, reason="the test is blind")


def test_utterances_that_wait_together_are_answered_in_one_batch(bench: Bench) -> None:
    """Once it is known that the model is quick."""
    bench.send(utterance(0, "hello", session="s0"), ABSENT)
    assert len(bench.events(2)) == 2
    assert bench.acks(1) == [0]
    sessions = ("s1", "s2", "s3")
    bench.send_at_once(*(utterance(0, "i am so happy", session=session) for session in sessions))
    assert bench.predictor.batches == [1, 3]
    found = bench.events(6)
    assert [(event.session, event.type) for event in found] == [
        (session, kind) for session in sessions for kind in ("transcript", "emotion")
    ]
    assert bench.acks(3) == [0, 0, 0]


def test_a_model_that_takes_seconds_answers_one_after_the_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture process gives up after a minute without an answer: sixteen at once at 4 s each take longer."""
    now_ns = 0
    clock = SimpleNamespace(monotonic_ns=lambda: now_ns, time_ns=time.time_ns)
    monkeypatch.setattr(worker_module, "time", clock)
    answered_before: list[int] = []

    def work() -> None:
        nonlocal now_ns
        answered_before.append(bench.store.last_seq // 2)
        now_ns += 4_000_000_000

    bench.predictor.on_batch = work
    bench.beats()
    bench.send_at_once(*(utterance(seq, "hello") for seq in range(4)))
    assert bench.predictor.batches == [1, 1, 1, 1]
    assert answered_before == [0, 1, 2, 3]
    assert bench.acks(4) == [0, 1, 2, 3]
    assert bench.beats() >= 3, "it lives, and says so"


def test_a_session_that_waits_twice_is_answered_in_order_and_repetitions_once(bench: Bench) -> None:
    bench.send_at_once(utterance(0, "hello"), utterance(1, "yes", speaker="ben"), utterance(0, "hello"))
    assert bench.predictor.prompts == [
        "<s1> hello [SEP] now <s1> feels [MASK]",
        "<s1> hello <s2> yes [SEP] now <s2> feels [MASK]",
    ]
    assert sorted(bench.acks(3)) == [0, 0, 1]


def test_one_that_fails_costs_its_neighbours_nothing(bench: Bench) -> None:
    said = ("i am so happy", "what is it", "<>", "no")
    bench.send_at_once(*(utterance(0, text, session=f"s{number}") for number, text in enumerate(said)))
    kinds = {event.session: event.type for event in bench.events(8) if event.type != "transcript"}
    assert [kinds[f"s{number}"] for number in range(4)] == ["emotion", "fault", "fault", "emotion"]
    assert bench.acks(4) == [0, 0, 0, 0]


def test_a_sessions_events_keep_the_order_of_its_messages(bench: Bench) -> None:
    rejected = wire.make_report(SESSION, bus.Rejected(1, "no words were recognised"), 5)
    bench.send_at_once(utterance(0, "hello"), rejected, utterance(2, "yes"))
    kinds = [event.type for event in bench.events(5)]
    assert kinds == ["transcript", "emotion", "utterance.rejected", "transcript", "emotion"]


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
    assert bench.acks(3) == [0, 0, 0]
    bench.send(utterance(1, "yes"), ABSENT)
    assert [event.seq for event in bench.events(4)] == [1, 2, 3, 4]


def test_a_new_dialogue_begins_without_context_and_says_its_number(bench: Bench) -> None:
    bench.send(utterance(0, "hello"), ABSENT)
    bench.send(utterance(1, "yes", speaker="ben", dialogue=1, speaker_certain=False, text_certain=False), ABSENT)
    bench.send(utterance(2, "no", dialogue=1), ABSENT)
    assert bench.predictor.prompts == [
        "<s1> hello [SEP] now <s1> feels [MASK]",
        "<s1> yes [SEP] now <s1> feels [MASK]",
        "<s1> yes <s2> no [SEP] now <s2> feels [MASK]",
    ]
    found = [event.payload() for event in bench.events(6)]
    said = [data for data in found if isinstance(data, bus.Transcript | bus.Emotion)]
    assert [(data.dialogue, data.speaker_certain) for data in said] == [(0, True)] * 2 + [(1, False)] * 2 + [
        (1, True)
    ] * 2
    assert [data.text_certain for data in said] == [True] * 2 + [False] * 2 + [True] * 2


def test_a_model_that_fails_is_a_fault_and_the_worker_goes_on(bench: Bench) -> None:
    bench.send(utterance(0, "what is it"), ABSENT)
    transcript, fault = bench.events(2)
    assert transcript.type == "transcript"
    assert fault.payload() == bus.Fault("the fake broke; expected an answer; nothing", 0)
    bench.send(utterance(1, "i am so happy"), ABSENT)
    assert bench.emotion().label == "joy"
    assert bench.acks(2) == [0, 1]


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
    assert isinstance(payload, bus.Fault)
    assert "does not decode" in payload.message
    bench.send(utterance(0, "hello"), ABSENT)
    assert bench.emotion().label == "neutral"
    counters = bench.counters()
    assert (counters["bad_messages"], counters["answered"]) == (1, 1)


def test_reports_of_the_capture_side_reach_the_bus(bench: Bench) -> None:
    bench.send(wire.make_report(SESSION, bus.Rejected(3, "no words were recognised"), 5))
    (event,) = bench.events(1)
    assert event.type == "utterance.rejected"
    assert event.session == SESSION
    assert event.payload() == bus.Rejected(3, "no words were recognised")
    assert event.time == iso_utc(5)  # when it happened, not when it came
    bench.send(wire.Report(wire.PROTOCOL, SESSION, "nonsense", 5, msgspec.Raw(b"\xc0")))
    assert bench.events(1)[0].type == "fault"
    assert bench.counters()["bad_messages"] == 1


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
        if isinstance(status, bus.Status):
            states.append((received[0].seq, status.state))
    assert states[-1] == (2, "stopped")


def test_who_subscribes_hears_a_heartbeat_at_once_and_then_one_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.worker.HEARTBEAT_MS", 3_600_000)
    worker = Bench(tmp_path, subscribed=False)
    worker.worker.step()  # the first one, which is due and which nobody hears
    assert worker.worker.heartbeat_due_ms() > 0
    worker.subscribe()
    worker.link.wait(DEADLINE_MS)
    worker.worker.step()
    worker.worker.step()
    received = worker.subscriber.receive(DEADLINE_MS)
    assert received is not None
    assert received[0].type == "status"
    assert worker.subscriber.receive(100) is None
    worker.close()


def test_speaker_tokens_fit_the_fake() -> None:
    assert set(SPEAKER_TOKENS) <= set(tiny_tokenizer().get_vocab())
