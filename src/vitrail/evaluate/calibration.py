"""Calibration: reliability diagrams, expected calibration error and temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax

from vitrail.bootstrap import Doubles
from vitrail.errors import DataError
from vitrail.evaluate.metrics import Floats, Ints, brier_scores, check_logits, log_losses

BINS = 15
# Range of temperatures.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Confidences:
    """Confidences of predictions, and whether they are correct.

    Single-label: probability of the predicted class of each image. Multi-label: probability of each label and image.

    Attributes:
        confidence: Shape ``(n,)``.
        correct: Whether the class is the true one, or the label present, shape ``(n,)``.
    """

    confidence: Doubles
    correct: npt.NDArray[np.bool_]


def confidences_of(logits: Floats | Doubles, targets: Ints) -> Confidences:
    """Compute confidences from logits.

    Args:
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.
    """
    wide = logits.astype(np.float64)
    if targets.ndim == 2:
        return Confidences(expit(wide).ravel(), targets.ravel() > 0)
    return Confidences(softmax(wide, axis=1).max(axis=1), wide.argmax(axis=1) == targets)


def reliability_table(confidences: Confidences, bins: int = BINS, adaptive: bool = False) -> pd.DataFrame:
    """Compute the table of a reliability diagram.

    Args:
        confidences: Confidences of predictions.
        bins: Number of bins.
        adaptive: Whether bins hold equally many predictions instead of having equal width.

    Returns:
        One row per bin: ``low`` and ``high`` (edges), ``count``, and mean ``confidence`` and ``accuracy`` (NaN in empty
        bins).

    Source: Niculescu-Mizil & Caruana 2005, ICML; Guo et al. 2017, arXiv:1706.04599, section 2.
    """
    confidence, correct = confidences.confidence, confidences.correct
    if adaptive:
        order = np.argsort(confidence, kind="stable")
        parts = [part for part in np.array_split(order, bins) if len(part)]
        borders = [(float(confidence[part[0]]), float(confidence[part[-1]])) for part in parts]
    else:
        bin_of = _bin_of(confidence, bins)
        parts = [np.flatnonzero(bin_of == b) for b in range(bins)]
        borders = [(b / bins, (b + 1) / bins) for b in range(bins)]
    rows = [
        {
            "low": low,
            "high": high,
            "count": len(part),
            "confidence": confidence[part].mean() if len(part) else np.nan,
            "accuracy": correct[part].mean() if len(part) else np.nan,
        }
        for part, (low, high) in zip(parts, borders, strict=True)
    ]
    return pd.DataFrame(rows)


def _bin_of(confidence: Doubles, bins: int) -> Ints:
    """Assign confidences to bins ``(low, high]`` of equal width; 0 belongs to the first bin."""
    found: Ints = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return found


def calibration_error(table: pd.DataFrame) -> float:
    """Compute the expected calibration error (ECE): ``|confidence - accuracy|`` averaged over predictions, by bin.

    Args:
        table: Output of :func:`reliability_table`.

    Source: Naeini et al. 2015, AAAI; adaptive bins: Nguyen & O'Connor 2015, arXiv:1508.05154.
    """
    distance = (table["confidence"] - table["accuracy"]).abs().fillna(0)
    return float((distance * table["count"]).sum() / table["count"].sum())


def calibration_error_by_resampling(confidences: Confidences, draws: int = 200, seed: int = 0) -> tuple[float, float]:
    """Compute the ECE (equal-width bins) of a perfectly calibrated model with the same confidences.

    Outcomes are sampled with the confidences as probabilities. The ECE of finitely many images is above 0: only a
    larger one is evidence of miscalibration.

    Args:
        confidences: Confidences of predictions; ``correct`` is not used.
        draws: Number of samples.
        seed: Seed of the sampling.

    Returns:
        Mean and 95 % quantile.

    Source: consistency resampling: Bröcker & Smith 2007, Weather Forecast. 22, 651-661.
    """
    rng = np.random.default_rng(seed)
    confidence = confidences.confidence
    bin_of = _bin_of(confidence, BINS)
    expected = np.bincount(bin_of, confidence, BINS)
    errors = [
        np.abs(np.bincount(bin_of, rng.random(len(confidence)) < confidence, BINS) - expected).sum() / len(confidence)
        for _ in range(draws)
    ]
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def fit_temperature(logits: Floats, targets: Ints) -> float | None:
    """Fit the temperature that minimises the log-loss.

    Args:
        logits: Logits of held-out images, shape ``(N, K)``; neither training nor test images.
        targets: Classes ``(N,)``, or labels ``(N, K)``.

    Returns:
        The temperature in 0.05..20, above 1 for an overconfident model. None where the minimum lies outside of this
        range: at 0 if all images are correct, at infinity if the logits carry no information.

    Raises:
        DataError: No images, or logits that are not finite.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    check_logits(logits)
    wide = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return float(log_losses(wide / np.exp(log_temperature), targets).mean())

    # The log-loss is convex in 1 / T, so that it has one minimum in log T too.
    found = minimize_scalar(
        loss, bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)), method="bounded", options={"xatol": 1e-6}
    )
    if min(loss(limit) for limit in (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))) <= found.fun:
        return None
    return float(np.exp(found.x))


def calibration_summary(logits: Floats | Doubles, targets: Ints) -> dict[str, Any]:
    """Compute ``ece``, ``ece_adaptive``, ``nll``, ``brier`` and ``mean_confidence``.

    ``ece_of_chance`` and ``ece_of_chance_95`` are those of :func:`calibration_error_by_resampling`.

    Args:
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.
    """
    if len(logits) == 0:
        raise DataError("there are no images to evaluate")
    confidences = confidences_of(logits, targets)
    mean, quantile = calibration_error_by_resampling(confidences)
    return {
        "ece": calibration_error(reliability_table(confidences)),
        "ece_adaptive": calibration_error(reliability_table(confidences, adaptive=True)),
        "ece_of_chance": mean,
        "ece_of_chance_95": quantile,
        "nll": float(log_losses(logits, targets).mean()),
        "brier": float(brier_scores(logits, targets).mean()),
        "mean_confidence": float(confidences.confidence.mean()),
    }


def temperature_report(
    logits: Floats, targets: Ints, held_out: tuple[Floats, Ints], source: str
) -> dict[str, Any] | None:
    """Fit a temperature on held-out images, and measure calibration before and after.

    Args:
        logits: Logits of the evaluated images, shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.
        held_out: Logits and targets of the held-out images.
        source: Name of the held-out images.

    Returns:
        ``temperature``, ``fitted_on``, ``images``, ``before`` and ``after`` (:func:`calibration_summary`); None where
        :func:`fit_temperature` finds none.
    """
    temperature = fit_temperature(*held_out)
    if temperature is None:
        return None
    return {
        "temperature": temperature,
        "fitted_on": source,
        "images": len(held_out[0]),
        "before": calibration_summary(logits, targets),
        "after": calibration_summary(logits.astype(np.float64) / temperature, targets),
    }
