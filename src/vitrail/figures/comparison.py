"""Results of a suite: accuracy against cost, and differences between variants."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vitrail.bootstrap import NOT_SHOWN
from vitrail.figures.labels import legend_below
from vitrail.figures.style import PALETTE, plain, variant_style

_MARKS = "o^sDvPX*"


def pareto(summary: pd.DataFrame, metric: str, higher_is_better: bool) -> Figure:
    """Draw a measure against time per image and against parameters, with the Pareto front.

    Args:
        summary: A suite's summary.csv.
        metric: The measure's name for the axis.
        higher_is_better: Whether more of it is better.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, column, label in zip(
        axes, ("milliseconds_per_image", "parameters"), ("milliseconds an image", "parameters"), strict=True
    ):
        cost = summary[column].to_numpy(dtype=float)
        mean = summary["mean"].to_numpy(dtype=float)
        for i, row in enumerate(summary.to_dict("records")):
            color = variant_style(i)[0]
            if not np.isnan(row["low"]):
                axis.vlines(cost[i], row["low"], row["high"], color=color, linewidth=1.2, alpha=0.7)
            axis.plot(cost[i], mean[i], _MARKS[i // len(PALETTE) % 8], color=color, markersize=8)
        front = _front(cost, mean if higher_is_better else -mean)
        axis.plot(cost[front], mean[front], color="gray", linewidth=1, linestyle="--", zorder=0)
        axis.set(xlabel=label, ylabel=metric if column == "milliseconds_per_image" else "")
        if cost.max() > 4 * cost.min():
            axis.set_xscale("log")
            if cost.max() > 30 * cost.min():
                axis.xaxis.set_minor_formatter(NullFormatter())
            else:  # on less than two decades a few numbers suffice, written out
                axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.6g}"))
                axis.xaxis.set_minor_formatter(NullFormatter())
        plain(axis)
    keys = [
        Line2D([], [], marker=_MARKS[i // len(PALETTE) % 8], linestyle="", color=variant_style(i)[0], label=str(name))
        for i, name in enumerate(summary["variant"])
    ]
    keys.append(Line2D([], [], color="gray", linestyle="--", label="not surpassed in both"))
    legend_below(figure, keys)
    return figure


def _front(cost: npt.NDArray[np.float64], worth: npt.NDArray[np.float64]) -> list[int]:
    """Find the indices of the Pareto front, by cost."""
    best, front = -np.inf, []
    for i in np.lexsort((-worth, cost)):
        if worth[i] > best:
            best = worth[i]
            front.append(int(i))
    return front


def differences(pairs: pd.DataFrame, metric: str, scale: float) -> Figure:
    """Draw each comparison as a difference with its interval: filled where it is shown, hollow where not.

    Args:
        pairs: A suite's pairs.csv.
        metric: The measure's name for the axis, with its unit.
        scale: Factor on the numbers (100 for percentage points).
    """
    figure = Figure(figsize=(9, 1.3 + 0.42 * len(pairs)), layout="constrained")
    axis = figure.subplots()
    rows = pairs.to_dict("records")
    names = [f"{row['a']} minus {row['b']}" for row in rows]
    for place, row in enumerate(rows):
        shown = row["statement"] != NOT_SHOWN
        color = PALETTE[0] if shown else "#6b6b6b"
        if not np.isnan(row["low"]):
            axis.hlines(place, scale * row["low"], scale * row["high"], color=color, linewidth=2)
        fill = color if shown else "white"
        axis.plot(scale * row["difference"], place, "o", color=color, markerfacecolor=fill, markersize=7)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set(xlabel=f"difference in {metric}", ylim=(len(names) - 0.5, -0.5))
    plain(axis)
    keys = [
        Line2D([], [], marker="o", color=PALETTE[0], label="shown (corrected)"),
        Line2D([], [], marker="o", color="#6b6b6b", markerfacecolor="white", label=NOT_SHOWN),
    ]
    legend_below(figure, keys)
    return figure
