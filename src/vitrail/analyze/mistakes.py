"""The most confident incorrect predictions of a run, with their images."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vitrail.data.dataset import ImageData
from vitrail.figures.clouds import show_inputs
from vitrail.figures.mistakes import mistakes_figure
from vitrail.figures.write import write_figure


def draw_mistakes(data: ImageData, mistakes: pd.DataFrame, most: int = 24) -> Figure:
    """Draw the images of the first mistakes, at least one.

    Args:
        data: The evaluated images.
        mistakes: Table with the columns ``path``, ``true``, ``predicted`` and ``confidence``, by falling confidence.
        most: Largest number of images.

    Raises:
        DataError: An image is missing from the data.
    """
    rows = mistakes.head(most)
    # One at a time: sources may hold images of several sizes.
    pictures = [
        show_inputs(data.load([index]), data.source.bands)[0] for index in data.source.indices_of(list(rows["path"]))
    ]
    return mistakes_figure(pictures, rows)


def write_mistakes(data: ImageData, mistakes: pd.DataFrame, out: Path) -> None:
    """Write the images of the first mistakes as a figure.

    Args:
        data: The evaluated images.
        mistakes: As for :func:`draw_mistakes`; without a row ``out`` is removed.
        out: PNG file.

    Raises:
        DataError: An image is missing from the data.
    """
    if mistakes.empty:
        out.unlink(missing_ok=True)
    else:
        write_figure(draw_mistakes(data, mistakes), out, dpi=120)
