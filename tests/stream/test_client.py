"""subscribe(): events as they come, each once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import pytest

from stream.bus import Event, EventData, Fault, Status, Transcript, make_event, read_event
from stream.client import subscribe
from stream.link import Subscriber, WorkerLink
from telme.errors import LinkError, UsageError, WireError

DEADLINE_S = 30.0
pytestmark = pytest.mark.timeout(60)


def event(seq: int, data: EventData, journal: str = "s", wall_ns: int | None = None) -> bytes:
    return make_event("s", seq, data, seq * 1_000_000 if wall_ns is None else wall_ns, f"{journal}-{seq}")


def fault(seq: int, journal: str = "s") -> bytes:
    return event(seq, Fault(f"fault {seq}", None), journal)


@contextmanager
def publisher(address: str, events: Sequence[bytes]) -> Iterator[None]:
    """A worker end that publishes once somebody has subscribed, and stays until the block ends."""
    done = threading.Event()
    bound = threading.Event()

    def main() -> None:
        with WorkerLink("tcp://127.0.0.1:*", address, 100_000) as link:
            bound.set()
            while not link.new_subscribers() and not done.is_set():
                link.wait(100)
            for json in events:
                read = read_event(json) if json.startswith(b"{") else None
                link.publish(read.type if read else "fault", "s", json)
            done.wait(DEADLINE_S)

    thread = threading.Thread(target=main)
    thread.start()
    try:
        assert bound.wait(DEADLINE_S)
        yield
    finally:
        done.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def first(count: int, found: Iterator[Event]) -> list[str]:
    return [event.id for event in islice(found, count)]


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/events"


def test_repeated_events_are_left_out(address: str) -> None:
    events = [fault(1), fault(2), fault(2), fault(1), fault(3), fault(1, "t"), fault(3), fault(2, "t")]
    with publisher(address, events), closing(subscribe(address)) as found:
        assert first(5, found) == ["s-1", "s-2", "s-3", "t-1", "t-2"]


def test_heartbeats_repeat_their_number_and_hide_no_event(address: str) -> None:
    beat = event(9, Status("worker", "running", {}, {}))
    with publisher(address, [beat, beat, fault(9), beat]), closing(subscribe(address)) as found:
        assert [event.type for event in islice(found, 4)] == ["status", "status", "fault", "status"]


def test_interim_guesses_repeat_a_number_and_hide_no_event(address: str) -> None:
    """They are of now; an event that was kept for a while is older and yet to come."""
    late = event(2, Transcript(0, "ann", True, 0, "hello", True, 0, 1, False), wall_ns=10**15)
    with publisher(address, [fault(1), late, late, fault(2), fault(2)]), closing(subscribe(address)) as found:
        assert [event.type for event in islice(found, 4)] == ["fault", "transcript", "transcript", "fault"]


def test_a_worker_that_counts_anew_is_heard(address: str) -> None:
    """Its journal is new, so its numbers begin at 1 again: another run behind the same address."""
    events = [fault(seq, journal) for journal in ("s-aa", "s-bb") for seq in (1, 2, 1, 3)]
    with publisher(address, events), closing(subscribe(address)) as found:
        assert first(6, found) == ["s-aa-1", "s-aa-2", "s-aa-3", "s-bb-1", "s-bb-2", "s-bb-3"]


def test_only_the_types_asked_for_come(address: str) -> None:
    said = event(2, Transcript(0, "ann", True, 0, "hello", True, 0, 1, True))
    with publisher(address, [fault(1), said, fault(3)]), closing(subscribe(address, ["transcript"])) as found:
        assert next(found).payload() == Transcript(0, "ann", True, 0, "hello", True, 0, 1, True)


def test_what_is_no_event_is_an_error(address: str) -> None:
    with publisher(address, [b"hello"]), closing(subscribe(address)) as found, pytest.raises(WireError):
        next(found)


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"event type mood, weather; expected some of speech\.started") as error:
        next(subscribe("tcp://127.0.0.1:1", ["weather", "emotion", "mood"]))
    assert error.value.exit_code == 2


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(LinkError, match="cannot connect to nowhere"):
        next(subscribe("nowhere"))


def test_that_no_worker_is_heard_is_a_warning_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    address = f"ipc://{tmp_path / 'nobody'}"
    silence = iter([None] * 25 + [(read_event(fault(1)), fault(1))] + [None] * 9 + [(read_event(fault(2)), fault(2))])
    monkeypatch.setattr(Subscriber, "receive", lambda self, timeout_ms: next(silence))
    with closing(subscribe(address)) as found:
        assert first(2, found) == ["s-1", "s-2"]
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing for 5 s from {address}; expected a worker's heartbeat"
    ]


def test_what_is_chosen_by_type_may_be_rare(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    silence = iter([None] * 25 + [(read_event(fault(1)), fault(1))])
    monkeypatch.setattr(Subscriber, "receive", lambda self, timeout_ms: next(silence))
    with closing(subscribe(f"ipc://{tmp_path / 'nobody'}", types=["fault"])) as found:
        assert first(1, found) == ["s-1"]
    assert not caplog.records
