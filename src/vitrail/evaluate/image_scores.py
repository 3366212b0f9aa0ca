"""Contributions of single images to a measure, for paired statistics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vitrail.errors import ConfigError, closest
from vitrail.evaluate.metrics import check_logits, is_correct, log_losses

Floats = npt.NDArray[np.float64]

# Measure -> whether higher is better: of classes of inputs, of parts of points, of both.
SCORES = {"accuracy": True, "balanced_accuracy": True, "f1_macro": True, "nll": False}
PART_SCORES = {"miou": True, "miou_clouds": True, "accuracy": True}
ALL_SCORES = SCORES | PART_SCORES


def image_scores(measure: str, logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Floats:
    """Compute the contribution of each image to a measure; their mean is the measure.

    Accuracy and log-loss are means over images. For other measures the contribution is the jackknife pseudo-value, N
    times the measure minus N - 1 times the measure without the image, shifted so that the mean is the measure.

    Args:
        measure: A key of :data:`SCORES`.
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)`` (accuracy and nll only).

    Returns:
        Shape ``(N,)``.

    Raises:
        ConfigError: Unknown measure, or one that multi-label targets do not have.
        DataError: No images, or logits that are not finite.

    Source: Quenouille 1956, Biometrika 43, 353-360; Dorfman, Berbaum & Metz 1992.
    """
    if measure not in SCORES:
        raise ConfigError(f"unknown measure {measure!r}{closest(measure, SCORES)}")
    check_logits(logits)
    wide = logits.astype(np.float64)
    if measure == "nll":
        return log_losses(wide, targets)
    if targets.ndim == 2 and measure != "accuracy":
        raise ConfigError(f"{measure} needs single-label images; use accuracy (all labels correct) or nll")
    if measure == "accuracy":
        correct: Floats = is_correct(wide, targets).astype(np.float64)
        return correct
    return _pseudo_values(measure, wide.argmax(1), targets, wide.shape[1])


def _pseudo_values(
    measure: str, predicted: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], classes: int
) -> Floats:
    true = np.bincount(targets, minlength=classes).astype(np.float64)
    positive = np.bincount(predicted, minlength=classes).astype(np.float64)
    hits = np.bincount(targets[predicted == targets], minlength=classes).astype(np.float64)
    whole = _from_counts(measure, hits, true, positive)
    # Without an image three counts change: one value for each pair of true and predicted class.
    pairs, number = np.unique(np.stack([targets, predicted], 1), axis=0, return_inverse=True)
    without = np.empty(len(pairs))
    for i, (t, p) in enumerate(pairs.tolist()):
        one_true, one_positive, one_hit = np.zeros(classes), np.zeros(classes), np.zeros(classes)
        one_true[t], one_positive[p] = 1, 1
        one_hit[t] = t == p
        without[i] = _from_counts(measure, hits - one_hit, true - one_true, positive - one_positive)
    return jackknife(whole, without[number.reshape(-1)])


def jackknife(whole: float, without: Floats) -> Floats:
    """Compute the jackknife pseudo-values of a measure, shifted so that their mean is the measure.

    Args:
        whole: The measure.
        without: The measure without each image, shape ``(N,)``; NaN where it is not defined without the image, whose
            value is the measure itself.
    """
    n, defined = len(without), ~np.isnan(without)
    values = np.full(n, float(whole))
    if defined.any():
        own = n * whole - (n - 1) * without[defined]
        values[defined] = own - own.mean() + whole
    return values


def _from_counts(measure: str, hits: Floats, true: Floats, positive: Floats) -> float:
    if measure == "balanced_accuracy":
        there = true > 0
        return float((hits[there] / true[there]).mean()) if there.any() else 0.0
    there = (true + positive) > 0
    return float((2 * hits[there] / (true + positive)[there]).mean()) if there.any() else 0.0
