"""Measures of an evaluation: calibration, selective prediction, prediction sets, robustness, intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vitrail.figures.labels import legend_below
from vitrail.figures.style import PALETTE, keys_of, plain, style

# Rows whose names can be read.
_MOST_ROWS = 40


def reliability(bins: Mapping[str, Mapping[str, pd.DataFrame]], titles: Sequence[str]) -> Figure:
    """Draw accuracy against confidence, a panel each, before and after temperature; below, the images of each bin.

    Args:
        bins: Run -> "as it is" (and "temperature") -> table with ``low``, ``high``, ``count``, ``confidence`` and
            ``accuracy``.
        titles: One for each.
    """
    columns = min(len(bins), 3)
    rows = math.ceil(len(bins) / columns)
    figure = Figure(figsize=(4 * columns, 4.1 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    looks: dict[str, tuple[str, str, Any]] = {
        "as it is": (PALETTE[1], "o", "-"),
        "temperature": (PALETTE[0], "s", "--"),
    }
    for axis, title, kinds in zip(axes.flat, titles, bins.values(), strict=False):
        axis.plot([0, 1], [0, 1], color="gray", linewidth=1, linestyle=":")
        first = next(iter(kinds.values()))
        share = first["count"] / first["count"].sum()
        axis.bar(first["low"], 0.25 * share / max(share.max(), 1e-12), width=first["high"] - first["low"], align="edge",
                 color="#d0d5db", edgecolor="white", linewidth=0.5, zorder=0)  # fmt: skip
        for kind, table in kinds.items():
            color, mark, line = looks[kind]
            full = table[table["count"] > 0]
            size = 12 + 70 * full["count"] / full["count"].max()
            axis.plot(full["confidence"], full["accuracy"], color=color, linestyle=line, linewidth=1.2)
            axis.scatter(full["confidence"], full["accuracy"], s=size, color=color, marker=mark, alpha=0.85)
        axis.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="accuracy", aspect="equal")
        axis.set_title(title, fontsize=9)
        plain(axis)
    for axis in axes.flat[len(bins) :]:
        axis.set_visible(False)
    there = [kind for kind in looks if any(kind in kinds for kinds in bins.values())]
    names = {"as it is": "as it is", "temperature": "after temperature"}
    keys: list[Any] = [
        Line2D([], [], color=looks[k][0], marker=looks[k][1], linestyle=looks[k][2], label=names[k]) for k in there
    ]
    keys.append(Line2D([], [], color="gray", linestyle=":", label="perfect"))
    keys.append(Line2D([], [], color="#d0d5db", marker="s", linestyle="", label="how many (as it is)"))
    legend_below(figure, keys)
    return figure


def risk_coverage(curves: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> Figure:
    """Draw the error rate of the most confident predictions against their share of the images.

    Args:
        curves: Run -> coverage and risk, each of shape ``(N,)``.
    """
    figure = Figure(figsize=(4.8, 3.7), layout="constrained")
    axis = figure.subplots()
    for number, (coverage, risk) in enumerate(curves.values()):
        axis.plot(coverage, risk, linewidth=1.6, **{**style(number), "marker": ""})
    axis.set(xlabel="coverage, the most confident first", ylabel="risk (error rate)", xlim=(0, 1))
    axis.set_ylim(bottom=0)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(PercentFormatter(1, decimals=0))
    if axis.get_ylim()[1] < 0.05:
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    plain(axis)
    legend_below(figure, [Line2D([], [], label=name, **{**style(i), "marker": ""}) for i, name in enumerate(curves)])
    return figure


def set_sizes(sizes: Mapping[str, Mapping[str, npt.NDArray[np.float64]]]) -> Figure:
    """Draw the sizes of prediction sets, a panel a method.

    Args:
        sizes: Method -> run -> share of the images whose set has 0, 1, 2, ... classes.
    """
    figure = Figure(figsize=(4.6 * len(sizes), 3.5), layout="constrained")
    axes = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    names = list(next(iter(sizes.values())))
    for axis, (method, of_runs) in zip(axes, sizes.items(), strict=True):
        for number, shares in enumerate(of_runs.values()):
            axis.plot(np.arange(len(shares)), shares, linewidth=1.2, markersize=4, **style(number))
        axis.set(title=method.upper(), xlabel="classes in the set", ylim=(-0.02, 1.02))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        plain(axis)
    axes[0].set_ylabel("share of the images")
    legend_below(figure, keys_of(names))
    return figure


def over_severity(means: Mapping[str, pd.Series], label: str) -> Figure:
    """Draw accuracy by severity of corruption, a line a run; severity 0 is the unchanged images.

    Args:
        means: Run -> accuracy by severity.
        label: Label of the axis.
    """
    figure = Figure(figsize=(4.8, 3.5), layout="constrained")
    axis = figure.subplots()
    for number, series in enumerate(means.values()):
        axis.plot(series.index.to_numpy(), series.to_numpy(), linewidth=1.6, markersize=5, **style(number))
    axis.set(xlabel="severity (0: as it is)", ylabel=label)
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axis)
    legend_below(figure, keys_of(list(means)))
    return figure


def corruption_grid(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw accuracy under each corruption at each severity, a panel a run, the number in each cell.

    Args:
        tables: Run -> accuracy, a row a corruption, a column a severity.
    """
    columns = min(len(tables), 2)
    rows = math.ceil(len(tables) / columns)
    high = max(len(table) for table in tables.values())
    figure = Figure(figsize=(4.8 * columns, (0.3 * high + 1) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (name, table) in zip(axes.flat, tables.items(), strict=False):
        values = table.to_numpy(dtype=float)
        axis.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8,
                      color="black" if value > 0.5 else "white")  # fmt: skip
        axis.set_xticks(range(table.shape[1]), [str(severity) for severity in table.columns], fontsize=8)
        axis.set_yticks(range(len(table)), [str(n).replace("_", " ") for n in table.index], fontsize=8)
        axis.set_xlabel("severity", fontsize=8)
        axis.set_title(name, fontsize=9)
    for axis in axes.flat[len(tables) :]:
        axis.set_visible(False)
    return figure


def without(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw accuracy with each band or stream missing, with its interval, a panel a run.

    Args:
        tables: Run -> table with ``case``, ``accuracy``, ``low`` and ``high``, the unchanged images first.
    """
    high = max(min(len(table), _MOST_ROWS) for table in tables.values())
    columns = min(len(tables), 2)
    rows = math.ceil(len(tables) / columns)
    figure = Figure(figsize=(4.8 * columns, (0.26 * high + 1) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (name, table) in zip(axes.flat, tables.items(), strict=False):
        whole = float(table["accuracy"].iloc[0])
        many = len(table) > _MOST_ROWS
        rows_at = np.arange(len(table))
        axis.axvline(whole, color="gray", linewidth=1, linestyle="--")
        if table["low"].notna().all():
            axis.hlines(rows_at, table["low"], table["high"], color=PALETTE[0], linewidth=1 if many else 2, alpha=0.6)
        axis.plot(table["accuracy"], rows_at, "o", color=PALETTE[0], markersize=2 if many else 5)
        shown = np.unique(np.linspace(0, len(table) - 1, min(len(table), _MOST_ROWS)).astype(int))
        axis.set_yticks(shown, [str(table["case"].iloc[i]) for i in shown], fontsize=5 if many else 8)
        axis.set(xlabel="accuracy", xlim=(0, 1), ylim=(len(table) - 0.5, -0.5))
        axis.set_title(name, fontsize=9)
        plain(axis)
    for axis in axes.flat[len(tables) :]:
        axis.set_visible(False)
    return figure


def under_attack(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw accuracy against the size of an attack, a panel for FGSM and one for PGD.

    Args:
        tables: Run -> table with ``attack``, ``epsilon_of_255`` and ``accuracy``; "none" is the unchanged images.
    """
    figure = Figure(figsize=(9, 3.7), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, attack in zip(axes, ("fgsm", "pgd"), strict=True):
        for number, table in enumerate(tables.values()):
            rows = table[table["attack"].isin(("none", attack))].sort_values("epsilon_of_255")
            axis.plot(rows["epsilon_of_255"], rows["accuracy"], linewidth=1.6, markersize=5, **style(number))
        axis.set(title=attack.upper(), xlabel="largest change of a pixel, of 255")
        axis.set_ylim(bottom=-0.02)
        plain(axis)
    axes[0].set_ylabel("accuracy")
    legend_below(figure, keys_of(list(tables)))
    return figure


def spans(rows: Sequence[tuple[str, float, float, float]], label: str, middle: float | None = None) -> Figure:
    """Draw values with their intervals, a row each.

    Args:
        rows: Name, value, lower and upper end; NaN ends are not drawn.
        label: Label of the axis.
        middle: A line to compare with.
    """
    figure = Figure(figsize=(4.8, 0.9 + 0.32 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for row, (_, value, low, high) in enumerate(rows):
        if not (math.isnan(low) or math.isnan(high)):
            axis.hlines(row, low, high, color=PALETTE[0], linewidth=2, alpha=0.6)
        axis.plot(value, row, "o", color=PALETTE[0], markersize=6)
    if middle is not None:
        axis.axvline(middle, color="gray", linewidth=1, linestyle="--")
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axis.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    plain(axis)
    return figure
