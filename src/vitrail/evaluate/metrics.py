"""Single-label classification metrics with confidence intervals, from logits and targets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit, log_softmax, softmax
from scipy.stats import binomtest, norm

from vitrail.bootstrap import Bootstrap, Doubles, Interval
from vitrail.errors import DataError, plural
from vitrail.evaluate.bootstrap_measures import (
    Counter,
    Counts,
    Ranker,
    agreement_measures,
    averaged_measures,
    class_measures,
    defined_measures,
)
from vitrail.evaluate.rank_intervals import area_interval, average_precision_interval, macro_interval, rank_class

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Maximum of images x classes x resamples for intervals of rank measures over groups.
_RANK_WORK = 10_000_000_000


def accuracy_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's score interval of a proportion.

    Args:
        correct: Number of successes.
        total: Number of trials, at least 1.
        confidence: Confidence level.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212.
    """
    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def interval_of_units(share: float, bootstrap: Bootstrap) -> Interval:
    """Compute Wilson's interval over the bootstrap's units, for a share of 0 or 1, where resampling has none."""
    return accuracy_interval(round(share * bootstrap.units), bootstrap.units, bootstrap.confidence)


def is_correct(logits: Floats | Doubles, targets: Ints) -> npt.NDArray[np.bool_]:
    """Mark the predictions, in multi-label data of all labels, that are correct.

    Args:
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.
    """
    if targets.ndim == 2:
        all_labels: npt.NDArray[np.bool_] = ((logits >= 0) == (targets > 0)).all(axis=1)
        return all_labels
    correct: npt.NDArray[np.bool_] = logits.argmax(axis=1) == targets
    return correct


def check_logits(logits: Floats) -> None:
    """Validate logits.

    Args:
        logits: Shape ``(N, K)``.

    Raises:
        DataError: No images, or logits that are not finite.
    """
    if len(logits) == 0:
        raise DataError("there are no images to evaluate")
    if not np.isfinite(logits).all():
        raise DataError(
            f"{int((~np.isfinite(logits)).any(1).sum())} of {plural(len(logits), 'image')} with infinite or NaN logits"
        )


def count_classes(logits: Floats, targets: Ints) -> Counts:
    """Count correct, true and predicted images of each class.

    Args:
        logits: Shape ``(N, K)``.
        targets: Shape ``(N,)``.
    """
    predicted = logits.argmax(1)
    correct, true, own = (
        np.bincount(labels, minlength=logits.shape[1])[:, None].astype(np.float64)
        for labels in (targets[predicted == targets], targets, predicted)
    )
    return Counts(correct, true, own, np.array([len(targets)], dtype=np.float64))


def classification_metrics(
    logits: Floats, targets: Ints, classes: Sequence[str], odds: Doubles | None = None
) -> dict[str, Any]:
    """Compute overall single-label metrics.

    Args:
        logits: Shape ``(N, K)``.
        targets: Shape ``(N,)``, in 0..K-1.
        classes: Class names, length K.
        odds: Precomputed :func:`log_odds` of the logits.

    Returns:
        ``images``, ``accuracy`` with its 95 % Wilson interval ``accuracy_low`` and ``accuracy_high``,
        ``balanced_accuracy``, ``top_2_accuracy``, ``top_3_accuracy`` and ``top_5_accuracy`` (for k < K),
        ``precision_macro``, ``_micro`` and ``_weighted`` and the same of ``recall`` and ``f1``, ``cohen_kappa``,
        ``mcc``, ``roc_auc_macro`` and ``average_precision_macro`` (one-vs-rest), ``nll`` and ``brier`` (summed over
        classes, 0 to 2). Macro averages run over the classes in targets or predictions; those of rank measures over the
        classes with positives (and negatives, for the ROC). Undefined measures are None: kappa, MCC and ROC-AUC of a
        single class.

    Raises:
        DataError: No images, or logits that are not finite.
    """
    check_logits(logits)
    counts = count_classes(logits, targets)
    low, high = accuracy_interval(int(counts.correct.sum()), len(targets))
    agreement, averages = (
        {name: float(values[0]) for name, values in measures(counts).items()}
        for measures in (agreement_measures, averaged_measures)
    )
    result: dict[str, Any] = {
        "images": len(targets),
        "accuracy": agreement["accuracy"],
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": agreement["balanced_accuracy"],
    }
    for k in top_ks(len(classes)):
        result[f"top_{k}_accuracy"] = float(in_top(logits, targets, k).mean())
    for average in ("macro", "micro", "weighted"):
        result |= {name: averages[name] for name in (f"{one}_{average}" for one in ("precision", "recall", "f1"))}
    area, precision = rank_measures(one_hot(targets, len(classes)), log_odds(logits) if odds is None else odds)
    return {
        **result,
        # Undefined for one class.
        "cohen_kappa": number(agreement["cohen_kappa"]),
        "mcc": number(agreement["mcc"]),
        "roc_auc_macro": mean_of_numbers(area),
        "average_precision_macro": mean_of_numbers(precision),
        "nll": float(log_losses(logits, targets).mean()),
        "brier": float(brier_scores(logits, targets).mean()),
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
        classes: Class names.
        bootstrap: Settings of the bootstrap.
        odds: Precomputed :func:`log_odds` of the logits.

    Returns:
        Intervals of the overall measures, and of each class.
    """
    true, predicted = (one_hot(labels, len(classes)) for labels in (targets, logits.argmax(1)))
    means: dict[str, Any] = {"nll": log_losses(logits, targets), "brier": brier_scores(logits, targets)}
    means |= {f"top_{k}_accuracy": in_top(logits, targets, k) for k in top_ks(len(classes))}
    result, each = resampled_intervals(
        true, predicted, lambda counts: agreement_measures(counts) | averaged_measures(counts), means, bootstrap
    )
    ranks, ranks_each = rank_intervals(true, log_odds(logits) if odds is None else odds, bootstrap)
    return {**result, **ranks}, {**each, **ranks_each}


def resampled_intervals(
    true: npt.NDArray[np.bool_],
    predicted: npt.NDArray[np.bool_],
    measures: Callable[[Counts], Mapping[str, Doubles]],
    means: Mapping[str, npt.NDArray[Any]],
    bootstrap: Bootstrap,
) -> tuple[dict[str, Interval | None], dict[str, list[Interval | None]]]:
    """Compute bootstrap intervals of overall measures, and :func:`class_intervals`.

    Args:
        true: Targets, shape ``(N, K)``.
        predicted: Predictions, shape ``(N, K)``.
        measures: Overall measures ``(r,)`` as a function of the counts of resamples.
        means: Values ``(N,)`` of measures that are means over images.
        bootstrap: Settings of the bootstrap.

    Returns:
        Intervals of the overall measures, and of each class.
    """
    count = Counter(true, predicted)
    overall: dict[str, list[Any]] = defaultdict(list)
    single: dict[str, list[Any]] = defaultdict(list)
    for weights in bootstrap.weights():
        counts = count(weights)
        for name, values in measures(counts).items():
            overall[name].append(values)
        for name, values in means.items():
            overall[name].append(values @ weights / counts.total)
        if bootstrap.groups is not None:
            for name, values in defined_measures(counts).items():
                single[name].append(values)
    result = {name: bootstrap.interval(np.concatenate(values)) for name, values in overall.items()}
    each = {name: _intervals(values, bootstrap) for name, values in single.items()}
    return result, class_intervals(true, predicted, each, bootstrap)


def per_class_table(logits: Floats, targets: Ints, classes: Sequence[str], odds: Doubles | None = None) -> pd.DataFrame:
    """Tabulate precision, recall, F1, ROC-AUC, average precision, images and predicted images of each class."""
    counts = count_classes(logits, targets)
    measures = {name: values[:, 0] for name, values in class_measures(counts).items()}
    images, predicted = (x[:, 0].astype(np.int64) for x in (counts.true, counts.predicted))
    area, average = rank_measures(one_hot(targets, len(classes)), log_odds(logits) if odds is None else odds)
    return pd.DataFrame(
        {
            "class": list(classes), **measures, "roc_auc": area, "average_precision": average, "images": images,
            "predicted": predicted,
        }
    )  # fmt: skip


def add_intervals(table: pd.DataFrame, intervals: Mapping[str, Sequence[Interval | None]]) -> pd.DataFrame:
    """Insert the columns NAME_low and NAME_high after each column NAME with intervals."""
    columns: dict[str, Any] = {}
    for name in table:
        columns[str(name)] = table[name]
        if name in intervals:
            for i, end in enumerate(("low", "high")):
                columns[f"{name}_{end}"] = [np.nan if pair is None else pair[i] for pair in intervals[str(name)]]
    return pd.DataFrame(columns)


def top_ks(num_classes: int) -> tuple[int, ...]:
    """Choose the k of top-k accuracies."""
    return tuple(k for k in (2, 3, 5) if k < num_classes)


def in_top(logits: Floats, targets: Ints, k: int) -> npt.NDArray[np.bool_]:
    """Test whether the true class is among the top k, shape ``(N,)``; ties are broken by class index."""
    own = logits[np.arange(len(targets)), targets][:, None]
    earlier = np.arange(logits.shape[1]) < targets[:, None]
    before = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    found: npt.NDArray[np.bool_] = before < k
    return found


def one_hot(targets: Ints, num_classes: int) -> npt.NDArray[np.bool_]:
    """Encode classes as booleans, shape ``(N, K)``."""
    same: npt.NDArray[np.bool_] = np.arange(num_classes) == targets[:, None]
    return same


def log_odds(logits: Floats) -> Doubles:
    """Compute log-odds of each class, ``log(p / (1 - p))``, shape ``(N, K)``.

    They rank images as the probabilities do, without ties where probabilities round to 1.
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


def log_losses(logits: Floats | Doubles, targets: Ints) -> Doubles:
    """Compute the negative log-likelihood of each image, shape ``(N,)``; multi-label: mean over labels.

    Args:
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.
    """
    wide = logits.astype(np.float64)
    if targets.ndim == 2:
        losses: Doubles = (np.logaddexp(0, wide) - targets * wide).mean(axis=1)
    else:
        losses = -log_softmax(wide, axis=1)[np.arange(len(targets)), targets]
    return losses


def brier_scores(logits: Floats | Doubles, targets: Ints) -> Doubles:
    """Compute the Brier score of each image, shape ``(N,)``: sum over classes; multi-label: mean over labels.

    Args:
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.

    Source: Brier 1950, Mon. Weather Rev. 78, 1-3.
    """
    wide = logits.astype(np.float64)
    if targets.ndim == 2:
        scores: Doubles = ((expit(wide) - targets) ** 2).mean(axis=1)
    else:
        scores = ((softmax(wide, axis=1) - one_hot(targets, wide.shape[1])) ** 2).sum(axis=1)
    return scores


def rank_measures(true: npt.NDArray[np.bool_], scores: Doubles | Floats) -> tuple[Doubles, Doubles]:
    """Compute one-vs-rest ROC-AUC and average precision.

    Args:
        true: Targets, shape ``(N, K)``.
        scores: Shape ``(N, K)``.

    Returns:
        Shape ``(K,)`` each; NaN without positives, and for the ROC without negatives.
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
    others = (below - own_below + until - own_until) / 2  # below each, plus half of the ties
    return float(others.mean() / (n - m)), precision


def rank_intervals(
    true: npt.NDArray[np.bool_], scores: Doubles | Floats, bootstrap: Bootstrap
) -> tuple[dict[str, Interval | None], dict[str, list[Interval | None]]]:
    """Compute intervals of the measures of :func:`rank_measures`: macro averages and each class.

    Without groups: score intervals (:mod:`vitrail.evaluate.rank_intervals`). With groups: the hull of the bootstrap
    interval over groups and the score interval of as many images as groups; the bootstrap is skipped where it would
    take more than a minute.

    Args:
        true: Targets, shape ``(N, K)``.
        scores: Shape ``(N, K)``.
        bootstrap: Settings of the bootstrap.

    Returns:
        Intervals of the macro averages, and of each class; None where undefined or with too few images.
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
    """Number of images (or groups) with and without a class."""

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
    """Compute the hull of two intervals; None without a score interval."""
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

    Without groups Wilson's. With groups the bootstrap's; where resamples do not vary (all predictions of a class are
    correct), Wilson's of as many images as groups.

    Args:
        true: Targets, shape ``(N, K)``.
        predicted: Predictions, shape ``(N, K)``.
        resampled: Measure -> bootstrap interval of each class.
        bootstrap: Settings of the bootstrap.
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
    """Convert the Jaccard index to F1."""
    return 2 * share / (1 + share)


def wilson_intervals(
    true: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], confidence: float
) -> dict[str, list[Interval | None]]:
    """Compute Wilson intervals of precision, recall and F1 of each class; None where undefined (0/0).

    F1 is 2 J / (1 + J) with the Jaccard index J, a proportion.
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
    """Join chunks ``(K, r)`` and compute the interval of each row."""
    return [bootstrap.interval(row) for row in np.concatenate(list(chunks), axis=1)]


def number(value: float) -> float | None:
    """Convert a value to float, NaN and infinity to None, for JSON."""
    return float(value) if np.isfinite(value) else None


def mean_of_numbers(values: Doubles) -> float | None:
    """Average the finite values; None without any."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
