"""Measures of many resamples at once: from how often each image was drawn instead of from the images again.

Images are the rows of all arrays and resamples the columns, so that sums over images are products with sparse
matrices of zeros and ones. Each function equals scikit-learn's on the images repeated as often as they were drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from vitrail.evaluate.bootstrap import Doubles

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Counts:
    """What was drawn of each class, each of shape ``(K, r)``.

    Attributes:
        right: Images of the class that are predicted as such.
        true: Images of the class.
        predicted: Images that are predicted as such.
        total: Images in all, shape ``(r,)``.
    """

    right: Doubles
    true: Doubles
    predicted: Doubles
    total: Doubles


class Counter:
    """Counts classes in resamples.

    Args:
        true: Whether each image has each class, shape ``(N, K)``.
        predicted: Whether it is predicted to have it, shape ``(N, K)``.
    """

    def __init__(self, true: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> None:
        self._sums = [csr_array(x.T.astype(np.float32)) for x in (true & predicted, true, predicted)]

    def __call__(self, weights: Weights) -> Counts:
        """Count.

        Args:
            weights: How often each image was drawn, shape ``(N, r)``.
        """
        right, true, predicted = (np.asarray(sums @ weights, dtype=np.float64) for sums in self._sums)
        return Counts(right, true, predicted, weights.sum(axis=0, dtype=np.float64))


def class_measures(counts: Counts) -> dict[str, Doubles]:
    """Precision, recall and F1 of each class, shape ``(K, r)``; 0 where nothing is there to divide by."""
    return {
        "precision": _ratio(counts.right, counts.predicted),
        "recall": _ratio(counts.right, counts.true),
        "f1": _ratio(2 * counts.right, counts.true + counts.predicted),
    }


def defined_measures(counts: Counts) -> dict[str, Doubles]:
    """Compute :func:`class_measures`, NaN where a measure is 0/0: such a resample says nothing of the measure."""
    totals = {"precision": counts.predicted, "recall": counts.true, "f1": counts.true + counts.predicted}
    return {name: np.where(totals[name] > 0, values, np.nan) for name, values in class_measures(counts).items()}


def averaged_measures(counts: Counts) -> dict[str, Doubles]:
    """Macro, micro and weighted averages of precision, recall and F1, each of shape ``(r,)``.

    Macro averages run over the classes that were drawn or predicted.
    """
    result: dict[str, Doubles] = {}
    present = (counts.true + counts.predicted) > 0
    for name, values in class_measures(counts).items():
        result[f"{name}_macro"] = _ratio((values * present).sum(axis=0), present.sum(axis=0))
        result[f"{name}_weighted"] = _ratio((values * counts.true).sum(axis=0), counts.true.sum(axis=0))
    right, true, predicted = (x.sum(axis=0) for x in (counts.right, counts.true, counts.predicted))
    micro = class_measures(Counts(right, true, predicted, counts.total))
    return {**result, **{f"{name}_micro": values for name, values in micro.items()}}


def agreement_measures(counts: Counts) -> dict[str, Doubles]:
    """Accuracy, balanced accuracy, Cohen's kappa and Matthews' correlation where an image has one class, ``(r,)``.

    Source: Cohen 1960, Educ. Psychol. Meas. 20, 37-46; Gorodkin 2004, Comput. Biol. Chem. 28, 367-374 (equation 8).
    """
    n = counts.total
    right = counts.right.sum(axis=0)
    seen = counts.true > 0
    chance = (counts.true * counts.predicted).sum(axis=0)
    spread = [n**2 - (x**2).sum(axis=0) for x in (counts.true, counts.predicted)]
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = 1 - (1 - right / n) / (1 - chance / n**2)
    several = ((counts.true + counts.predicted) > 0).sum(axis=0) > 1  # with one class there is no agreement to measure
    return {
        "accuracy": right / n,
        "balanced_accuracy": (_ratio(counts.right, counts.true) * seen).sum(axis=0) / seen.sum(axis=0),
        "cohen_kappa": kappa,
        "mcc": np.where(several, _ratio(right * n - chance, np.sqrt(spread[0] * spread[1])), np.nan),
    }


class Ranker:
    """ROC-AUC and average precision of one class against the rest in resamples.

    Args:
        positive: Whether each image has the class, shape ``(N,)``; at least one has.
        scores: Higher means rather this class, shape ``(N,)``; equal ones are ties.
    """

    def __init__(self, positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> None:
        thresholds, where = np.unique(-scores[positive], return_inverse=True)
        m = self._thresholds = len(thresholds)
        # Rows 0..2m: negatives between two thresholds (even) and on one (odd); the others: positives on each.
        rows = np.empty(len(scores), dtype=np.int64)
        below = np.searchsorted(thresholds, -scores[~positive], side="left")
        tied = (below < m) & (thresholds[np.minimum(below, m - 1)] == -scores[~positive])
        rows[~positive] = 2 * below + tied
        rows[positive] = 2 * m + 1 + where
        n = len(scores)
        self._sums = csr_array((np.ones(n, np.float32), (rows, np.arange(n))), shape=(3 * m + 1, n))

    def __call__(self, weights: Weights) -> tuple[Doubles, Doubles]:
        """ROC-AUC and average precision, each of shape ``(r,)``; no number where a side was not drawn.

        Args:
            weights: How often each image was drawn, shape ``(N, r)``.
        """
        m = self._thresholds
        sums = np.asarray(self._sums @ weights, dtype=np.float64)
        negative, positive = sums[: 2 * m + 1], sums[2 * m + 1 :]
        reached = np.cumsum(negative, axis=0)
        above, until = reached[:-1:2], reached[1::2]  # negatives before each threshold, and with those on it
        negatives, positives = reached[-1], positive.sum(axis=0)
        found = np.cumsum(positive, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            area = (positive * (negatives - (above + until) / 2)).sum(axis=0) / (positives * negatives)
            precision = (positive * _ratio(found, found + until)).sum(axis=0) / positives
        return area, precision


def _ratio(a: Doubles, b: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> Doubles:
    ratio: Doubles = np.divide(a, b, out=np.zeros_like(a, dtype=np.float64), where=b > 0)
    return ratio
