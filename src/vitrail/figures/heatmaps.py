"""Relevance maps over images, with one scale for all maps that are compared.

Methods differ in their units and in how far they concentrate relevance. Maps of several methods are therefore drawn by
rank, slightly smoothed: the share of pixels with smaller values, on which faithfulness alone depends. The title of a
panel gives the relevance in its top 10 % of pixels. Maps of one method are drawn in multiples of an even spread. A line
encloses the top 10 % of pixels: the same area in every panel, visible in gray too.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, withStroke
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

from vitrail.figures.display import enlarge, gray, in_color
from vitrail.figures.style import head

Array = npt.NDArray[Any]

# Both are even in lightness; the second is white in the middle and safe for colour-blind readers.
_PLAIN, _SIGNED = "inferno", "PuOr_r"
_ALPHA = 0.6
# Share of the image inside the line.
SHARE = 0.1
# Methods beside an image; more go below.
_MOST_COLUMNS = 6
# Of the shorter side; a line cannot enclose finer areas.
_SMOOTHING = 0.02
_NOTE = "Line: the top 10 % of pixels, smoothed (dashed: evidence against)."
EVEN, RANK = "multiples of an even spread", "rank (share of pixels with smaller values)"


@dataclass(frozen=True)
class Cell:
    """One panel.

    Attributes:
        picture: Shape ``(H, W)`` or ``(H, W, 3)``, in 0..1.
        heat: The map over it, shape ``(H, W)``.
        signed: Whether the map holds evidence for and against.
        title: Title above the panel.
        level: Value of the map at the line; by default that which its top 10 % of pixels exceed.
    """

    picture: Array
    heat: Array | None = None
    signed: bool = False
    title: str = ""
    level: float | None = None


def in_even_spreads(heat: Array, axes: int = 2) -> Array:
    """Divide a map by the mean of its absolute values; a map of zeros stays as it is.

    Args:
        heat: Shape ``(..., H, W)``.
        axes: Number of axes of a map, the last ones.
    """
    mean = np.abs(heat).mean(axis=tuple(range(-axes, 0)), keepdims=True)
    result: Array = heat / np.where(mean > 0, mean, 1)
    return result


def in_ranks(heat: Array) -> Array:
    """Replace each pixel of a map ``(H, W)`` by the share of pixels with smaller absolute values, with its sign."""
    if heat.size == 1:
        return np.sign(heat)
    ranks = (rankdata(np.abs(heat), method="min", axis=None) - 1) / (heat.size - 1)
    result: Array = ranks.reshape(heat.shape) * np.where(heat < 0, -1, 1)
    return result


def concentration(heat: Array) -> float:
    """Compute the share of a map, by absolute value, in its top 10 % of pixels: 0.1 for an even map."""
    values = np.sort(np.abs(heat), axis=None)[::-1]
    total = float(values.sum())
    return float(values[: max(1, round(SHARE * values.size))].sum()) / total if total > 0 else SHARE


def draw_cells(cells: Sequence[Sequence[Cell | None]], labels: Sequence[str], unit: str, title: str = "") -> Figure:
    """Draw panels in rows and columns, all maps of a kind on one scale.

    Args:
        cells: Row by row; None leaves a panel empty.
        labels: One for each row.
        unit: Unit of the maps, :data:`EVEN` or :data:`RANK`.
        title: Title of the figure.
    """
    present = [cell for row in cells for cell in row if cell is not None]
    ratio = np.mean([cell.picture.shape[0] / cell.picture.shape[1] for cell in present])
    columns = max(map(len, cells))
    width = 2.3 if columns <= 3 else 1.75 if columns <= 1 + _MOST_COLUMNS else 1.3
    lines = sum(max(cell.title.count("\n") + bool(cell.title) for cell in row if cell is not None) for row in cells)
    height = width * float(np.clip(ratio, 0.3, 2.5)) * len(cells) + 0.16 * lines + 0.1 * len(cells)
    size = (width * columns + 1.3, height + (0.75 if title else 0.2))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(cells), columns, squeeze=False)
    # On this scale a nearly even map looks even: 1 lies at the middle or below.
    scales = _scales(present, 2.0 if unit == EVEN else 1.0)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for line, row, label in zip(axes, cells, labels, strict=True):
        for axis, cell in zip(line, row, strict=False):
            if cell is not None:
                _draw(axis, cell, scales)
        line[0].set_ylabel(label, fontsize=8)
    for signed, scale in scales.items():
        bar = figure.colorbar(
            ScalarMappable(scale, _map(signed)), ax=axes, shrink=0.9, aspect=18 * len(cells), pad=0.015
        )
        bar.set_label(
            f"{unit},\nwith the sign of the evidence" if signed else unit.replace(" with", "\nwith"), fontsize=7
        )
        bar.ax.tick_params(labelsize=7)
    if title:
        head(figure, title, _NOTE if scales else "")
    return figure


def explained_cells(
    picture: Mapping[str, Array],
    maps: Mapping[str, Mapping[str, Array]],
    titles: Mapping[str, str],
    signed: Container[str] = (),
) -> tuple[list[list[Cell | None]], list[str]]:
    """Arrange panels of one image: a row a stream, the image first and then each method, more than six further below.

    Args:
        picture: Stream -> its picture, shape ``(H, W)`` or ``(H, W, 3)``.
        maps: Method -> stream -> map ``(H, W)``, in the method's own units.
        titles: Method -> title; "" for the image.
        signed: Methods whose maps hold evidence for and against.

    Returns:
        The rows of panels and a label for each.
    """
    rows: list[list[Cell | None]] = []
    labels: list[str] = []
    for part in _parts(list(maps.items())):
        for number, (stream, pixels) in enumerate(picture.items()):
            # The image stands at the left of the first methods alone.
            first = Cell(pixels, title="" if rows else titles.get("", "")) if number == len(rows) else None
            row: list[Cell | None] = [first]
            for method, streams in part:
                heat = streams.get(stream)
                if heat is None:
                    row.append(None)
                    continue
                title = titles.get(method, method) if number == 0 else ""
                title = f"{title}\ntop 10 % hold {concentration(heat):.0%}".strip()
                row.append(Cell(pixels, in_ranks(smooth_map(heat)), method in signed, title))
            rows.append(row)
            labels.append(stream if len(picture) > 1 else "")
    return rows, labels


def part_cells(picture: Array, parts: Array) -> tuple[list[list[Cell | None]], list[str]]:
    """Arrange panels of heads or learned tokens, one by one, each token of the grid a square of equal value.

    The square's side is the smallest whole number of pixels with which the tokens cover the image.

    Args:
        picture: The image, shape ``(H, W)`` or ``(H, W, 3)``.
        parts: Shape ``(parts, h, w)``, on the grid of tokens.

    Returns:
        The rows of panels and a label for each.
    """
    large = enlarge_tokens(in_even_spreads(parts), picture.shape[:2])
    cells: list[Cell | None] = [Cell(picture, heat, title=str(number)) for number, heat in enumerate(large)]
    rows = [cells[start : start + _MOST_COLUMNS] for start in range(0, len(cells), _MOST_COLUMNS)]
    return rows, [""] * len(rows)


def enlarge_tokens(maps: Array, size: tuple[int, ...]) -> Array:
    """Draw each token of maps ``(n, h, w)`` as a square, at a size in pixels: ``(n, H, W)``."""
    # The last token of a side that is not a multiple of the patch reaches beyond the image and is cropped.
    rows, columns = (np.arange(side) // -(-side // count) for side, count in zip(size, maps.shape[1:], strict=True))
    large: Array = maps[:, rows][:, :, columns]
    return large


def _parts(items: list[Any]) -> list[list[Any]]:
    return [items[start : start + _MOST_COLUMNS] for start in range(0, max(len(items), 1), _MOST_COLUMNS)]


def overlay(pictures: Sequence[Array], maps: Sequence[Array | None], signed: bool, least: int = 448) -> Array:
    """Overlay one method's map on an image, streams side by side; colours span its smallest to largest value.

    Args:
        pictures: One for each stream.
        maps: One for each stream; None leaves a stream as it is.
        signed: Whether maps hold evidence for and against.
        least: Pixels of the shorter side; smaller images are enlarged by a whole factor.

    Returns:
        Shape ``(H, W, 3)``, uint8.
    """
    parts = []
    present = [heat for heat in maps if heat is not None]
    low, high = min(float(heat.min()) for heat in present), max(float(heat.max()) for heat in present)
    top = max(-low, high, 1e-12)
    scale = Normalize(-top, top) if signed else Normalize(low, max(high, low + 1e-12))
    for picture, heat in zip(pictures, maps, strict=True):
        if heat is None:
            light = in_color(picture)
        else:
            colors = _map(signed)(scale(heat))[..., :3]
            light = (1 - _ALPHA) * gray(picture)[..., None] + _ALPHA * colors
        large = enlarge(light, -(-least // min(light.shape[:2])))
        parts += [large, np.ones((large.shape[0], 8, 3))]
    array: Array = np.round(255 * np.concatenate(parts[:-1], axis=1)).astype(np.uint8)
    return array


def smooth_map(heat: Array) -> Array:
    """Smooth a map ``(H, W)`` slightly, so that a line can enclose its largest values."""
    smoothed: Array = gaussian_filter(heat.astype(np.float64), _SMOOTHING * min(heat.shape))
    # Rounding errors of an even map are not a ranking.
    return heat if np.ptp(smoothed) <= 1e-9 * np.abs(smoothed).max() else smoothed


def _map(signed: bool) -> Any:
    return matplotlib.colormaps[_SIGNED if signed else _PLAIN]


def _scales(cells: Sequence[Cell], least: float) -> dict[bool, Normalize]:
    """Make one scale for all maps of a kind, signed or not, which ends at ``least`` or beyond."""
    scales = {}
    for signed in (False, True):
        heats = [cell.heat for cell in cells if cell.heat is not None and cell.signed == signed]
        if heats:
            top = max(least, *(float(np.quantile(np.abs(heat), 0.995)) for heat in heats))
            scales[signed] = Normalize(-top if signed else 0, top)
    return scales


def _draw(axis: Any, cell: Cell, scales: Mapping[bool, Normalize]) -> None:
    # Single pixels of a small image stay visible.
    smooth = "nearest" if max(cell.picture.shape[:2]) <= 96 else "antialiased"
    axis.set_title(cell.title, fontsize=8)
    if cell.heat is None:
        axis.imshow(cell.picture, cmap="gray", vmin=0, vmax=1, interpolation=smooth)
        return
    axis.imshow(gray(cell.picture), cmap="gray", vmin=0, vmax=1, interpolation=smooth)
    axis.imshow(cell.heat, cmap=_map(cell.signed), norm=scales[cell.signed], alpha=_ALPHA, interpolation=smooth)
    if np.ptp(cell.heat) == 0:
        axis.text(0.5, 0.5, "the same everywhere", transform=axis.transAxes, ha="center", fontsize=7, color="white",
                  path_effects=[withStroke(linewidth=2, foreground="black")])  # fmt: skip
        return
    # One pixel more on each side, so that lines reach the border.
    smoothed = np.pad(smooth_map(cell.heat), 1, mode="edge")
    rows, columns = (np.arange(-1, size + 1) for size in cell.heat.shape)
    limits = axis.get_xlim(), axis.get_ylim()
    level = max(float(np.quantile(np.abs(smoothed), 1 - SHARE)), 1e-6) if cell.level is None else cell.level
    effects = [withStroke(linewidth=2.0, foreground=(0, 0, 0, 0.6)), Normal()]
    for sign, style in ((1, "solid"), (-1, "dashed")):
        values = sign * smoothed
        if values.max() > level > values.min():
            lines = axis.contour(columns, rows, values, [level], colors="white", linewidths=0.9, linestyles=style)
            lines.set_path_effects(effects)
    axis.set(xlim=limits[0], ylim=limits[1])
