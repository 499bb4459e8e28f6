"""The scorer: what each kind of error counts as, and that nothing is counted twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.scoring import Heard, Score, Turn, belongs, count_mislabelled, groups, plain, score

S = 16_000
MS = 16
HELLO = Turn("Anna", "Hello, how are you?", 1 * S, 2 * S)
FINE = Turn("Ben", "I'm fine.", 3 * S, 4 * S)


def heard(start: int, end: int, text: str = "", **more: object) -> Heard:
    return Heard(**{"start": start, "end": end, "cut_start": start - 300 * MS, "text": text, "speaker": "x"} | more)  # type: ignore[arg-type]


def test_a_perfect_run_has_no_error() -> None:
    found = score(
        [HELLO, FINE], [heard(1 * S, 2 * S, "hello how are you"), heard(3 * S, 4 * S, "I'm fine!", speaker="y")]
    )
    figures = found.figures()
    assert figures["turns"] == figures["utterances"] == 2
    for name in ("missed", "invented", "cut_in_two", "merged", "first_words_lost", "wer", "end_error_p95_ms"):
        assert figures[name] == 0, name


def test_boundaries_are_signed_and_late_is_positive() -> None:
    found = score([HELLO], [heard(HELLO.start - 30 * MS, HELLO.end + 110 * MS)])
    assert found.start_errors_ms == [-30]
    assert found.end_errors_ms == [110]
    figures = found.figures()
    assert (figures["start_error_p50_ms"], figures["start_offset_median_ms"]) == (30, -30)


def test_a_turn_is_missed_when_nothing_is_heard_or_all_of_it_is_rejected() -> None:
    silent = score([HELLO], [])
    assert (silent.missed, silent.missed_by_gates) == (1, 0)
    rejected = score([HELLO], [heard(1 * S, 2 * S, rejected="too quiet")])
    assert (rejected.missed, rejected.missed_by_gates, rejected.utterances) == (1, 1, 0)
    assert rejected.word_errors == rejected.words == 4
    assert rejected.first_words_unwritten == 0


def test_an_utterance_where_nobody_speaks_is_invented_unless_it_is_rejected() -> None:
    noise = heard(5 * S, 6 * S, "thank you")
    found = score([HELLO], [heard(1 * S, 2 * S, "hello how are you"), noise])
    assert (found.invented, found.word_errors, found.words) == (1, 2, 4)
    assert score([], [heard(5 * S, 6 * S, rejected="no speech")]).invented == 0


def test_what_is_marked_as_unsure_is_counted_and_is_no_miss() -> None:
    doubtful = replace(heard(1 * S, 2 * S, "yellow"), certain=False)
    found = score([HELLO, FINE], [doubtful, heard(3 * S, 4 * S, "I'm fine!")])
    assert (found.utterances, found.unsure, found.missed, found.word_errors) == (2, 1, 0, 4)
    assert score([HELLO], [replace(doubtful, rejected="no speech")]).unsure == 0


def test_a_turn_in_two_utterances_is_cut_and_its_outer_ends_count() -> None:
    found = score([HELLO], [heard(1 * S, 1 * S + 8_000, "hello"), heard(1 * S + 9_000, 2 * S, "how are you")])
    assert (found.cut_in_two, found.missed, found.invented, found.word_errors) == (1, 0, 0, 0)
    assert found.start_errors_ms == found.end_errors_ms == [0]


def test_two_turns_in_one_utterance_are_merged() -> None:
    found = score([HELLO, FINE], [heard(1 * S, 4 * S, "hello how are you I'm fine")])
    assert (found.merged, found.missed, found.word_errors) == (2, 0, 0)
    assert found.end_errors_ms == []


def test_a_brush_with_the_next_turn_does_not_join_them() -> None:
    found = score([HELLO, FINE], [heard(1 * S, 3 * S + 90 * MS), heard(3 * S + 95 * MS, 4 * S)])
    assert (found.merged, found.missed) == (0, 0)


def test_a_turn_and_an_utterance_belong_together_from_100_ms_on_or_half_of_the_shorter() -> None:
    assert belongs(HELLO, heard(HELLO.end - 100 * MS, HELLO.end + 1 * S))
    assert not belongs(HELLO, heard(HELLO.end - 100 * MS + 1, HELLO.end + 1 * S))
    word = Turn("Ben", "No.", 3 * S, 3 * S + 80 * MS)
    assert belongs(word, heard(3 * S + 40 * MS, 4 * S))
    assert not belongs(word, heard(3 * S + 40 * MS + 1, 4 * S))


def test_a_turn_whose_other_half_is_rejected_is_cut_in_two_all_the_same() -> None:
    half = 1 * S + 8_000
    found = score([HELLO], [heard(1 * S, half, "hello"), heard(half, 2 * S, rejected="too unsure")])
    assert (found.cut_in_two, found.missed, found.utterances) == (1, 0, 1)
    assert found.end_errors_ms == [0]


def test_an_utterance_of_two_turns_counts_for_the_voice_it_shares_most_with() -> None:
    turns, utterances = [], []
    for start in range(0, 40 * S, 10 * S):
        turns += [Turn("Anna", None, start, start + 200 * MS), Turn("Ben", None, start + 1 * S, start + 3 * S)]
        utterances.append(heard(start, start + 3 * S, speaker="ben"))
    turns += [Turn("Anna", None, start, start + 1 * S) for start in range(40 * S, 80 * S, 10 * S)]
    utterances += [heard(start, start + 1 * S, speaker="anna") for start in range(40 * S, 80 * S, 10 * S)]
    found = score(turns, utterances)
    assert (found.merged, found.labelled, found.mislabelled) == (8, 4, 0)


def test_the_first_word_is_lost_when_the_cut_begins_after_the_voice() -> None:
    late = heard(1 * S + 200 * MS, 2 * S, "how are you", cut_start=1 * S + 100 * MS)
    assert score([HELLO], [late]).first_words_lost == 1
    in_time = heard(1 * S + 200 * MS, 2 * S, "how are you", cut_start=1 * S + 10 * MS)
    found = score([HELLO], [in_time])
    assert (found.first_words_lost, found.first_words_unwritten) == (0, 1)


def test_one_frame_of_the_first_word_may_be_missing() -> None:
    lost = [score([HELLO], [heard(1 * S, 2 * S, cut_start=1 * S + late)]).first_words_lost for late in (480, 481)]
    assert lost == [0, 1]


def test_the_delay_is_from_the_true_end_to_the_last_transcript() -> None:
    parts = [heard(1 * S, 1 * S + 8_000, ready=2 * S), heard(1 * S + 9_000, 2 * S + 100 * MS, ready=2 * S + 650 * MS)]
    assert score([HELLO], parts).delays_ms == [650]


def test_words_nobody_wrote_down_are_not_counted() -> None:
    found = score([Turn("Anna", None, 1 * S, 2 * S)], [heard(1 * S, 2 * S, "anything")])
    assert (found.words, found.word_errors, found.figures()["wer"]) == (0, 0, None)


def test_labels_are_mapped_as_is_best_and_the_first_two_turns_do_not_count() -> None:
    labels = [("a", "1"), ("b", "1"), ("a", "1"), ("b", "2"), ("a", "1"), ("b", "2"), ("b", "1"), ("a", "3")]
    assert count_mislabelled(labels) == (4, 2)
    assert count_mislabelled([]) == (0, 0)
    assert count_mislabelled([("a", "1")] * 3 + [("b", "1")] * 3) == (2, 1)  # one label stands for one voice only


def test_scores_add_up() -> None:
    first, second = score([HELLO], [heard(1 * S, 2 * S)]), score([FINE], [])
    total = Score()
    total.add(first)
    total.add(second)
    assert (total.turns, total.missed, total.start_errors_ms) == (2, 1, [0])


def test_words_left_out_put_in_and_taken_for_others_are_errors_alike() -> None:
    for text in ("hello how are", "hello how are you now", "hello how were you"):
        assert score([HELLO], [heard(1 * S, 2 * S, text)]).word_errors == 1


def test_what_hangs_together_through_others_is_one_group() -> None:
    """Two turns, two utterances: each is joined to the group by another member than the first."""
    first, second = heard(1 * S, 1 * S + 8_000), heard(1 * S + 8_000, 3 * S + 8_000)
    last = heard(3 * S + 8_000, 4 * S)
    assert list(groups([HELLO, FINE], [first, second, last])) == [([HELLO, FINE], [first, second, last])]


def test_plain_text_keeps_words_alone() -> None:
    assert plain("Oh\u2014my God, it\u2019s 3 o'clock!") == "oh my god it's 3 o'clock"


def between(edges: list[int]) -> list[tuple[int, int]]:
    """Spans that do not overlap."""
    return list(zip(edges[::2], edges[1::2], strict=False))


edges = st.lists(st.integers(0, 20 * S), unique=True, max_size=16).map(sorted).map(between)


@given(edges, edges)
def test_every_turn_and_utterance_is_in_one_group(said: list[tuple[int, int]], found: list[tuple[int, int]]) -> None:
    turns = [Turn("a", None, start, end) for start, end in said]
    utterances = [heard(start, end) for start, end in found]
    grouped = list(groups(turns, utterances))
    assert sorted(turn.start for group in grouped for turn in group[0]) == [turn.start for turn in turns]
    assert sorted(one.start for group in grouped for one in group[1]) == [one.start for one in utterances]


@given(edges, st.integers(-90, 90))
def test_a_shifted_copy_has_that_shift_as_its_error(said: list[tuple[int, int]], shift_ms: int) -> None:
    turns = [Turn("a", None, start, end) for start, end in said if end - start > 300 * MS]
    found = score(turns, [heard(turn.start + shift_ms * MS, turn.end + shift_ms * MS) for turn in turns])
    if found.merged == 0:
        assert (found.missed, found.invented, found.cut_in_two) == (0, 0, 0)
        assert np.allclose(found.start_errors_ms, shift_ms)
        assert np.allclose(found.end_errors_ms, shift_ms)


@given(edges, edges, st.data())
def test_missed_and_invented_never_exceed_what_there_is(
    said: list[tuple[int, int]], found: list[tuple[int, int]], data: st.DataObject
) -> None:
    turns = [Turn("a", "word", start, end) for start, end in said]
    utterances = [
        heard(start, end, "word", rejected=data.draw(st.sampled_from([None, "noise"]))) for start, end in found
    ]
    total = score(turns, utterances)
    assert total.missed + total.cut_in_two <= total.turns
    assert total.invented <= total.utterances
    assert total.missed_by_gates <= total.missed
    assert len(total.start_errors_ms) + total.missed + total.merged >= total.turns
