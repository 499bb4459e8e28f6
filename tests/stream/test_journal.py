"""The journal: what was stored is there again, whole, after any death."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from stream.journal import EventStore, Outbox, StoredEvent, StoredTurn
from telme.errors import JournalError, WireError

FRAMES = [b"header", b"\x00\xff" * 100, b""]


def json_of(text: str) -> Callable[[int], bytes]:
    return lambda seq: f"{text} {seq}".encode()


# ---------------------------------------------------------------------------------------------------- outbox


def test_an_utterance_is_kept_until_it_is_answered(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox") as outbox:
        outbox.put("s", 0, FRAMES)
        outbox.put("s", 1, [memoryview(b"one")])
        assert outbox.pending() == 2
        outbox.answered("s", 0)
        outbox.answered("s", 0)
        outbox.answered("t", 1)
        assert outbox.pending() == 1
    with Outbox(tmp_path / "outbox") as outbox:
        assert [(kept.session, kept.seq, kept.frames) for kept in outbox.after(0, 10)] == [("s", 1, [b"one"])]


def test_utterances_wait_in_the_order_they_were_put(tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox") as outbox:
        for session, seq in (("z", 9), ("z", 10), ("a", 0), ("a", 1)):
            outbox.put(session, seq, FRAMES)
        first = outbox.after(0, 3)
        assert [(kept.session, kept.seq) for kept in first] == [("z", 9), ("z", 10), ("a", 0)]
        assert first[0].frames == FRAMES
        assert [(kept.session, kept.seq) for kept in outbox.after(first[-1].position, 3)] == [("a", 1)]


def test_a_position_is_never_used_twice(tmp_path: Path) -> None:
    """A link that has sent up to a position must see what is put after everything was answered."""
    with Outbox(tmp_path / "outbox") as outbox:
        outbox.put("s", 0, FRAMES)
        (kept,) = outbox.after(0, 10)
        outbox.answered("s", 0)
        outbox.put("s", 1, FRAMES)
        assert [later.seq for later in outbox.after(kept.position, 10)] == [1]


def test_an_utterance_that_is_damaged_on_the_disk_costs_the_others_nothing(tmp_path: Path) -> None:
    path = tmp_path / "outbox"
    with Outbox(path) as outbox:
        for seq in range(2):
            outbox.put("s", seq, FRAMES)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE outbox SET frames = x'ffff' WHERE seq = 0")
    with Outbox(path) as outbox:
        damaged, whole = outbox.after(0, 10)
        with pytest.raises(WireError, match="in the outbox that does not decode"):
            _ = damaged.frames
        assert whole.frames == FRAMES


# ------------------------------------------------------------------------------------------------ event store


def test_the_turns_of_a_dialogue_are_found_without_reading_all_events(tmp_path: Path) -> None:
    """A journal that is kept for a year has a million of them, and each new dialogue asks."""
    with EventStore(tmp_path / "events") as store:
        for number in range(1000):
            store.add("old", "emotion", json_of("a" * 500), number, StoredTurn("ann", "hello", 0))
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with EventStore(tmp_path / "events") as store:
        store._database.set_progress_handler(count, 100)
        assert store.turns("new", 0, 20) == []
        assert len(store.turns("old", 0, 20)) == 20
    assert steps < 20, "of 100 instructions each"


def test_events_are_numbered_from_one_and_go_on_after_a_restart(tmp_path: Path) -> None:
    with EventStore(tmp_path / "events") as store:
        assert store.last_seq == 0
        assert store.add("s", "fault", json_of("a")) == StoredEvent(1, "fault", "s", b"a 1")
        assert store.add("s", "fault", json_of("b")).json == b"b 2"
    with EventStore(tmp_path / "events") as store:
        assert store.last_seq == 2
        assert store.add("s", "fault", json_of("c")).seq == 3


def test_an_answer_is_found_by_session_and_utterance(tmp_path: Path) -> None:
    with EventStore(tmp_path / "events") as store:
        store.add("s", "emotion", json_of("x"), answers=4)
        assert store.is_answered("s", 4)
        assert not store.is_answered("s", 5)
        assert not store.is_answered("t", 4)
        with pytest.raises(JournalError, match="UNIQUE"):
            store.add("s", "emotion", json_of("again"), answers=4)
        assert store.last_seq == 1


def test_what_was_not_published_is_given_back_in_order(tmp_path: Path) -> None:
    with EventStore(tmp_path / "events") as store:
        for number in range(4):
            store.add("s", "fault", json_of(str(number)))
        store.mark_published(2)
    with EventStore(tmp_path / "events") as store:
        assert [event.json for event in store.unpublished()] == [b"2 3", b"3 4"]
        store.mark_published(4)
        assert store.unpublished() == []


def test_the_dialogue_is_restored_by_session_oldest_first(tmp_path: Path) -> None:
    with EventStore(tmp_path / "events") as store:
        for number, name in enumerate("abcd"):
            turn = StoredTurn(name, f"word {number}", 0)
            store.add("s", "transcript", json_of("t"))
            store.add("s", "emotion", json_of("e"), answers=number, turn=turn)
        store.add("s", "fault", json_of("f"), answers=9)
        store.add("t", "emotion", json_of("e"), answers=0, turn=StoredTurn("z", "elsewhere", 0))
        store.add("s", "emotion", json_of("e"), answers=10, turn=StoredTurn("a", "anew", 1))
    with EventStore(tmp_path / "events") as store:
        assert (
            store.turns("s", 0, 3) == [StoredTurn(name, f"word {number}", 0) for number, name in enumerate("abcd")][1:]
        )
        assert store.turns("s", 1, 3) == [StoredTurn("a", "anew", 1)]
        assert store.turns("t", 0, 3) == [StoredTurn("z", "elsewhere", 0)]
        assert store.turns("u", 0, 3) == []


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with EventStore(tmp_path / "events") as store:
        store.add("s", "fault", json_of("before"))

        def half() -> None:
            with store.transaction():
                store.add("s", "transcript", json_of("half"))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            half()
        assert store.last_seq == 1
        assert store.add("s", "fault", json_of("after")).seq == 2
        assert [event.json for event in store.unpublished()] == [b"before 1", b"after 2"]


def test_a_failing_statement_inside_a_transaction_leaves_nothing(tmp_path: Path) -> None:
    with EventStore(tmp_path / "events") as store:
        store.add("s", "emotion", json_of("e"), answers=0)

        def again() -> None:
            with store.transaction():
                store.add("s", "transcript", json_of("half"))
                store.add("s", "emotion", json_of("e"), answers=0)

        with pytest.raises(JournalError, match="UNIQUE"):
            again()
        assert [event.type for event in store.unpublished()] == ["emotion"]
        with store.transaction():
            store.add("s", "fault", json_of("after"))
        assert store.last_seq == 2


# ----------------------------------------------------------------------------------------------------- deaths

# Two events a transaction, one utterance each; a number on standard output says that it is stored.
_WRITER = """
import sys
from pathlib import Path
from stream.journal import EventStore, Outbox, StoredTurn

folder = Path(sys.argv[1])
with EventStore(folder / "events") as store, Outbox(folder / "outbox") as outbox:
    number = 0
    while True:
        outbox.put("s", number, [b"x" * 50_000])
        with store.transaction():
            store.add("s", "transcript", lambda seq: b"t")
            store.add("s", "emotion", lambda seq: b"e", answers=number, turn=StoredTurn("a", str(number), 0))
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()
        number += 1
"""


@pytest.mark.parametrize("stored", [0, 3, 40])
def test_a_writer_killed_at_any_instant_loses_nothing_and_leaves_no_half(tmp_path: Path, stored: int) -> None:
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == stored:
                writer.kill()
                break
        said = stored + len(writer.stdout.read().splitlines())
    with EventStore(tmp_path / "events") as store, Outbox(tmp_path / "outbox") as outbox:
        events = store.unpublished()
        assert [event.type for event in events] == ["transcript", "emotion"] * (len(events) // 2)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert all(store.is_answered("s", number) for number in range(said + 1))
        assert len(store.turns("s", 0, 10**6)) == len(events) // 2
        kept = outbox.after(0, 10**6)
        assert len(events) // 2 <= len(kept) <= len(events) // 2 + 1
        assert all(utterance.frames == [b"x" * 50_000] for utterance in kept)
        store.add("s", "fault", json_of("after"))


# ---------------------------------------------------------------------------------------------------- privacy

# Utterances of several sizes wait together and alone; a line on standard output says so, and one that all are answered.
_SPEAKER = """
import sys
from pathlib import Path
from stream.journal import Outbox

with Outbox(Path(sys.argv[1]) / "outbox") as outbox:
    outbox.put("s", 0, [b"header", b"what was said" * 100_000])
    for number in (1, 2, 3):
        outbox.put("s", number, [b"header", b"what was said" * 40])
    print(len(outbox.after(0, 10)), "wait", flush=True)
    sys.stdin.readline()
    for number in (2, 0, 3, 1):
        outbox.answered("s", number)
    outbox.put("s", 4, [b"header", b"what was said" * 10_000])
    outbox.answered("s", 4)
    print(outbox.pending(), "wait", flush=True)
    sys.stdin.readline()
"""


def test_no_file_has_anything_of_what_is_answered_even_after_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SPEAKER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as speaker:
        assert speaker.stdin is not None
        assert speaker.stdout is not None
        assert speaker.stdout.readline() == b"4 wait\n"
        assert _files_with(b"what was said", tmp_path)
        speaker.stdin.write(b"\n")
        speaker.stdin.flush()
        assert speaker.stdout.readline() == b"0 wait\n"
        speaker.kill()
    assert "outbox-wal" in [path.name for path in tmp_path.iterdir()]  # nobody closed it
    assert _files_with(b"what was said", tmp_path) == []


def _files_with(said: bytes, folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if said in path.read_bytes()]


@pytest.mark.parametrize("store", [Outbox, EventStore])
def test_a_journal_is_for_its_owner_alone(tmp_path: Path, store: type[Outbox | EventStore]) -> None:
    before = os.umask(0)
    try:
        with store(tmp_path / "journal"):
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("journal", "journal-wal", "journal-shm"), 0o600)


def test_the_mode_of_a_journal_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "outbox").touch()
    (tmp_path / "outbox").chmod(0o640)
    with Outbox(tmp_path / "outbox"):
        pass
    assert stat.S_IMODE((tmp_path / "outbox").stat().st_mode) == 0o640


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    nowhere = tmp_path / "missing" / "events"
    with pytest.raises(JournalError, match="unable to open database file") as error:
        EventStore(nowhere)
    assert str(nowhere) in str(error.value)


def test_a_file_that_is_no_journal_is_named(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("This is no database, but it is long enough to look like one. " * 50)
    with pytest.raises(JournalError, match="file is not a database") as error:
        Outbox(other)
    assert str(other) in str(error.value)


def test_a_full_disk_is_an_error_and_what_was_stored_stays(tmp_path: Path) -> None:
    with EventStore(tmp_path / "events") as store:
        store.add("s", "fault", json_of("before"))
        store._rows("PRAGMA max_page_count = 10")  # the disk ends here

        def flood() -> None:
            with store.transaction():
                for _ in range(100):
                    store.add("s", "fault", lambda seq: b"x" * 4096)

        with pytest.raises(JournalError, match="full"):
            flood()
        assert store.last_seq == 1
        assert [event.json for event in store.unpublished()] == [b"before 1"]
