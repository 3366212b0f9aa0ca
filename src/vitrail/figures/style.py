"""Colours, line styles, marks and axes of all figures; the colours are safe for colour-blind readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe & Ito 2008, "Color universal design": black is kept for text.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
# Paul Tol's "muted" scheme and gray, for classes; with more classes than these, colours alone do not distinguish them.
_CLASS_COLORS = (
    "#332288", "#DDCC77", "#117733", "#CC6677", "#88CCEE", "#882255", "#44AA99", "#AA4499", "#999933", "#888888",
)  # fmt: skip
# Classes differ in their marks too, for figures in gray.
CLASS_MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))
_MARKS = ("o", "s", "^", "D", "v", "P", "X")


def class_colors(number: int) -> list[str]:
    """Choose a colour for each class, as "#rrggbb"."""
    if number <= len(_CLASS_COLORS):
        return list(_CLASS_COLORS[:number])
    return [to_hex(matplotlib.colormaps["turbo"](i / (number - 1))) for i in range(number)]


def style(number: int) -> dict[str, Any]:
    """Choose colour, dashes and mark of a run or variant by its number."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "linestyle": DASHES[(number // len(PALETTE) + number) % len(DASHES)],
        "marker": _MARKS[number % len(_MARKS)],
    }


def plain(axis: Axes) -> None:
    """Draw a light grid and no box."""
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def keys_of(names: Sequence[str]) -> list[Line2D]:
    """Make the legend's entries of runs or variants."""
    return [Line2D([], [], label=name, markersize=4, **style(i)) for i, name in enumerate(names)]


def variant_style(number: int) -> tuple[str, Any]:
    """Choose colour and dashes of a variant: beyond the number of colours, variants differ in their dashes."""
    return PALETTE[number % len(PALETTE)], DASHES[number // len(PALETTE) % len(DASHES)]


def head(figure: Figure, title: str, note: str) -> Figure:
    """Put the title above a figure, and a note on its content below it."""
    figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    figure.supxlabel(note, fontsize=8, color="#555555", x=0.01, ha="left")
    return figure
