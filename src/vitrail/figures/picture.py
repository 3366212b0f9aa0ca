"""A figure on a page: what it is called, what it shows, and its files."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from vitrail.figures.fonts import save_figure
from vitrail.files import replacing
from vitrail.outputs import FIGURE_METADATA

# Inches that a phone shows with letters that can be read.
_NARROW = 5.0
# An inch of a figure on the page.
_PIXELS = 112


@dataclass
class Picture:
    """A figure on the page.

    Attributes:
        name: Of its files in the figures folder.
        title: Heading.
        caption: What it shows and which runs it came from.
        alt: For those who cannot see it.
        data_uri: The image itself.
        problem: Why there is no image, where there is none.
        width: Pixels on the page at most, so that letters are about as large as the page's.
        broad: Whether it is too broad for a phone, and scrolls there.
    """

    name: str
    title: str
    caption: str
    alt: str = ""
    data_uri: str = ""
    problem: str = ""
    width: int = 0
    broad: bool = False


def shorten(text: str, most: int) -> str:
    """The beginning of a text that has more letters than there is room for."""
    return text if len(text) <= most else text[: most - 1] + "…"


def finish_picture(picture: Picture, figure: Figure | None, folder: Path) -> Picture:
    """Write a figure as PNG and SVG, and put it into its picture; without a figure there is nothing to do.

    Args:
        picture: What it is.
        figure: The figure.
        folder: Where the files go.
    """
    if figure is None:
        return picture
    picture.width = round(_PIXELS * figure.get_figwidth())
    picture.broad = figure.get_figwidth() > _NARROW
    for kind in ("svg", "png"):
        buffer = io.BytesIO()
        save_figure(
            figure,
            buffer,
            format=kind,
            dpi=150,
            bbox_inches="tight",
            metadata={"Date": None} if kind == "svg" else FIGURE_METADATA,
        )
        # Once is enough: the places of the panels are the same in both files.
        figure.set_layout_engine("none")
        with replacing(folder / f"{picture.name}.{kind}") as temporary:
            temporary.write_bytes(buffer.getvalue())
        if kind == "png":
            picture.data_uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return picture
