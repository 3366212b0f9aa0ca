"""Measures of a classification with several labels an image, from logits and targets alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.metrics import precision_recall_fscore_support

from vitrail.evaluate.bootstrap import Bootstrap, Doubles, Interval
from vitrail.evaluate.bootstrap_measures import Counter, averaged_measures, defined_measures
from vitrail.evaluate.metrics import (
    Floats,
    Ints,
    accuracy_interval,
    check_logits,
    class_intervals,
    mean_of_numbers,
    rank_intervals,
    rank_measures,
)


def multi_label_metrics(logits: Floats, targets: Ints, classes: Sequence[str]) -> dict[str, Any]:
    """Overall measures; a label counts as predicted from a probability of one half on.

    Args:
        logits: Shape ``(N, K)``.
        targets: 1 or 0, shape ``(N, K)``.
        classes: Names, ``K`` of them.

    Returns:
        ``images``, ``accuracy``: the share of images of which all labels are right and no other is predicted, with its
        95 % Wilson interval ``accuracy_low`` and ``accuracy_high``; ``label_accuracy``, the share of right answers
        over images and labels; ``map``, the mean over the labels that occur of their average precision, and
        ``roc_auc_macro``, over the labels that some images have and others do not; ``f1_macro``, ``f1_micro``,
        ``f1_weighted`` and the same of ``precision`` and ``recall``, macro over the labels that occur in the targets
        or the predictions; ``nll`` and ``brier``, means over image and label; ``labels_per_image``.

    Raises:
        DataError: No images, or logits that are not finite.
    """
    check_logits(logits)
    predicted = (logits >= 0).astype(np.int64)
    correct = int((predicted == targets).all(axis=1).sum())
    low, high = accuracy_interval(correct, len(targets))
    area, precision = rank_measures(targets > 0, logits)
    nll, brier = _proper_scores(logits, targets)
    result: dict[str, Any] = {
        "images": len(targets),
        "accuracy": correct / len(targets),
        "accuracy_low": low,
        "accuracy_high": high,
        "label_accuracy": float((predicted == targets).mean()),
        "map": mean_of_numbers(precision) or 0.0,
        "roc_auc_macro": mean_of_numbers(area),
    }
    present = np.flatnonzero(targets.any(axis=0) | predicted.any(axis=0))
    names = ("precision", "recall", "f1")
    for average in ("macro", "micro", "weighted"):
        if len(present) == 0:
            result |= {f"{name}_{average}": 0.0 for name in names}
            continue
        values = precision_recall_fscore_support(targets, predicted, labels=present, average=average, zero_division=0)
        result |= {f"{name}_{average}": float(x) for name, x in zip(names, values, strict=False)}
    return {
        **result,
        "nll": float(nll.mean()),
        "brier": float(brier.mean()),
        "labels_per_image": float(targets.sum(axis=1).mean()),
    }


def multi_label_intervals(
    logits: Floats, targets: Ints, bootstrap: Bootstrap
) -> tuple[dict[str, Interval | None], dict[str, list[Interval | None]]]:
    """Intervals of :func:`multi_label_metrics` and of the columns of :func:`multi_label_table`.

    Of which kind, :func:`vitrail.evaluate.metrics.classification_intervals` says.

    Args:
        logits: Shape ``(N, K)``.
        targets: 1 or 0, shape ``(N, K)``.
        bootstrap: How to draw anew.

    Returns:
        Overall, and for each label in turn.
    """
    true, predicted = targets > 0, logits >= 0
    count = Counter(true, predicted)
    nll, brier = _proper_scores(logits, targets)
    means = {
        "nll": nll,
        "brier": brier,
        "accuracy": (true == predicted).all(axis=1),
        "label_accuracy": (true == predicted).mean(axis=1),
        "labels_per_image": targets.sum(axis=1),
    }
    overall: dict[str, list[Any]] = defaultdict(list)
    single: dict[str, list[Any]] = defaultdict(list)
    for weights in bootstrap.weights():
        counts = count(weights)
        for name, values in averaged_measures(counts).items():
            overall[name].append(values)
        for name, means_of in means.items():
            overall[name].append(means_of @ weights / counts.total)
        if bootstrap.groups is not None:
            for name, values in defined_measures(counts).items():
                single[name].append(values)
    result = {name: bootstrap.interval(np.concatenate(values)) for name, values in overall.items()}
    each: dict[str, list[Interval | None]] = {
        name: [bootstrap.interval(row) for row in np.concatenate(values, axis=1)] for name, values in single.items()
    }
    each = class_intervals(true, predicted, each, bootstrap)
    ranks, ranks_each = rank_intervals(true, logits, bootstrap)
    ranks["map"] = ranks.pop("average_precision_macro")
    return {**result, **ranks}, {**each, **ranks_each}


def multi_label_table(logits: Floats, targets: Ints, classes: Sequence[str]) -> pd.DataFrame:
    """Of each label: precision, recall, F1, ROC-AUC, average precision, images, and images predicted to have it."""
    predicted = (logits >= 0).astype(np.int64)
    precision, recall, f1, support = precision_recall_fscore_support(targets, predicted, average=None, zero_division=0)
    area, average = rank_measures(targets > 0, logits)
    return pd.DataFrame(
        {
            "class": list(classes), "precision": precision, "recall": recall, "f1": f1, "roc_auc": area,
            "average_precision": average, "images": support, "predicted": predicted.sum(axis=0),
        }
    )  # fmt: skip


def _proper_scores(logits: Floats, targets: Ints) -> tuple[Doubles, Doubles]:
    """Mean over the labels of negative log-likelihood and squared error of each image, ``(N,)`` each."""
    wide = logits.astype(np.float64)
    # log(1 + exp(x)) - t x
    nll: Doubles = (np.logaddexp(0, wide) - targets * wide).mean(axis=1)
    brier: Doubles = ((expit(wide) - targets) ** 2).mean(axis=1)
    return nll, brier
