"""Reading annotations: what is right, and what each broken file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from telme.data import read_rows, windows
from telme.dialogue import Turn
from telme.errors import DataError

HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_and_causal_windows(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEADER
        + '1,"Hello, you.",Ann,joy,positive,0,0\n'
        + "2,What?,Ben,surprise,negative,0,1\n"
        + "3,Go\x92s,Ann,anger,negative,7,0\n",
    )
    rows = read_rows(path)
    assert [row.label for row in rows] == [3, 6, 0]
    assert rows[0].turn == Turn("Ann", "Hello, you.")
    heard = [(len(window), window.prompt("</s>")) for window in windows(rows, max_turns=24)]
    assert heard == [
        (1, "<s1> Hello, you. </s> Now <s1> feels"),
        (2, "<s1> Hello, you. <s2> What? </s> Now <s2> feels"),
        (1, "<s1> Go's </s> Now <s1> feels"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Utterance,Speaker\nHello,Ann\n", "without column Dialogue_ID, Emotion"),
        (HEADER, "no rows"),
        (HEADER + "1,Hello,Ann,bliss,positive,0,0\n", "line 2 with label 'bliss'"),
        (HEADER + "1,Hello\n", "line 2"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_rows(write(tmp_path, text))


def test_a_missing_file_and_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        read_rows(tmp_path / "none.csv")
    path = tmp_path / "latin.csv"
    path.write_bytes(HEADER.encode() + b"1,caf\xe9,Ann,joy,positive,0,0\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_rows(path)
