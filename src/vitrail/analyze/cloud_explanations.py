"""Explanations of point clouds in a folder: turntable pictures and values of the points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrail.analyze.explained import Explained, write_values
from vitrail.figures.cloud_page import PREDICTED, TRUE
from vitrail.figures.clouds import point_ranks, turntable_figure
from vitrail.figures.write import write_figure

Array = npt.NDArray[Any]


def values_of_points(seen: Explained, cloud: Array) -> dict[str, Array]:
    """Return the values that colour the points of a cloud, shape ``(N,)`` each.

    Args:
        seen: Prediction and explanations.
        cloud: Shape ``(N, 3)``; NaN where there is no point.

    Returns:
        Parts (whole numbers; -1 for none) as predicted and, where they are known, true; the ranks of each method.
    """
    real: Array = np.asarray(np.isfinite(cloud).all(axis=1))
    found: dict[str, Array] = {}
    if seen.labels is not None:
        found[PREDICTED] = seen.labels.predicted
        if seen.labels.accuracy() is not None and seen.labels.true is not None:
            found[TRUE] = seen.labels.true
    return found | {method: point_ranks(seen.values(method), real) for method in seen.explanations}


def write_cloud(
    folder: Path, name: str, seen: Explained, cloud: Array, values: Mapping[str, Array], classes: tuple[str, ...]
) -> dict[str, Any]:
    """Write the explanations of one cloud; return its entry in explanations.json.

    Args:
        folder: The folder.
        name: Name of the cloud's files.
        seen: Prediction and explanations.
        cloud: Shape ``(N, 3)``; NaN where there is no point.
        values: Result of :func:`values_of_points`.
        classes: Names of the classes.
    """
    real: Array = np.asarray(np.isfinite(cloud).all(axis=1))
    entry = seen.entry(f"panels/{name}.png")
    titles = {kind: kind for kind in values}
    for method in seen.explanations:
        file = f"maps/{name}_{method}.npy"
        write_values(folder / file, np.where(real, seen.values(method), np.nan))
        target = seen.target(method, classes)
        entry["methods"][method] = {"streams": {"points": {"map": file}}, "target": target}
        titles[method] = method if target is None else f"{method}, for {target}"
    figure = turntable_figure([cloud] * len(values), list(values.values()), list(titles.values()), names=classes)
    figure.suptitle(f"{seen.caption()}; colour of methods: rank of the point's value", fontsize=9)
    write_figure(figure, folder / entry["panel"], dpi=130, tight=True)
    return entry
