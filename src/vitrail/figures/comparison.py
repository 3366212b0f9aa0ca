"""The figures of a suite's report, drawn from its tables and from what its runs recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy import stats

from vitrail.figures.confusion import PALETTE
from vitrail.figures.labels import legend_below

_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))


def _style(number: int) -> tuple[str, Any]:
    """Colour and line of a variant: more of them than colours differ in their dashes."""
    return PALETTE[number % len(PALETTE)], _DASHES[number // len(PALETTE) % len(_DASHES)]


def pareto(summary: pd.DataFrame, metric: str, higher_is_better: bool) -> Figure:
    """The measure against time for an image and against parameters; the line joins those that none surpasses in both.

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
            color = _style(i)[0]
            if not np.isnan(row["low"]):
                axis.vlines(cost[i], row["low"], row["high"], color=color, linewidth=1.2, alpha=0.7)
            axis.plot(cost[i], mean[i], "o^sDvPX*"[i // len(PALETTE) % 8], color=color, markersize=8)
        front = _front(cost, mean if higher_is_better else -mean)
        axis.plot(cost[front], mean[front], color="gray", linewidth=1, linestyle="--", zorder=0)
        axis.set(xlabel=label, ylabel=metric if column == "milliseconds_per_image" else "")
        if cost.max() > 4 * cost.min():
            axis.set_xscale("log")
            if cost.max() > 30 * cost.min():
                axis.xaxis.set_minor_formatter(NullFormatter())
            else:  # less than two decades are told by a few numbers, written out
                axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.6g}"))
                axis.xaxis.set_minor_formatter(NullFormatter())
        _plain(axis)
    keys = [
        Line2D([], [], marker="o^sDvPX*"[i // len(PALETTE) % 8], linestyle="", color=_style(i)[0], label=str(name))
        for i, name in enumerate(summary["variant"])
    ]
    keys.append(Line2D([], [], color="gray", linestyle="--", label="not surpassed in both"))
    legend_below(figure, keys)
    return figure


def _front(cost: npt.NDArray[np.float64], worth: npt.NDArray[np.float64]) -> list[int]:
    """Numbers of the points that no other surpasses in one and equals in the other, by cost."""
    best, front = -np.inf, []
    for i in np.lexsort((-worth, cost)):
        if worth[i] > best:
            best = worth[i]
            front.append(int(i))
    return front


def differences(pairs: pd.DataFrame, metric: str, scale: float) -> Figure:
    """Each comparison as a difference with its interval; what is shown is filled, what is not is hollow.

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
        shown = row["statement"] != "not shown"
        color = PALETTE[0] if shown else "#6b6b6b"
        if not np.isnan(row["low"]):
            axis.hlines(place, scale * row["low"], scale * row["high"], color=color, linewidth=2)
        fill = color if shown else "white"
        axis.plot(scale * row["difference"], place, "o", color=color, markerfacecolor=fill, markersize=7)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set(xlabel=f"difference in {metric}", ylim=(len(names) - 0.5, -0.5))
    _plain(axis)
    keys = [
        Line2D([], [], marker="o", color=PALETTE[0], label="shown (corrected)"),
        Line2D([], [], marker="o", color="#6b6b6b", markerfacecolor="white", label="not shown"),
    ]
    legend_below(figure, keys)
    return figure


def convergence_bands(curves: Mapping[str, Sequence[pd.DataFrame]], metric: str, name: str) -> Figure:
    """Loss and a measure of validation by epoch: the mean over a variant's runs, and a 95 % band of that mean.

    Args:
        curves: Variant -> metrics.csv of each of its runs.
        metric: Column of the measure.
        name: The measure in words.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    several = any(len(tables) > 1 for tables in curves.values())
    for number, tables in enumerate(curves.values()):
        color, dashes = _style(number)
        for axis, column in zip(axes, ("val_loss", metric), strict=True):
            joined = pd.concat([t.set_index("epoch")[column] for t in tables if column in t], axis=1)
            mean, count = joined.mean(axis=1), joined.count(axis=1)
            epochs = joined.index.to_numpy() + 1
            axis.plot(epochs, mean, color=color, linestyle=dashes, linewidth=1.6, marker="." if len(mean) < 3 else "")
            if joined.shape[1] > 1:
                half = stats.t.ppf(0.975, np.maximum(count - 1, 1)) * joined.std(axis=1, ddof=1) / np.sqrt(count)
                # The mean cannot be where the values cannot: a share lies in 0..1, a loss from 0 on.
                most = np.inf if column == "val_loss" else 1.0
                low, high = (mean - half).clip(0, most), (mean + half).clip(0, most)
                axis.fill_between(epochs, low, high, color=color, alpha=0.18, linewidth=0)
    for axis, label in zip(axes, ("validation loss", f"validation {name}"), strict=True):
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axis)
    # A band of two or three runs is wide; measures that lie in 0..1 are shown there.
    low, high = axes[1].get_ylim()
    axes[1].set_ylim(max(low, -0.02), min(high, 1.02))
    keys: list[Line2D | Patch] = [
        Line2D([], [], color=_style(i)[0], linestyle=_style(i)[1], label=name) for i, name in enumerate(curves)
    ]
    if several:
        keys.append(Patch(color="gray", alpha=0.25, label="95 % band of the mean over runs"))
    legend_below(figure, keys)
    return figure


def _plain(axis: Axes) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
