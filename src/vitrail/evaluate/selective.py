"""What a model gains by not answering where it is not sure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import log_expit, softmax

from vitrail.evaluate.bootstrap import Doubles
from vitrail.evaluate.metrics import Floats, Ints

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


def confidence_and_correct(logits: Floats, targets: Ints) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """How sure the answer to each image is, and whether it is right.

    Args:
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.

    Returns:
        The probability of the answer ``(N,)``: of the most likely class, or (labels taken as independent) of all
        answers to the labels together; and whether it is right in all.
    """
    wide = logits.astype(np.float64)
    if targets.ndim == 2:
        together: Doubles = np.exp(log_expit(np.abs(wide)).sum(axis=1))
        return together, ((wide >= 0) == (targets > 0)).all(axis=1)
    most: Doubles = softmax(wide, axis=1).max(axis=1)
    return most, wide.argmax(axis=1) == targets


def risk_coverage(confidence: Doubles, right: npt.NDArray[np.bool_]) -> pd.DataFrame:
    """The risk (share of wrong answers) if only the surest images are answered, for each number of them.

    Images of the same confidence are in no order; their errors are spread evenly over them.

    Args:
        confidence: Shape ``(N,)``.
        right: Shape ``(N,)``.

    Returns:
        ``coverage`` (1/N, 2/N, ..., 1), ``confidence`` (of the last image answered) and ``risk``.
    """
    order = np.argsort(-confidence, kind="stable")
    sure = confidence[order]
    _, first, counts = np.unique(-sure, return_index=True, return_counts=True)
    wrong = np.repeat(np.add.reduceat((~right[order]).astype(np.float64), first) / counts, counts)
    number = np.arange(1, len(sure) + 1)
    return pd.DataFrame({"coverage": number / len(sure), "confidence": sure, "risk": np.cumsum(wrong) / number})


def selective_summary(curve: pd.DataFrame) -> dict[str, Any]:
    """The curve in numbers.

    Args:
        curve: Of :func:`risk_coverage`.

    Returns:
        ``aurc``, the mean risk over coverages; ``e_aurc``, how much of it a perfect order of the images would save;
        ``accuracy_at``: a list of ``coverage`` (at least as much as asked), ``accuracy`` and ``confidence`` needed.

    Source: Geifman & El-Yaniv 2017, arXiv:1705.08500; Geifman et al. 2019, arXiv:1805.08206, section 3 (E-AURC, here
    with the exact risk of the perfect order instead of its integral).
    """
    n = len(curve)
    risk = curve["risk"].to_numpy()
    wrong = round(float(risk[-1]) * n)
    number = np.arange(1, n + 1)
    perfect = np.maximum(number - (n - wrong), 0) / number
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
    """At most so many rows of a curve, evenly spaced, first and last among them."""
    return curve.iloc[np.unique(np.linspace(0, len(curve) - 1, min(most, len(curve))).round().astype(int))]
