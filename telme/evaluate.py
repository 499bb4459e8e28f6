"""Offline evaluation: weighted F1 as the paper reports it, confusions, calibration, and how sure the figures are.

D dialogues, N utterances, C classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from telme.labels import LabelSet

NO_ANSWER = -1
_RESAMPLES = 10_000
_TAILS_PERCENT = (2.5, 97.5)


@dataclass(frozen=True)
class Report:
    """Scores of one run.

    Attributes:
        weighted_f1: Mean of the classes' F1 weighted by their support, in percent.
        per_class: F1 of each class in percent.
        calibration_error: Expected calibration error of the answers over 15 bins of equal width, 0..1.
        n: Utterances scored.
        confusion: [C][C + 1] utterances of a class (row) that were given a class (column); the last column counts those
            that were given no answer.
    """

    weighted_f1: float
    per_class: dict[str, float]
    calibration_error: float
    n: int
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds that 95 % of its bootstrap resamples lie within."""

    value: float
    low: float
    high: float


def score(
    probabilities: NDArray[np.float64], truth: Sequence[int], labels: LabelSet, missed: Sequence[int] = ()
) -> Report:
    """Score answers.

    Args:
        probabilities: [N, C] of the utterances that were answered.
        truth: Their N class indices.
        labels: The classes.
        missed: Class indices of utterances that should have been answered and were not: each counts as a wrong answer
            to its class, and as one of the N of the report.
    """
    answers = [*probabilities.argmax(1), *[NO_ANSWER] * len(missed)]
    true = [*truth, *missed]
    classes = list(range(len(labels.names)))
    per_class = f1_score(true, answers, labels=classes, average=None, zero_division=0.0)
    return Report(
        weighted_f1=100 * float(f1_score(true, answers, labels=classes, average="weighted", zero_division=0.0)),
        per_class={name: 100 * float(value) for name, value in zip(labels.names, per_class, strict=True)},
        calibration_error=expected_calibration_error(probabilities, truth),
        n=len(true),
        confusion=tuple(
            tuple(map(int, row)) for row in confusions([""] * len(true), true, answers, len(classes))[0].tolist()
        ),
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


def confusions(
    dialogues: Sequence[str], truth: Sequence[int], answers: Sequence[int], classes: int
) -> NDArray[np.int64]:
    """The confusion table of each dialogue, [D, C, C + 1], in the order in which dialogues first appear.

    Args:
        dialogues: The dialogue of each of N utterances.
        truth: Their N class indices.
        answers: Their N answers; `NO_ANSWER` where there was none.
        classes: C.
    """
    order = {name: index for index, name in enumerate(dict.fromkeys(dialogues))}
    tables = np.zeros((len(order), classes, classes + 1), np.int64)
    for name, true, answer in zip(dialogues, truth, answers, strict=True):
        tables[order[name], true, answer] += 1  # NO_ANSWER is the last column
    return tables


def weighted_f1(tables: NDArray[Any]) -> NDArray[np.float64]:
    """Weighted F1 in percent of confusion tables [..., C, C + 1]; 0 for a table without utterances."""
    right = np.diagonal(tables, axis1=-2, axis2=-1)  # [..., C]
    support = tables.sum(-1)
    given = tables[..., :-1].sum(-2)
    f1 = 2 * right / np.maximum(support + given, 1)
    total: NDArray[np.float64] = 100 * (f1 * support).sum(-1) / np.maximum(support.sum(-1), 1)
    return total


def bootstrap(tables: NDArray[np.int64], seed: int = 0) -> Interval:
    """Weighted F1 of a run with its interval.

    Dialogues are drawn, not utterances: those of one dialogue share their context and are not independent.

    Args:
        tables: [D, C, C + 1] of its dialogues.
        seed: Of the resampling.
    """
    return _interval(weighted_f1(tables.sum(0)), weighted_f1(_resampled(tables, seed)))


def paired_bootstrap(tables: NDArray[np.int64], others: NDArray[np.int64], seed: int = 0) -> Interval:
    """Weighted F1 of one run minus that of another on the same utterances, with its interval.

    Args:
        tables: [D, C, C + 1] of the one.
        others: [D, C, C + 1] of the other, its dialogues in the same order.
        seed: Of the resampling; both runs get the same dialogues.
    """
    return _interval(
        weighted_f1(tables.sum(0)) - weighted_f1(others.sum(0)),
        weighted_f1(_resampled(tables, seed)) - weighted_f1(_resampled(others, seed)),
    )


def _resampled(tables: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Tables of R draws of D dialogues with replacement: [R, C, C + 1]."""
    count = len(tables)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), _RESAMPLES)  # [R, D]
    # As floats, which hold such counts exactly and are multiplied much faster.
    summed: NDArray[np.float64] = drawn.astype(float) @ tables.reshape(count, -1).astype(float)
    return summed.reshape(-1, *tables.shape[1:])


def _interval(value: NDArray[np.float64], resampled: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(resampled, _TAILS_PERCENT)
    return Interval(float(value), float(low), float(high))
