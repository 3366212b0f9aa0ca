"""Whether probabilities mean what they say, and the one number that mends them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax

from vitrail.errors import DataError
from vitrail.evaluate.bootstrap import Doubles
from vitrail.evaluate.metrics import Floats, Ints, check_logits

BINS = 15
# Temperatures that are looked at.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Confidences:
    """What a model claimed, and whether it was so.

    With one label an image there is a claim an image: that the most likely class is the true one. With several there
    is one for each image and label: that the image has it.

    Attributes:
        confidence: Probability that was given, shape ``(n,)``.
        right: Whether it was so, shape ``(n,)``.
    """

    confidence: Doubles
    right: npt.NDArray[np.bool_]


def confidences_of(logits: Floats | Doubles, targets: Ints) -> Confidences:
    """The claims of logits.

    Args:
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.
    """
    wide = logits.astype(np.float64)
    if targets.ndim == 2:
        return Confidences(expit(wide).ravel(), targets.ravel() > 0)
    return Confidences(softmax(wide, axis=1).max(axis=1), wide.argmax(axis=1) == targets)


def reliability_table(claims: Confidences, bins: int = BINS, adaptive: bool = False) -> pd.DataFrame:
    """The data of a reliability diagram.

    Args:
        claims: What was claimed.
        bins: How many bins the confidences are sorted into.
        adaptive: Bins of equally many claims instead of equal width.

    Returns:
        A row a bin: ``low`` and ``high`` (its borders), ``count``, ``confidence`` and ``accuracy`` (means over it;
        no number where it is empty).

    Source: Niculescu-Mizil & Caruana 2005, ICML; Guo et al. 2017, arXiv:1706.04599, section 2.
    """
    confidence, right = claims.confidence, claims.right
    if adaptive:
        order = np.argsort(confidence, kind="stable")
        parts = [part for part in np.array_split(order, bins) if len(part)]
        borders = [(float(confidence[part[0]]), float(confidence[part[-1]])) for part in parts]
    else:
        # (low, high], the first with 0.
        place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        parts = [np.flatnonzero(place == b) for b in range(bins)]
        borders = [(b / bins, (b + 1) / bins) for b in range(bins)]
    rows = [
        {
            "low": low,
            "high": high,
            "count": len(part),
            "confidence": confidence[part].mean() if len(part) else np.nan,
            "accuracy": right[part].mean() if len(part) else np.nan,
        }
        for part, (low, high) in zip(parts, borders, strict=True)
    ]
    return pd.DataFrame(rows)


def calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy over claims, bin by bin.

    Args:
        table: Of :func:`reliability_table`.

    Source: Naeini et al. 2015, AAAI; bins of equally many claims: Nguyen & O'Connor 2015, arXiv:1508.05154.
    """
    distance = (table["confidence"] - table["accuracy"]).abs().fillna(0)
    return float((distance * table["count"]).sum() / table["count"].sum())


def calibration_error_by_resampling(claims: Confidences, draws: int = 200, seed: int = 0) -> tuple[float, float]:
    """The error (of equal-width bins) that a perfectly calibrated model would show on as many claims.

    Whether each claim comes true is drawn with the probability that was claimed. The error is never 0, because a bin
    holds finitely many images; one that is not above these values says nothing against the model.

    Args:
        claims: What was claimed; only the confidences count.
        draws: How often.
        seed: Of the drawing.

    Returns:
        The mean, and the value that 95 % of the draws stay below.

    Source: consistency resampling: Bröcker & Smith 2007, Weather Forecast. 22, 651-661.
    """
    rng = np.random.default_rng(seed)
    confidence = claims.confidence
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    expected = np.bincount(place, confidence, BINS)
    errors = [
        np.abs(np.bincount(place, rng.random(len(confidence)) < confidence, BINS) - expected).sum() / len(confidence)
        for _ in range(draws)
    ]
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def fit_temperature(logits: Floats, targets: Ints) -> float | None:
    """The number by which to divide logits so that their likelihood is the highest.

    Args:
        logits: Of images that the model was not trained on and that it is not judged by, shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.

    Returns:
        The temperature, in 0.05..20; above 1 where the model was too sure. None where the best one is not in that
        range: where all images are right it is 0, and where the logits tell nothing it is infinite.

    Raises:
        DataError: No images, or logits that are not finite.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    check_logits(logits)
    wide = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return _nll(wide / np.exp(log_temperature), targets)

    # The likelihood is concave in 1 / T, so it has one peak in log T too.
    found = minimize_scalar(
        loss, bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)), method="bounded", options={"xatol": 1e-6}
    )
    if min(loss(limit) for limit in (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))) <= found.fun:
        return None
    return float(np.exp(found.x))


def calibration_summary(logits: Floats | Doubles, targets: Ints) -> dict[str, Any]:
    """``ece``, ``ece_adaptive``, ``ece_of_chance`` with ``ece_of_chance_95``, ``nll``, ``brier``, ``mean_confidence``.

    Args:
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.
    """
    if len(logits) == 0:
        raise DataError("there are no images to measure")
    claims = confidences_of(logits, targets)
    chance, most = calibration_error_by_resampling(claims)
    return {
        "ece": calibration_error(reliability_table(claims)),
        "ece_adaptive": calibration_error(reliability_table(claims, adaptive=True)),
        "ece_of_chance": chance,
        "ece_of_chance_95": most,
        "nll": _nll(logits.astype(np.float64), targets),
        "brier": _brier(logits.astype(np.float64), targets),
        "mean_confidence": float(claims.confidence.mean()),
    }


def temperature_report(
    logits: Floats, targets: Ints, held_out: tuple[Floats, Ints], source: str
) -> dict[str, Any] | None:
    """The temperature of other images, and what it does for these.

    Args:
        logits: Of the images that are judged, shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.
        held_out: Logits and targets of the images that the temperature is fitted on.
        source: What those are called.

    Returns:
        ``temperature``, ``fitted_on``, ``images``, ``before`` and ``after`` (:func:`calibration_summary`); None where
        there is no best temperature.
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


def _nll(logits: Doubles, targets: Ints) -> float:
    if targets.ndim == 2:
        return float((np.logaddexp(0, logits) - targets * logits).mean())
    return float(-log_softmax(logits, axis=1)[np.arange(len(targets)), targets].mean())


def _brier(logits: Doubles, targets: Ints) -> float:
    if targets.ndim == 2:
        return float(((expit(logits) - targets) ** 2).mean())
    truth = np.arange(logits.shape[1]) == targets[:, None]
    return float(((softmax(logits, axis=1) - truth) ** 2).sum(axis=1).mean())
