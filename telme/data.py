"""Annotations and clips of a data set, read as its description says (`telme.datasets`)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from telme.datasets import MELD_DATA, Dataset, Split
from telme.dialogue import DialogueWindow, Turn, speaker_of
from telme.errors import DataError
from telme.features import Missing
from telme.modes import CLEAN, Mode


@dataclass(frozen=True)
class Row:
    """One annotated utterance.

    Attributes:
        dialogue: Its dialogue.
        turn: Who said what, as annotated.
        label: Index of its class.
        utterance: Its name, in its dialogue (MELD) or in the data set (IEMOCAP).
        span_s: Where it lies in its recording, in seconds; None where a clip is one utterance.
    """

    dialogue: str
    turn: Turn
    label: int
    utterance: str = ""
    span_s: tuple[float, float] | None = None


@dataclass(frozen=True)
class ClipSource:
    """Where an utterance's sound and pictures are, or why they are not.

    Attributes:
        sound: A media file; all of its sound is the utterance's.
        pictures: A media file, which may be the same.
        span_s: Which pictures of that file, in seconds; None for all.
    """

    sound: Path | Missing
    pictures: Path | Missing
    span_s: tuple[float, float] | None = None


def read_split(root: Path, split: Split, data: Dataset = MELD_DATA) -> list[Row]:
    """Read the annotations of a split.

    Args:
        root: The data set's folder.
        split: Which.
        data: The data set.

    Raises:
        DataError: There is no such file, or it does not hold what it must.
    """
    return read_rows(annotation_file(root, split, data), data)


def annotation_file(root: Path, split: Split, data: Dataset = MELD_DATA) -> Path:
    """The annotation file of a split: of the names it goes by, the first that is there, or the first."""
    paths = [root / name for name in data.splits[split].annotations]
    return next((path for path in paths if path.is_file()), paths[0])


def read_rows(path: Path, data: Dataset = MELD_DATA) -> list[Row]:
    """Read one annotation file.

    Raises:
        DataError: The file is missing, lacks a column, is not UTF-8, is empty, has an unknown label or a broken row, or
            the rows of a dialogue lie apart or in another order than they were said.
    """
    if not path.is_file():
        raise DataError(f"no file {path}", f"the {data.name} annotations", "check the path given to --csv or --data")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            lacking = [name for name in data.columns.names if name not in columns]
            if lacking:
                raise DataError(
                    f"{path} without column {', '.join(lacking)}",
                    f"the columns of {data.name}: {', '.join(data.columns.names)}",
                    "check the file, and whose data set --dataset or --bundle names",
                )
            lines = [(reader.line_num, _row(path, reader.line_num, record, data)) for record in reader]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: {error}", "UTF-8", "convert the file, for instance with iconv"
        ) from error
    except (csv.Error, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}", "a CSV file", "check the file") from error
    if not lines:
        raise DataError(f"{path} holds no rows", "annotated utterances", "check the file")
    _check_order(path, lines, data)
    return [row for _, row in lines]


def _row(path: Path, line: int, record: Mapping[str, str | None], data: Dataset) -> Row:
    columns = data.columns
    found = {name: value for name in columns.names if (value := record[name]) is not None}
    lacking = [name for name in columns.names if name not in found]
    if lacking:
        raise DataError(f"{path} line {line} ends before {', '.join(lacking)}", "a value a column", "mend that line")
    emotion = found[columns.emotion]
    if emotion not in data.labels.names:
        raise DataError(
            f"{path} line {line} with label {emotion!r}", f"one of {', '.join(data.labels.names)}", "mend that line"
        )
    if not found[columns.text].strip():
        raise DataError(f"{path} line {line} without words in {columns.text}", "what was said", "mend that line")
    return Row(
        found[columns.dialogue],
        Turn(found[columns.speaker], found[columns.text]),
        data.labels.index(emotion),
        found[columns.utterance],
        _span(path, line, found, data),
    )


def _span(path: Path, line: int, found: Mapping[str, str], data: Dataset) -> tuple[float, float] | None:
    if data.columns.start is None or data.columns.end is None:
        return None
    start, end = found[data.columns.start], found[data.columns.end]
    try:
        span = float(start), float(end)
    except ValueError:
        span = 0.0, 0.0
    if not 0 <= span[0] < span[1] < float("inf"):
        raise DataError(
            f"{path} line {line} from {start!r} to {end!r}", "seconds, the end after the start", "mend that line"
        )
    return span


def _check_order(path: Path, lines: Iterable[tuple[int, Row]], data: Dataset) -> None:
    """Refuse a file in which an utterance would be read without its context, or with a later one in it.

    In MELD's files the rows of a dialogue are one run and their numbers rise, and the published code reads them so. A
    file that has them otherwise is not put in order here, since what happened to it is not known: sorted by another
    column, it only needs sorting again; joined from two splits, which each count their dialogues from 0, one id means
    two dialogues. File order is also what published figures depend on (groups of 4, speakers over the border).
    IEMOCAP's utterances have names: that they lie together is all that is asked of them.

    Args:
        path: The file.
        lines: Line number and row, in file order.
        data: The data set.

    Raises:
        DataError: It is such a file.
    """
    columns = data.columns
    heard: dict[str, tuple[int, Row]] = {}  # dialogue -> its last line so far
    current: str | None = None
    for line, row in lines:
        since, before = heard.get(row.dialogue, (0, None))
        if before is not None and not (row.dialogue == current and _follows(before.utterance, row.utterance)):
            raise DataError(
                f"{path} line {line} with utterance {row.utterance} of dialogue {row.dialogue}, whose row before, in "
                f"line {since}, is utterance {before.utterance}",
                "the rows of a dialogue together and as they were said",
                f"sort the file by {columns.dialogue} and {columns.start or columns.utterance} as numbers, or part it "
                "where files were joined",
            )
        heard[row.dialogue], current = (line, row), row.dialogue


def _follows(earlier: str, later: str) -> bool:
    """Whether an utterance may come after another of its dialogue; names say nothing of that."""
    return not (earlier.isdecimal() and later.isdecimal()) or int(earlier) < int(later)


def find_clip(row: Row, root: Path, split: Split, data: Dataset = MELD_DATA, mode: Mode = CLEAN) -> ClipSource:
    """Where the clip of an utterance is.

    Args:
        row: The utterance.
        root: The data set's folder.
        split: The split it is in.
        data: The data set.
        mode: Says whether clips that are known to be bad are read.
    """
    bad = data.known_bad.get((split, row.dialogue, row.utterance))
    if bad is not None and mode.known_bad_clips == "absent":
        reason = Missing(f"known to be bad: {bad}")
        return ClipSource(reason, reason)
    parts = re.fullmatch(data.clips.name, row.utterance)
    if parts is None:
        odd = Missing("its utterance has no name that a clip could go by")
        return ClipSource(odd, odd)
    fields = {
        "folder": data.splits[split].folder,
        "dialogue": row.dialogue,
        "utterance": row.utterance,
        **parts.groupdict(),
    }
    margin_s = data.clips.margin_s
    span_s = None if row.span_s is None else (max(row.span_s[0] - margin_s, 0.0), row.span_s[1] + margin_s)
    return ClipSource(_find(root, data.clips.sound, fields), _find(root, data.clips.pictures, fields), span_s)


def _find(root: Path, patterns: Iterable[str], fields: Mapping[str, str]) -> Path | Missing:
    paths = [root / pattern.format_map(fields) for pattern in patterns]
    found = next((path for path in paths if path.is_file()), None)
    return Missing("its file is not there") if found is None else found


def windows(rows: Iterable[Row], max_turns: int, mode: Mode = CLEAN) -> Iterator[DialogueWindow]:
    """For each row, in file order, the dialogue window that ends with it (causal: no row sees a later one).

    The same window object grows along a dialogue; use it before the next step.

    Args:
        rows: As `read_rows` gives them: a dialogue's rows together.
        max_turns: Turns of context, the current one included.
        mode: How speakers are named and numbered, and what becomes of apostrophes.
    """
    window = DialogueWindow(max_turns, mode)
    for _, dialogue in groupby(rows, key=lambda row: row.dialogue):
        window = window.next_dialogue()
        for row in dialogue:
            window.append(Turn(speaker_of(row.turn.speaker, mode), row.turn.text))
            yield window
