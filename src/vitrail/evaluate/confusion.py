"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import confusion_matrix

from vitrail.evaluate.metrics import Floats, Ints


def confusion_table(logits: Floats, targets: Ints, classes: Sequence[str]) -> pd.DataFrame:
    """Counts: a row a true class, a column a predicted one."""
    counts = confusion_matrix(targets, logits.argmax(1), labels=np.arange(len(classes)))
    return pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=list(classes))


def normalized_by_row(counts: pd.DataFrame) -> pd.DataFrame:
    """Shares of each true class; a class without images has zeros."""
    totals = counts.sum(axis=1)
    return counts.div(totals.where(totals > 0, 1), axis=0)


def clustered(counts: pd.DataFrame) -> pd.DataFrame:
    """The same counts, classes that are taken for each other side by side.

    The order is that of the leaves of a hierarchical clustering (average linkage, leaves ordered so that neighbours
    are near). Two classes are the nearer, the larger the share of either's images that is taken for the other, on the
    mean of both directions.

    Args:
        counts: A row a true class, a column a predicted one, in the same order.

    Source: Bar-Joseph et al. 2001, Bioinformatics 17, S22-S29 (the order of the leaves).
    """
    if len(counts) < 3:
        return counts
    share = normalized_by_row(counts).to_numpy()
    distance = 1 - (share + share.T) / 2
    np.fill_diagonal(distance, 0)
    order = leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))
    result: pd.DataFrame = counts.iloc[order, order]
    return result


def clustered_together(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Each of several in the one order that :func:`clustered` gives their sum, so that they can be compared.

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
