"""Readers of the annotation files of MELD. A data set is a description; the reader is one."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from telme.dialogue import DialogueWindow, Turn, speaker_of
from telme.errors import DataError
from telme.labels import MELD, LabelSet
from telme.modes import CLEAN, Mode


@dataclass(frozen=True)
class DatasetFormat:
    """How one data set writes its annotations.

    Attributes:
        labels: Its classes.
        dialogue, speaker, text, emotion: Names of the columns.
        train, dev: Names of the CSV files in its folder.
    """

    labels: LabelSet
    dialogue: str
    speaker: str
    text: str
    emotion: str
    train: str
    dev: str


MELD_FORMAT = DatasetFormat(
    MELD, "Dialogue_ID", "Speaker", "Utterance", "Emotion", "train_meld_emo.csv", "dev_meld_emo.csv"
)


@dataclass(frozen=True)
class Row:
    """One annotated utterance: its dialogue, its turn and the index of its class."""

    dialogue: str
    turn: Turn
    label: int


def read_rows(path: Path, data: DatasetFormat = MELD_FORMAT) -> list[Row]:
    """Read one CSV file.

    Raises:
        DataError: The file is missing, lacks a column, is not UTF-8, is empty or has an unknown label.
    """
    if not path.is_file():
        raise DataError(
            f"no file {path}", f"the {data.labels.dataset} annotations", "check the path given to --csv or --data"
        )
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            lacking = [name for name in (data.dialogue, data.speaker, data.text, data.emotion) if name not in columns]
            if lacking:
                raise DataError(
                    f"{path} without column {', '.join(lacking)}", f"columns as in {data.train}", "check the file"
                )
            rows = [_row(path, line, record, data) for line, record in enumerate(reader, start=2)]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: {error}", "UTF-8", "convert the file, for instance with iconv"
        ) from error
    if not rows:
        raise DataError(f"{path} holds no rows", "annotated utterances", "check the file")
    return rows


def _row(path: Path, line: int, record: dict[str, str | None], data: DatasetFormat) -> Row:
    dialogue, speaker, text, emotion = (record[name] for name in (data.dialogue, data.speaker, data.text, data.emotion))
    if dialogue is None or speaker is None or text is None or emotion not in data.labels.names:
        raise DataError(
            f"{path} line {line} with label {emotion!r}", f"one of {', '.join(data.labels.names)}", "mend that line"
        )
    return Row(dialogue, Turn(speaker, text), data.labels.index(emotion))


def windows(rows: Iterable[Row], max_turns: int, mode: Mode = CLEAN) -> Iterator[DialogueWindow]:
    """For each row, in file order, the dialogue window that ends with it (causal: no row sees a later one).

    The same window object grows along a dialogue; use it before the next step.

    Args:
        rows: As read.
        max_turns: Turns of context, the current one included.
        mode: How speakers are named and numbered, and what becomes of apostrophes.
    """
    window = DialogueWindow(max_turns, mode)
    for _, dialogue in groupby(rows, key=lambda row: row.dialogue):
        window = window.next_dialogue()
        for row in dialogue:
            window.append(Turn(speaker_of(row.turn.speaker, mode), row.turn.text))
            yield window
