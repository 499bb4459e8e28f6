"""The worker on real sockets: what it remembers and repeats when it is started again, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream.config import load_config
from stream.control import Word, say
from stream.journal import EventStore
from stream.recognise import Model
from stream.worker import run
from telme.features import FeatureMaker
from tests.bundles import tiny_config, tiny_tokenizer
from tests.stream.workers import ABSENT, Bench, FakePredictor, Lines, utterance


def test_a_worker_started_again_remembers_the_dialogue_and_what_it_answered(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.send(utterance(0, "hello"), ABSENT)
    first.close()
    second = Bench(tmp_path)
    second.send(utterance(0, "hello"), ABSENT)
    second.send(utterance(1, "yes", speaker="ben"), ABSENT)
    assert second.predictor.prompts == ["<s1> hello <s2> yes [SEP] now <s2> feels [MASK]"]
    assert second.acks(2) == [0, 1]
    second.close()


def test_a_worker_started_again_repeats_what_may_have_died_in_the_socket_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.worker.HEARTBEAT_MS", 0)
    first = Bench(tmp_path)
    first.send(utterance(0, "hello"), ABSENT)
    first.worker.step()
    first.send(utterance(1, "i am so happy"), ABSENT)  # the socket has had the first one for a heartbeat
    first.worker.step()  # and the second one for none
    said = [event.id for event in first.events(4)]
    first.close()  # as a death does: with no word to the journal
    second = Bench(tmp_path)
    second.worker.take_over(Lines().child)
    assert [event.id for event in second.events(2)] == said[2:]
    second.close()


def test_workers_with_journals_of_their_own_give_no_id_twice(tmp_path: Path) -> None:
    said = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        worker = Bench(folder)
        worker.send(utterance(0, "hello"), ABSENT)
        said += [(event.seq, event.source, event.id) for event in worker.events(2)]
        worker.close()
    assert [seq for seq, _, _ in said] == [1, 2, 1, 2]
    assert len({source for _, source, _ in said}) == 1
    assert len({event_id for _, _, event_id in said}) == 4


def test_a_worker_that_is_new_waits_for_who_listens_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Utterances may wait for it already; their events would go to nobody."""
    monkeypatch.setattr("stream.worker._SUBSCRIBER_GRACE_MS", 3_600_000)
    worker = Bench(tmp_path, subscribed=False)
    worker.subscribe()  # it connects in the background
    lines = Lines()
    worker.worker.take_over(lines.child)
    assert worker.link.subscribers == 1
    worker.close()


def test_a_stop_waits_for_the_subscriber_of_what_is_left_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.worker._SUBSCRIBER_GRACE_MS", 3_600_000)
    first = Bench(tmp_path)
    first.send(utterance(0, "hello"), ABSENT)
    said = [event.id for event in first.events(2)]
    first.close()
    second = Bench(tmp_path, subscribed=False)
    lines = Lines()
    say(lines.supervisor, Word("stop", {}))
    second.subscribe()  # it connects in the background
    second.worker.take_over(lines.child)
    assert [event.id for event in second.events(2)] == said
    second.close()


def test_a_stop_with_nothing_left_to_say_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.worker._SUBSCRIBER_GRACE_MS", 3_600_000)
    first = Bench(tmp_path)
    first.send(utterance(0, "hello"), ABSENT)
    first.store.mark_published(first.store.last_seq)
    first.close()
    second = Bench(tmp_path, subscribed=False)
    lines = Lines()
    say(lines.supervisor, Word("stop", {}))
    second.worker.take_over(lines.child)
    second.subscribe()
    second.close()


def test_at_its_end_it_keeps_what_was_compiled_and_leaves_nothing_to_say_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    lines, tokenizer = Lines(), tiny_tokenizer()
    maker = FeatureMaker(tokenizer, tiny_config(len(tokenizer)))
    model = Model(maker, FakePredictor(), 24, keep=lambda: kept.append("kept"))
    monkeypatch.setattr("stream.worker.load_model", lambda settings, preparing: model)
    addresses = {"utterances": f"ipc://{tmp_path}/u", "events": f"ipc://{tmp_path}/e"}
    monkeypatch.setattr("stream.worker._SUBSCRIBER_GRACE_MS", 0)
    with EventStore(tmp_path / "events.sqlite") as store:
        store.add("s", "fault", lambda seq: b"{}")
    say(lines.supervisor, Word("stop", {}))
    run(load_config(None, {}, {"link": addresses}), tmp_path, lines.child)
    assert kept == ["kept"]
    with EventStore(tmp_path / "events.sqlite") as store:
        assert store.unpublished() == []


def test_a_worker_started_again_remembers_the_last_dialogue_alone(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.send(utterance(0, "hello"), ABSENT)
    first.send(utterance(1, "yes", speaker="ben", dialogue=1), ABSENT)
    first.close()
    second = Bench(tmp_path)
    second.send(utterance(2, "no", dialogue=1), ABSENT)
    assert second.predictor.prompts == ["<s1> yes <s2> no [SEP] now <s2> feels [MASK]"]
    second.close()


def test_a_worker_started_again_does_not_read_what_never_entered_the_dialogue(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.send(utterance(0, "<>"), ABSENT)
    first.close()
    second = Bench(tmp_path)
    second.send(utterance(1, "hello"), ABSENT)
    assert second.predictor.prompts == ["<s1> hello [SEP] now <s1> feels [MASK]"]
    second.close()
