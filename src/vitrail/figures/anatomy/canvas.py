"""Parts of all figures of a model's anatomy: an image in token units, grid lines, padding, outlines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, withStroke
from matplotlib.ticker import MaxNLocator

from vitrail.figures.style import PALETTE

Pair = tuple[int, int]
Array = npt.NDArray[Any]

ACCENT = "#F0E442"
INK = "#222222"
PADDING = "#C8C8C8"
# Regions of shifted windows: A stays, B came from the left, C from the top, D from the corner.
REGION_COLORS = (PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[3])
REGION_LETTERS = "ABCD"
# More lines would cover the image.
_MOST_LINES = 80
_MOST_PLAIN_LINES = 40


@dataclass(frozen=True)
class View:
    """One input as a picture.

    Attributes:
        pixels: Shape ``(H, W)`` or ``(H, W, 3)``, in 0..1, of the model's input size.
        title: Its name.
        offset: Pixels from its corner to the first token's tile, negative where that begins in the padding.
    """

    pixels: Array
    title: str
    offset: Pair = (0, 0)

    @property
    def size(self) -> Pair:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def panels(rows: int, columns: int, width: float = 3.2, ratio: float = 1.0) -> tuple[Figure, Array]:
    """Make a figure of equal panels, and its axes as an array ``(rows, columns)``.

    Args:
        rows: Rows of panels.
        columns: Columns of panels.
        width: Width of a panel, in inches.
        ratio: Height over width of a panel's content.
    """
    height = 0.82 * width * min(max(ratio, 0.3), 2.5) + 1.1
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(h_pad=0.08)
    return figure, axes


def ratio_of(pair: Pair) -> float:
    """Return height over width."""
    return pair[0] / pair[1]


def where(layer: str) -> str:
    """Name a layer by stage and block, counted from 1 as in the papers; else by its own name."""
    stage = re.search(r"(?:layers|stages)\.(\d+)", layer)
    block = re.search(r"blocks\.(\d+)", layer)
    found = [f"{kind} {int(match[1]) + 1}" for kind, match in (("stage", stage), ("block", block)) if match]
    found += [f"{kind} attention" for kind in ("block", "grid") if f".attn_{kind}." in layer]
    return ", ".join(found) or layer


def pair_ticks(axis: Any, key: str = "key token", query: str = "query token") -> None:
    """Label the axes of a matrix of pairs of tokens."""
    axis.set_xlabel(key, fontsize=8)
    axis.set_ylabel(query, fontsize=8)
    _whole_ticks(axis)


def _whole_ticks(axis: Any) -> None:
    axis.tick_params(labelsize=7, length=2)
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 4, 5, 10]))


def label(axis: Any, title: str, unit: str = "token") -> None:
    """Set the title of a panel, and axes that count rows and columns of tokens or of another unit."""
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(f"{unit} column", fontsize=8)
    axis.set_ylabel(f"{unit} row", fontsize=8)
    _whole_ticks(axis)


def show_image(axis: Any, view: View, stride: Pair, grid: Pair, padded: Pair | None = None, alpha: float = 1.0) -> None:
    """Draw the image in token units.

    The area of tokens beyond the image is gray; tokens of the padding of windows are hatched.

    Args:
        axis: Axes of the panel.
        view: The image.
        stride: Pixels from one token to the next.
        grid: Height and width of the map in tokens.
        padded: The same with the padding of windows.
        alpha: Opacity of the image.
    """
    top, left = (-first / step for first, step in zip(view.offset, stride, strict=True))
    bottom, right = (at + side / step for at, side, step in zip((top, left), view.size, stride, strict=True))
    rows, columns = padded or grid
    axis.set_facecolor(PADDING)
    _imshow(axis, view.pixels, (left, right, bottom, top), alpha)
    filler = np.ones((rows, columns), dtype=bool)
    filler[: grid[0], : grid[1]] = False
    hatch_cells(axis, filler)
    # Pixels that overlapping patches alone reach stay in sight.
    beyond = any(view.offset)
    axis.set(
        xlim=(min(0.0, left), max(columns, right) if beyond else columns),
        ylim=(max(rows, bottom) if beyond else rows, min(0.0, top)),
    )
    axis.set_aspect(stride[0] / stride[1])


def _imshow(axis: Any, pixels: Array, extent: tuple[float, float, float, float], alpha: float = 1.0) -> None:
    # Single pixels of a small image stay visible.
    smooth = "nearest" if max(pixels.shape[:2]) <= 96 else "antialiased"
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=extent, alpha=alpha, interpolation=smooth)


def show_rolled(axis: Any, view: View, stride: Pair, grid: Pair, shift: Pair) -> None:
    """Draw the padded image rolled up and left by ``shift`` tokens, in token units."""
    full = (grid[0] * stride[0], grid[1] * stride[1])
    height, width = min(view.size[0], full[0]), min(view.size[1], full[1])
    padded = np.full((*full, *view.pixels.shape[2:]), 0.78, dtype=np.float64)
    padded[:height, :width] = view.pixels[:height, :width]
    rolled = np.roll(padded, (-shift[0] * stride[0], -shift[1] * stride[1]), (0, 1))
    _imshow(axis, rolled, (0, grid[1], grid[0], 0))
    axis.set_aspect(stride[0] / stride[1])


def hatch(axis: Any, corner: tuple[float, float], size: tuple[float, float]) -> None:
    """Mark a rectangle as padding; corner and size as (rows, columns)."""
    height, width = size
    axis.add_patch(
        Rectangle(
            (corner[1], corner[0]),
            width,
            height,
            zorder=1.5,
            facecolor="#E8E8E8",
            edgecolor="#999999",
            hatch="////",
            linewidth=0,
        )
    )


def hatch_cells(axis: Any, cells: Array, first: Pair = (0, 0)) -> None:
    """Mark cells as padding: True cells of a map whose corner is at ``first``; a rectangle for each run of rows."""
    start = 0
    for end in range(1, len(cells) + 1):
        if end < len(cells) and np.array_equal(cells[end], cells[start]):
            continue
        edges = np.flatnonzero(np.diff(np.concatenate([[0], cells[start].astype(int), [0]])))
        for left, right in edges.reshape(-1, 2):
            hatch(axis, (first[0] + start, first[1] + left), (end - start, right - left))
        start = end


def lines(
    axis: Any, grid: Pair, step: Pair = (1, 1), color: str = "white", width: float = 0.5, first: Pair = (0, 0)
) -> None:
    """Draw lines between cells, every ``step`` rows and columns, from the row and column ``first``."""
    cells = max((grid[0] - first[0]) / step[0], (grid[1] - first[1]) / step[1])
    if cells > _MOST_LINES:
        return
    rows, columns = np.arange(first[0], grid[0] + 1, step[0]), np.arange(first[1], grid[1] + 1, step[1])
    segments: list[Any] = [((first[1], r), (grid[1], r)) for r in rows] + [
        ((c, first[0]), (c, grid[0])) for c in columns
    ]
    if cells > _MOST_PLAIN_LINES:
        axis.add_collection(LineCollection(segments, colors=color, linewidths=0.3, alpha=0.6, zorder=2))
    else:
        axis.add_collection(_stroked(segments, color, width))


def outline(axis: Any, labels: Array) -> None:
    """Draw lines between neighbouring cells of different labels in a map ``(rows, columns)``, and around it."""
    rows, columns = labels.shape
    framed = np.full((rows + 2, columns + 2), -(10**9))
    framed[1:-1, 1:-1] = labels
    segments = [((c, r), (c + 1, r)) for r, c in np.argwhere(framed[1:, 1:-1] != framed[:-1, 1:-1])]
    segments += [((c, r), (c, r + 1)) for r, c in np.argwhere(framed[1:-1, 1:] != framed[1:-1, :-1])]
    axis.add_collection(_stroked(segments, ACCENT, 1.8))


def _stroked(segments: Sequence[Any], color: str, width: float) -> LineCollection:
    # A dark rim keeps light lines visible on a light image.
    effects = [withStroke(linewidth=width + 0.9, foreground=(0, 0, 0, 0.55)), Normal()]
    return LineCollection(
        segments, colors=color, linewidths=width, path_effects=effects, zorder=2, capstyle="projecting"
    )


def paint(axis: Any, grid: Pair, colors: dict[int, str], labels: Array, alpha: float = 0.55) -> None:
    """Overlay a colour on each cell of a map of labels; labels without a colour stay clear."""
    cells = np.zeros((*grid, 4))
    for value, color in colors.items():
        cells[labels == value] = to_rgba(color, alpha)
    axis.imshow(cells, extent=(0, grid[1], grid[0], 0), interpolation="nearest", zorder=1.2, aspect=axis.get_aspect())


def write(axis: Any, row: float, column: float, text: str, size: float = 10, color: str = "white") -> None:
    """Write over an image, legible on anything."""
    rim = INK if color == "white" else "white"
    axis.text(
        column, row, text, ha="center", va="center", fontsize=size, color=color, fontweight="bold", zorder=4,
        path_effects=[withStroke(linewidth=2.2, foreground=rim)],
    )  # fmt: skip


def star(axis: Any, row: float, column: float, color: str = ACCENT, size: float = 12) -> None:
    """Mark the query token."""
    axis.plot(
        column, row, marker="*", markersize=size, color=color, markeredgecolor="black", markeredgewidth=0.8, zorder=5
    )


def inside(cells: Array) -> tuple[float, float]:
    """Find the row and column for a text in cells ``(n, 2)``: the middle of the cell nearest to their median."""
    center = np.median(cells, axis=0)
    row, column = cells[np.abs(cells - center).sum(axis=1).argmin()]
    return float(row) + 0.5, float(column) + 0.5


def blank(axis: Any) -> None:
    """Leave a panel empty."""
    axis.set_axis_off()


def spread(count: int, most: int) -> list[int]:
    """Choose at most ``most`` of ``count`` indices, evenly spaced, with the first and the last."""
    chosen: list[int] = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
    return chosen
