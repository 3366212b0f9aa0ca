"""Measures of a classification, from logits and targets alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from vitrail.errors import DataError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


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


def classification_metrics(logits: Floats, targets: Ints, classes: Sequence[str]) -> dict[str, Any]:
    """Overall measures.

    Args:
        logits: Shape ``(N, K)``.
        targets: Shape ``(N,)``, in 0..K-1.
        classes: Names, ``K`` of them.

    Returns:
        ``images``, ``accuracy`` with its 95 % Wilson interval ``accuracy_low`` and ``accuracy_high``,
        ``balanced_accuracy``, ``top_5_accuracy`` (from 6 classes on), ``f1_macro`` and ``nll``. Macro averages run
        over the classes that occur in the targets or the predictions.

    Raises:
        DataError: No images, or logits that are not finite.
    """
    check_logits(logits)
    predicted = logits.argmax(1)
    correct = int((predicted == targets).sum())
    low, high = accuracy_interval(correct, len(targets))
    present = np.union1d(targets, predicted)
    _, recall, f1, support = precision_recall_fscore_support(targets, predicted, labels=present, zero_division=0)
    result: dict[str, Any] = {
        "images": len(targets),
        "accuracy": correct / len(targets),
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": float(recall[support > 0].mean()),
        "f1_macro": float(f1.mean()),
        "nll": float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(targets)), targets].mean()),
    }
    if len(classes) > 5:
        best = np.argpartition(-logits, 5, axis=1)[:, :5]
        result["top_5_accuracy"] = float((best == targets[:, None]).any(1).mean())
    return result


def per_class_table(logits: Floats, targets: Ints, classes: Sequence[str]) -> pd.DataFrame:
    """Precision, recall, F1 and number of images of each class."""
    labels = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, logits.argmax(1), labels=labels, zero_division=0
    )
    return pd.DataFrame({"class": list(classes), "precision": precision, "recall": recall, "f1": f1, "images": support})


def confusion_table(logits: Floats, targets: Ints, classes: Sequence[str]) -> pd.DataFrame:
    """Counts: a row a true class, a column a predicted one."""
    counts = confusion_matrix(targets, logits.argmax(1), labels=np.arange(len(classes)))
    return pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=list(classes))
