"""Selective prediction: risk-coverage curves and accuracy at given coverages."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import log_expit, softmax

from vitrail.bootstrap import Doubles
from vitrail.evaluate.metrics import Floats, Ints, is_correct

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


def confidence_and_correct(logits: Floats, targets: Ints) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Compute the confidence of each prediction, and whether it is correct.

    Args:
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.

    Returns:
        Confidence ``(N,)``: probability of the predicted class, or joint probability of the predicted labels as if
        independent; and whether the prediction (all labels) is correct, ``(N,)``.
    """
    wide = logits.astype(np.float64)
    if targets.ndim == 2:
        together: Doubles = np.exp(log_expit(np.abs(wide)).sum(axis=1))
        return together, is_correct(wide, targets)
    most: Doubles = softmax(wide, axis=1).max(axis=1)
    return most, is_correct(wide, targets)


def risk_coverage(confidence: Doubles, correct: npt.NDArray[np.bool_]) -> pd.DataFrame:
    """Compute the risk-coverage curve: error rate of the most confident predictions, by their share.

    Errors of images with equal confidence are averaged over these.

    Args:
        confidence: Shape ``(N,)``.
        correct: Shape ``(N,)``.

    Returns:
        ``coverage`` (1/N, 2/N, ..., 1), ``confidence`` (lowest among the accepted images) and ``risk``.
    """
    order = np.argsort(-confidence, kind="stable")
    descending = confidence[order]
    _, first, counts = np.unique(-descending, return_index=True, return_counts=True)
    errors = np.repeat(np.add.reduceat((~correct[order]).astype(np.float64), first) / counts, counts)
    accepted = np.arange(1, len(order) + 1)
    risk = np.cumsum(errors) / accepted
    return pd.DataFrame({"coverage": accepted / len(order), "confidence": descending, "risk": risk})


def selective_summary(curve: pd.DataFrame) -> dict[str, Any]:
    """Summarise a risk-coverage curve.

    Args:
        curve: Output of :func:`risk_coverage`.

    Returns:
        ``aurc`` (area under the curve), ``e_aurc`` (excess over the perfect order of the images) and ``accuracy_at``:
        ``coverage``, ``accuracy`` and ``confidence`` (threshold) for each of :data:`COVERAGES`.

    Source: Geifman & El-Yaniv 2017, arXiv:1705.08500; Geifman et al. 2019, arXiv:1805.08206, section 3 (E-AURC, here
    with the exact risk of the perfect order).
    """
    n = len(curve)
    risk = curve["risk"].to_numpy()
    errors = round(float(risk[-1]) * n)
    accepted = np.arange(1, n + 1)
    perfect = np.maximum(accepted - (n - errors), 0) / accepted
    rows = []
    for coverage in COVERAGES:
        i = min(n, int(np.ceil(coverage * n - 1e-9))) - 1
        rows.append(
            {
                "coverage": float(curve["coverage"].iloc[i]),
                "accuracy": float(1 - risk[i]),
                "confidence": float(curve["confidence"].iloc[i]),
            }
        )
    return {"aurc": float(risk.mean()), "e_aurc": float(risk.mean() - perfect.mean()), "accuracy_at": rows}


def thinned(curve: pd.DataFrame, most: int = 2000) -> pd.DataFrame:
    """Select at most ``most`` evenly spaced rows of a curve, including the first and the last."""
    return curve.iloc[np.unique(np.linspace(0, len(curve) - 1, min(most, len(curve))).round().astype(int))]
