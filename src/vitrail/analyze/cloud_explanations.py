"""Explanations of point clouds in a folder: turntable pictures, values of the points, and an interactive page."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrail.analyze.explained import Explained, write_values
from vitrail.figures.clouds import interactive_clouds, turntable_figure
from vitrail.figures.write import write_figure
from vitrail.files import write_text

Array = npt.NDArray[Any]
_PAGE = "clouds.html"
# Clouds on the interactive page, which holds their points.
MOST_CLOUDS = 12


def ranks(values: Array, real: Array) -> Array:
    """Compute the share of a cloud's points with smaller values, 0 to 1; 0 where there is no point."""
    result = np.zeros(len(values))
    own = values[real]
    result[real] = np.searchsorted(np.sort(own), own) / max(1, len(own) - 1)
    return result.clip(0, 1)


def write_cloud(folder: Path, name: str, seen: Explained, cloud: Array, classes: tuple[str, ...]) -> dict[str, Any]:
    """Write the explanations of one cloud; return its entry in explanations.json.

    Args:
        folder: The folder.
        name: Name of the cloud's files.
        seen: Prediction and explanations.
        cloud: Shape ``(N, 3)``; NaN where there is no point.
        classes: Names of the classes.
    """
    real: Array = np.asarray(np.isfinite(cloud).all(axis=1))
    entry = seen.entry(f"panels/{name}.png")
    rows, titles = [], []
    for method in seen.explanations:
        values = seen.values(method)
        file = f"maps/{name}_{method}.npy"
        write_values(folder / file, np.where(real, values, np.nan))
        target = seen.target(method, classes)
        entry["methods"][method] = {"streams": {"points": {"map": file}}, "target": target}
        rows.append(ranks(values, real))
        titles.append(method if target is None else f"{method}, for {target}")
    figure = turntable_figure([cloud] * len(rows), rows, titles)
    figure.suptitle(f"{seen.caption()}; colour: rank of the point's value", fontsize=9)
    write_figure(figure, folder / entry["panel"], dpi=130, tight=True)
    return entry


def write_page(folder: Path, shown: list[tuple[str, Array, dict[str, Array]]]) -> None:
    """Write an interactive page of some clouds, which works offline.

    Args:
        folder: The folder.
        shown: Caption, points ``(N, 3)`` and method -> values ``(N,)`` of each.
    """
    parts = []
    for number, (caption, cloud, values) in enumerate(shown):
        real: Array = np.asarray(np.isfinite(cloud).all(axis=1))
        colors = {method: ranks(own, real)[real] for method, own in values.items()}
        plot = interactive_clouds(cloud[real], colors).to_html(full_html=False, include_plotlyjs=number == 0)
        parts.append(f"<h2>{html.escape(caption)}</h2>\n{plot}")
    text = "\n".join(parts)
    write_text(
        folder / _PAGE,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Point clouds</title>\n{text}\n</html>\n',
    )
