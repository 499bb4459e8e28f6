"""Which class to answer with, where answers count by weighted F1.

The most probable class is the best answer where each answer counts alike. F1 gives more for a right answer of a class
that is rarely answered with, so that the best rule prefers a rare class to a common one that is somewhat more probable
(Lipton et al. 2014; Narasimhan et al. 2015, section 3). What is fitted here needs no labels, but probabilities that
mean what they say.

N utterances, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Sizes of the steps in nats, from large to small; answers change little by less.
_STEPS = (0.5, 0.25, 0.12, 0.06, 0.03)
# Shares of the logarithm of the classes' frequencies that the search starts without: the maximum is not the only one.
_STARTS = (0.0, 0.2, 0.4, 0.6)


def expected_weighted_f1(probabilities: NDArray[np.float64], offsets: NDArray[np.float64]) -> float:
    """Weighted F1, 0..1, of answers where an utterance is of each class as often as its probabilities say.

    Args:
        probabilities: [N, C], above 0.
        offsets: [C] added to their logarithms before the largest is taken.
    """
    answers = np.eye(len(offsets))[(np.log(probabilities) + offsets).argmax(1)]  # [N, C]
    right, support, given = (answers * probabilities).sum(0), probabilities.sum(0), answers.sum(0)
    f1 = 2 * right / (support + given)
    return float((f1 * support).sum() / support.sum())


def offsets_for_f1(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """What to add to the logarithms of the classes' probabilities, so that the likeliest answer has the best F1.

    Args:
        probabilities: [N, C], calibrated, of utterances like those that are to be answered.

    Returns:
        [C] in nats, of mean 0: the best of `expected_weighted_f1` that steps along one class at a time find.
    """
    probabilities = np.maximum(probabilities, np.finfo(np.float64).tiny)
    frequencies = np.log(probabilities.mean(0))
    found = [_climbed(probabilities, -share * frequencies) for share in _STARTS]
    best = max(found, key=lambda offsets: expected_weighted_f1(probabilities, offsets))
    centred: NDArray[np.float64] = best - best.mean()
    return centred


def _climbed(probabilities: NDArray[np.float64], offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    value = expected_weighted_f1(probabilities, offsets)
    for size in _STEPS:
        is_better = True
        while is_better:
            is_better = False
            for step in (*(size * np.eye(len(offsets))), *(-size * np.eye(len(offsets)))):
                tried = expected_weighted_f1(probabilities, offsets + step)
                if tried > value:
                    value, offsets, is_better = tried, offsets + step, True
    return offsets
