"""Writing of figures: each file whole or not at all, the same bytes for the same figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vitrail.figures.fonts import save_figure
from vitrail.files import replacing
from vitrail.outputs import FIGURE_METADATA


def write_figure(figure: Figure, path: Path, dpi: int, **options: Any) -> None:
    """Write a figure in the format of its file name, PNG or SVG.

    Args:
        figure: The figure.
        path: The file, ``NAME.png`` or ``NAME.svg``.
        dpi: Pixels an inch.
        **options: Of :meth:`matplotlib.figure.Figure.savefig`.

    Raises:
        RunError: The file cannot be written.
    """
    kind = path.suffix.lstrip(".")
    metadata = {"Date": None} if kind == "svg" else FIGURE_METADATA
    with replacing(path) as temporary:
        save_figure(figure, temporary, format=kind, dpi=dpi, metadata=metadata, **options)


def write_both(figure: Figure, folder: Path, name: str, dpi: int = 110, **options: Any) -> list[Path]:
    """Write a figure as PNG and SVG, with one layout for both.

    Args:
        figure: The figure.
        folder: Where the files go.
        name: Of the files, without ending.
        dpi: Pixels an inch.
        **options: Of :meth:`matplotlib.figure.Figure.savefig`.

    Returns:
        The files, PNG first.

    Raises:
        RunError: A file cannot be written.
    """
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    for path in paths:
        write_figure(figure, path, dpi, **options)
        # A second layout would move the panels.
        figure.set_layout_engine("none")
    return paths
