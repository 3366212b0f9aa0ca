"""The graph of a model: boxes for modules, arrows with the shapes of tensors between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from vitrail.figures.picture import shorten
from vitrail.figures.style import PALETTE

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 2.9, 0.62, 0.45, 0.5
_COLORS = {"input": "#E3EEF6", "output": "#E3EEF6", "parameter": "#FBF3D5"}
_LETTERS = 34


@dataclass(frozen=True)
class Box:
    """A box of the diagram.

    Attributes:
        name: Its key.
        title: First line.
        text: Second line.
        kind: "input", "output", "parameter", or a class.
    """

    name: str
    title: str
    text: str
    kind: str


def draw_diagram(boxes: Sequence[Box], arrows: Sequence[tuple[str, str, str]], title: str) -> Figure:
    """Draw boxes in layers from top to bottom, each below all that it reads.

    Args:
        boxes: Boxes in topological order: each after those that it reads.
        arrows: Name of the source, of the target, and label.
        title: Title of the figure.
    """
    layers = _layers(boxes, arrows)
    rows: dict[int, list[str]] = {}
    for box in boxes:
        rows.setdefault(layers[box.name], []).append(box.name)
    columns = _columns(rows, arrows)
    width = max((max(columns.values()) + 1) * (_WIDTH + _GAP_X) + 0.4, 0.085 * len(title) + 0.4)
    height = (max(layers.values()) + 1) * (_HEIGHT + _GAP_Y) + 0.7
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    axis.text(0.2, 0.3, title, fontsize=10, fontweight="bold", va="center")
    at = {
        name: (0.2 + columns[name] * (_WIDTH + _GAP_X), 0.6 + layer * (_HEIGHT + _GAP_Y))
        for name, layer in layers.items()
    }
    for source, target, label in arrows:
        start = at[source][0] + _WIDTH / 2, at[source][1] + _HEIGHT
        end = at[target][0] + _WIDTH / 2, at[target][1]
        axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#555555", "linewidth": 1.0})
        # Beside the start of the arrow, where arrows to one box have not met yet.
        axis.text(start[0] + 0.08, start[1] + 0.14, label, fontsize=7, color="#333333", va="center")
    for box in boxes:
        x, y = at[box.name]
        color = _COLORS.get(box.kind, "#FFFFFF")
        edge = PALETTE[0] if box.kind not in _COLORS else "#888888"
        axis.add_patch(FancyBboxPatch((x, y), _WIDTH, _HEIGHT, boxstyle="round,pad=0,rounding_size=0.08",
                                      facecolor=color, edgecolor=edge, linewidth=1.0, zorder=2))  # fmt: skip
        middle = x + _WIDTH / 2
        axis.text(middle, y + 0.22, shorten(box.title, _LETTERS), fontsize=8, ha="center", va="center", zorder=3)
        axis.text(middle, y + 0.43, shorten(box.text, 56), fontsize=6.5, ha="center", va="center", color="#555555",
                  zorder=3)  # fmt: skip
    return figure


def _layers(boxes: Sequence[Box], arrows: Sequence[tuple[str, str, str]]) -> dict[str, int]:
    """Place each box below all that it reads; parameters just above their first reader."""
    layers: dict[str, int] = {}
    for box in boxes:
        above = [layers[source] for source, target, _ in arrows if target == box.name]
        layers[box.name] = max(above, default=-1) + 1
    for box in boxes:
        readers = [layers[target] for source, target, _ in arrows if source == box.name]
        if box.kind == "parameter" and readers:
            layers[box.name] = max(min(readers) - 1, 0)
    return layers


def _columns(rows: dict[int, list[str]], arrows: Sequence[tuple[str, str, str]]) -> dict[str, int]:
    """Place each box in the column of the first that it reads, if that is free in its layer."""
    columns: dict[str, int] = {}
    for layer in sorted(rows):
        taken: set[int] = set()
        for name in rows[layer]:
            wanted = min((columns[source] for source, target, _ in arrows if target == name), default=0)
            while wanted in taken:
                wanted += 1
            columns[name] = wanted
            taken.add(wanted)
    return columns
