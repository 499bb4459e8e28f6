"""Reading annotations: what is right, and what each broken file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from telme.data import Row, find_clip, read_rows, read_split, windows
from telme.datasets import DATASETS, IEMOCAP_DATA, MELD_DATA, Split
from telme.dialogue import Turn
from telme.errors import DataError
from telme.features import Missing
from telme.modes import CLEAN, PUBLISHED_IEMOCAP, PUBLISHED_MELD, Mode
from tests.miniature import make_iemocap, make_meld
from tests.telme.prompts import MELD_DEV, MELD_DIR, NO_MELD, speaker_numbers

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
    assert speaker_numbers(last) == numbers


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Utterance,Speaker\nHello,Ann\n", "without column Dialogue_ID, Emotion, Utterance_ID"),
        (HEADER, "no rows"),
        (HEADER + "1,Hello,Ann,bliss,positive,0,0\n", "line 2 with label 'bliss'"),
        (HEADER + "1, ,Ann,joy,positive,0,0\n", "line 2 without words in Utterance"),
        (HEADER + "1,Hello\n", "line 2 ends before Dialogue_ID, Speaker, Emotion, Utterance_ID"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_rows(write(tmp_path, text))


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ([(0, 0), (0, 1), (7, 0), (0, 2)], "line 5 .* 2 of dialogue 0, whose row before, in line 3, is utterance 1"),
        ([(0, 0), (7, 0), (0, 0)], "line 4 .* 0 of dialogue 0, whose row before, in line 2, is utterance 0"),
        ([(0, 1), (0, 10), (0, 2)], "line 4 .* 2 of dialogue 0, whose row before, in line 3, is utterance 10"),
        ([(0, 1), (0, 1)], "line 3 .* 1 of dialogue 0, whose row before, in line 2, is utterance 1"),
    ],
)
def test_rows_of_a_dialogue_that_lie_apart_or_in_another_order_are_refused(
    tmp_path: Path, places: list[tuple[int, int]], says: str
) -> None:
    """Apart they would be read without their context, and out of order with a later utterance in it."""
    lines = [f"1,Hello,Ann,joy,positive,{dialogue},{utterance}\n" for dialogue, utterance in places]
    with pytest.raises(DataError, match=rf"rows\.csv {says}; .*sort the file by Dialogue_ID and Utterance_ID"):
        read_rows(write(tmp_path, HEADER + "".join(lines)))


def test_dialogues_in_any_order_and_with_gaps_are_read(tmp_path: Path) -> None:
    places = [("7", "3"), ("7", "12"), ("0", "0")]
    lines = [f"1,Hello,Ann,joy,positive,{dialogue},{utterance}\n" for dialogue, utterance in places]
    rows = read_rows(write(tmp_path, HEADER + "".join(lines)))
    assert [(row.dialogue, row.utterance) for row in rows] == places


@pytest.mark.skipif(not MELD_DEV.is_file(), reason=NO_MELD)
@pytest.mark.parametrize(("split", "count"), [("train", 9_989), ("dev", 1_109)])
def test_melds_own_files_have_each_dialogue_in_one_piece(split: Split, count: int) -> None:
    assert len(read_split(MELD_DIR, split)) == count


def test_a_missing_file_and_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        read_rows(tmp_path / "none.csv")
    path = tmp_path / "latin.csv"
    path.write_bytes(HEADER.encode() + b"1,caf\xe9,Ann,joy,positive,0,0\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_rows(path)


IEMOCAP_HEADER = "Dialogue_ID,Speaker,Utterance,Emotion,Start_Time,End_Time\n"


def test_iemocap_is_the_same_reader_with_another_description(tmp_path: Path) -> None:
    path = write(tmp_path, IEMOCAP_HEADER + "Ses01F_impro01,Ses01F_impro01_M003,Yes.,fru,1.5,3.25\n")
    assert read_rows(path, IEMOCAP_DATA) == [
        Row(
            "Ses01F_impro01",
            Turn("Ses01F_impro01_M003", "Yes."),
            IEMOCAP_DATA.labels.index("fru"),
            "Ses01F_impro01_M003",
            (1.5, 3.25),
        )
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("d,n,Yes.,joy,1,2\n", "label 'joy'"),
        ("d,n,Yes.,fru,1,one\n", "from '1' to 'one'"),
        ("d,n,Yes.,fru,2,1\n", "from '2' to '1'"),
        ("d,n,Yes.,fru,nan,1\n", "from 'nan' to '1'"),
        ("d,n,Yes.,fru,1\n", "ends before End_Time"),
    ],
)
def test_a_broken_row_of_iemocap_says_what_is_wrong(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(DataError, match=f"line 2.*{says}"):
        read_rows(write(tmp_path, IEMOCAP_HEADER + line), IEMOCAP_DATA)


def test_utterances_of_iemocap_have_no_numbers_but_must_lie_together(tmp_path: Path) -> None:
    names = ("Ses01F_impro01_M003", "Ses01F_impro01_F000", "Ses01F_impro02_F000")
    lines = [f"{name[:14]},{name},Yes.,fru,1.5,3.25\n" for name in names]
    path = write(tmp_path, IEMOCAP_HEADER + "".join(lines))
    assert [row.utterance for row in read_rows(path, IEMOCAP_DATA)] == list(names)
    path = write(tmp_path, IEMOCAP_HEADER + lines[0] + lines[2] + lines[1])
    with pytest.raises(DataError, match=r"line 4 .* whose row before, in line 2, .* by Dialogue_ID and Start_Time"):
        read_rows(path, IEMOCAP_DATA)


def test_a_file_of_the_other_data_set_is_refused_by_its_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without column Start_Time, End_Time; expected the columns of iemocap"):
        read_rows(write(tmp_path, HEADER + "1,Hello,Ann,joy,positive,0,0\n"), IEMOCAP_DATA)


@pytest.mark.parametrize("name", ["train_meld_emo.csv", "train_sent_emo.csv"])
def test_either_name_of_an_annotation_file_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(HEADER + "1,Hello,Ann,joy,positive,0,0\n", encoding="utf-8")
    assert len(read_split(tmp_path, "train")) == 1
    assert MELD_DATA.split_of(tmp_path / name) == "train"
    with pytest.raises(DataError, match=r"no file .*dev_meld_emo\.csv"):
        read_split(tmp_path, "dev")
    with pytest.raises(DataError, match=r"rows\.csv is no annotation file of meld"):
        MELD_DATA.split_of(tmp_path / "rows.csv")


@pytest.mark.parametrize("name", ["meld", "iemocap"])
def test_every_clip_of_the_miniatures_is_found(tmp_path: Path, name: str) -> None:
    {"meld": make_meld, "iemocap": make_iemocap}[name](tmp_path, train=2, dev=1)
    data = DATASETS[name]
    splits: tuple[Split, Split] = ("train", "dev")
    for split in splits:
        for row in read_split(tmp_path, split, data):
            found = find_clip(row, tmp_path, split, data)
            assert not isinstance(found.sound, Missing)
            assert not isinstance(found.pictures, Missing)
            assert found.sound.is_file()
            assert found.pictures.is_file()
            assert (found.span_s is None) == (name == "meld")


def test_the_span_of_the_pictures_is_a_second_wider_and_starts_at_zero_at_the_earliest(tmp_path: Path) -> None:
    row = Row("d", Turn("Ses01F_impro01_F000", "Yes."), 0, "Ses01F_impro01_F000", (0.5, 2.0))
    assert find_clip(row, tmp_path, "train", IEMOCAP_DATA).span_s == (0.0, 3.0)


def test_clips_that_are_missing_named_otherwise_or_known_to_be_bad(tmp_path: Path) -> None:
    folder = tmp_path / "output_repeated_splits_test"
    folder.mkdir()
    (folder / "final_videos_testdia3_utt1.mp4").touch()
    (folder / "dia38_utt4.mp4").touch()
    other, lost, bad = (
        Row(dialogue, Turn("a", "b"), 0, utterance) for dialogue, utterance in (("3", "1"), ("3", "0"), ("38", "4"))
    )
    assert find_clip(other, tmp_path, "test").sound == folder / "final_videos_testdia3_utt1.mp4"
    assert find_clip(lost, tmp_path, "test").sound == Missing("its file is not there")
    miscut = Missing("known to be bad: it is mis-cut and minutes long")
    assert find_clip(bad, tmp_path, "test").pictures == miscut
    assert find_clip(bad, tmp_path, "test", mode=PUBLISHED_MELD).pictures == folder / "dia38_utt4.mp4"
    # Another split may have an utterance of that name.
    assert find_clip(bad, tmp_path, "dev").sound == Missing("its file is not there")


def test_an_utterance_name_that_is_none_has_no_clip(tmp_path: Path) -> None:
    row = Row("d", Turn("ann", "Yes."), 0, "ann", (0.5, 2.0))
    assert isinstance(find_clip(row, tmp_path, "train", IEMOCAP_DATA).sound, Missing)
