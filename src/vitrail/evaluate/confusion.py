"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import confusion_matrix

from vitrail.evaluate.metrics import Floats, Ints

# Optimal ordering of leaves takes time cubic in their number, and more on ties: 24 s for 1,000 classes.
_MOST_ORDERED = 200


def confusion_table(logits: Floats, targets: Ints, classes: Sequence[str]) -> pd.DataFrame:
    """Counts: a row a true class, a column a predicted one."""
    counts = confusion_matrix(targets, logits.argmax(1), labels=np.arange(len(classes)))
    return pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=list(classes))


def normalized_by_row(counts: pd.DataFrame) -> pd.DataFrame:
    """Shares of each true class; a class without images has zeros."""
    totals = counts.sum(axis=1)
    return counts.div(totals.where(totals > 0, 1), axis=0)


def clustered(counts: pd.DataFrame) -> pd.DataFrame:
    """Reorder the counts so that classes that are confused with each other lie side by side.

    The order is that of the leaves of a hierarchical clustering (average linkage). Up to 200 classes the leaves are
    ordered so that neighbours are near; beyond, no figure shows them. The distance of two classes is one minus the
    share of either's images that are predicted as the other, averaged over both directions.

    Args:
        counts: A row a true class, a column a predicted one, in the same order.

    Source: Bar-Joseph et al. 2001, Bioinformatics 17, S22-S29 (the order of the leaves).
    """
    if len(counts) < 3:
        return counts
    share = normalized_by_row(counts).to_numpy()
    distance = 1 - (share + share.T) / 2
    np.fill_diagonal(distance, 0)
    optimal = len(counts) <= _MOST_ORDERED
    order = leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=optimal))
    result: pd.DataFrame = counts.iloc[order, order]
    return result


def most_confused(counts: pd.DataFrame, most: int = 20) -> pd.DataFrame:
    """List the pairs of classes that are confused most often.

    Args:
        counts: A row a true class, a column a predicted one.
        most: Pairs at most.

    Returns:
        Columns ``true``, ``predicted``, ``count``, and ``share`` of the images of the true class; the most frequent
        first.
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
    """Reorder several tables alike, in the order that :func:`clustered` gives their sum.

    Args:
        tables: Name -> counts. Those of the same classes have the same order.
    """
    order: dict[tuple[str, ...], list[str]] = {}
    result = {}
    for name, table in tables.items():
        classes = tuple(map(str, table.columns))
        if classes not in order:
            alike = [other.to_numpy() for other in tables.values() if tuple(map(str, other.columns)) == classes]
            summed = pd.DataFrame(sum(alike[1:], start=alike[0]), index=list(classes), columns=list(classes))
            order[classes] = list(clustered(summed).columns)
        places = [classes.index(label) for label in order[classes]]
        result[name] = table.iloc[places, places]
    return result
