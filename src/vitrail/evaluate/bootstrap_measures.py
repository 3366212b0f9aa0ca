"""Measures of all bootstrap resamples at once, from the weight of each image in each resample.

Rows of the arrays are images and columns are resamples, so that sums over images are products with sparse indicator
matrices. Each function equals scikit-learn's on the resampled images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from vitrail.bootstrap import Doubles

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Counts:
    """Counts of each class in each resample, shape ``(K, r)`` each.

    Attributes:
        correct: True positives.
        true: Images of the class.
        predicted: Images predicted as the class.
        total: All images, shape ``(r,)``.
    """

    correct: Doubles
    true: Doubles
    predicted: Doubles
    total: Doubles


class Counter:
    """Count classes in resamples.

    Args:
        true: Targets, shape ``(N, K)``.
        predicted: Predictions, shape ``(N, K)``.
    """

    def __init__(self, true: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> None:
        self._sums = [csr_array(x.T.astype(np.float32)) for x in (true & predicted, true, predicted)]

    def __call__(self, weights: Weights) -> Counts:
        """Count.

        Args:
            weights: Weight of each image in each resample, shape ``(N, r)``.
        """
        correct, true, predicted = (np.asarray(sums @ weights, dtype=np.float64) for sums in self._sums)
        return Counts(correct, true, predicted, weights.sum(axis=0, dtype=np.float64))


def class_measures(counts: Counts) -> dict[str, Doubles]:
    """Compute precision, recall and F1 of each class, shape ``(K, r)``; 0 where undefined (0/0)."""
    return {
        "precision": _ratio(counts.correct, counts.predicted),
        "recall": _ratio(counts.correct, counts.true),
        "f1": _ratio(2 * counts.correct, counts.true + counts.predicted),
    }


def defined_measures(counts: Counts) -> dict[str, Doubles]:
    """Compute :func:`class_measures` with NaN where undefined (0/0)."""
    totals = {"precision": counts.predicted, "recall": counts.true, "f1": counts.true + counts.predicted}
    return {name: np.where(totals[name] > 0, values, np.nan) for name, values in class_measures(counts).items()}


def averaged_measures(counts: Counts) -> dict[str, Doubles]:
    """Compute macro, micro and weighted averages of precision, recall and F1, shape ``(r,)`` each.

    Macro averages run over the classes among the targets or predictions of a resample.
    """
    result: dict[str, Doubles] = {}
    present = (counts.true + counts.predicted) > 0
    for name, values in class_measures(counts).items():
        result[f"{name}_macro"] = _ratio((values * present).sum(axis=0), present.sum(axis=0))
        result[f"{name}_weighted"] = _ratio((values * counts.true).sum(axis=0), counts.true.sum(axis=0))
    correct, true, predicted = (x.sum(axis=0) for x in (counts.correct, counts.true, counts.predicted))
    micro = class_measures(Counts(correct, true, predicted, counts.total))
    return {**result, **{f"{name}_micro": values for name, values in micro.items()}}


def agreement_measures(counts: Counts) -> dict[str, Doubles]:
    """Compute accuracy, balanced accuracy, Cohen's kappa and MCC of single-label targets, shape ``(r,)`` each.

    Source: Cohen 1960, Educ. Psychol. Meas. 20, 37-46; Gorodkin 2004, Comput. Biol. Chem. 28, 367-374 (equation 8).
    """
    n = counts.total
    correct = counts.correct.sum(axis=0)
    present = counts.true > 0
    expected = (counts.true * counts.predicted).sum(axis=0)
    spread = [n**2 - (x**2).sum(axis=0) for x in (counts.true, counts.predicted)]
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = 1 - (1 - correct / n) / (1 - expected / n**2)
    several = ((counts.true + counts.predicted) > 0).sum(axis=0) > 1  # MCC is undefined for one class
    return {
        "accuracy": correct / n,
        "balanced_accuracy": (_ratio(counts.correct, counts.true) * present).sum(axis=0) / present.sum(axis=0),
        "cohen_kappa": kappa,
        "mcc": np.where(several, _ratio(correct * n - expected, np.sqrt(spread[0] * spread[1])), np.nan),
    }


class Ranker:
    """ROC-AUC and average precision of one class against the rest in resamples.

    Args:
        positive: Binary targets, shape ``(N,)``, at least one positive.
        scores: Scores of the class, shape ``(N,)``; equal scores are ties.
    """

    def __init__(self, positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> None:
        thresholds, rank = np.unique(-scores[positive], return_inverse=True)
        m = self._thresholds = len(thresholds)
        # Rows 0..2m: negatives between two thresholds (even) and at one (odd); other rows: positives at each.
        rows = np.empty(len(scores), dtype=np.int64)
        below = np.searchsorted(thresholds, -scores[~positive], side="left")
        tied = (below < m) & (thresholds[np.minimum(below, m - 1)] == -scores[~positive])
        rows[~positive] = 2 * below + tied
        rows[positive] = 2 * m + 1 + rank
        n = len(scores)
        self._sums = csr_array((np.ones(n, np.float32), (rows, np.arange(n))), shape=(3 * m + 1, n))

    def __call__(self, weights: Weights) -> tuple[Doubles, Doubles]:
        """Compute ROC-AUC and average precision, shape ``(r,)`` each; NaN without positives or negatives.

        Args:
            weights: Weight of each image in each resample, shape ``(N, r)``.
        """
        m = self._thresholds
        sums = np.asarray(self._sums @ weights, dtype=np.float64)
        negative, positive = sums[: 2 * m + 1], sums[2 * m + 1 :]
        reached = np.cumsum(negative, axis=0)
        above, until = reached[:-1:2], reached[1::2]  # negatives above each threshold, and with those at it
        negatives, positives = reached[-1], positive.sum(axis=0)
        found = np.cumsum(positive, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            area = (positive * (negatives - (above + until) / 2)).sum(axis=0) / (positives * negatives)
            precision = (positive * _ratio(found, found + until)).sum(axis=0) / positives
        return area, precision


def _ratio(a: Doubles, b: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> Doubles:
    ratio: Doubles = np.divide(a, b, out=np.zeros_like(a, dtype=np.float64), where=b > 0)
    return ratio
