"""Answers by weighted F1: what the offsets gain, and where there is nothing to gain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from telme.decision import expected_weighted_f1, offsets_for_f1

FREQUENCIES = np.array([0.1, 0.02, 0.03, 0.2, 0.47, 0.06, 0.12])


def posteriors(count: int, seed: int, sharpness: float = 1.0) -> NDArray[np.float64]:
    """Probabilities as a network gives them: mostly the frequent classes, some surer than others."""
    logits = np.log(FREQUENCIES) + sharpness * np.random.default_rng(seed).normal(size=(count, len(FREQUENCIES)))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return shares


def test_what_is_found_on_some_utterances_is_better_on_others() -> None:
    offsets = offsets_for_f1(posteriors(1000, seed=1))
    probabilities = posteriors(50_000, seed=2)
    drawn = np.random.default_rng(3).random((len(probabilities), 1))
    truth = (probabilities.cumsum(1) < drawn).sum(1)

    def weighted(given: NDArray[np.float64]) -> float:
        return float(f1_score(truth, (np.log(probabilities) + given).argmax(1), average="weighted"))

    assert weighted(offsets) > weighted(np.zeros(7)) + 0.01
    # No share of the frequencies does as well.
    assert weighted(offsets) > max(weighted(-share * np.log(FREQUENCIES)) for share in np.linspace(0, 1, 11))
    assert weighted(offsets) == pytest.approx(expected_weighted_f1(probabilities, offsets), abs=0.01)
    assert offsets.mean() == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 1000), st.integers(1, 40), st.floats(0.1, 30))
def test_it_is_never_worse_than_the_likeliest_class(seed: int, count: int, sharpness: float) -> None:
    probabilities = np.maximum(posteriors(count, seed, sharpness), 1e-300)
    offsets = offsets_for_f1(probabilities)
    assert np.isfinite(offsets).all()
    assert expected_weighted_f1(probabilities, offsets) >= expected_weighted_f1(probabilities, np.zeros(7)) - 1e-9


def test_who_is_sure_answers_as_before() -> None:
    probabilities = np.full((70, 7), 1e-9) + np.repeat(np.eye(7), 10, axis=0)
    offsets = offsets_for_f1(probabilities / probabilities.sum(1, keepdims=True))
    assert np.array_equal((np.log(probabilities) + offsets).argmax(1), probabilities.argmax(1))


def test_a_class_that_is_never_said_is_no_number_less() -> None:
    probabilities = posteriors(200, seed=4)
    probabilities[:, 1] = 0.0
    assert np.isfinite(offsets_for_f1(probabilities / probabilities.sum(1, keepdims=True))).all()
