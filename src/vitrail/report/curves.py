"""ROC and precision-recall curves of the runs on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitrail.evaluate.curves import COLUMNS, PRECISION_RECALL, ROC
from vitrail.figures.evaluation import plain, style
from vitrail.figures.labels import legend_below
from vitrail.figures.picture import Picture
from vitrail.report.evaluated import Part, Section, Subject, mean_of, names_of, several

_CURVES = (ROC, PRECISION_RECALL)
_GRID = np.linspace(0, 1, 201)
# Classes that lines can tell apart; of more, those with the least area are named, the rest is gray.
_NAMED = 7
# Runs that have a figure of their own beside the one that compares them.
_MOST_FIGURES = 4
# Where the means are above the first, a corner of the figure of the second's size is all that there is to see.
_CORNERS = ((0.99, 0.1), (0.9, 0.3))

Line = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def ranking(subjects: Sequence[Subject]) -> list[Section]:
    """Curves of each class of each run, and the macro means of all side by side.

    Args:
        subjects: What is shown side by side; those whose curves were not recorded are left out, and named.

    Returns:
        The section, or nothing where there is none to show.
    """
    there = [(s, tables) for s in subjects if (tables := s.each(lambda p: p.table(p.files.curves, *COLUMNS)))]
    if not there:
        return []
    shown: list[tuple[Picture, Figure | None]] = []
    if len(there) > 1:
        shown.append(_compared(there, subjects))
    if subjects[0].kind == "run" and len(there) <= _MOST_FIGURES:
        shown += [_of_classes(subject, tables[0], alone=len(there) == 1) for subject, tables in there]
    elif len(there) == 1:
        shown.append(_compared(there, subjects))
    return [Section("ROC and precision-recall curves", [], [s for s in shown if s[1] is not None])]


def _compared(
    there: Sequence[tuple[Subject, list[pd.DataFrame]]], subjects: Sequence[Subject]
) -> tuple[Picture, Figure | None]:
    lines: dict[str, dict[str, Line]] = {curve: {} for curve in _CURVES}
    areas = {}
    for subject, tables in there:
        for curve in _CURVES:
            own = [_line(table, curve, "macro") for table in tables]
            if all(own):
                lines[curve][subject.label] = _mean(curve, [line for line in own if line is not None])
        areas[subject.label] = [_area(subject.parts, name) for name in ("roc_auc_macro", _average(subject.parts[0]))]
    whose = [subject for subject, _ in there]
    told = "; ".join(f"{name}: {_told(roc)} and {_told(average)}" for name, (roc, average) in areas.items())
    caption = (
        "Means over the classes, each against the rest: recall against false positive rate (left), and precision "
        f"against recall (right). From curves.csv of {names_of(whose)}.{several(whose)}"
    )
    if gone := [subject.label for subject in subjects if subject.label not in areas]:
        caption += f" Not recorded for {', '.join(gone)}: `vitrail evaluate` the runs again."
    alt = f"ROC and precision-recall curves; area below the ROC curve and average precision, means of classes: {told}"
    picture = Picture("curves", "ROC and precision-recall curves", caption, alt)
    names = {name: f"{name}: AUC {_told(roc)}, AP {_told(average)}" for name, (roc, average) in areas.items()}
    # A colour is the same run's in all figures of a page.
    looks = {s.label: {**style(i), "marker": "", "linewidth": 1.7} for i, s in enumerate(subjects) if s.label in names}
    means = [(curve, line) for curve, found in lines.items() for line in found.values()]
    return picture, _draw(lines, looks, names, _corner(means))


def _of_classes(subject: Subject, table: pd.DataFrame, alone: bool) -> tuple[Picture, Figure | None]:
    """The curves of one run's classes, with their means."""
    (part,) = subject.parts
    areas = _class_areas(part)
    weakest = sorted(areas, key=lambda name: areas[name][1])
    named = weakest if len(weakest) <= _NAMED else weakest[:_NAMED]
    lines: dict[str, dict[str, Line]] = {curve: {} for curve in _CURVES}
    looks: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    # Gray below, then the named, then the means.
    for name in [*(n for n in weakest if n not in named), *named]:
        for curve in _CURVES:
            if (line := _line(table, curve, "class", name)) is not None:
                lines[curve][f"class {name}"] = line
        if name in named:
            number = named.index(name)
            looks[f"class {name}"] = {**style(number), "marker": "", "linewidth": 1.5}
            names[f"class {name}"] = f"{name}: AUC {_told(areas[name][0])}, AP {_told(areas[name][1])}"
        else:
            looks[f"class {name}"] = {"color": "#b9c0c7", "linewidth": 0.7}
    for mean, dashes in (("macro", "-"), ("micro", (0, (1, 1.2)))):
        for curve in _CURVES:
            if (line := _line(table, curve, mean)) is not None:
                lines[curve][mean] = line
        looks[mean] = {"color": "black", "linestyle": dashes, "linewidth": 1.9}
        average = _average(part) if mean == "macro" else f"average_precision_{mean}"
        both = [_told(_area([part], name)) for name in (f"roc_auc_{mean}", average)]
        names[mean] = f"{mean} mean: AUC {both[0]}, AP {both[1]}"
    many = f" The {_NAMED} classes of least average precision are named." if len(named) < len(weakest) else ""
    means = [(curve, found["macro"]) for curve, found in lines.items() if "macro" in found]
    caption = (
        f"Each class of {subject.label} against the rest: recall against false positive rate (left), and precision "
        "against recall (right). Macro: mean of the classes; micro: all decisions "
        f"together. AUC: area below the ROC curve, AP: average precision.{many} From curves.csv of "
        f"{names_of([subject])}."
    )
    alt = f"ROC and precision-recall curves of {subject.label}; " + "; ".join(names.values())
    name = "curves" if alone else f"curves_{subject.label}"
    return Picture(name, "ROC and precision-recall curves", caption, alt), _draw(lines, looks, names, _corner(means))


def _draw(
    lines: Mapping[str, Mapping[str, Line]],
    looks: Mapping[str, Mapping[str, Any]],
    names: Mapping[str, str],
    corner: float | None,
) -> Figure | None:
    """Both kinds of curves side by side.

    Args:
        lines: Curve -> line -> its points.
        looks: Line -> how it is drawn.
        names: Line -> what the legend says.
        corner: Draw the upper corner of this size once more, larger.
    """
    if not any(lines.values()):
        return None
    figure = Figure(figsize=(9.2, 4.7), layout="constrained")
    axes = figure.subplots(1, 2)
    axes[0].plot([0, 1], [0, 1], color="gray", linewidth=1, linestyle=":")
    for axis, curve in zip(axes, _CURVES, strict=True):
        _lines(axis, curve, lines[curve], looks)
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        if corner is not None:
            left = -corner / 30 if curve == ROC else 1 - corner
            inset = axis.inset_axes([0.4, 0.1, 0.56, 0.56] if curve == ROC else [0.1, 0.1, 0.56, 0.56])
            _lines(inset, curve, lines[curve], looks)
            inset.set(xlim=(left, left + corner * 31 / 30), ylim=(1 - corner, 1 + corner / 30))
            inset.tick_params(labelsize=7)
            plain(inset)
            axis.indicate_inset_zoom(inset, edgecolor="#8a939c")
        plain(axis)
    axes[0].set(xlabel="false positive rate", ylabel="recall (true positive rate)")
    axes[1].set(xlabel="recall", ylabel="precision")
    axes[0].set_title("ROC", fontsize=10)
    axes[1].set_title("Precision against recall", fontsize=10)
    keys = [Line2D([], [], label=told, **looks[name]) for name, told in names.items()]
    legend_below(figure, keys)
    return figure


def _lines(axis: Axes, curve: str, lines: Mapping[str, Line], looks: Mapping[str, Mapping[str, Any]]) -> None:
    steps = "default" if curve == ROC else "steps-pre"
    for name, (x, y) in lines.items():
        axis.plot(x, y, drawstyle=steps, **looks[name])


def _line(table: pd.DataFrame, curve: str, of: str, name: str = "") -> Line | None:
    rows = table[(table["curve"] == curve) & (table["of"] == of)]
    if of == "class":
        rows = rows[rows["class"] == name]
    return (rows["x"].to_numpy(), rows["y"].to_numpy()) if len(rows) else None


def _mean(curve: str, lines: Sequence[Line]) -> Line:
    """The mean over several runs, at the same places."""
    if len(lines) == 1:
        return lines[0]
    heights = [
        np.interp(_GRID, x, y) if curve == ROC else y[np.searchsorted(x, _GRID - 1e-9).clip(max=len(y) - 1)]
        for x, y in lines
    ]
    return _GRID, np.mean(heights, axis=0)


def _corner(means: Sequence[tuple[str, Line]]) -> float | None:
    least = min((_below(curve, line) for curve, line in means), default=0.0)
    return next((size for above, size in _CORNERS if least > above), None)


def _below(curve: str, line: Line) -> float:
    x, y = line
    return float(np.trapezoid(y, x)) if curve == ROC else float((np.diff(x) * y[1:]).sum())


def _class_areas(part: Part) -> dict[str, tuple[float, float]]:
    """Area and average precision of each class that an image has."""
    table = part.table(part.files.per_class, "class", "roc_auc", "average_precision")
    rows = [] if table is None else table.dropna(subset=["average_precision"]).to_dict("records")
    return {str(row["class"]): (row["roc_auc"], row["average_precision"]) for row in rows}


def _average(part: Part) -> str:
    """What the mean over labels is called where an image has several."""
    return "map" if "map" in part.metrics else "average_precision_macro"


def _area(parts: Sequence[Part], name: str) -> float | None:
    return mean_of([part.metrics.get(name) for part in parts])


def _told(area: float | None) -> str:
    return "none" if area is None or np.isnan(area) else f"{area:.3f}"
