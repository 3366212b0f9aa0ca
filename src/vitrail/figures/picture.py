"""A figure on a page: name, title, caption and files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from vitrail.errors import RunError
from vitrail.figures.display import data_uri, jpeg_uri
from vitrail.figures.write import write_both

# Inches that a phone shows with readable letters.
_NARROW = 5.0
# An inch of a figure on the page.
_PIXELS = 112


@dataclass
class Picture:
    """A figure on the page.

    Attributes:
        name: Name of its files in the figures folder.
        title: Heading.
        caption: Text below it, with the runs that it was made from.
        alt: Text instead of the image.
        data_uri: The image itself.
        problem: Reason for a missing image.
        width: Largest width on the page in pixels, so that letters are about as large as the page's.
        broad: Whether it is too broad for a phone, and scrolls there.
        file: Path of an image that was written before, from the folder of the page; else it is written with the page.
        video: A video that is played in its place, as a data URI; the image is then shown before it plays.
    """

    name: str
    title: str
    caption: str
    alt: str = ""
    data_uri: str = ""
    problem: str = ""
    width: int = 0
    broad: bool = False
    file: str = ""
    video: str = ""


def embed_written(picture: Picture, file: Path, inches: float, page_folder: Path) -> Picture:
    """Embed a PNG that was written before into its picture.

    Args:
        picture: Its name, title and caption.
        file: The PNG.
        inches: Width of the figure.
        page_folder: Folder of the page.

    Raises:
        RunError: The file cannot be read.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read the picture {file} ({error}); write it again, or remove its folder") from error
    picture.file = Path(os.path.relpath(file, page_folder)).as_posix()
    return _embed(picture, content, inches)


def embed_animation(
    picture: Picture, files: Sequence[Path], frames: npt.NDArray[np.uint8], page_folder: Path
) -> Picture:
    """Embed an animation that was written before: its MP4 as a video, or its GIF where there is none.

    Args:
        picture: Its name, title and caption.
        files: Result of :func:`vitrail.figures.animation.write_animation`.
        frames: Shape ``(T, H, W, 3)``.
        page_folder: Folder of the page.
    """
    picture.file = Path(os.path.relpath(files[0], page_folder)).as_posix()
    height, width = frames.shape[1:3]
    picture.width = width
    if len(files) == 1:
        picture.data_uri = data_uri("image/gif", files[0].read_bytes())
    else:
        picture.data_uri = jpeg_uri(frames[len(frames) // 2] / 255, (width, height))
        picture.video = data_uri("video/mp4", files[1].read_bytes())
    return picture


def _embed(picture: Picture, png: bytes, inches: float) -> Picture:
    picture.width, picture.broad = round(_PIXELS * inches), inches > _NARROW
    picture.data_uri = data_uri("image/png", png)
    return picture


def shorten(text: str, most: int) -> str:
    """Cut a text to at most so many letters, with an ellipsis at its end."""
    return text if len(text) <= most else text[: most - 1] + "…"


def finish_picture(picture: Picture, figure: Figure | None, folder: Path) -> Picture:
    """Write a figure as PNG and SVG, and embed it into its picture; do nothing without a figure.

    Args:
        picture: Its name, title and caption.
        figure: The figure.
        folder: Folder of the files.
    """
    if figure is None:
        return picture
    png, _ = write_both(figure, folder, picture.name, dpi=150, tight=True)
    return _embed(picture, png.read_bytes(), figure.get_figwidth())
