"""Mean average precision of several outputs for the same images, and in resamples of the images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitrail.bootstrap import Bootstrap, Doubles
from vitrail.evaluate.bootstrap_measures import Ranker


def mean_precisions(
    targets: npt.NDArray[np.bool_], logits: Sequence[npt.NDArray[np.floating]], bootstrap: Bootstrap
) -> tuple[Doubles, Doubles] | None:
    """Compute the mean average precision over labels that have positives.

    Args:
        targets: Shape ``(N, K)``.
        logits: Of M models, shape ``(N, K)`` each.
        bootstrap: Resamples of the N images.

    Returns:
        Values of the images, shape ``(M,)``, and of resamples, shape ``(M, R)``; None where no label has positives.
    """
    labels = np.flatnonzero(targets.any(axis=0))
    if len(labels) == 0:
        return None
    rankers = [[Ranker(targets[:, k], x[:, k].astype(np.float64)) for k in labels] for x in logits]

    def means(weights: npt.NDArray[np.float32]) -> Doubles:
        with np.errstate(invalid="ignore"):
            each = np.stack([[ranker(weights)[1] for ranker in own] for own in rankers])  # (M, labels, resamples)
        present = np.isfinite(each)
        total: Doubles = np.where(present, each, 0).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
        return total

    values = means(np.ones((len(targets), 1), np.float32))[:, 0]
    return values, np.concatenate([means(weights) for weights in bootstrap.weights()], axis=1)
