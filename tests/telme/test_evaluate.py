"""Scores against figures worked out by hand and against scikit-learn, and what a bootstrap must hold to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from telme.evaluate import (
    NO_ANSWER,
    bootstrap,
    confusions,
    expected_calibration_error,
    paired_bootstrap,
    score,
    weighted_f1,
)
from telme.labels import MELD

CLASSES = len(MELD.names)
# dialogue, truth, answer, another answer
UTTERANCES = st.lists(
    st.tuples(st.sampled_from("abcde"), st.integers(0, 6), st.integers(NO_ANSWER, 6), st.integers(NO_ANSWER, 6)),
    min_size=1,
    max_size=60,
)
Utterances = list[tuple[str, int, int, int]]


def tables(utterances: Utterances, column: int) -> NDArray[np.int64]:
    dialogues, truth, answers = ([item[place] for item in utterances] for place in (0, 1, column))
    return confusions(dialogues, truth, answers, CLASSES)  # type: ignore[arg-type]


def sklearn_f1(utterances: Utterances, column: int) -> float:
    truth, answers = ([item[place] for item in utterances] for place in (1, column))
    classes = list(range(CLASSES))
    return 100 * float(f1_score(truth, answers, labels=classes, average="weighted", zero_division=0.0))


def test_weighted_f1_weighs_classes_by_support() -> None:
    truth = [4, 4, 4, 3]
    answers = [4, 4, 3, 3]
    probabilities = np.eye(7)[answers]
    report = score(probabilities, truth, MELD)
    # neutral: precision 1, recall 2/3 -> F1 0.8; joy: precision 1/2, recall 1 -> F1 2/3
    assert report.per_class["neutral"] == pytest.approx(80)
    assert report.per_class["joy"] == pytest.approx(200 / 3)
    assert report.weighted_f1 == pytest.approx(0.75 * 80 + 0.25 * 200 / 3)
    assert report.per_class["fear"] == 0
    assert report.n == 4
    assert report.confusion[4] == (0, 0, 0, 1, 2, 0, 0, 0)
    assert report.confusion[3] == (0, 0, 0, 1, 0, 0, 0, 0)


def test_what_got_no_answer_is_wrong() -> None:
    report = score(np.eye(7)[[4, 4]], [4, 4], MELD, missed=[4, 3])
    # neutral: precision 1, recall 2/3; joy: recall 0
    assert report.weighted_f1 == pytest.approx(0.75 * 80)
    assert report.n == 4
    assert report.confusion[4] == (0, 0, 0, 0, 2, 0, 0, 1)
    assert report.calibration_error == 0


@given(UTTERANCES)
def test_weighted_f1_is_that_of_scikit_learn(utterances: Utterances) -> None:
    assert weighted_f1(tables(utterances, 2).sum(0)) == pytest.approx(sklearn_f1(utterances, 2))


def test_calibration_error_is_the_gap_of_confidence_and_accuracy() -> None:
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2]])
    assert expected_calibration_error(probabilities, [0, 0, 1, 1]) == pytest.approx(0.3)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), [0]) == 0


def test_calibration_error_is_of_fifteen_bins_each_by_its_share() -> None:
    """1 and 0.95 are in the last bin, half of them right; 0.93 in the one before, and 0.6 twice in the tenth."""
    confidence = np.array([1.0, 0.95, 0.93, 0.6, 0.6])
    probabilities = np.stack([confidence, 1 - confidence], 1)
    expected = 0.4 * abs(0.5 - 0.975) + 0.2 * (1 - 0.93) + 0.4 * (1 - 0.6)
    assert expected_calibration_error(probabilities, [1, 0, 0, 0, 0]) == pytest.approx(expected)


@settings(max_examples=30)
@given(UTTERANCES, st.integers(0, 2**32 - 1))
def test_an_interval_is_ordered_bounded_and_the_same_every_time(utterances: Utterances, seed: int) -> None:
    found = bootstrap(tables(utterances, 2), seed)
    assert 0 <= found.low <= found.high <= 100
    assert found.value == pytest.approx(sklearn_f1(utterances, 2))
    assert found == bootstrap(tables(utterances, 2), seed)


@settings(max_examples=30)
@given(UTTERANCES)
def test_a_difference_turns_its_sign_with_the_runs_and_is_none_of_a_run_with_itself(utterances: Utterances) -> None:
    one, other = tables(utterances, 2), tables(utterances, 3)
    forth, back = paired_bootstrap(one, other), paired_bootstrap(other, one)
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-9)
    itself = paired_bootstrap(one, one)
    assert (itself.value, itself.low, itself.high) == (0, 0, 0)


def test_a_single_dialogue_leaves_nothing_to_draw() -> None:
    found = bootstrap(confusions(["a", "a"], [4, 3], [4, 4], CLASSES))
    assert found.low == found.value == found.high


def test_the_interval_is_that_of_drawing_dialogues_with_their_utterances() -> None:
    chance = np.random.default_rng(3)
    rows: Any = [(str(number // 5), int(chance.integers(7)), int(chance.integers(7)), 0) for number in range(200)]
    by_dialogue: dict[str, Utterances] = {}
    for row in rows:
        by_dialogue.setdefault(row[0], []).append(row)
    drawn = [
        sklearn_f1([row for name in chance.choice(list(by_dialogue), len(by_dialogue)) for row in by_dialogue[name]], 2)
        for _ in range(1000)
    ]
    found = bootstrap(tables(rows, 2))
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=1.0)
