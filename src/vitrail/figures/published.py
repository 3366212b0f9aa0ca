"""Published accuracies and own runs against their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vitrail.figures.labels import legend_below
from vitrail.figures.style import PALETTE, plain

OWN = "own runs, on their own images"
_MARKS = "os^DvPX"
_AXES = (
    ("multiply_adds", "multiply-adds of one image"),
    ("parameters", "parameters"),
    ("images_per_second", "measured images/s"),
)


@dataclass(frozen=True)
class CostPoint:
    """Accuracy and cost of one model.

    Attributes:
        name: The variant, or the run.
        family: Its family.
        group: Images of its pre-training, or :data:`OWN`.
        top1: Accuracy in per cent.
        multiply_adds: Multiply-adds of one image.
        parameters: Number of parameters.
        images_per_second: Measured throughput; None where nothing was measured.
        source: Paper, or the run folder.
    """

    name: str
    family: str
    group: str
    top1: float
    multiply_adds: float
    parameters: float
    images_per_second: float | None
    source: str


def draw_published(points: Sequence[CostPoint], note: str) -> Figure:
    """Draw accuracy against multiply-adds, parameters and, where measured, images per second.

    Args:
        points: Published results and own runs.
        note: Note below the title.
    """
    axes_shown = [axis for axis in _AXES if any(getattr(point, axis[0]) for point in points)]
    figure = Figure(figsize=(4.4 * len(axes_shown), 4.6), layout="constrained")
    axes = figure.subplots(1, len(axes_shown), sharey=True, squeeze=False)[0]
    families = list(dict.fromkeys(point.family for point in points if point.group != OWN))
    groups = list(dict.fromkeys(point.group for point in points if point.group != OWN))
    for axis, (column, label) in zip(axes, axes_shown, strict=True):
        for point in points:
            cost = getattr(point, column)
            if cost:
                _draw(axis, point, cost, families, groups)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(numticks=7))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(label, fontsize=9)
        plain(axis)
    axes[0].set_ylabel("top-1 accuracy, %")
    keys = [
        Line2D([], [], marker=_MARKS[i % len(_MARKS)], linestyle="", color="#555555", label=name)
        for i, name in enumerate(families)
    ]
    keys += [
        Line2D([], [], marker="s", linestyle="", color=PALETTE[i % len(PALETTE)], label=f"published, {group}")
        for i, group in enumerate(groups)
    ]
    if any(point.group == OWN for point in points):
        keys.append(Line2D([], [], marker="*", linestyle="", color="black", markersize=10, label=OWN))
    legend_below(figure, keys)
    figure.suptitle(f"Accuracy against cost\n{note}", fontsize=10, x=0.01, ha="left")
    return figure


def _short(value: float) -> str:
    """Write a number with K, M, G or T."""
    for unit in ("", " K", " M", " G"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} T"


def _draw(axis: Any, point: CostPoint, cost: float, families: Sequence[str], groups: Sequence[str]) -> None:
    if point.group == OWN:
        axis.plot(cost, point.top1, "*", color="black", markersize=11, zorder=3)
        axis.annotate(point.name, (cost, point.top1), xytext=(5, 5), textcoords="offset points", fontsize=7)
        return
    mark = _MARKS[families.index(point.family) % len(_MARKS)]
    axis.plot(cost, point.top1, mark, color=PALETTE[groups.index(point.group) % len(PALETTE)], markersize=6, alpha=0.8)
