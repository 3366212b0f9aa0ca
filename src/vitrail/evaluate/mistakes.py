"""The images that a model was surest of and wrong about."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import expit, softmax

from vitrail.evaluate.metrics import Floats, Ints


def mistakes_table(
    paths: Sequence[str], logits: Floats, targets: Ints, classes: Sequence[str], most: int = 200
) -> pd.DataFrame:
    """The wrong answers, the surest first: mislabelled images, and what the model is blind to.

    Args:
        paths: What identifies each image, ``N`` of them.
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.
        classes: Names.
        most: Rows at most.

    Returns:
        ``path``, ``true``, ``predicted``, ``confidence`` and ``probability_of_true``. With several labels an image
        comes once for each label that is wrong: ``true`` and ``predicted`` say "NAME" or "no NAME".
    """
    wide = logits.astype(np.float64)
    names = np.asarray(list(classes), dtype=object)
    if targets.ndim == 2:
        said = wide >= 0
        images, labels = np.nonzero(said != (targets > 0))
        p = expit(wide)[images, labels]
        confidence = np.where(said[images, labels], p, 1 - p)
        true, predicted = (
            np.where(rows[images, labels], names[labels], "no " + names[labels]) for rows in (targets > 0, said)
        )
        of_true = 1 - confidence
    else:
        answer = wide.argmax(axis=1)
        images = np.flatnonzero(answer != targets)
        p = softmax(wide, axis=1)
        confidence, of_true = p[images, answer[images]], p[images, targets[images]]
        true, predicted = names[targets[images]], names[answer[images]]
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
