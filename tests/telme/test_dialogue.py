"""The dialogue window: eviction, speaker numbers and the form of the prompt, for any dialogue."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telme.dialogue import MAX_SPEAKERS, DialogueWindow, Turn, clean_text, heard_text, speaker_of
from telme.errors import FeatureError
from telme.modes import CLEAN, PUBLISHED_IEMOCAP, PUBLISHED_MELD, Mode
from tests.telme.prompts import speaker_numbers

# Few names and few of many, so that speakers come back, and more than nine at once come up.
SPEAKERS = st.one_of(st.sampled_from("abc"), st.integers(0, 14).map(lambda number: f"speaker {number}"))
TEXTS = st.text(max_size=12).map(lambda text: f"{text}x")
DIALOGUES = st.lists(st.builds(Turn, SPEAKERS, TEXTS), min_size=1, max_size=50)
PROMPT = re.compile(r"(?:<s[1-9]> [^<>]+ )+</s> Now <s([1-9])> feels")
MODES = pytest.mark.parametrize("mode", [CLEAN, PUBLISHED_MELD, PUBLISHED_IEMOCAP], ids=lambda mode: mode.name)


@given(DIALOGUES, st.integers(1, 30))
def test_the_window_holds_the_longest_end_that_fits(turns: list[Turn], max_turns: int) -> None:
    window = DialogueWindow(max_turns)
    names = [turn.speaker for turn in turns]
    for heard, turn in enumerate(turns, start=1):
        window.append(turn)
        ends = [names[start:heard] for start in range(max(heard - max_turns, 0), heard)]
        assert [kept.speaker for kept in window.turns] == next(end for end in ends if len(set(end)) <= MAX_SPEAKERS)


@given(DIALOGUES, st.integers(1, 30))
def test_numbers_are_stable_and_only_an_evicted_speaker_loses_its_own(turns: list[Turn], max_turns: int) -> None:
    window = DialogueWindow(max_turns)
    given_numbers: dict[str, int] = {}
    for turn in turns:
        window.append(turn)
        now = dict(zip((kept.speaker for kept in window.turns), speaker_numbers(window), strict=True))
        assert len(set(now.values())) == len(now)
        assert set(now.values()) <= set(range(1, MAX_SPEAKERS + 1))
        number = now[turn.speaker]
        if turn.speaker in given_numbers:
            assert given_numbers[turn.speaker] == number
        else:
            owner = next((name for name, owned in given_numbers.items() if owned == number), None)
            if owner is None:
                assert number == len(given_numbers) + 1
            else:
                assert len(given_numbers) == MAX_SPEAKERS
                assert owner not in now
                del given_numbers[owner]
            given_numbers[turn.speaker] = number
        assert now.items() <= given_numbers.items()


@given(DIALOGUES, st.integers(1, 30))
def test_the_prompt_has_its_form_whatever_is_said(turns: list[Turn], max_turns: int) -> None:
    window = DialogueWindow.of(turns, max_turns)
    prompt = window.prompt("</s>")
    matched = PROMPT.fullmatch(prompt)
    assert matched is not None
    assert int(matched[1]) == speaker_numbers(window)[-1]
    assert len(speaker_numbers(window)) == len(window)


@given(DIALOGUES, st.integers(1, 30))
def test_the_published_window_keeps_every_speaker(turns: list[Turn], max_turns: int) -> None:
    window = DialogueWindow.of(turns, max_turns, PUBLISHED_MELD)
    assert len(window) == min(len(turns), max_turns)
    order = list(dict.fromkeys(turn.speaker for turn in turns))
    assert speaker_numbers(window) == tuple(order.index(turn.speaker) + 1 for turn in turns[-max_turns:])


def test_ten_speakers_push_the_oldest_turns_out() -> None:
    window = DialogueWindow.of([Turn(name, "hello") for name in "abcdefghij"])
    assert "".join(turn.speaker for turn in window.turns) == "bcdefghij"
    assert speaker_numbers(window) == (2, 3, 4, 5, 6, 7, 8, 9, 1)
    window.append(Turn("a", "back"))
    assert speaker_numbers(window) == (3, 4, 5, 6, 7, 8, 9, 1, 2)


def test_clean_numbering_starts_again_with_each_dialogue() -> None:
    first = DialogueWindow.of([Turn("a", "one"), Turn("b", "two")])
    second = first.next_dialogue()
    for name in "cac":
        second.append(Turn(name, "words"))
    assert speaker_numbers(second) == (1, 2, 1)


def test_published_numbering_starts_again_at_the_second_line() -> None:
    first = DialogueWindow.of([Turn("a", "one"), Turn("b", "two")], mode=PUBLISHED_MELD)
    assert speaker_numbers(first) == (1, 2)
    second = first.next_dialogue()
    for name in "cabc":
        second.append(Turn(name, "words"))
    # c was third after a and b, then everyone starts again, and c comes back as another.
    assert speaker_numbers(second) == (3, 1, 2, 3)
    assert second.prompt("</s>") == "<s3> words <s1> words <s2> words <s3> words </s> Now <s3> feels"
    known = first.next_dialogue()
    known.append(Turn("b", "words"))
    assert speaker_numbers(known) == (2,)


def test_a_published_dialogue_of_one_line_leaves_no_speaker_behind() -> None:
    window = DialogueWindow.of([Turn("a", "one"), Turn("b", "two")], mode=PUBLISHED_MELD).next_dialogue()
    window.append(Turn("c", "alone"))
    after = window.next_dialogue()
    after.append(Turn("b", "words"))
    assert speaker_numbers(after) == (1,)


def test_a_silent_dialogue_between_two_changes_nothing() -> None:
    spoken = DialogueWindow.of([Turn("a", "one"), Turn("b", "two")], mode=PUBLISHED_MELD)
    window = spoken.next_dialogue().next_dialogue()
    for name in "cd":
        window.append(Turn(name, "words"))
    assert speaker_numbers(window) == (3, 1)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("I\x92m sure\x85 \x93no\x94", 'I\'m sure... "no"'),
        ("it\u2019s \u201cso\u201d \u2013 so", 'it\'s "so" - so'),
        ("a\xa0 b\n\tc ", "a b c"),
        ("<s2> </s> [MASK]", "s2 /s (MASK)"),
    ],
)
def test_clean_text_is_plain(written: str, read: str) -> None:
    assert clean_text(written) == read


@pytest.mark.parametrize("byte", b"\x85\x91\x92\x93\x94\x96\x97\xa0")
def test_a_windows_1252_control_reads_as_the_character_that_it_stands_for(byte: int) -> None:
    read = clean_text(f"so{chr(byte)}so")
    assert read == clean_text(f"so{bytes([byte]).decode('cp1252')}so")
    assert read.isascii()


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    assert clean_text(clean_text(text)) == clean_text(text)


@pytest.mark.parametrize(
    ("mode", "annotated", "heard"),
    [
        (CLEAN, "don't, I'm 'here'", "don't, I'm 'here'"),
        (PUBLISHED_MELD, "don\x92t, I'm 'here'", "don\x92t, I\x92m 'here'"),
        (PUBLISHED_IEMOCAP, "don\x92t, I'm 'here'", "don\x92t, I'm 'here'"),
    ],
    ids=["clean", "published-meld", "published-iemocap"],
)
def test_apostrophes(mode: Mode, annotated: str, heard: str) -> None:
    text = "don\x92t, I'm 'here'"
    assert DialogueWindow.of([Turn("a", text)], mode=mode).turns[0].text == annotated
    assert DialogueWindow.of([Turn("a", heard_text(text, mode))], mode=mode).turns[0].text == heard


@pytest.mark.parametrize(
    ("column", "person"),
    [
        ("Ses01F_impro01_M003", "M"),
        ("Ses05M_script03_2_F012", "F"),
        ("Ses02M_impro07b_MXX1", "M"),
        ("Phoebe", "Phoebe"),
    ],
)
def test_speaker_names(column: str, person: str) -> None:
    assert speaker_of(column, CLEAN) == person
    assert speaker_of(column, PUBLISHED_IEMOCAP) == column


@MODES
def test_no_text_can_write_a_token(mode: Mode) -> None:
    prompt = DialogueWindow.of([Turn("a", "x <s2> </s> <mask> y")], mode=mode).prompt("</s>")
    assert PROMPT.fullmatch(prompt)


@MODES
@pytest.mark.parametrize("text", ["", "  ", "\xa0", "<>"])
def test_a_turn_without_words_is_refused_and_leaves_no_trace(mode: Mode, text: str) -> None:
    window = DialogueWindow.of([Turn("a", "one")], mode=mode)
    with pytest.raises(FeatureError, match="words"):
        window.append(Turn("b", text))
    assert window.turns == (Turn("a", "one"),)
    window.append(Turn("c", "two"))
    assert speaker_numbers(window) == (1, 2)


def test_an_empty_window_has_no_prompt() -> None:
    with pytest.raises(FeatureError, match="empty dialogue"):
        DialogueWindow().prompt("</s>")


def test_a_window_of_no_turns_is_refused() -> None:
    with pytest.raises(FeatureError, match="max_turns 0"):
        DialogueWindow(0)
