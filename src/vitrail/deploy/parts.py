"""Label the points of cloud files with a trained run."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitrail.data.dataset import ImageData
from vitrail.data.points.source import PointSource
from vitrail.runs.trained import Classifier


def label_points(classifier: Classifier, clouds: ImageData, batch_size: int = 32) -> pd.DataFrame:
    """Label the points that a model sees of each cloud.

    Args:
        classifier: A run that labels points.
        clouds: Clouds from :func:`vitrail.deploy.open_files`.
        batch_size: Clouds of a forward pass.

    Returns:
        One row per point: ``path``, coordinates ``x``, ``y`` and ``z`` as in the file, ``class`` and ``probability``.
    """
    source, names = clouds.source, np.array(classifier.card.classes)
    assert isinstance(source, PointSource)
    tables = []
    for batch in clouds.batches(clouds.indices("all"), batch_size):
        found, labels = classifier.classify(batch)[0].softmax(dim=-1).max(dim=-1)
        for row, index in enumerate(batch["index"].tolist()):
            points = source.in_file(index)
            real = np.isfinite(points[:, 0])
            table = pd.DataFrame(points[real], columns=["x", "y", "z"])
            table.insert(0, "path", source.keys[index])
            table["class"] = names[labels[row].cpu().numpy()[real]]
            table["probability"] = found[row].cpu().numpy()[real].round(6)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)
