"""ROC and precision-recall curves of the runs on a page."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vitrail.analyze.evaluated import Evaluation
from vitrail.evaluate.curves import COLUMNS, PRECISION_RECALL, ROC
from vitrail.figures.curves import Line, ranking_curves
from vitrail.figures.picture import Picture
from vitrail.figures.style import style
from vitrail.report.evaluated import Section, Subject, mean_of, names_of, several

_CURVES = (ROC, PRECISION_RECALL)
_GRID = np.linspace(0, 1, 201)
# Classes with a colour of their own: those of least average precision; the rest is gray.
_NAMED = 7
# Runs that have a figure of their own beside the one that compares them.
_MOST_FIGURES = 4


def ranking(subjects: Sequence[Subject]) -> list[Section]:
    """Draw curves of each class of each run, and the macro means of all runs side by side.

    Args:
        subjects: Runs or variants; those without recorded curves are named and left out.

    Returns:
        The section; empty without recorded curves.
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
    text = "; ".join(f"{name}: {_area_text(roc)} and {_area_text(average)}" for name, (roc, average) in areas.items())
    caption = (
        "Means over the classes, each against the rest: recall against false positive rate (left), and precision "
        f"against recall (right). From curves.csv of {names_of(whose)}.{several(whose)}"
    )
    if gone := [subject.label for subject in subjects if subject.label not in areas]:
        caption += f" Not recorded for {', '.join(gone)}: `vitrail evaluate` the runs again."
    alt = f"ROC and precision-recall curves; area below the ROC curve and average precision, means of classes: {text}"
    picture = Picture("curves", "ROC and precision-recall curves", caption, alt)
    names = {name: f"{name}: AUC {_area_text(roc)}, AP {_area_text(average)}" for name, (roc, average) in areas.items()}
    # A run has one colour in all figures of a page.
    looks = {s.label: {**style(i), "marker": "", "linewidth": 1.7} for i, s in enumerate(subjects) if s.label in names}
    return picture, _draw(lines, looks, names, names)


def _of_classes(subject: Subject, table: pd.DataFrame, alone: bool) -> tuple[Picture, Figure | None]:
    """Draw the curves of one run's classes, with their means."""
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
            names[f"class {name}"] = f"{name}: AUC {_area_text(areas[name][0])}, AP {_area_text(areas[name][1])}"
        else:
            looks[f"class {name}"] = {"color": "#b9c0c7", "linewidth": 0.7}
    for mean, dashes in (("macro", "-"), ("micro", (0, (1, 1.2)))):
        for curve in _CURVES:
            if (line := _line(table, curve, mean)) is not None:
                lines[curve][mean] = line
        looks[mean] = {"color": "black", "linestyle": dashes, "linewidth": 1.9}
        average = _average(part) if mean == "macro" else f"average_precision_{mean}"
        both = [_area_text(_area([part], name)) for name in (f"roc_auc_{mean}", average)]
        names[mean] = f"{mean} mean: AUC {both[0]}, AP {both[1]}"
    many = f" The {_NAMED} classes of least average precision are named." if len(named) < len(weakest) else ""
    caption = (
        f"Each class of {subject.label} against the rest: recall against false positive rate (left), and precision "
        "against recall (right). Macro: mean of the classes; micro: all decisions "
        f"together. AUC: area below the ROC curve, AP: average precision.{many} From curves.csv of "
        f"{names_of([subject])}."
    )
    alt = f"ROC and precision-recall curves of {subject.label}; " + "; ".join(names.values())
    name = "curves" if alone else f"curves_{subject.label}"
    return Picture(name, "ROC and precision-recall curves", caption, alt), _draw(lines, looks, names, ["macro"])


def _draw(
    lines: Mapping[str, Mapping[str, Line]],
    looks: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, str],
    inset_by: Collection[str],
) -> Figure | None:
    if not any(lines.values()):
        return None
    return ranking_curves(lines[ROC], lines[PRECISION_RECALL], looks, labels, inset_by)


def _line(table: pd.DataFrame, curve: str, of: str, name: str = "") -> Line | None:
    rows = table[(table["curve"] == curve) & (table["of"] == of)]
    if of == "class":
        rows = rows[rows["class"] == name]
    return (rows["x"].to_numpy(), rows["y"].to_numpy()) if len(rows) else None


def _mean(curve: str, lines: Sequence[Line]) -> Line:
    """Average lines of several runs on one grid."""
    if len(lines) == 1:
        return lines[0]
    heights = [
        np.interp(_GRID, x, y) if curve == ROC else y[np.searchsorted(x, _GRID - 1e-9).clip(max=len(y) - 1)]
        for x, y in lines
    ]
    return _GRID, np.mean(heights, axis=0)


def _class_areas(part: Evaluation) -> dict[str, tuple[float, float]]:
    """Read area and average precision of each class that occurs."""
    table = part.table(part.files.per_class, "class", "roc_auc", "average_precision")
    rows = [] if table is None else table.dropna(subset=["average_precision"]).to_dict("records")
    return {str(row["class"]): (row["roc_auc"], row["average_precision"]) for row in rows}


def _average(part: Evaluation) -> str:
    """Name the measure for the mean of average precision over classes, or over labels of multi-label runs."""
    return "map" if "map" in part.metrics else "average_precision_macro"


def _area(parts: Sequence[Evaluation], name: str) -> float | None:
    return mean_of([part.metrics.get(name) for part in parts])


def _area_text(area: float | None) -> str:
    return "none" if area is None or np.isnan(area) else f"{area:.3f}"
