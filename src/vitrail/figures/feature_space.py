"""Embeddings in two dimensions, coloured by class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitrail.errors import plural
from vitrail.figures.labels import distinct_names, legend_beside
from vitrail.figures.style import CLASS_MARKS, class_colors

# Of a class's name in the legend.
_MOST_LETTERS = 34
# Classes that a legend names; the colour of the others.
_MOST_IN_LEGEND, _OTHERS = 40, "#c4cad0"


def feature_space(points: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]], classes: Sequence[str]) -> Figure:
    """Draw two-dimensional maps of embeddings, a colour and a mark a class, the same in every panel.

    The legend lies beside the panels. Of more than 40 classes the 20 with most points have a colour and a name, the
    others are gray.

    Args:
        points: Run -> points, shape ``(N, 2)``, and the class of each, shape ``(N,)``.
        classes: Names.
    """
    columns = min(len(points), 3)
    rows = math.ceil(len(points) / columns)
    figure = Figure(figsize=(4.4 * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    named = _named_classes([targets for _, targets in points.values()], len(classes))
    labels = dict(zip(named, distinct_names([str(classes[i]) for i in named], _MOST_LETTERS), strict=True))
    colors = dict(zip(named, class_colors(len(named)), strict=True))
    for axis, (name, (xy, targets)) in zip(axes.flat, points.items(), strict=False):
        if len(named) < len(classes):
            axis.scatter(*xy[~np.isin(targets, named)].T, s=7, color=_OTHERS, linewidths=0)
        for number, target in enumerate(named):
            chosen = xy[targets == target]
            mark = CLASS_MARKS[number % len(CLASS_MARKS)]
            axis.scatter(*chosen.T, s=11, color=colors[target], marker=mark, linewidths=0)
            if len(chosen) and len(classes) <= 12:
                middle = np.median(chosen, axis=0)
                box = {"facecolor": "white", "alpha": 0.75, "pad": 1, "edgecolor": "none"}
                axis.text(*middle, labels[target], ha="center", va="center", fontsize=8, fontweight="bold", bbox=box)
        axis.set(title=name, xticks=[], yticks=[])
    for axis in axes.flat[len(points) :]:
        axis.set_visible(False)
    keys = [
        Line2D([], [], color=colors[k], marker=CLASS_MARKS[i % len(CLASS_MARKS)], linestyle="", label=labels[k])
        for i, k in enumerate(named)
    ]
    if rest := len(classes) - len(named):
        keys.append(Line2D([], [], color=_OTHERS, marker="o", linestyle="", label=plural(rest, "other class")))
    legend_beside(figure, keys)
    return figure


def _named_classes(targets: Sequence[npt.NDArray[Any]], number: int) -> list[int]:
    """Choose the classes that the legend names: all of them, or the 20 with most points; in order."""
    if number <= _MOST_IN_LEGEND:
        return list(range(number))
    counts = np.bincount(np.concatenate(list(targets)), minlength=number)
    return sorted(np.argsort(-counts, kind="stable")[:20].tolist())


def interactive_feature_space(
    panels: Sequence[Sequence[tuple[str, npt.NDArray[Any], npt.NDArray[Any], Sequence[int]]]], classes: Sequence[str]
) -> Any:
    """Draw feature spaces with plotly: points carry a number for scripts, each class is in the legend once.

    Args:
        panels: Row by row: title, points of shape ``(N, 2)``, their classes and their numbers, both of shape ``(N,)``.
        classes: Names.

    Returns:
        The ``plotly.graph_objects.Figure``.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    colors = class_colors(len(classes))
    titles = [title.replace("\n", "<br>") for row in panels for title, *_ in row]
    figure = make_subplots(len(panels), len(panels[0]), subplot_titles=titles, horizontal_spacing=0.03)
    for row, line in enumerate(panels, start=1):
        for column, (_, xy, targets, numbers) in enumerate(line, start=1):
            for target, label in enumerate(classes):
                chosen = np.flatnonzero(targets == target)
                figure.add_trace(
                    go.Scatter(
                        # A class without points in the first panel is still in the legend.
                        x=xy[chosen, 0] if len(chosen) else [None], y=xy[chosen, 1] if len(chosen) else [None],
                        mode="markers", name=label, legendgroup=label, showlegend=row == column == 1, hoverinfo="none",
                        marker={"color": colors[target], "size": 6, "symbol": target % 10},
                        customdata=[numbers[i] for i in chosen.tolist()],
                    ),
                    row=row, col=column,
                )  # fmt: skip
    figure.update_xaxes(showticklabels=False, zeroline=False)
    figure.update_yaxes(showticklabels=False, zeroline=False)
    figure.update_layout(
        height=560 * len(panels), template="plotly_white", margin={"l": 10, "r": 10, "t": 90, "b": 10},
        legend={"itemsizing": "constant", "orientation": "h", "yanchor": "top", "y": -0.02}, dragmode="pan",
    )  # fmt: skip
    return figure
