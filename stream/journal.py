"""What must survive the death of a process, in SQLite.

Outbox (capture): utterances the worker has not answered, with their sound and pictures. EventStore (worker): every
event but heartbeats and interim guesses. Each object belongs to the thread that made it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from stream.bus import UNREADABLE
from stream.wire import Frame
from telme.errors import JournalError, WireError


class _Store:
    """A SQLite file with one schema, for its owner's eyes; errors are mapped at this border."""

    _SCHEMA: str

    def __init__(self, path: Path) -> None:
        self._path = path
        with suppress(OSError):  # which SQLite meets again
            path.touch(mode=0o600)  # before SQLite, whose files beside it, -wal and -shm, take its mode
        with self._mapped():
            self._database = sqlite3.connect(path, isolation_level=None)
            try:
                # WAL with NORMAL survives the death of the process at any instant.
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute("PRAGMA synchronous=NORMAL")
                self._database.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten
                # In KiB. By default 2 MB, which fill within an hour of speech as the file grows.
                self._database.execute("PRAGMA cache_size=-256")
                self._database.executescript(self._SCHEMA)
            except sqlite3.Error:
                self._database.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(
                f"{self._path}: {error}", "a journal that can be written", "check the disk and --journal"
            ) from error

    def _rows(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._mapped(), closing(self._database.execute(statement, values)) as cursor:
            return cursor.fetchall()


@dataclass(frozen=True)
class Kept:
    """An utterance in the Outbox. `position` grows with each one that was put."""

    position: int
    session: str
    seq: int
    packed: bytes

    @property
    def frames(self) -> list[bytes]:
        """Its message.

        Raises:
            WireError: The file is damaged there.
        """
        try:
            return msgspec.msgpack.decode(self.packed, type=list[bytes])
        except UNREADABLE as error:
            raise WireError(
                f"an utterance in the outbox that does not decode: {error}", "its frames", "check the disk"
            ) from error


class Outbox(_Store):
    """Utterances not yet answered, in the order they were put."""

    _SCHEMA = """CREATE TABLE IF NOT EXISTS outbox (
        position INTEGER PRIMARY KEY AUTOINCREMENT, session TEXT NOT NULL, seq INTEGER NOT NULL,
        frames BLOB NOT NULL, UNIQUE (session, seq))"""

    def put(self, session: str, seq: int, frames: Sequence[Frame]) -> None:
        """Keep an utterance until it is answered."""
        packed = msgspec.msgpack.encode([bytes(frame) for frame in frames])
        self._rows("INSERT OR REPLACE INTO outbox (session, seq, frames) VALUES (?, ?, ?)", (session, seq, packed))

    def answered(self, session: str, seq: int) -> None:
        """Forget an utterance. Once nothing waits, no file has anything of it, whatever becomes of the process."""
        self._rows("DELETE FROM outbox WHERE session = ? AND seq = ?", (session, seq))
        if not self.pending():
            self._rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def pending(self) -> int:
        """How many wait for their answer."""
        count: int = self._rows("SELECT count(*) FROM outbox")[0][0]
        return count

    def after(self, position: int, limit: int) -> list[Kept]:
        """The next utterances behind a position, at most so many; position 0 is before the first."""
        rows = self._rows(
            "SELECT position, session, seq, frames FROM outbox WHERE position > ? ORDER BY position LIMIT ?",
            (position, limit),
        )
        return [Kept(place, session, seq, packed) for place, session, seq, packed in rows]


@dataclass(frozen=True)
class StoredTurn:
    """A turn of a session's dialogue, for a worker that was started again."""

    speaker: str
    text: str
    dialogue: int


@dataclass(frozen=True)
class StoredEvent:
    """An event as it went, or should have gone, over the bus."""

    seq: int
    type: str
    session: str
    json: bytes


class EventStore(_Store):
    """Every event, numbered from 1, and the answer to each utterance.

    Attributes:
        id: The file's own, at random: two files number different events alike.
        last_seq: Number of the last event.
    """

    _SCHEMA = """CREATE TABLE IF NOT EXISTS journal (id TEXT NOT NULL);
        INSERT INTO journal SELECT lower(hex(randomblob(4))) WHERE NOT EXISTS (SELECT 1 FROM journal);
        CREATE TABLE IF NOT EXISTS event (
        seq INTEGER PRIMARY KEY, session TEXT NOT NULL, type TEXT NOT NULL, utterance INTEGER,
        speaker TEXT, text TEXT, dialogue INTEGER, json BLOB NOT NULL, published INTEGER NOT NULL DEFAULT 0);
        CREATE UNIQUE INDEX IF NOT EXISTS answer ON event (session, utterance) WHERE utterance IS NOT NULL;
        CREATE INDEX IF NOT EXISTS unpublished ON event (seq) WHERE published = 0;
        CREATE INDEX IF NOT EXISTS turn ON event (session, dialogue) WHERE dialogue IS NOT NULL"""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.id: str = self._rows("SELECT id FROM journal")[0][0]
        self.last_seq: int = self._rows("SELECT coalesce(max(seq), 0) FROM event")[0][0]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All events added inside are stored, or none."""
        before = self.last_seq
        self._rows("BEGIN")
        try:
            yield
            self._rows("COMMIT")
        except BaseException:  # whatever it is, a Ctrl-C too: it goes on up once nothing half is left
            self.last_seq = before
            if self._database.in_transaction:  # SQLite ends it by itself when the disk is full
                self._rows("ROLLBACK")
            raise

    def add(
        self,
        session: str,
        event_type: str,
        make: Callable[[int], bytes],
        answers: int | None = None,
        turn: StoredTurn | None = None,
    ) -> StoredEvent:
        """Number, make and store an event.

        Args:
            session: Its session.
            event_type: Its type.
            make: JSON for a bus number.
            answers: The utterance it answers, if it does.
            turn: The turn it added to the dialogue, if it did.
        """
        seq = self.last_seq + 1
        json = make(seq)
        speaker, text, dialogue = (turn.speaker, turn.text, turn.dialogue) if turn else (None, None, None)
        self._rows(
            "INSERT INTO event (seq, session, type, utterance, speaker, text, dialogue, json)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (seq, session, event_type, answers, speaker, text, dialogue, json),
        )
        self.last_seq = seq
        return StoredEvent(seq, event_type, session, json)

    def mark_published(self, seq: int) -> None:
        """Note that all events up to this one went over the bus."""
        self._rows("UPDATE event SET published = 1 WHERE published = 0 AND seq <= ?", (seq,))

    def unpublished(self) -> list[StoredEvent]:
        """Events that a worker stored, and died before it was certain that they had left it, in order."""
        rows = self._rows("SELECT seq, type, session, json FROM event WHERE published = 0 ORDER BY seq")
        return [StoredEvent(seq, event_type, session, json) for seq, event_type, session, json in rows]

    def is_answered(self, session: str, utterance: int) -> bool:
        """True when the utterance's answer is stored."""
        found = self._rows("SELECT 1 FROM event WHERE session = ? AND utterance = ?", (session, utterance))
        return bool(found)

    def turns(self, session: str, dialogue: int, limit: int) -> list[StoredTurn]:
        """The last turns of one dialogue of a session, in the order in which they were answered."""
        rows = self._rows(
            "SELECT speaker, text FROM event WHERE session = ? AND dialogue = ? ORDER BY seq DESC LIMIT ?",
            (session, dialogue, limit),
        )
        return [StoredTurn(speaker, text, dialogue) for speaker, text in reversed(rows)]
