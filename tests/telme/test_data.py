"""Reading annotations: what is right, and what each broken file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from telme.data import Row, read_rows, windows
from telme.dialogue import Turn
from telme.errors import DataError
from telme.modes import CLEAN, PUBLISHED_IEMOCAP, PUBLISHED_MELD, Mode

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


def test_a_published_mode_numbers_over_the_border_of_dialogues(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEADER
        + "1,Hello,Ann,joy,positive,0,0\n"
        + "2,It\x92s me,Ben,joy,positive,0,1\n"
        + "3,Go,Cleo,anger,negative,7,0\n"
        + "4,No,Cleo,anger,negative,7,1\n",
    )
    assert [window.prompt("</s>") for window in windows(read_rows(path), 24, PUBLISHED_MELD)] == [
        "<s1> Hello </s> Now <s1> feels",
        "<s1> Hello <s2> It\x92s me </s> Now <s2> feels",
        "<s3> Go </s> Now <s3> feels",
        "<s3> Go <s1> No </s> Now <s1> feels",
    ]


@pytest.mark.parametrize(("mode", "numbers"), [(CLEAN, (1, 2, 1)), (PUBLISHED_IEMOCAP, (1, 2, 3))])
def test_speakers_of_iemocap_are_named_as_the_mode_names_them(mode: Mode, numbers: tuple[int, ...]) -> None:
    names = ("Ses01F_impro01_F000", "Ses01F_impro01_M000", "Ses01F_impro01_F001")
    *_, last = windows([Row("Ses01F_impro01", Turn(name, "Yes."), 0) for name in names], 24, mode)
    assert last.speaker_numbers == numbers


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
