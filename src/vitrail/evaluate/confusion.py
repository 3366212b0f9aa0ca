"""Confusion matrices: counts, normalised, clustered; most frequent confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import confusion_matrix

from vitrail.evaluate.metrics import Floats, Ints

# Optimal leaf ordering is cubic in the number of classes: 24 s for 1,000.
_MAX_ORDERED = 200


def confusion_table(logits: Floats, targets: Ints, classes: Sequence[str]) -> pd.DataFrame:
    """Count images by true class (rows) and predicted class (columns)."""
    counts = confusion_matrix(targets, logits.argmax(1), labels=np.arange(len(classes)))
    return pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=list(classes))


def normalized_by_row(counts: pd.DataFrame) -> pd.DataFrame:
    """Normalise each row to sum 1; rows of classes without images are 0."""
    totals = counts.sum(axis=1)
    return counts.div(totals.where(totals > 0, 1), axis=0)


def clustered(counts: pd.DataFrame) -> pd.DataFrame:
    """Reorder classes by hierarchical clustering, so that confused classes are adjacent.

    Average linkage; the distance of two classes is 1 minus their mean normalised confusion. Up to 200 classes the
    leaves are in optimal order.

    Args:
        counts: Output of :func:`confusion_table`.

    Source: Bar-Joseph et al. 2001, Bioinformatics 17, S22-S29 (optimal leaf ordering).
    """
    if len(counts) < 3:
        return counts
    share = normalized_by_row(counts).to_numpy()
    distance = 1 - (share + share.T) / 2
    np.fill_diagonal(distance, 0)
    optimal = len(counts) <= _MAX_ORDERED
    order = leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=optimal))
    result: pd.DataFrame = counts.iloc[order, order]
    return result


def most_confused(counts: pd.DataFrame, most: int = 20) -> pd.DataFrame:
    """List the most frequent confusions.

    Args:
        counts: Output of :func:`confusion_table`.
        most: Maximum number of pairs.

    Returns:
        Columns ``true``, ``predicted``, ``count``, and ``share`` of the images of the true class, in descending order.
    """
    table = counts.to_numpy().copy()
    totals = table.sum(axis=1)
    np.fill_diagonal(table, 0)
    order = np.argsort(-table, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, table.shape)
    found = table[rows, columns] > 0
    rows, columns = rows[found], columns[found]
    return pd.DataFrame(
        {
            "true": [str(counts.index[i]) for i in rows],
            "predicted": [str(counts.columns[j]) for j in columns],
            "count": table[rows, columns],
            "share": table[rows, columns] / totals[rows],
        }
    )


def clustered_together(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Reorder several confusion matrices in the order of :func:`clustered` on their sum.

    Args:
        tables: Confusion matrices by name; those of the same classes get the same order.
    """
    order: dict[tuple[str, ...], list[str]] = {}
    result = {}
    for name, table in tables.items():
        classes = tuple(map(str, table.columns))
        if classes not in order:
            same = [other.to_numpy() for other in tables.values() if tuple(map(str, other.columns)) == classes]
            summed = pd.DataFrame(sum(same[1:], start=same[0]), index=list(classes), columns=list(classes))
            order[classes] = list(clustered(summed).columns)
        indices = [classes.index(label) for label in order[classes]]
        result[name] = table.iloc[indices, indices]
    return result
