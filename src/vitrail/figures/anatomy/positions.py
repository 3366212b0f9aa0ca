"""Relative positions: the index of each pair of tokens into the table, and the learned bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vitrail.errors import plural
from vitrail.figures.anatomy.canvas import INK, Array, blank, label, pair_ticks, star, where
from vitrail.figures.style import head

# Cells of a side whose numbers can be read.
_MOST_NUMBERS = 9
_MOST_HEADS = 4
_MOST_LAYERS = 2


@dataclass(frozen=True)
class RelativePositions:
    """Relative positions of one layer.

    Attributes:
        name: Name of the layer.
        window: Height and width of the window that the layer was built for.
        index: Row of the table for each pair of tokens, shape ``(n, n)``.
        table: Learned bias by offset (query minus key), shape ``(heads, 2 wh - 1, 2 ww - 1)``.
        bias: Bias of the attention scores, shape ``(heads, n, n)``.
    """

    name: str
    window: tuple[int, int]
    index: Array
    table: Array
    bias: Array


def draw_relative_position(layers: Sequence[RelativePositions], note: str) -> Figure:
    """Draw the index of each pair, from two tokens and as a matrix, the table by head, and the bias of one head.

    Args:
        layers: Layers with relative positions, in the model's order; the first and the last are drawn.
        note: Note below the figure: the model and its weights.
    """
    chosen = list(layers) if len(layers) <= _MOST_LAYERS else [layers[0], layers[-1]]
    first = layers[0]
    wh, ww = first.window
    figure = Figure(figsize=(13.0, 3.6 * (1 + len(chosen)) + 0.5), layout="constrained")
    parts = figure.subfigures(1 + len(chosen), 1, squeeze=False)[:, 0]
    axes = parts[0].subplots(1, 4)
    _draw_index_matrix(axes[0], first)
    _draw_row(axes[1], first, 0, "read by the first token (star)")
    _draw_row(axes[2], first, (wh // 2) * ww + ww // 2, "read by the centre token (star)")
    _draw_bias(parts[0], axes[3], first)
    for part, layer in zip(parts[1:], chosen, strict=True):
        _draw_tables(part, layer)
    rows = (2 * wh - 1) * (2 * ww - 1)
    pairs = plural((wh * ww) ** 2, "pair")
    title = f"Relative positions in windows of {wh} × {ww}: {rows} learned numbers a head for {pairs}"
    return head(figure, title, note)


def _draw_index_matrix(axis: Any, layer: RelativePositions) -> None:
    index = layer.index
    n = len(index)
    _draw_numbers(axis, index, (n, n), int(index.max()))
    axis.set_title(f"index of each pair, {n} × {n}\n(diagonal: {index[0, 0]})", fontsize=9)
    pair_ticks(axis)


def _draw_row(axis: Any, layer: RelativePositions, query: int, title: str) -> None:
    index = layer.index
    wh, ww = layer.window
    _draw_numbers(axis, index[query].reshape(wh, ww), (wh, ww), int(index.max()))
    row, column = divmod(query, ww)
    label(axis, f"{title}\nindex = (dy + {wh - 1}) · {2 * ww - 1} + (dx + {ww - 1})", "key")
    # Below the number, and small in small cells.
    star(axis, row + 0.84, column + 0.84, size=9 if max(wh, ww) <= 5 else 6)


def _draw_numbers(axis: Any, values: Array, size: tuple[int, int], top: int) -> None:
    axis.imshow(values, cmap="viridis", vmin=0, vmax=top, extent=(0, size[1], size[0], 0), interpolation="nearest")
    axis.tick_params(labelsize=7, length=2)
    if max(size) > _MOST_NUMBERS:
        return
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value < 0.6 * top else INK
        axis.text(column + 0.5, row + 0.5, str(value), ha="center", va="center", fontsize=7, color=color)


def _draw_bias(part: Any, axis: Any, layer: RelativePositions) -> None:
    bias = layer.bias[0]
    n = len(bias)
    top = float(np.abs(bias).max()) or 1.0
    shown = axis.imshow(bias, cmap="RdBu_r", vmin=-top, vmax=top, extent=(0, n, n, 0), interpolation="nearest")
    axis.set_title(f"bias added to the scores, head 1\n{where(layer.name)}", fontsize=9)
    pair_ticks(axis)
    _bar(part, shown, axis)


def _draw_tables(part: Any, layer: RelativePositions) -> None:
    table = layer.table
    wh, ww = layer.window
    top = float(np.abs(table).max()) or 1.0
    axes = part.subplots(1, _MOST_HEADS)
    for axis in axes[len(table) :]:
        blank(axis)
    shown = None
    for number, axis in enumerate(axes[: len(table)]):
        extent = (-ww + 0.5, ww - 0.5, wh - 0.5, -wh + 0.5)
        shown = axis.imshow(table[number], cmap="RdBu_r", vmin=-top, vmax=top, extent=extent, interpolation="nearest")
        label(axis, f"{where(layer.name)}\ntable of head {number + 1} of {len(table)}")
        axis.set_xlabel("dx: columns, query minus key", fontsize=8)
        axis.set_ylabel("dy: rows, query minus key", fontsize=8)
    _bar(part, shown, axes[: len(table)])


def _bar(part: Any, shown: Any, axes: Any) -> None:
    bar = part.colorbar(shown, ax=axes, shrink=0.8, aspect=20)
    bar.set_label("learned bias", fontsize=8)
    bar.ax.tick_params(labelsize=7)
