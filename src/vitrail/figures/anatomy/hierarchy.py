"""A hierarchy: patch merging, the pyramid of feature maps, two streams and their fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vitrail.errors import plural
from vitrail.figures.anatomy.canvas import (
    Array,
    View,
    blank,
    hatch_cells,
    label,
    lines,
    pair_ticks,
    panels,
    ratio_of,
    show_image,
    spread,
    star,
    where,
    write,
)
from vitrail.figures.style import PALETTE, head

# A map with more cells is shown in part: the step is the same everywhere.
_MOST_CELLS = 12
_MOST_LEVELS = 5
_QUERIES = 4


@dataclass(frozen=True)
class FeatureMap:
    """A feature map, or tokens on their grid.

    Attributes:
        name: Name of the module, or of the tokens.
        stride: Pixels from one position to the next.
        shape: Height, width and channels.
        colors: First three principal components as colours, shape ``(h, w, 3)``, in 0..1.
        length: Norm of each position's vector, shape ``(h, w)``.
    """

    name: str
    stride: tuple[int, int]
    shape: tuple[int, int, int]
    colors: Array
    length: Array


@dataclass(frozen=True)
class Merging:
    """One patch merging.

    Attributes:
        name: Name of the layer.
        grid: Height and width before.
        stride: Pixels from one token to the next, before.
        order: Row and column of each token of a 2 x 2, in the order of their concatenation.
        parents: Indices (row-major on the grid) of the tokens of each merged token, in that order, shape
            ``(ceil(H / 2), ceil(W / 2), 4)``; -1: padding.
    """

    name: str
    grid: tuple[int, int]
    stride: tuple[int, int]
    order: Sequence[tuple[int, int]]
    parents: Array


def draw_merging(merge: Merging, view: View, after: FeatureMap | None, note: str) -> Figure:
    """Draw patch merging: the slot of each token, the four maps that are concatenated, and the merged map.

    Args:
        merge: The merging.
        view: The image.
        after: The first map after it, where it is known.
        note: Note below the figure: the model and its weights.
    """
    rows, columns = merge.grid
    h, w = (min(side, _MOST_CELLS // 2) for side in merge.parents.shape[:2])
    # A padded edge is shown where there is one, else the middle.
    top, left = merge.parents.shape[0] - h, merge.parents.shape[1] - w
    top, left = top if rows % 2 else top // 2, left if columns % 2 else left // 2
    figure, axes = panels(2, 3, 3.1, h / w)
    colors = token_colors(view, merge)
    axis = axes[0, 0]
    _show_cells(axis, colors[2 * top : 2 * (top + h), 2 * left : 2 * (left + w)], (2 * top, 2 * left))
    beyond = np.ones((2 * (top + h), 2 * (left + w)), dtype=bool)
    beyond[:rows, :columns] = False
    hatch_cells(axis, beyond)
    parents = merge.parents[top : top + h, left : left + w]
    _number_parents(axis, parents, merge, (top, left))
    lines(axis, beyond.shape, (2, 2), "#F0E442", 2.0, (2 * top, 2 * left))
    axis.set(xlim=(2 * left, 2 * (left + w)), ylim=(2 * (top + h), 2 * top))
    part = "" if merge.parents.shape[:2] == (h, w) else f", of which {2 * h} × {2 * w} are shown"
    zeros = "\n0: a padded row or column of zeros" if rows % 2 or columns % 2 else "\ncounted in each 2 × 2"
    label(axis, f"before: {rows} × {columns} tokens{part}{zeros}")
    flat = colors.reshape(-1, *colors.shape[2:])
    for slot, (row, column) in enumerate(merge.order):
        axis = axes[row, column + 1]
        tokens = parents[..., slot]
        _show_cells(axis, flat[np.maximum(tokens, 0)], (top, left))
        hatch_cells(axis, tokens < 0, (top, left))
        lines(axis, (top + h, left + w), (1, 1), PALETTE[slot], 1.6, (top, left))
        label(axis, f"{slot + 1}: row {row}, column {column}\nof each 2 × 2")
        axis.set(xlim=(left, left + w), ylim=(top + h, top))
    axis = axes[1, 0]
    if after is None:
        blank(axis)
    else:
        _show_cells(axis, after.colors[top : top + h, left : left + w], (top, left))
        label(axis, f"after the stage's blocks: {_size(after)}\n(principal components as colours)")
    title = f"Patch merging before {where(merge.name)}: concatenate 1 2 3 4, LayerNorm, linear map from 4C to 2C"
    return head(figure, title, note)


def token_colors(view: View, merge: Merging) -> Array:
    """Reduce the image to one pixel a token, the mean colour of its patch: ``(H, W)`` or ``(H, W, 3)``."""
    (rows, columns), (sh, sw) = merge.grid, merge.stride
    (height, width), colors = view.size, view.pixels.shape[2:]
    beyond = ((0, rows * sh - height), (0, columns * sw - width), *((0, 0) for _ in colors))
    pixels = np.pad(view.pixels.astype(np.float32), beyond, mode="edge")
    mean: Array = pixels.reshape(rows, sh, columns, sw, *colors).mean(axis=(1, 3))
    return mean


def _show_cells(axis: Any, colors: Array, first: tuple[int, int]) -> None:
    """Draw a colour a cell, the first cell at the row and column ``first``."""
    bottom, right = first[0] + colors.shape[0], first[1] + colors.shape[1]
    extent = (first[1], right, bottom, first[0])
    axis.imshow(colors, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")


def _number_parents(axis: Any, parents: Array, merge: Merging, first: tuple[int, int]) -> None:
    for row, column, slot in np.ndindex(parents.shape):
        token = int(parents[row, column, slot])
        # A token of the padding has no index; its slot gives its position.
        corner = 2 * (first[0] + row) + merge.order[slot][0], 2 * (first[1] + column) + merge.order[slot][1]
        y, x = divmod(token, merge.grid[1]) if token >= 0 else corner
        color = PALETTE[slot] if token >= 0 else "#777777"
        axis.text(
            x + 0.5, y + 0.5, "0" if token < 0 else str(slot + 1), ha="center", va="center", fontsize=8, zorder=4,
            color="white", fontweight="bold", bbox={"boxstyle": "circle,pad=0.15", "facecolor": color, "lw": 0},
        )  # fmt: skip


def draw_pyramid(levels: Sequence[FeatureMap], view: View, note: str) -> Figure:
    """Draw the feature maps of each level: principal components as colours, and the norm of each token's vector.

    Args:
        levels: Levels of one stream, in the model's order.
        view: The image.
        note: Note below the figure: the model and its weights.
    """
    chosen = choose_levels(levels)
    figure, axes = panels(2, len(chosen) + 1, 2.7, ratio_of(view.size))
    _input(axes[0, 0], view)
    blank(axes[1, 0])
    axes[1, 0].text(
        0.0, 0.5, "above: the first three\nprincipal components of\nthe channels, as red, green,\nblue\n\n"
        "here: the length of each\nposition's vector, over the\nmap's largest",
        fontsize=9, va="center", transform=axes[1, 0].transAxes,
    )  # fmt: skip
    for column, level in enumerate(chosen, start=1):
        _colors(axes[0, column], level)
        H, W, _ = level.shape
        axes[1, column].imshow(
            level.length / max(level.length.max(), 1e-12), cmap="viridis", vmin=0, vmax=1,
            extent=(0, W, H, 0), interpolation="nearest",
        )  # fmt: skip
        label(axes[1, column], "length of the vectors", "position")
        axes[1, column].set_ylabel("")
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), "viridis"), ax=axes[1, :], shrink=0.8, aspect=18)
    bar.ax.tick_params(labelsize=7)
    same = len({level.shape for level in chosen}) == 1
    return head(figure, "Feature maps, all on one grid" if same else "The pyramid of feature maps", note)


def choose_levels(levels: Sequence[FeatureMap], most: int = _MOST_LEVELS) -> list[FeatureMap]:
    """Choose at most so many levels, spread evenly, the first and the last among them."""
    return [levels[i] for i in spread(len(levels), most)]


def _input(axis: Any, view: View) -> None:
    show_image(axis, view, (1, 1), view.size)
    label(axis, f"{view.title}\n{view.size[0]} × {view.size[1]} pixels", "pixel")


def _colors(axis: Any, level: FeatureMap) -> None:
    _show_cells(axis, level.colors, (0, 0))
    sh, sw = level.stride
    stride = f"{sh}" if sh == sw else f"{sh} × {sw}"
    label(axis, f"{where(level.name)}: {_size(level)}\nstride {stride} pixels", "position")
    axis.set_ylabel("")


def _size(level: FeatureMap) -> str:
    return " × ".join(map(str, level.shape))


def draw_streams(streams: Sequence[Sequence[FeatureMap]], views: Sequence[View], note: str) -> Figure:
    """Draw both streams up to their fusion: a row each, from the input to the last stage.

    Args:
        streams: Levels of each stream.
        views: The inputs.
        note: Note below the figure: the model and its weights.
    """
    chosen = [choose_levels(levels) for levels in streams]
    figure, axes = panels(len(chosen), 1 + max(map(len, chosen)), 2.7, ratio_of(views[0].size))
    for row, (levels, view) in enumerate(zip(chosen, views, strict=True)):
        for axis in axes[row]:
            blank(axis)
        axes[row, 0].set_axis_on()
        _input(axes[row, 0], view)
        for axis, level in zip(axes[row, 1:], levels, strict=False):
            axis.set_axis_on()
            _colors(axis, level)
    return head(figure, "Two streams, each a hierarchy of its own", note)


def draw_fusion(weights: Array | None, tokens: Sequence[FeatureMap], views: Sequence[View], note: str) -> Figure:
    """Draw the fusion of the streams: attention of four image tokens to the spectral tokens; or the concatenation.

    Args:
        weights: Attention from image tokens (rows) to spectral tokens, shape ``(heads, N, M)``; None for concatenation.
        tokens: Image tokens, spectral tokens and fused tokens.
        views: Image and spectral input.
        note: Note below the figure: the model and its weights.
    """
    if weights is None:
        return _draw_concat(tokens, note)
    figure, axes = panels(2, 4, 2.8, ratio_of(views[0].size))
    image, spectral, fused = tokens
    h, w, _ = image.shape
    keys = spectral.shape[:2]
    heads, weights = len(weights), weights.mean(axis=0)
    queries = query_tokens((h, w))
    view = views[0]
    stride = (-(-view.size[0] // h), -(-view.size[1] // w))
    show_image(axes[0, 0], view, stride, (h, w))
    lines(axes[0, 0], (h, w), (1, 1), "white", 0.6)
    label(axes[0, 0], f"{view.title}: {h} × {w} tokens, queries")
    view = views[1]
    stride = (-(-view.size[0] // keys[0]), -(-view.size[1] // keys[1]))
    show_image(axes[0, 1], view, stride, keys)
    lines(axes[0, 1], keys, (1, 1), "white", 0.6)
    label(axes[0, 1], f"{view.title}:\n{keys[0]} × {keys[1]} tokens, keys")
    shown = axes[0, 2].imshow(100 * weights, cmap="inferno", vmin=0, aspect="auto", interpolation="nearest")
    axes[0, 2].set_title(f"attention, mean over {plural(heads, 'head')}\n{h * w} × {keys[0] * keys[1]}", fontsize=9)
    pair_ticks(axes[0, 2], "spectral token (key)", "image token (query)")
    _show_cells(axes[0, 3], fused.colors, (0, 0))
    label(axes[0, 3], f"fused: {_size(fused)}\n(principal components)")
    for number, axis in enumerate(axes[1]):
        if number >= len(queries):
            blank(axis)
            continue
        row, column = divmod(queries[number], w)
        star(axes[0, 0], row + 0.5, column + 0.5, PALETTE[number], 13)
        values = 100 * weights[queries[number]].reshape(keys)
        axis.imshow(values, cmap="inferno", norm=shown.norm, extent=(0, keys[1], keys[0], 0), interpolation="nearest")
        label(axis, f"what token {number + 1} takes from\neach spectral token")
        for side in axis.spines.values():
            side.set(color=PALETTE[number], linewidth=3)
        write(axes[0, 0], row + 0.5, column + 0.85 if column + 1 < w else column + 0.15, str(number + 1), 9)
    bar = figure.colorbar(shown, ax=axes, shrink=0.6, aspect=25)
    bar.set_label("% of the attention", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return head(
        figure, "Fusion by cross-attention: image tokens are the queries, spectral tokens keys and values", note
    )


def query_tokens(grid: tuple[int, int]) -> list[int]:
    """Choose the query tokens whose attention is drawn: one in each quarter of the grid, without repeats."""
    rows = sorted({grid[0] // 4, grid[0] - 1 - grid[0] // 4})
    columns = sorted({grid[1] // 4, grid[1] - 1 - grid[1] // 4})
    return [row * grid[1] + column for row in rows for column in columns][:_QUERIES]


def _draw_concat(tokens: Sequence[FeatureMap], note: str) -> Figure:
    figure, axes = panels(1, 3, 3.2, tokens[0].shape[0] / tokens[0].shape[1])
    for axis, name, part in zip(axes[0], ("image tokens", "spectral tokens", "fused"), tokens, strict=True):
        _show_cells(axis, part.colors, (0, 0))
        label(axis, f"{name}: {_size(part)}\n(principal components)")
    return head(figure, "Fusion by concatenation: the two tokens of each position are projected to one", note)
