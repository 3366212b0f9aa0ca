"""Groups of tokens: windows and shifted windows, their masks, MaxViT's block and grid attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vitrail.errors import plural
from vitrail.figures.anatomy.canvas import (
    ACCENT,
    INK,
    REGION_COLORS,
    REGION_LETTERS,
    Array,
    View,
    blank,
    hatch_cells,
    inside,
    label,
    lines,
    outline,
    paint,
    pair_ticks,
    panels,
    ratio_of,
    show_image,
    show_rolled,
    star,
    where,
    write,
)
from vitrail.figures.style import PALETTE, head

_MOST_STAGES = 4
_MOST_TYPES = 6
_REGIONS = dict(enumerate(REGION_COLORS))


@dataclass(frozen=True)
class TokenGroups:
    """Groups of tokens that attend to each other in one layer.

    Attributes:
        name: Name of the layer.
        kind: "window" or "grid".
        stride: Pixels from one token to the next.
        grid: Height and width of the map in tokens.
        padded: The same with the padding.
        window: Height and width of a group.
        shift: Rows and columns of the cyclic shift.
        group: Index of the group of each token, shape ``(H, W)``.
        region: Label of each token, shape ``(H, W)``; tokens of one group and one label attend to each other.
        rolled: Labels after the cyclic shift, shape ``(H', W')``; -1: padding.
        labels: Labels by group, shape ``(groups, n)``.
        blocked: True where a token may not attend to another, shape ``(groups, n, n)``.
    """

    name: str
    kind: str
    stride: tuple[int, int]
    grid: tuple[int, int]
    padded: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]
    group: Array
    region: Array
    rolled: Array
    labels: Array
    blocked: Array


def by_grid(groups: Sequence[TokenGroups]) -> list[list[TokenGroups]]:
    """Collect the layers of each grid, in the model's order."""
    grids: dict[tuple[int, int], list[TokenGroups]] = {}
    for group in groups:
        grids.setdefault(group.grid, []).append(group)
    return list(grids.values())


def draw_windows(groups: Sequence[TokenGroups], view: View, note: str) -> Figure:
    """Draw windows, shifted windows before and after the cyclic shift, a row for each grid.

    Args:
        groups: Layers of kind "window".
        view: The image.
        note: Note below the figure: the model and its weights.
    """
    stages = by_grid(groups)[:_MOST_STAGES]
    figure, axes = panels(len(stages), 3, 3.7, ratio_of(view.size))
    for row, layers in enumerate(stages):
        plain = next((g for g in layers if g.shift == (0, 0)), layers[0])
        _draw_plain(axes[row, 0], plain, view)
        shifted = next((g for g in layers if g.shift != (0, 0)), None)
        if shifted is None:
            for axis in axes[row, 1:]:
                blank(axis)
            reason = "one window holds the whole map:\nnothing to shift" if len(plain.labels) == 1 else "no shift here"
            axes[row, 1].text(0.5, 0.5, reason, ha="center", va="center", fontsize=10, color=INK)
            continue
        _draw_shifted(axes[row, 1], shifted, view)
        _draw_rolled(axes[row, 2], shifted, view)
    return head(figure, "Windows, shifted windows, and the cyclic shift", note)


def _draw_plain(axis: Any, group: TokenGroups, view: View) -> None:
    show_image(axis, view, group.stride, group.grid, group.padded)
    lines(axis, group.padded)
    lines(axis, group.padded, group.window, ACCENT, 1.8)
    label(axis, f"{where(group.name)}: windows of {_size(group.window)}\n{_size(group.grid)} tokens{_padding(group)}")


def _draw_shifted(axis: Any, group: TokenGroups, view: View) -> None:
    show_image(axis, view, group.stride, group.grid, group.padded)
    lines(axis, group.grid)
    paint(axis, group.grid, _REGIONS, group.region, 0.4)
    outline(axis, group.group)
    _letters(axis, group.region)
    axis.set(xlim=(0, group.padded[1]), ylim=(group.padded[0], 0))
    shift = group.shift
    label(axis, f"{where(group.name)}: windows shifted by\n{plural(shift[0], 'row')}, {plural(shift[1], 'column')}")


def _draw_rolled(axis: Any, group: TokenGroups, view: View) -> None:
    show_rolled(axis, view, group.stride, group.padded, group.shift)
    regions = group.rolled
    lines(axis, group.padded)
    paint(axis, group.padded, _REGIONS, regions, 0.4)
    hatch_cells(axis, regions == -1)
    lines(axis, group.padded, group.window, ACCENT, 1.8)
    _letters(axis, regions)
    axis.set(xlim=(0, group.padded[1]), ylim=(group.padded[0], 0))
    label(axis, "after the roll: only tokens of one letter\nthat share a window attend to each other")


def _letters(axis: Any, regions: Array) -> None:
    for value, letter in enumerate(REGION_LETTERS):
        cells = np.argwhere(regions == value)
        if len(cells):
            write(axis, *inside(cells), letter, 13)


def draw_masks(group: TokenGroups, note: str) -> Figure:
    """Draw the mask of each type of group in one layer: above its tokens, below the pairs that may attend.

    Args:
        group: The layer.
        note: Note below the figure: the model and its weights.
    """
    types, counts, numbers = mask_types(group)
    shown = min(len(types), _MOST_TYPES)
    figure, axes = panels(2, shown + 1, 2.5, ratio_of(group.window))
    rows, columns = group.padded[0] // group.window[0], group.padded[1] // group.window[1]
    _draw_type_map(axes[0, 0], numbers.reshape(rows, columns), shown, group.kind)
    blank(axes[1, 0])
    _legend(axes[1, 0], group)
    for number in range(shown):
        example = int(np.flatnonzero(numbers == number)[0])
        _draw_members(axes[0, number + 1], group, example, number, int(counts[number]))
        _draw_mask(axes[1, number + 1], types[number], group)
    more = f" (the {shown} most frequent of {len(types)} kinds)" if shown < len(types) else ""
    what = f"{_size(group.grid)} tokens, {_kind(group)} of {_size(group.window)}"
    title = f"Attention masks of {where(group.name)}: {what}{more}"
    return head(figure, title, note)


def mask_types(group: TokenGroups) -> tuple[Array, Array, Array]:
    """Find the different masks of a layer, the most frequent first.

    Returns:
        Masks ``(types, n, n)``, groups of each ``(types,)``, and the type of each group ``(groups,)``.
    """
    n = group.blocked.shape[-1]
    flat = group.blocked.reshape(len(group.blocked), -1)
    types, numbers, counts = np.unique(flat, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.argsort(order)
    return types[order].reshape(-1, n, n), counts[order], rank[numbers.reshape(-1)]


def _draw_type_map(axis: Any, numbers: Array, shown: int, kind: str) -> None:
    axis.imshow(np.where(numbers < shown, numbers, np.nan), cmap="cividis", vmin=-1, vmax=max(shown, 2))
    rows, columns = numbers.shape
    if rows * columns <= 144:
        for (r, c), number in np.ndenumerate(numbers):
            text = str(number + 1) if number < shown else "…"
            write(axis, r, c, text, 8 if max(rows, columns) > 6 else 10)
    what = "window" if kind == "window" else "offset"
    label(axis, f"which {what} has which mask", what)


def _draw_members(axis: Any, group: TokenGroups, example: int, number: int, count: int) -> None:
    wh, ww = group.window
    regions = group.labels[example].reshape(wh, ww)
    paint(axis, (wh, ww), _REGIONS, regions, 0.85)
    hatch_cells(axis, regions == -1)
    lines(axis, (wh, ww), (1, 1), "white", 0.6)
    axis.set(xlim=(0, ww), ylim=(wh, 0))
    axis.set_aspect("equal")
    for value in np.unique(regions):
        write(axis, *inside(np.argwhere(regions == value)), "pad" if value < 0 else REGION_LETTERS[value], 11)
    label(axis, f"kind {number + 1}: {count} of {len(group.labels)} {_kind(group)}")


def _draw_mask(axis: Any, blocked: Array, group: TokenGroups) -> None:
    n = len(blocked)
    cells = np.where(blocked[..., None], np.array([0.93, 0.93, 0.93]), np.array([0.0, 0.45, 0.70]))
    axis.imshow(cells, extent=(0, n, n, 0), interpolation="nearest")
    if n <= 20:
        lines(axis, (n, n), (1, 1), "white", 0.3)
    axis.set_title(f"{1 - blocked.mean():.0%} of {n} × {n} pairs allowed", fontsize=9)
    pair_ticks(axis)


def _legend(axis: Any, group: TokenGroups) -> None:
    axis.add_patch(_box(0.72, "#0072B2"))
    axis.text(0.2, 0.78, "may attend", fontsize=9, va="center")
    axis.add_patch(_box(0.52, "#EDEDED"))
    axis.text(0.2, 0.58, "blocked: minus infinity\nbefore the softmax", fontsize=9, va="center")
    text = "Tokens of a group are counted\nrow by row."
    if group.shift != (0, 0):
        text += "\nA stayed where it was; B, C and D\ncame round from the other side."
    axis.text(0.02, 0.28, text, fontsize=8, va="center", color="#555555")
    axis.set(xlim=(0, 1), ylim=(0, 1))


def _box(height: float, color: str) -> Rectangle:
    return Rectangle((0.02, height), 0.13, 0.12, facecolor=color, edgecolor=INK, linewidth=0.6)


def draw_partitions(groups: Sequence[TokenGroups], view: View, note: str) -> Figure:
    """Draw MaxViT's block attention and grid attention: four groups of each in colour, and the reach of one token.

    Each map is a row.

    Args:
        groups: Layers of kind "window" and "grid".
        view: The image.
        note: Note below the figure: the model and its weights.
    """
    stages = by_grid(groups)[:_MOST_STAGES]
    figure, axes = panels(len(stages), 3, 3.7, ratio_of(view.size))
    for row, layers in enumerate(stages):
        window = next(g for g in layers if g.kind == "window")
        spread = next(g for g in layers if g.kind == "grid")
        _draw_partition(axes[row, 0], window, view, "block attention: windows of neighbours")
        _draw_partition(axes[row, 1], spread, view, "grid attention: tokens at equal distances")
        _draw_reach(axes[row, 2], window, spread, view)
    return head(figure, "Block and grid partition: tokens of one colour attend to each other", note)


def _draw_partition(axis: Any, group: TokenGroups, view: View, title: str) -> None:
    show_image(axis, view, group.stride, group.grid, group.padded)
    numbers = group.group
    chosen = four_groups(group)
    colors = {number: PALETTE[i] for i, number in enumerate(chosen)}
    lines(axis, group.padded, (1, 1), "white", 0.4)
    paint(axis, group.grid, colors, numbers, 0.75)
    if group.kind == "window":
        lines(axis, group.padded, group.window, ACCENT, 1.5)
    else:
        # A grid of G rows takes one token from each of G bands of the map.
        bands = (group.padded[0] // group.window[0], group.padded[1] // group.window[1])
        lines(axis, group.padded, bands, ACCENT, 1.5)
    axis.set(xlim=(0, group.padded[1]), ylim=(group.padded[0], 0))
    count = f"{plural(len(group.labels), 'group')} of {_size(group.window)}"
    # A size with padding fills the line.
    gap = ", " if group.padded == group.grid else "\n"
    size = f"{_size(group.grid)} tokens{_padding(group)}{gap}{count}"
    label(axis, f"{title}\n{size}")


def four_groups(group: TokenGroups) -> list[int]:
    """Choose four neighbouring groups to colour: around the centre for windows, the first offsets for grids."""
    rows, columns = group.padded[0] // group.window[0], group.padded[1] // group.window[1]
    top = max(rows // 2 - 1, 0) if group.kind == "window" else 0
    left = max(columns // 2 - 1, 0) if group.kind == "window" else 0
    return [r * columns + c for r in (top, top + 1) for c in (left, left + 1) if r < rows and c < columns]


def _draw_reach(axis: Any, window: TokenGroups, spread: TokenGroups, view: View) -> None:
    show_image(axis, view, window.stride, window.grid, window.padded, 0.6)
    row, column = window.grid[0] // 2, window.grid[1] // 2
    near, far = (g.group == g.group[row, column] for g in (window, spread))
    lines(axis, window.grid, (1, 1), "white", 0.4)
    paint(axis, window.grid, {1: PALETTE[5], 2: PALETTE[1], 3: PALETTE[5]}, near + 2 * far - 2 * (near & far), 0.8)
    star(axis, row + 0.5, column + 0.5)
    axis.set(xlim=(0, window.padded[1]), ylim=(window.padded[0], 0))
    label(axis, "what the starred token attends to:\nblue in its window, then orange in its grid")


def _size(pair: tuple[int, int]) -> str:
    return f"{pair[0]} × {pair[1]}"


def _padding(group: TokenGroups) -> str:
    return "" if group.padded == group.grid else f", padded to {_size(group.padded)}"


def _kind(group: TokenGroups) -> str:
    return "windows" if group.kind == "window" else "grids"
