"""Measures of a classification, from logits and targets alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest, norm
from sklearn.metrics import (
    cohen_kappa_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

from vitrail.errors import DataError
from vitrail.evaluate.bootstrap import Bootstrap, Doubles, Interval
from vitrail.evaluate.bootstrap_measures import Counter, Ranker, agreement_measures, averaged_measures, defined_measures
from vitrail.evaluate.rank_intervals import area_interval, average_precision_interval, macro_interval, rank_class

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Images x classes x resamples that intervals of ranks over groups may cost.
_RANK_WORK = 10_000_000_000


def accuracy_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    Args:
        correct: Successes.
        total: Trials, at least 1.
        confidence: Coverage wanted.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212.
    """
    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def check_logits(logits: Floats) -> None:
    """Refuse what cannot be measured.

    Args:
        logits: Shape ``(N, K)``.

    Raises:
        DataError: No images, or logits that are not finite.
    """
    if len(logits) == 0:
        raise DataError("there are no images to measure")
    if not np.isfinite(logits).all():
        raise DataError(
            f"{int((~np.isfinite(logits)).any(1).sum())} of {len(logits)} images have logits that are no numbers"
        )


def classification_metrics(
    logits: Floats, targets: Ints, classes: Sequence[str], odds: Doubles | None = None
) -> dict[str, Any]:
    """Overall measures.

    Args:
        logits: Shape ``(N, K)``.
        targets: Shape ``(N,)``, in 0..K-1.
        classes: Names, ``K`` of them.
        odds: :func:`log_odds` of the logits, where they are known.

    Returns:
        ``images``, ``accuracy`` with its 95 % Wilson interval ``accuracy_low`` and ``accuracy_high``,
        ``balanced_accuracy``, ``top_2_accuracy``, ``top_3_accuracy`` and ``top_5_accuracy`` (where there are more
        classes than that), ``precision_macro``, ``_micro`` and ``_weighted`` and the same of ``recall`` and ``f1``,
        ``cohen_kappa``, ``mcc``, ``roc_auc_macro`` and ``average_precision_macro`` (each class against the rest),
        ``nll`` and ``brier`` (a sum over classes, 0 to 2). Macro averages run over the classes that occur in the
        targets or the predictions, those of ranks over the classes that occur in the targets (and not in all of
        them, for the ROC). What is not defined is None: kappa, MCC and the ROC where there is one class.

    Raises:
        DataError: No images, or logits that are not finite.
    """
    check_logits(logits)
    predicted = logits.argmax(1)
    correct = int((predicted == targets).sum())
    low, high = accuracy_interval(correct, len(targets))
    present = np.union1d(targets, predicted)
    recall, support = precision_recall_fscore_support(targets, predicted, labels=present, zero_division=0)[1::2]
    result: dict[str, Any] = {
        "images": len(targets),
        "accuracy": correct / len(targets),
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": float(recall[support > 0].mean()),
    }
    for k in top_ks(len(classes)):
        result[f"top_{k}_accuracy"] = float(in_top(logits, targets, k).mean())
    for average in ("macro", "micro", "weighted"):
        values = precision_recall_fscore_support(targets, predicted, labels=present, average=average, zero_division=0)
        result |= {
            f"{name}_{average}": float(x) for name, x in zip(("precision", "recall", "f1"), values, strict=False)
        }
    area, precision = rank_measures(one_hot(targets, len(classes)), log_odds(logits) if odds is None else odds)
    nll, brier = proper_scores(logits, targets)
    return {
        **result,
        # With one class there is no agreement beyond chance to speak of.
        "cohen_kappa": number(cohen_kappa_score(targets, predicted)) if len(present) > 1 else None,
        "mcc": float(matthews_corrcoef(targets, predicted)) if len(present) > 1 else None,
        "roc_auc_macro": mean_of_numbers(area),
        "average_precision_macro": mean_of_numbers(precision),
        "nll": float(nll.mean()),
        "brier": float(brier.mean()),
    }


def classification_intervals(
    logits: Floats, targets: Ints, classes: Sequence[str], bootstrap: Bootstrap, odds: Doubles | None = None
) -> tuple[dict[str, Interval | None], dict[str, list[Interval | None]]]:
    """Compute intervals of :func:`classification_metrics` and of the columns of :func:`per_class_table`.

    Precision, recall and F1 of single classes are those of :func:`class_intervals`, ranks those of
    :func:`rank_intervals`; all else has bootstrap intervals.

    Args:
        logits: Shape ``(N, K)``.
        targets: Shape ``(N,)``.
        classes: Names.
        bootstrap: How to draw anew.
        odds: :func:`log_odds` of the logits, where they are known.

    Returns:
        Overall, and for each class in turn.
    """
    predicted = logits.argmax(1)
    true = one_hot(targets, len(classes))
    count = Counter(true, one_hot(predicted, len(classes)))
    means: dict[str, Any] = dict(zip(("nll", "brier"), proper_scores(logits, targets), strict=True))
    means |= {f"top_{k}_accuracy": in_top(logits, targets, k) for k in top_ks(len(classes))}
    overall: dict[str, list[Any]] = defaultdict(list)
    single: dict[str, list[Any]] = defaultdict(list)
    for weights in bootstrap.weights():
        counts = count(weights)
        for name, values in {**agreement_measures(counts), **averaged_measures(counts)}.items():
            overall[name].append(values)
        for name, values in means.items():
            overall[name].append(values @ weights / counts.total)
        if bootstrap.groups is not None:
            for name, values in defined_measures(counts).items():
                single[name].append(values)
    result = {name: bootstrap.interval(np.concatenate(values)) for name, values in overall.items()}
    each = {name: _intervals(values, bootstrap) for name, values in single.items()}
    each = class_intervals(true, one_hot(predicted, len(classes)), each, bootstrap)
    ranks, ranks_each = rank_intervals(true, log_odds(logits) if odds is None else odds, bootstrap)
    return {**result, **ranks}, {**each, **ranks_each}


def per_class_table(logits: Floats, targets: Ints, classes: Sequence[str], odds: Doubles | None = None) -> pd.DataFrame:
    """Of each class: precision, recall, F1, ROC-AUC, average precision, images, and images predicted as such."""
    labels = np.arange(len(classes))
    predicted = logits.argmax(1)
    precision, recall, f1, support = precision_recall_fscore_support(targets, predicted, labels=labels, zero_division=0)
    area, average = rank_measures(one_hot(targets, len(classes)), log_odds(logits) if odds is None else odds)
    return pd.DataFrame(
        {
            "class": list(classes), "precision": precision, "recall": recall, "f1": f1, "roc_auc": area,
            "average_precision": average, "images": support,
            "predicted": np.bincount(predicted, minlength=len(classes)),
        }
    )  # fmt: skip


def add_intervals(table: pd.DataFrame, intervals: Mapping[str, Sequence[Interval | None]]) -> pd.DataFrame:
    """A table of classes with the columns NAME_low and NAME_high beside each NAME that has intervals."""
    columns: dict[str, Any] = {}
    for name in table:
        columns[str(name)] = table[name]
        if name in intervals:
            for i, end in enumerate(("low", "high")):
                columns[f"{name}_{end}"] = [np.nan if pair is None else pair[i] for pair in intervals[str(name)]]
    return pd.DataFrame(columns)


def top_ks(num_classes: int) -> tuple[int, ...]:
    """The k of top-k accuracies worth telling."""
    return tuple(k for k in (2, 3, 5) if k < num_classes)


def in_top(logits: Floats, targets: Ints, k: int) -> npt.NDArray[np.bool_]:
    """Whether the true class is among the k most likely, shape ``(N,)``; of equal ones the first come first."""
    own = logits[np.arange(len(targets)), targets][:, None]
    earlier = np.arange(logits.shape[1]) < targets[:, None]
    before = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    found: npt.NDArray[np.bool_] = before < k
    return found


def one_hot(targets: Ints, num_classes: int) -> npt.NDArray[np.bool_]:
    """Whether each image is of each class, shape ``(N, K)``."""
    same: npt.NDArray[np.bool_] = np.arange(num_classes) == targets[:, None]
    return same


def log_odds(logits: Floats) -> Doubles:
    """Logarithm of each class's probability over that of all others together, ``(N, K)``.

    It orders images as the probability does, but where that is so near to 1 that doubles cannot tell.
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    p = np.exp(wide)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    wide -= np.log(total)
    rows, best = np.arange(len(p)), p.argmax(1)
    others = 1 - p
    but_best = p.copy()
    but_best[rows, best] = 0
    others[rows, best] = but_best.sum(axis=1)
    odds: Doubles = wide - np.log(np.maximum(others, np.finfo(np.float64).tiny))
    return odds


def proper_scores(logits: Floats, targets: Ints) -> tuple[Doubles, Doubles]:
    """Negative log-likelihood and Brier score (summed over classes) of each image, ``(N,)`` each.

    Source: Brier 1950, Mon. Weather Rev. 78, 1-3.
    """
    wide = logits.astype(np.float64)
    nll: Doubles = -log_softmax(wide, axis=1)[np.arange(len(targets)), targets]
    brier: Doubles = ((softmax(wide, axis=1) - one_hot(targets, wide.shape[1])) ** 2).sum(axis=1)
    return nll, brier


def rank_measures(true: npt.NDArray[np.bool_], scores: Doubles | Floats) -> tuple[Doubles, Doubles]:
    """ROC-AUC and average precision of each class against the rest.

    Args:
        true: Whether each image has each class, shape ``(N, K)``.
        scores: Shape ``(N, K)``.

    Returns:
        Each of shape ``(K,)``; no number where no image has the class, and for the ROC where all have it.
    """
    area, precision = (np.full(true.shape[1], np.nan) for _ in range(2))
    for k in np.flatnonzero(true.any(axis=0)):
        area[k], precision[k] = _ranked(true[:, k], scores[:, k])
    return area, precision


def _ranked(positive: npt.NDArray[np.bool_], scores: Doubles | Floats) -> tuple[float, float]:
    """Compute ROC-AUC and average precision from one sort: scikit-learn's input checks take 40 s for 1,000 classes."""
    whole, own = np.sort(scores), np.sort(scores[positive])
    n, m = len(whole), len(own)
    below, until = (np.searchsorted(whole, own, side=side) for side in ("left", "right"))
    own_below, own_until = (np.searchsorted(own, own, side=side) for side in ("left", "right"))
    precision = float(((m - own_below) / (n - below)).mean())
    if m == n:
        return float("nan"), precision
    others = (below - own_below + until - own_until) / 2  # below each, and half of those tied with it
    return float(others.mean() / (n - m)), precision


def rank_intervals(
    true: npt.NDArray[np.bool_], scores: Doubles | Floats, bootstrap: Bootstrap
) -> tuple[dict[str, Interval | None], dict[str, list[Interval | None]]]:
    """Compute intervals of the measures of :func:`rank_measures`: macro averages and each class.

    Single images have score intervals (:mod:`vitrail.evaluate.rank_intervals`). Groups are resampled, and the interval
    is at least the score interval of as many images as there are groups; resampling costs classes x images x resamples,
    and is left out where it would take more than a minute.

    Args:
        true: Whether each image has each class, shape ``(N, K)``.
        scores: Shape ``(N, K)``.
        bootstrap: Groups, and resampling of these.

    Returns:
        Macro averages, and each class; None where there is nothing to compute, or too few images.
    """
    names = ("roc_auc", "average_precision")
    each: dict[str, list[Interval | None]] = {name: [None] * true.shape[1] for name in names}
    values: dict[str, list[float]] = {name: [] for name in names}
    influences: dict[str, list[Doubles]] = {name: [] for name in names}
    counted = _RankCounts(true, bootstrap)
    wide = np.asarray(scores, dtype=np.float64)
    for k in np.flatnonzero(true.any(axis=0)):
        own, others = counted(int(k))
        ranks = None if true[:, k].all() else rank_class(true[:, k], wide[:, k])
        if ranks is not None and own and others:
            variance = ranks.variance if bootstrap.groups is None else np.nan
            each["roc_auc"][k] = area_interval(ranks.area, own, others, variance, bootstrap.confidence)
            values["roc_auc"].append(ranks.area)
            influences["roc_auc"].append(ranks.influence)
        precision = _ranked(true[:, k], wide[:, k])[1]
        each["average_precision"][k] = average_precision_interval(precision, own, bootstrap.confidence)
        values["average_precision"].append(precision)
        influences["average_precision"].append(np.zeros(len(true)) if ranks is None else ranks.influence)
    overall: dict[str, Interval | None] = {}
    for name in names:
        present = [each[name][k] for k in np.flatnonzero(true.any(axis=0)) if name != "roc_auc" or not true[:, k].all()]
        overall[f"{name}_macro"] = macro_interval(np.array(values[name]), present, influences[name])
    if bootstrap.groups is not None:
        _widen_by_groups(true, wide, bootstrap, overall, each)
    return overall, each


class _RankCounts:
    """How many images, or groups of images, have a class, and how many lack it."""

    def __init__(self, true: npt.NDArray[np.bool_], bootstrap: Bootstrap) -> None:
        self.true = true
        self.members = None if bootstrap.groups is None else np.unique(bootstrap.groups, return_inverse=True)[1]

    def __call__(self, k: int) -> tuple[int, int]:
        there = self.true[:, k]
        if self.members is None:
            return int(there.sum()), int((~there).sum())
        return len(set(self.members[there])), len(set(self.members[~there]))


def _widen_by_groups(
    true: npt.NDArray[np.bool_],
    scores: Doubles,
    bootstrap: Bootstrap,
    overall: dict[str, Interval | None],
    each: dict[str, list[Interval | None]],
) -> None:
    """Widen score intervals, in place, to those of resampled groups."""
    n, k = true.shape
    resamples = min(bootstrap.resamples, _RANK_WORK // (n * k))
    if resamples < min(200, bootstrap.resamples):
        return
    rankers = {i: Ranker(true[:, i], scores[:, i]) for i in np.flatnonzero(true.any(axis=0))}
    chunks: dict[str, list[Any]] = {name: [] for name in each}
    for weights in bootstrap.weights(resamples):
        values = np.full((2, k, weights.shape[1]), np.nan)
        for i, ranker in rankers.items():
            values[:, i] = ranker(weights)
        for name, part in zip(each, values, strict=True):
            chunks[name].append(part)
    for name in each:
        joined = np.concatenate(chunks[name], axis=1)
        each[name] = [_hull(*pair) for pair in zip(each[name], _intervals([joined], bootstrap), strict=True)]
        seen = np.isfinite(joined)
        means = np.where(seen, joined, 0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
        resampled = bootstrap.interval(np.where(seen.any(axis=0), means, np.nan))
        overall[f"{name}_macro"] = _hull(overall[f"{name}_macro"], resampled)


def _hull(score: Interval | None, resampled: Interval | None) -> Interval | None:
    """Both intervals together; None where there is no score interval."""
    if score is None or resampled is None:
        return score
    return min(score[0], resampled[0]), max(score[1], resampled[1])


def class_intervals(
    true: npt.NDArray[np.bool_],
    predicted: npt.NDArray[np.bool_],
    resampled: Mapping[str, Sequence[Interval | None]],
    bootstrap: Bootstrap,
) -> dict[str, list[Interval | None]]:
    """Choose the intervals of precision, recall and F1 of each class.

    Wilson's for single images. For groups those of resampled groups, and Wilson's of as many images as there are
    groups where resamples do not vary (all predictions of a class are correct).

    Args:
        true: Whether each image has each class, shape ``(N, K)``.
        predicted: Whether it is predicted to have it, shape ``(N, K)``.
        resampled: Measure -> interval of each class over resampled groups.
        bootstrap: Groups and confidence.
    """
    if bootstrap.groups is None:
        return wilson_intervals(true, predicted, bootstrap.confidence)
    members = np.unique(bootstrap.groups, return_inverse=True)[1]
    both = true & predicted
    result: dict[str, list[Interval | None]] = {}
    for name, among in (("precision", predicted), ("recall", true), ("f1", true | predicted)):
        result[name] = list(resampled[name])
        for k in np.flatnonzero(among.any(axis=0)):
            if result[name][k] is None:
                units = len(set(members[among[:, k]]))
                share = both[:, k].sum() / among[:, k].sum()
                pair = accuracy_interval(round(share * units), units, bootstrap.confidence)
                result[name][k] = (_f1(pair[0]), _f1(pair[1])) if name == "f1" else pair
    return result


def _f1(share: float) -> float:
    """F1 from the share of images that are of the class and predicted as such among those that are either."""
    return 2 * share / (1 + share)


def wilson_intervals(
    true: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], confidence: float
) -> dict[str, list[Interval | None]]:
    """Wilson intervals of precision, recall and F1 of each class; None where there is nothing to divide by.

    F1 is 2 J / (1 + J), where J is the share of images that are both of the class and predicted as such among those
    that are either.
    """
    both, either = (true & predicted).sum(axis=0), (true | predicted).sum(axis=0)
    result: dict[str, list[Interval | None]] = {}
    for name, totals in (("precision", predicted.sum(axis=0)), ("recall", true.sum(axis=0)), ("f1", either)):
        pairs = _wilson(both, totals, confidence)
        if name == "f1":
            pairs = [pair if pair is None else (_f1(pair[0]), _f1(pair[1])) for pair in pairs]
        result[name] = list(pairs)
    return result


def _wilson(correct: Ints, totals: Ints, confidence: float) -> list[Interval | None]:
    """Compute :func:`accuracy_interval` of many proportions; None where the total is 0."""
    square = float(norm.isf((1 - confidence) / 2)) ** 2
    n = np.maximum(totals, 1)
    middle = (correct + square / 2) / (n + square)
    half = np.sqrt(square * (correct * (n - correct) / n + square / 4)) / (n + square)
    low = np.where(correct == 0, 0.0, middle - half)
    high = np.where(correct == n, 1.0, middle + half)
    return [(float(x), float(y)) if total else None for x, y, total in zip(low, high, totals, strict=True)]


def _intervals(chunks: Sequence[Doubles], bootstrap: Bootstrap) -> list[Interval | None]:
    """Of arrays ``(K, r)`` side by side, one interval a row."""
    return [bootstrap.interval(row) for row in np.concatenate(list(chunks), axis=1)]


def number(value: float) -> float | None:
    """A number, or None where it is none: JSON knows no other word for that."""
    return float(value) if np.isfinite(value) else None


def mean_of_numbers(values: Doubles) -> float | None:
    """Mean of those that are numbers; None where none is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
