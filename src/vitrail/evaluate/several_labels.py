"""Measures of a classification with several labels an image, from logits and targets alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

from vitrail.evaluate.metrics import Floats, Ints, accuracy_interval, check_logits


def several_labels_metrics(logits: Floats, targets: Ints, classes: Sequence[str]) -> dict[str, Any]:
    """Overall measures; a label counts as predicted from a probability of one half on.

    Args:
        logits: Shape ``(N, K)``.
        targets: 1 or 0, shape ``(N, K)``.
        classes: Names, ``K`` of them.

    Returns:
        ``images``, ``accuracy``: the share of images of which all labels are right and no other is predicted, with its
        95 % Wilson interval ``accuracy_low`` and ``accuracy_high``; ``map``, the mean over the labels that occur of
        their average precision; ``f1_macro``, over the labels that occur in the targets or the predictions;
        ``f1_micro``; ``nll``, the mean binary cross-entropy of image and label; ``labels_per_image``.

    Raises:
        DataError: No images, or logits that are not finite.
    """
    check_logits(logits)
    predicted = (logits >= 0).astype(np.int64)
    correct = int((predicted == targets).all(axis=1).sum())
    low, high = accuracy_interval(correct, len(targets))
    precision = _average_precision(logits, targets)
    present = targets.any(axis=0) | predicted.any(axis=0)
    f1 = f1_score(targets, predicted, average=None, zero_division=0)
    wide = logits.astype(np.float64)
    return {
        "images": len(targets),
        "accuracy": correct / len(targets),
        "accuracy_low": low,
        "accuracy_high": high,
        "map": float(np.nanmean(precision)) if targets.any() else 0.0,
        "f1_macro": float(f1[present].mean()) if present.any() else 0.0,
        "f1_micro": float(f1_score(targets, predicted, average="micro", zero_division=0)),
        # log(1 + exp(x)) - t x
        "nll": float((np.logaddexp(0, wide) - targets * wide).mean()),
        "labels_per_image": float(targets.sum(axis=1).mean()),
    }


def several_labels_table(logits: Floats, targets: Ints, classes: Sequence[str]) -> pd.DataFrame:
    """Precision, recall, F1, average precision and number of images of each label."""
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, (logits >= 0).astype(np.int64), average=None, zero_division=0
    )
    return pd.DataFrame(
        {
            "class": list(classes),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "average_precision": _average_precision(logits, targets),
            "images": support,
        }
    )


def _average_precision(logits: Floats, targets: Ints) -> npt.NDArray[np.float64]:
    """Of each label, shape ``(K,)``; no number where no image has it."""
    values = [
        average_precision_score(targets[:, k], logits[:, k]) if targets[:, k].any() else np.nan
        for k in range(targets.shape[1])
    ]
    return np.array(values, dtype=np.float64)
