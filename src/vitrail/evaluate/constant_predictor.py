"""Constant predictor, the baseline that ignores the image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def constant_logits(targets: npt.NDArray[np.int64], num_classes: int, of_probability: bool) -> npt.NDArray[np.float32]:
    """Compute the logits of the best constant prediction.

    Args:
        targets: Classes ``(N,)``, or labels ``(N, K)``.
        num_classes: K.
        of_probability: Whether to predict the frequencies of the targets, which minimise the log-loss; otherwise the
            most frequent class or combination of labels.

    Returns:
        Shape ``(N, K)``.
    """
    if targets.ndim == 1:
        share = np.bincount(targets, minlength=num_classes) / len(targets)
        row = np.log(np.maximum(share, 1e-6))
    elif of_probability:
        share = np.clip((targets > 0).mean(axis=0), 1e-6, 1 - 1e-6)
        row = np.log(share / (1 - share))
    else:
        kinds, counts = np.unique(targets > 0, axis=0, return_counts=True)
        row = np.where(kinds[counts.argmax()], 1.0, -1.0)
    return np.tile(row.astype(np.float32), (len(targets), 1))
