"""ROC and precision-recall curves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitrail.figures.labels import legend_below
from vitrail.figures.style import plain

Line = tuple[npt.NDArray[Any], npt.NDArray[Any]]

# Where all areas are above the first, an inset enlarges a corner of the second's size: little happens elsewhere.
_INSETS = ((0.99, 0.1), (0.9, 0.3))


def ranking_curves(
    roc: Mapping[str, Line],
    precision_recall: Mapping[str, Line],
    looks: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, str],
    inset_by: Collection[str],
) -> Figure:
    """Draw ROC curves (left) and precision-recall curves (right).

    Args:
        roc: Line -> false positive rate and recall, each of shape ``(N,)``.
        precision_recall: Line -> recall and precision.
        looks: Line -> arguments of :meth:`matplotlib.axes.Axes.plot`.
        labels: Line -> its label in the legend.
        inset_by: Lines whose areas decide whether an inset enlarges the upper corner.
    """
    areas = [float(np.trapezoid(y, x)) for name, (x, y) in roc.items() if name in inset_by]
    areas += [float((np.diff(x) * y[1:]).sum()) for name, (x, y) in precision_recall.items() if name in inset_by]
    least = min(areas, default=0.0)
    corner = next((size for above, size in _INSETS if least > above), None)
    figure = Figure(figsize=(9.2, 4.7), layout="constrained")
    axes = figure.subplots(1, 2)
    axes[0].plot([0, 1], [0, 1], color="gray", linewidth=1, linestyle=":")
    for axis, lines, is_roc in zip(axes, (roc, precision_recall), (True, False), strict=True):
        steps = "default" if is_roc else "steps-pre"
        _plot(axis, lines, looks, steps)
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        if corner is not None:
            left = -corner / 30 if is_roc else 1 - corner
            inset = axis.inset_axes([0.4 if is_roc else 0.1, 0.1, 0.56, 0.56])
            _plot(inset, lines, looks, steps)
            inset.set(xlim=(left, left + corner * 31 / 30), ylim=(1 - corner, 1 + corner / 30))
            inset.tick_params(labelsize=7)
            plain(inset)
            axis.indicate_inset_zoom(inset, edgecolor="#8a939c")
        plain(axis)
    axes[0].set(xlabel="false positive rate", ylabel="recall (true positive rate)")
    axes[1].set(xlabel="recall", ylabel="precision")
    axes[0].set_title("ROC", fontsize=10)
    axes[1].set_title("Precision against recall", fontsize=10)
    legend_below(figure, [Line2D([], [], label=label, **looks[name]) for name, label in labels.items()])
    return figure


def _plot(axis: Axes, lines: Mapping[str, Line], looks: Mapping[str, Mapping[str, Any]], steps: str) -> None:
    for name, (x, y) in lines.items():
        axis.plot(x, y, drawstyle=steps, **looks[name])
