"""Misclassified images with the highest confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import expit, softmax

from vitrail.evaluate.metrics import Floats, Ints


def mistakes_table(
    paths: Sequence[str], logits: Floats, targets: Ints, classes: Sequence[str], most: int = 200
) -> pd.DataFrame:
    """List misclassified images in order of descending confidence.

    Args:
        paths: Key of each image, length N.
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.
        classes: Class names.
        most: Maximum number of rows.

    Returns:
        ``path``, ``true``, ``predicted``, ``confidence`` and ``probability_of_true``. Multi-label: one row per image
        and incorrect label, ``true`` and ``predicted`` are "NAME" or "no NAME".
    """
    wide = logits.astype(np.float64)
    names = np.asarray(list(classes), dtype=object)
    if targets.ndim == 2:
        positive = wide >= 0
        images, labels = np.nonzero(positive != (targets > 0))
        p = expit(wide)[images, labels]
        confidence = np.where(positive[images, labels], p, 1 - p)
        true, predicted = (
            np.where(rows[images, labels], names[labels], "no " + names[labels]) for rows in (targets > 0, positive)
        )
        of_true = 1 - confidence
    else:
        best = wide.argmax(axis=1)
        images = np.flatnonzero(best != targets)
        p = softmax(wide, axis=1)
        confidence, of_true = p[images, best[images]], p[images, targets[images]]
        true, predicted = names[targets[images]], names[best[images]]
    table = pd.DataFrame(
        {
            "path": np.asarray(list(paths), dtype=object)[images],
            "true": true,
            "predicted": predicted,
            "confidence": confidence,
            "probability_of_true": of_true,
        }
    )
    return table.sort_values("confidence", ascending=False, kind="stable").head(most).reset_index(drop=True)
