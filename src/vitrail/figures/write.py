"""Writing of figures: each file whole or not at all, the same bytes for the same figure."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from matplotlib.figure import Figure

from vitrail.figures.fonts import save_figure
from vitrail.files import replacing


def write_figure(figure: Figure, path: Path, dpi: int, tight: bool = False) -> None:
    """Write a figure in the format of its file name, PNG or SVG.

    Args:
        figure: The figure.
        path: The file, ``NAME.png`` or ``NAME.svg``.
        dpi: Pixels an inch.
        tight: Crop to what is drawn.

    Raises:
        RunError: The file cannot be written.
    """
    _write(figure, [path], dpi, tight)


def write_both(figure: Figure, folder: Path, name: str, dpi: int = 110, tight: bool = False) -> list[Path]:
    """Write a figure as PNG and SVG, with one layout for both.

    Args:
        figure: The figure.
        folder: Folder of the files.
        name: Name of the files, without ending.
        dpi: Pixels an inch.
        tight: Crop to what is drawn.

    Returns:
        The files, PNG first.

    Raises:
        RunError: A file cannot be written.
    """
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    _write(figure, paths, dpi, tight)
    return paths


def _write(figure: Figure, paths: list[Path], dpi: int, tight: bool) -> None:
    """Write a figure into files, all or none."""
    with ExitStack() as files:
        targets = {path.suffix.lstrip("."): files.enter_context(replacing(path)) for path in paths}
        save_figure(figure, targets, dpi, tight)
