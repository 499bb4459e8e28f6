"""Offline evaluation: weighted F1 as the paper reports it, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from telme.labels import LabelSet


@dataclass(frozen=True)
class Report:
    """Scores of one run.

    Attributes:
        weighted_f1: Mean of the classes' F1 weighted by their support, in percent.
        per_class: F1 of each class in percent.
        calibration_error: Expected calibration error over 15 bins of equal width, 0..1.
        n: Utterances scored.
    """

    weighted_f1: float
    per_class: dict[str, float]
    calibration_error: float
    n: int


def score(probabilities: NDArray[np.float64], truth: Sequence[int], labels: LabelSet) -> Report:
    """Score probabilities [N, C] against N class indices."""
    answer = probabilities.argmax(1)
    classes = list(range(len(labels.names)))
    per_class = f1_score(truth, answer, labels=classes, average=None, zero_division=0.0)
    return Report(
        weighted_f1=100 * float(f1_score(truth, answer, labels=classes, average="weighted", zero_division=0.0)),
        per_class={name: 100 * float(value) for name, value in zip(labels.names, per_class, strict=True)},
        calibration_error=expected_calibration_error(probabilities, truth),
        n=len(truth),
    )


def expected_calibration_error(probabilities: NDArray[np.float64], truth: Sequence[int], bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over bins of equal width (Guo et al. 2017, eq. 3)."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == np.asarray(truth)
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    total = 0.0
    for bin_index in np.unique(which):
        inside = which == bin_index
        total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(total)
