"""The most confident incorrect predictions of a run, with their images."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vitrail.analyze.examples import indices_of
from vitrail.data.no_data import fill_no_data
from vitrail.data.sources.base import ImageSource
from vitrail.figures.display import as_pictures
from vitrail.figures.mistakes import mistakes_figure
from vitrail.figures.write import write_figure


def draw_mistakes(source: ImageSource, mistakes: pd.DataFrame, most: int = 24) -> Figure:
    """Draw the images of the first mistakes, at least one.

    Args:
        source: The evaluated images.
        mistakes: Table with the columns ``path``, ``true``, ``predicted`` and ``confidence``, by falling confidence.
        most: Largest number of images.

    Raises:
        DataError: An image is missing from the source.
    """
    rows = mistakes.head(most)
    # One at a time: sources may hold images of several sizes.
    pictures = [
        as_pictures(fill_no_data(source.load([index])["image"]), source.bands["image"])[0]
        for index in indices_of(source, list(rows["path"]))
    ]
    return mistakes_figure(pictures, rows)


def write_mistakes(source: ImageSource, mistakes: pd.DataFrame, out: Path, most: int = 24) -> None:
    """Write the images of the first mistakes as a figure.

    Args:
        source: The evaluated images.
        mistakes: As for :func:`draw_mistakes`; without a row ``out`` is removed.
        out: PNG file.
        most: Largest number of images.

    Raises:
        DataError: An image is missing from the source.
    """
    if mistakes.empty:
        out.unlink(missing_ok=True)
    else:
        write_figure(draw_mistakes(source, mistakes, most), out, dpi=120)
