"""Pictures of a hierarchy: patch merging, the pyramid of feature maps, two streams and where they meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vitrail.explain.structure.anatomy import FusedStreams, Level
from vitrail.explain.structure.features import principal_colors
from vitrail.explain.structure.merging import Merge
from vitrail.figures.anatomy.canvas import (
    Array,
    View,
    blank,
    hatch_cells,
    head,
    label,
    lines,
    pair_ticks,
    panels,
    ratio_of,
    show_image,
    star,
    where,
    write,
)
from vitrail.figures.confusion import PALETTE
from vitrail.layers.patch_merging import PARENTS

# A map with more cells is shown in part: the step is the same everywhere.
_MOST_CELLS = 12
_MOST_LEVELS = 5
_ASKING = 4


def draw_merging(merge: Merge, view: View, after: Level | None, told: str) -> Figure:
    """Patch merging: which of four each token is, the four maps that are concatenated, and the merged map.

    Args:
        merge: The merging.
        view: The image.
        after: The first map after it, if it is known.
        told: What is drawn, with which weights.
    """
    rows, columns = merge.grid
    h, w = (min(side, _MOST_CELLS // 2) for side in merge.parents.shape[:2])
    # Where an edge is padded that is the part to show, else the middle.
    top, left = merge.parents.shape[0] - h, merge.parents.shape[1] - w
    top, left = top if rows % 2 else top // 2, left if columns % 2 else left // 2
    figure, axes = panels(2, 3, 3.1, h / w)
    colors = token_colors(view, merge)
    axis = axes[0, 0]
    _show_cells(axis, colors[2 * top : 2 * (top + h), 2 * left : 2 * (left + w)], (2 * top, 2 * left))
    beyond = np.ones((2 * (top + h), 2 * (left + w)), dtype=bool)
    beyond[:rows, :columns] = False
    hatch_cells(axis, beyond)
    parents = merge.parents[top : top + h, left : left + w].numpy()
    _number_parents(axis, parents, merge.grid, (top, left))
    lines(axis, beyond.shape, (2, 2), "#F0E442", 2.0, (2 * top, 2 * left))
    axis.set(xlim=(2 * left, 2 * (left + w)), ylim=(2 * (top + h), 2 * top))
    part = "" if merge.parents.shape[:2] == (h, w) else f", of which {2 * h} × {2 * w} are shown"
    zeros = "\n0: a padded row or column of zeros" if rows % 2 or columns % 2 else "\ncounted in each 2 × 2"
    label(axis, f"before: {rows} × {columns} tokens{part}{zeros}")
    flat = colors.reshape(-1, *colors.shape[2:])
    for slot, (row, column) in enumerate(PARENTS):
        axis = axes[row, column + 1]
        places = parents[..., slot]
        _show_cells(axis, flat[np.maximum(places, 0)], (top, left))
        hatch_cells(axis, places < 0, (top, left))
        lines(axis, (top + h, left + w), (1, 1), PALETTE[slot], 1.6, (top, left))
        label(axis, f"{slot + 1}: row {row}, column {column}\nof each 2 × 2")
        axis.set(xlim=(left, left + w), ylim=(top + h, top))
    axis = axes[1, 0]
    if after is None:
        blank(axis)
    else:
        C, H, W = after.map.shape
        _show_cells(axis, principal_colors(after.map)[top : top + h, left : left + w].numpy(), (top, left))
        label(axis, f"after the stage's blocks: {H} × {W} × {C}\n(principal components as colours)")
    title = f"Patch merging before {where(merge.name)}: concatenate 1 2 3 4, LayerNorm, linear map from 4C to 2C"
    return head(figure, title, told)


def token_colors(view: View, merge: Merge) -> Array:
    """The image at one pixel a token: the mean colour of what each token covers, ``(H, W)`` or ``(H, W, 3)``."""
    (rows, columns), (sh, sw) = merge.grid, merge.stride
    pixels = torch.from_numpy(np.ascontiguousarray(view.pixels)).float()
    maps = pixels[None, None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)[None]
    height, width = maps.shape[2:]
    maps = F.pad(maps, (0, columns * sw - width, 0, rows * sh - height), mode="replicate")
    small = F.avg_pool2d(maps, (sh, sw))[0]
    array: Array = (small[0] if pixels.ndim == 2 else small.permute(1, 2, 0)).numpy()
    return array


def _show_cells(axis: Any, colors: Array, first: tuple[int, int]) -> None:
    """Draw a colour a cell, the first cell at the row and column ``first``."""
    bottom, right = first[0] + colors.shape[0], first[1] + colors.shape[1]
    extent = (first[1], right, bottom, first[0])
    axis.imshow(colors, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")


def _number_parents(axis: Any, parents: Array, grid: tuple[int, int], first: tuple[int, int]) -> None:
    for row, column, slot in np.ndindex(parents.shape):
        place = int(parents[row, column, slot])
        # A token of the padding has no place of its own: it lies where its order puts it.
        corner = 2 * (first[0] + row) + PARENTS[slot][0], 2 * (first[1] + column) + PARENTS[slot][1]
        y, x = divmod(place, grid[1]) if place >= 0 else corner
        color = PALETTE[slot] if place >= 0 else "#777777"
        axis.text(
            x + 0.5, y + 0.5, "0" if place < 0 else str(slot + 1), ha="center", va="center", fontsize=8, zorder=4,
            color="white", fontweight="bold", bbox={"boxstyle": "circle,pad=0.15", "facecolor": color, "lw": 0},
        )  # fmt: skip


def draw_pyramid(levels: Sequence[Level], view: View, told: str) -> Figure:
    """Feature maps of each level: principal components as colours, and how long each token's vector is.

    Args:
        levels: Levels of one stream, in the model's order.
        view: The image.
        told: What is drawn, with which weights.
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
        _, H, W = level.map.shape
        length = level.map.float().norm(dim=0)
        axes[1, column].imshow(
            (length / length.max().clamp_min(1e-12)).numpy(), cmap="viridis", vmin=0, vmax=1,
            extent=(0, W, H, 0), interpolation="nearest",
        )  # fmt: skip
        label(axes[1, column], "length of the vectors", "position")
        axes[1, column].set_ylabel("")
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), "viridis"), ax=axes[1, :], shrink=0.8, aspect=18)
    bar.ax.tick_params(labelsize=7)
    same = len({level.map.shape for level in chosen}) == 1
    return head(figure, "Feature maps, all on one grid" if same else "The pyramid of feature maps", told)


def choose_levels(levels: Sequence[Level], most: int = _MOST_LEVELS) -> list[Level]:
    """At most so many levels, spread evenly, the first and the last among them."""
    places = np.unique(np.linspace(0, len(levels) - 1, min(most, len(levels))).round().astype(int))
    return [levels[i] for i in places]


def _input(axis: Any, view: View) -> None:
    show_image(axis, view, (1, 1), view.size)
    label(axis, f"{view.title}\n{view.size[0]} × {view.size[1]} pixels", "pixel")


def _colors(axis: Any, level: Level) -> None:
    C, H, W = level.map.shape
    axis.imshow(principal_colors(level.map).numpy(), extent=(0, W, H, 0), interpolation="nearest")
    sh, sw = level.stride
    stride = f"{sh}" if sh == sw else f"{sh} × {sw}"
    label(axis, f"{where(level.name)}: {H} × {W} × {C}\nstride {stride} pixels", "position")
    axis.set_ylabel("")


def draw_streams(streams: Sequence[Sequence[Level]], views: Sequence[View], told: str) -> Figure:
    """Both streams side by side until they meet: a row each, from the input to the last stage.

    Args:
        streams: Levels of each stream.
        views: The inputs.
        told: What is drawn, with which weights.
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
    return head(figure, "Two streams, each a hierarchy of its own", told)


def draw_fusion(fusion: FusedStreams, views: Sequence[View], told: str) -> Figure:
    """Where the streams meet: what four image tokens ask of the spectral tokens; or what is concatenated.

    Args:
        fusion: What went in and came out.
        views: Image and spectral input.
        told: What is drawn, with which weights.
    """
    if fusion.weights is None:
        return _draw_concat(fusion, told)
    figure, axes = panels(2, 4, 2.8, ratio_of(views[0].size))
    h, w, C = fusion.image.shape
    keys = (fusion.spectral.shape[0], fusion.spectral.shape[1])
    weights = fusion.weights.float().mean(dim=0).numpy()
    places = asking_tokens((h, w))
    view = views[0]
    stride = (-(-view.size[0] // h), -(-view.size[1] // w))
    show_image(axes[0, 0], view, stride, (h, w))
    lines(axes[0, 0], (h, w), (1, 1), "white", 0.6)
    label(axes[0, 0], f"{view.title}: {h} × {w} tokens ask")
    view = views[1]
    stride = (-(-view.size[0] // keys[0]), -(-view.size[1] // keys[1]))
    show_image(axes[0, 1], view, stride, keys)
    lines(axes[0, 1], keys, (1, 1), "white", 0.6)
    label(axes[0, 1], f"{view.title}:\n{keys[0]} × {keys[1]} tokens answer")
    shown = axes[0, 2].imshow(100 * weights, cmap="inferno", vmin=0, aspect="auto", interpolation="nearest")
    axes[0, 2].set_title(f"attention, mean over {len(fusion.weights)} heads\n{h * w} × {keys[0] * keys[1]}", fontsize=9)
    pair_ticks(axes[0, 2], "spectral token (key)", "image token (query)")
    fused = Level("fused", (1, 1), fusion.fused.permute(2, 0, 1))
    axes[0, 3].imshow(principal_colors(fused.map).numpy(), extent=(0, w, h, 0), interpolation="nearest")
    label(axes[0, 3], f"fused: {h} × {w} × {C}\n(principal components)")
    for number, axis in enumerate(axes[1]):
        if number >= len(places):
            blank(axis)
            continue
        row, column = divmod(places[number], w)
        star(axes[0, 0], row + 0.5, column + 0.5, PALETTE[number], 13)
        values = 100 * weights[places[number]].reshape(keys)
        axis.imshow(values, cmap="inferno", norm=shown.norm, extent=(0, keys[1], keys[0], 0), interpolation="nearest")
        label(axis, f"what token {number + 1} takes from\neach spectral token")
        for side in axis.spines.values():
            side.set(color=PALETTE[number], linewidth=3)
        write(axes[0, 0], row + 0.5, column + 0.85 if column + 1 < w else column + 0.15, str(number + 1), 9)
    bar = figure.colorbar(shown, ax=axes, shrink=0.6, aspect=25)
    bar.set_label("% of the attention", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return head(
        figure, "Fusion by cross-attention: image tokens are the queries, spectral tokens keys and values", told
    )


def asking_tokens(grid: tuple[int, int]) -> list[int]:
    """Places of the tokens whose answers are shown: one in each quarter of the grid, without repeats."""
    rows = sorted({grid[0] // 4, grid[0] - 1 - grid[0] // 4})
    columns = sorted({grid[1] // 4, grid[1] - 1 - grid[1] // 4})
    return [row * grid[1] + column for row in rows for column in columns][:_ASKING]


def _draw_concat(fusion: FusedStreams, told: str) -> Figure:
    figure, axes = panels(1, 3, 3.2, fusion.image.shape[0] / fusion.image.shape[1])
    parts = (("image tokens", fusion.image), ("spectral tokens", fusion.spectral), ("fused", fusion.fused))
    for axis, (name, tokens) in zip(axes[0], parts, strict=True):
        h, w, C = tokens.shape
        colors = principal_colors(tokens.permute(2, 0, 1)).numpy()
        axis.imshow(colors, extent=(0, w, h, 0), interpolation="nearest")
        label(axis, f"{name}: {h} × {w} × {C}\n(principal components)")
    return head(figure, "Fusion by concatenation: the two tokens of each place side by side, projected to one", told)
