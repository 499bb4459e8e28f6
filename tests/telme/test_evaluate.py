"""Scores against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from telme.evaluate import expected_calibration_error, score
from telme.labels import MELD


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


def test_calibration_error_is_the_gap_of_confidence_and_accuracy() -> None:
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2]])
    assert expected_calibration_error(probabilities, [0, 0, 1, 1]) == pytest.approx(0.3)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), [0]) == 0
