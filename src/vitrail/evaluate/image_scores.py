"""What each image adds to a measure, so that measures can be compared image by image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from vitrail.errors import ConfigError, closest
from vitrail.evaluate.metrics import check_logits

Floats = npt.NDArray[np.float64]

# Measure -> whether more of it is better.
SCORES = {"accuracy": True, "balanced_accuracy": True, "f1_macro": True, "nll": False}


def image_scores(measure: str, logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Floats:
    """A number for each image; their mean is the measure.

    Accuracy and log-loss are means over images. The others are not: an image's number is then its jackknife
    pseudo-value, N times the measure minus N - 1 times the measure without the image, shifted so that the mean is the
    measure itself.

    Args:
        measure: A name of :data:`SCORES`.
        logits: Shape ``(N, K)``.
        targets: Shape ``(N,)``, or ``(N, K)`` of several labels an image (accuracy and nll only).

    Returns:
        Shape ``(N,)``.

    Raises:
        ConfigError: Unknown measure, or one that several labels an image do not have.
        DataError: No images, or logits that are not finite.

    Source: Quenouille 1956, Biometrika 43, 353-360; Dorfman, Berbaum & Metz 1992.
    """
    if measure not in SCORES:
        raise ConfigError(f"unknown measure {measure!r}{closest(measure, SCORES)}")
    check_logits(logits)
    wide = logits.astype(np.float64)
    if targets.ndim == 2:
        return _several_labels(measure, wide, targets)
    if measure == "nll":
        chances: Floats = log_softmax(wide, axis=1)
        loss: Floats = -np.take_along_axis(chances, targets[:, None], axis=1)[:, 0]
        return loss
    predicted = wide.argmax(1)
    right: Floats = (predicted == targets).astype(np.float64)
    if measure == "accuracy":
        return right
    return _pseudo_values(measure, predicted, targets, wide.shape[1])


def _several_labels(measure: str, logits: Floats, targets: npt.NDArray[np.int64]) -> Floats:
    if measure == "accuracy":
        whole: Floats = ((logits >= 0) == (targets > 0)).all(1).astype(np.float64)
        return whole
    if measure == "nll":
        entropy: Floats = (np.logaddexp(0, logits) - targets * logits).mean(1)
        return entropy
    raise ConfigError(f"{measure} is compared where images have one label; use accuracy (all labels right) or nll")


def _pseudo_values(
    measure: str, predicted: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], classes: int
) -> Floats:
    true = np.bincount(targets, minlength=classes).astype(np.float64)
    said = np.bincount(predicted, minlength=classes).astype(np.float64)
    hits = np.bincount(targets[predicted == targets], minlength=classes).astype(np.float64)
    whole = _from_counts(measure, hits, true, said)
    # Leaving out an image changes three counts: one value for each pair of classes that occurs.
    pairs, number = np.unique(np.stack([targets, predicted], 1), axis=0, return_inverse=True)
    without = np.empty(len(pairs))
    for i, (t, p) in enumerate(pairs.tolist()):
        one_true, one_said, one_hit = np.zeros(classes), np.zeros(classes), np.zeros(classes)
        one_true[t], one_said[p] = 1, 1
        one_hit[t] = t == p
        without[i] = _from_counts(measure, hits - one_hit, true - one_true, said - one_said)
    n = len(targets)
    values = n * whole - (n - 1) * without[number.reshape(-1)]
    shifted: Floats = values - values.mean() + whole
    return shifted


def _from_counts(measure: str, hits: Floats, true: Floats, said: Floats) -> float:
    if measure == "balanced_accuracy":
        there = true > 0
        return float((hits[there] / true[there]).mean()) if there.any() else 0.0
    there = (true + said) > 0
    return float((2 * hits[there] / (true + said)[there]).mean()) if there.any() else 0.0
