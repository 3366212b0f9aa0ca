"""Confusion matrices with the classes in a readable order."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from vitrail.evaluate.confusion import clustered_together, most_confused
from vitrail.figures.confusion import confusion


def draw_confusion(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw confusion matrices: counts, and per cent with confused classes side by side.

    Args:
        tables: Run or variant -> counts, a row a true class.
    """
    return confusion(tables, clustered_together(tables), {name: most_confused(table) for name, table in tables.items()})
