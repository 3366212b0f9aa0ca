"""ROC and precision-recall curves: one-vs-rest, micro and macro."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit
from sklearn.metrics import auc

from vitrail.bootstrap import Doubles
from vitrail.evaluate.metrics import Floats, Ints, log_odds, one_hot

# Maximum points of a curve, its minimum for many classes, and maximum points of all curves.
_MOST, _FEWEST, _TOGETHER = 200, 25, 20_000
ROC, PRECISION_RECALL = "roc", "precision_recall"
COLUMNS = ("curve", "of", "class", "x", "y", "threshold")

Curve = tuple[Doubles, Doubles, Doubles]
# Curve, average ("class", "micro", "macro"), class, and points.
_Named = tuple[str, str, str, Curve]


def true_and_scores(logits: Floats, targets: Ints) -> tuple[npt.NDArray[np.bool_], Doubles]:
    """Compute one-vs-rest targets and scores, both ``(N, K)``.

    Args:
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.
    """
    if targets.ndim == 2:
        return targets > 0, logits.astype(np.float64)
    return one_hot(targets, logits.shape[1]), log_odds(logits)


def rank_curves(
    true: npt.NDArray[np.bool_], scores: Doubles, classes: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, float | None]]:
    """Compute ROC and precision-recall curves of each class, micro- and macro-averaged, thinned.

    ROC: ``x`` is the false positive rate, ``y`` the true positive rate, linear between points. Precision-recall: ``x``
    is the recall, ``y`` the precision at the highest threshold with this recall, constant since the previous point as
    in average precision. Macro curves average ``y`` at equal ``x``, so that their area is the mean area of the classes.
    A class without positives has no curves, a class without negatives no ROC curve.

    Args:
        true: One-vs-rest targets, shape ``(N, K)``.
        scores: Log-odds, shape ``(N, K)``.
        classes: Class names, length K.

    Returns:
        A table with ``curve`` ("roc" or "precision_recall"), ``of`` ("class", "micro" or "macro"), ``class`` (empty for
        averages), ``x``, ``y`` and ``threshold`` on the probability (NaN for macro); and the areas ``roc_auc_micro``
        and ``average_precision_micro`` before thinning, None where undefined.
    """
    most = int(np.clip(_TOGETHER // max(len(classes), 1), _FEWEST, _MOST))
    grid = np.linspace(0, 1, most)
    parts: dict[str, list[_Named]] = {ROC: [], PRECISION_RECALL: []}
    heights: dict[str, list[Doubles]] = {ROC: [], PRECISION_RECALL: []}
    areas: dict[str, float | None] = {"roc_auc_micro": None, "average_precision_micro": None}
    for of, name, own, score in _each(true, scores, classes):
        for curve, points in _curves(own, score).items():
            x, y, _ = points
            if of == "class":
                heights[curve].append(_height(curve, grid, x, y))
            elif curve == ROC:
                areas["roc_auc_micro"] = float(auc(x, y))
            else:
                areas["average_precision_micro"] = float((np.diff(x) * y[1:]).sum())
            parts[curve].append((curve, of, name, _thinned(curve, points, most)))
    for curve, found in heights.items():
        if found:
            x, y = grid, np.mean(found, axis=0)
            if curve == ROC:
                x, y = np.concatenate([[0], x]), np.concatenate([[0], y])
            parts[curve].append((curve, "macro", "", (x, y, np.full(len(x), np.nan))))
    return _joined(parts[ROC] + parts[PRECISION_RECALL]), areas


def _each(
    true: npt.NDArray[np.bool_], scores: Doubles, classes: Sequence[str]
) -> Iterator[tuple[str, str, npt.NDArray[np.bool_], Doubles]]:
    for k, name in enumerate(classes):
        yield "class", name, true[:, k], scores[:, k]
    yield "micro", "", true.ravel(), scores.ravel()


def _curves(true: npt.NDArray[np.bool_], scores: Doubles) -> dict[str, Curve]:
    """Compute both curves from one sort; undefined curves are left out."""
    positives = int(true.sum())
    negatives = len(true) - positives
    if positives == 0:
        return {}
    order = np.argsort(-scores)
    ordered = scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # last index of each group of ties
    found_until = np.cumsum(true[order])[last]
    hits = np.concatenate([[0], found_until]).astype(np.float64)
    false_alarms = np.concatenate([[0], last + 1 - found_until]).astype(np.float64)
    threshold = np.concatenate([[1.0], expit(ordered[last])])
    recall, others = hits / positives, false_alarms / max(negatives, 1)
    # First point of each recall: the highest threshold.
    first = np.flatnonzero(np.diff(hits, prepend=0) > 0)
    precision = hits[first] / (hits[first] + false_alarms[first])
    found = {
        PRECISION_RECALL: (
            np.concatenate([[0], recall[first]]),
            np.concatenate([precision[:1], precision]),
            np.concatenate([[1], threshold[first]]),
        )
    }
    if negatives:
        # Points on a straight line between their neighbours are redundant.
        bent = (np.diff(hits, 2) != 0) | (np.diff(false_alarms, 2) != 0)
        kept = np.flatnonzero(np.concatenate([[True], bent, [True]]))
        found[ROC] = others[kept], recall[kept], threshold[kept]
    return found


def _height(curve: str, grid: Doubles, x: Doubles, y: Doubles) -> Doubles:
    """Evaluate a curve on a grid, at the upper end of vertical steps."""
    if curve == ROC:
        result: Doubles = np.interp(grid, x, y)
        return result
    reached: Doubles = y[np.searchsorted(x, grid, side="left").clip(max=len(y) - 1)]
    return reached


def _thinned(curve: str, points: Curve, most: int) -> Curve:
    """Select at most ``most`` points, evenly spaced along the curve, including its ends."""
    x, y, threshold = points
    if len(x) <= most:
        return points
    # A ROC curve grows in x and y; a precision-recall curve is parametrised by its recall.
    way = x + y if curve == ROC else x
    wanted = np.searchsorted(way, np.linspace(way[0], way[-1], most))
    kept = np.unique(np.concatenate([[0], wanted.clip(max=len(x) - 1), [len(x) - 1]]))
    return x[kept], y[kept], threshold[kept]


def _joined(parts: Sequence[_Named]) -> pd.DataFrame:
    """Join all curves into one table; one DataFrame per class takes ten times as long."""
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    lengths = [len(points[0]) for *_, points in parts]
    columns: dict[str, Any] = {
        name: np.repeat(np.array([part[i] for part in parts], dtype=object), lengths)
        for i, name in enumerate(COLUMNS[:3])
    }
    for i, name in enumerate(COLUMNS[3:]):
        columns[name] = np.concatenate([points[i] for *_, points in parts]).round(6)
    return pd.DataFrame(columns)
