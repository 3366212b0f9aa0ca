"""Multi-label classification metrics with confidence intervals, from logits and targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from vitrail.bootstrap import Bootstrap, Interval
from vitrail.evaluate.bootstrap_measures import averaged_measures
from vitrail.evaluate.metrics import (
    Floats,
    Ints,
    accuracy_interval,
    brier_scores,
    check_logits,
    log_losses,
    mean_of_numbers,
    rank_intervals,
    rank_measures,
    resampled_intervals,
)


def multi_label_metrics(logits: Floats, targets: Ints, classes: Sequence[str]) -> dict[str, Any]:
    """Compute overall multi-label metrics; a label is predicted at a probability of at least 0.5.

    Args:
        logits: Shape ``(N, K)``.
        targets: 1 or 0, shape ``(N, K)``.
        classes: Class names, length K.

    Returns:
        ``images``; ``accuracy`` (exact match of all labels) with its 95 % Wilson interval ``accuracy_low`` and
        ``accuracy_high``; ``label_accuracy`` (over images and labels); ``map`` (mean average precision over labels with
        positives); ``roc_auc_macro`` (over labels with positives and negatives); ``f1_macro``, ``f1_micro``,
        ``f1_weighted`` and the same of ``precision`` and ``recall`` (macro over labels in targets or predictions);
        ``nll`` and ``brier`` (means over images and labels); ``labels_per_image``.

    Raises:
        DataError: No images, or logits that are not finite.
    """
    check_logits(logits)
    predicted = (logits >= 0).astype(np.int64)
    correct = int((predicted == targets).all(axis=1).sum())
    low, high = accuracy_interval(correct, len(targets))
    area, precision = rank_measures(targets > 0, logits)
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
        "nll": float(log_losses(logits, targets).mean()),
        "brier": float(brier_scores(logits, targets).mean()),
        "labels_per_image": float(targets.sum(axis=1).mean()),
    }


def multi_label_intervals(
    logits: Floats, targets: Ints, bootstrap: Bootstrap
) -> tuple[dict[str, Interval | None], dict[str, list[Interval | None]]]:
    """Compute intervals of :func:`multi_label_metrics` and of the columns of :func:`multi_label_table`.

    Methods as in :func:`vitrail.evaluate.metrics.classification_intervals`.

    Args:
        logits: Shape ``(N, K)``.
        targets: 1 or 0, shape ``(N, K)``.
        bootstrap: Settings of the bootstrap.

    Returns:
        Intervals of the overall measures, and of each label.
    """
    true, predicted = targets > 0, logits >= 0
    means = {
        "nll": log_losses(logits, targets),
        "brier": brier_scores(logits, targets),
        "accuracy": (true == predicted).all(axis=1),
        "label_accuracy": (true == predicted).mean(axis=1),
        "labels_per_image": targets.sum(axis=1),
    }
    result, each = resampled_intervals(true, predicted, averaged_measures, means, bootstrap)
    ranks, ranks_each = rank_intervals(true, logits, bootstrap)
    ranks["map"] = ranks.pop("average_precision_macro")
    return {**result, **ranks}, {**each, **ranks_each}


def multi_label_table(logits: Floats, targets: Ints, classes: Sequence[str]) -> pd.DataFrame:
    """Tabulate precision, recall, F1, ROC-AUC, average precision, images and predicted images of each label."""
    predicted = (logits >= 0).astype(np.int64)
    precision, recall, f1, support = precision_recall_fscore_support(targets, predicted, average=None, zero_division=0)
    area, average = rank_measures(targets > 0, logits)
    return pd.DataFrame(
        {
            "class": list(classes), "precision": precision, "recall": recall, "f1": f1, "roc_auc": area,
            "average_precision": average, "images": support, "predicted": predicted.sum(axis=0),
        }
    )  # fmt: skip
