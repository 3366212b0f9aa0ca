"""Incorrect predictions as images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from vitrail.errors import plural
from vitrail.figures.picture import shorten

_COLUMNS = 6
_MOST_CHARACTERS, _MOST_OF_A_PATH = 20, 34


def mistakes_figure(pictures: Sequence[npt.NDArray[Any]], mistakes: pd.DataFrame) -> Figure:
    """Draw incorrect predictions, at least one, with the predicted and the true class.

    Args:
        pictures: One for each row, shape ``(H, W)`` or ``(H, W, 3)``, in 0..1.
        mistakes: Table with the columns ``path``, ``true``, ``predicted`` and ``confidence``.
    """
    ratio = sum(picture.shape[0] / picture.shape[1] for picture in pictures) / len(pictures)
    # Frames of a clip side by side are wide.
    most, width = (_COLUMNS, 1.7) if ratio > 0.7 else (_COLUMNS // 2, 3.4)
    columns = min(most, len(pictures))
    lines = -(-len(pictures) // columns)
    height = width * min(ratio, 1.5) + 0.5
    figure = Figure(figsize=(width * columns, height * lines + 0.4), layout="constrained")
    figure.suptitle(f"The {plural(len(pictures), 'most confident mistake')}", fontsize=9)
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, picture, row in zip(axes.flat, pictures, mistakes.itertuples(index=False), strict=False):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        predicted, true = (shorten(str(name), _MOST_CHARACTERS) for name in (row.predicted, row.true))
        axis.set_title(f"{predicted} {row.confidence:.0%}\ntrue: {true}", fontsize=7, loc="left")
        # The end of a path distinguishes files.
        path = str(row.path)
        end = path if len(path) <= _MOST_OF_A_PATH else "…" + path[1 - _MOST_OF_A_PATH :]
        axis.text(0, -0.04, end, transform=axis.transAxes, fontsize=5, va="top", color="dimgray", clip_on=False)
    return figure
