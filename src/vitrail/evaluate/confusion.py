"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence

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
