"""The constant predictor: logits of a guess that looks at no image, to compare models with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def constant_logits(targets: npt.NDArray[np.int64], num_classes: int, of_probability: bool) -> npt.NDArray[np.float32]:
    """Compute the logits of the best guess that is the same for all images.

    Args:
        targets: Classes ``(N,)``, or labels ``(N, K)``.
        num_classes: K.
        of_probability: Whether the guess is judged by its probabilities (log-loss): it has the frequencies of the
            targets. Otherwise it is the most frequent class, or the most frequent combination of labels.

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
