"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from vitrail.figures.labels import distinct_names

# Letters of a class's name.
_MOST_LETTERS = 22
# Classes of matrices that lie side by side, and that are named at all; cells of one side of a larger matrix.
_MOST_SIDE_BY_SIDE, _MOST_NAMED, _MOST_CELLS = 30, 60, 400
# Pairs in the list of confused classes.
_MOST_PAIRS = 18


def confusion(
    tables: Mapping[str, pd.DataFrame], clustered: Mapping[str, pd.DataFrame], confused: Mapping[str, pd.DataFrame]
) -> Figure:
    """Draw confusion matrices: counts, and per cent of the true class with confused classes side by side.

    Beside each other where the classes are few. Up to 60 classes are named, the two matrices below each other; of more,
    one matrix stands beside a list of the pairs that are confused most often, as no order of the classes can be read.

    Args:
        tables: Run -> counts, a row a true class.
        clustered: Run -> the same counts in another order of the classes.
        confused: Run -> pairs of classes, the most confused first: ``true``, ``predicted``, ``count``, ``share``.
    """
    most = max(len(table) for table in tables.values())
    if most > _MOST_NAMED:
        return _confusion_of_many(tables, confused)
    narrow = most <= _MOST_SIDE_BY_SIDE
    # A cell has room for its number; with many classes no number is drawn.
    side = float(np.clip(0.42 * most, 2.6, 3.6)) if narrow else 0.135 * most
    names = [str(name) for table in tables.values() for name in table.columns]
    letters = (0.062 if narrow else 0.05) * min(max(map(len, names), default=1), _MOST_LETTERS)
    across, down = (2, 1) if narrow else (1, 2)
    figure = Figure(figsize=(across * (side + letters + 0.6) + 0.4, (side + letters + 0.75) * len(tables) * down),
                    layout="constrained")  # fmt: skip
    axes = figure.subplots(len(tables) * down, across, squeeze=False).reshape(len(tables), 2)
    image = None
    for row, name in zip(axes, tables, strict=True):
        for axis, table, percent in zip(row, (tables[name], clustered[name]), (False, True), strict=True):
            image = _matrix(axis, table, percent)
            what = "per cent, clustered" if percent else "counts" if narrow else "per cent"
            axis.set_title(f"{name}: {what}" if len(tables) > 1 else what, fontsize=10)
    _color_bar(figure, image, axes, len(tables) * down)
    return figure


def _color_bar(figure: Figure, image: Any, axes: Any, rows: int) -> None:
    if image is not None:
        # As tall as the first row, and beside it.
        figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8 / rows, anchor=(0, 1), aspect=15)


def _matrix(axis: Any, table: pd.DataFrame, percent: bool) -> Any:
    counts = table.to_numpy(dtype=float)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    labels = distinct_names([str(label) for label in table.columns], _MOST_LETTERS)
    axis.set(xlabel="predicted", ylabel="true")
    size = 8 if len(labels) <= _MOST_SIDE_BY_SIDE else 6
    turn = 90 if max(map(len, labels)) > 3 else 0
    axis.set_xticks(range(len(labels)), labels, rotation=turn, fontsize=size)
    axis.set_yticks(range(len(labels)), labels, fontsize=size)
    if len(labels) <= 12:
        for i, j in np.argwhere(counts > 0):
            text = f"{counts[i, j]:.0f}"
            if percent:
                text = "<1" if 0 < share[i, j] < 0.5 else f"{share[i, j]:.0f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if share[i, j] > 55 else "black")
    axis.spines[:].set_color("#d8dee4")
    return image


def _confusion_of_many(tables: Mapping[str, pd.DataFrame], confused: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw one matrix a run with 16 classes named, beside a list of the pairs that are confused most often."""
    figure = Figure(figsize=(11.5, 4.9 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), 2, squeeze=False, width_ratios=(1, 1.1))
    image = None
    for (matrix, listed), (name, table) in zip(axes, tables.items(), strict=True):
        counts = table.to_numpy(dtype=float)
        share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        # Beyond the resolution of the figure a cell is the largest of its block, so that no error is lost.
        block = -(-len(share) // _MOST_CELLS)
        image = matrix.imshow(_largest_of_blocks(share, block), cmap="Blues", vmin=0, vmax=100, interpolation="nearest",
                              extent=(-0.5, len(share) - 0.5, len(share) - 0.5, -0.5))  # fmt: skip
        shown = np.unique(np.linspace(0, len(table) - 1, 16).round().astype(int))
        labels = distinct_names([str(label) for label in table.columns], _MOST_LETTERS)
        matrix.set_yticks(shown, [labels[i] for i in shown], fontsize=6)
        matrix.set_xticks(shown, [labels[i] for i in shown], fontsize=6, rotation=90)
        title = f"{len(table)} classes, 16 of them named"
        matrix.set(xlabel="predicted", ylabel="true")
        matrix.set_title(f"{name}: {title}" if len(tables) > 1 else title, fontsize=10)
        matrix.spines[:].set_color("#d8dee4")
        listed.set_axis_off()
        listed.set_title("most often confused", fontsize=10, loc="left")
        pairs = confused[name].head(_MOST_PAIRS)
        short = dict(zip(map(str, table.columns), distinct_names([str(c) for c in table.columns], 34), strict=True))
        for row, pair in enumerate(pairs.itertuples()):
            text = f"{pair.count:>4}  {short[str(pair.true)]} → {short[str(pair.predicted)]} ({pair.share:.0%})"
            listed.text(
                0, 1 - (row + 0.7) / (_MOST_PAIRS + 0.5), text, fontsize=7, transform=listed.transAxes, va="center"
            )
        if pairs.empty:
            listed.text(0, 0.95, "no image is predicted as another class", fontsize=8, transform=listed.transAxes)
    _color_bar(figure, image, axes[:, 0], len(tables))
    return figure


def _largest_of_blocks(values: npt.NDArray[np.float64], block: int) -> npt.NDArray[np.float64]:
    if block == 1:
        return values
    pad = -len(values) % block
    padded = np.pad(values, ((0, pad), (0, pad)))
    count = len(padded) // block
    largest: npt.NDArray[np.float64] = padded.reshape(count, block, count, block).max(axis=(1, 3))
    return largest
