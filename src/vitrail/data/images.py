"""Decode image files; files that are not images, or have other bands, raise errors."""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vitrail.data.centre_crop import centre_box
from vitrail.data.image_errors import CONVERT, DEEP, GRAY, RGB, BandError, PointerError, UnreadableError, too_large
from vitrail.data.jpeg_draft import TURNED, Reduction, draft, reduction
from vitrail.data.no_data import parse_no_data
from vitrail.errors import DataError, plural
from vitrail.files import is_lfs_pointer

BANDS: dict[str, tuple[str, ...]] = {"rgb": ("red", "green", "blue"), "gray": ("gray",)}
_MODES = {"rgb": "RGB", "gray": "L"}
# Modes whose bands are known from the header; a palette (P) and an alpha band (RGBA, LA) need a closer look.
_BANDS_OF_MODE = {"1": 1, "L": 1, "RGB": 3, "YCbCr": 3, "CMYK": 4, "LAB": 3, "HSV": 3}
_KINDS = {1: GRAY, 3: RGB}
# Pillow would clip their values to 0..255: a white or black square.
_DEEP_MODES = ("I", "F")
# How Pillow marks files of 16 bits a band that it hands over as 8, without a word on the half that it drops.
_DEEP_STORED = ";16"
# Pictures in which a camera has put small or deep ones behind the picture itself.
_ONE_PICTURE = "MPO"
_ORIENTATION = 274
# Tag of TIFF pages: the no-data value (GDAL).
_GDAL_NODATA = 42113
# Pillow has one limit of pixels for all: while a larger picture is opened on purpose, nobody else changes it.
_PILLOW_LIMIT = threading.Lock()
_FAULTS = (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError)


def image_size(file: Path | bytes, name: str = "") -> tuple[int, int]:
    """Return height and width of a picture as displayed, from its header.

    Args:
        file: The file or its content.
        name: Name in errors; the file's own when not given.

    Raises:
        DataError: Not an image that can be read.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            width, height = image.size
            # Pillow gives the size of a TIFF as it is shown.
            turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in TURNED
    except _FAULTS as error:
        raise _unreadable(file, name or str(file), error) from error
    return (width, height) if turned else (height, width)


def band_problem(mode: str, frames: int, color: str) -> str | None:
    """Describe the mismatch of an image's header and the wanted bands; None if it fits or pixels must decide."""
    if frames > 1:
        return f"holds {frames} images (the frames of an animation, or pages)"
    bands = _BANDS_OF_MODE.get(mode)
    if bands is not None and bands != len(BANDS[color]):
        return f"has {plural(bands, 'band')} ({mode})"
    return None


@dataclass(frozen=True)
class Picture:
    """Decoded picture.

    Attributes:
        planes: Shape ``(C, H, W)``, uint8.
        invalid: Pixels without data (transparent, masked, or of the declared value in all bands), shape ``(H, W)``;
            None where there are none.
        pixels: Number of pixels in the file, which may have been decoded at a reduced size.
        reduced: Reduction of a JPEG in decoding; None for an image that was decoded in full.
    """

    planes: Tensor
    invalid: npt.NDArray[np.bool_] | None
    pixels: int
    reduced: Reduction | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in the file, as displayed."""
        return (self.planes.shape[1], self.planes.shape[2]) if self.reduced is None else self.reduced.size


def read_image(
    file: Path | bytes,
    color: str = "rgb",
    size: tuple[int, int] | None = None,
    resize: Literal["crop", "squash"] = "crop",
    convert: bool = False,
    name: str = "",
    max_pixels: int | None = None,
) -> Tensor:
    """Decode an image and resize it.

    Args:
        file: A file of any format that Pillow reads, or what would be in it.
        color: "rgb" or "gray".
        size: Height and width to bring it to; its own when not given.
        resize: "crop" scales the shorter side and cuts the centre, "squash" scales both sides.
        convert: Convert an image of other bands (drop an alpha band, copy or mix bands) instead of refusing it.
        name: Name in errors; by default that of the file.
        max_pixels: Pixels that are decoded at most; Pillow's limit when not given.

    Returns:
        Shape ``(C, H, W)``, uint8.

    Raises:
        DataError: Not an image, truncated, too large, or of other bands.
    """
    picture = decode_picture(file, color, size, convert, name, max_pixels)
    planes = picture.planes
    return planes.contiguous() if size is None else resize_picture(planes, size, resize, picture.reduced)


def decode_picture(
    file: Path | bytes,
    color: str = "rgb",
    size: tuple[int, int] | None = None,
    convert: bool = False,
    name: str = "",
    max_pixels: int | None = None,
    no_data: Sequence[float] | None = None,
) -> Picture:
    """Decode an image, and find its pixels without data.

    Args:
        file: A file of any format that Pillow reads, or what would be in it.
        color: "rgb" or "gray".
        size: Height and width that are wanted of it: a JPEG may be decoded smaller than it is, see
            :mod:`vitrail.data.jpeg_draft`.
        convert: Convert an image of other bands instead of refusing it; transparent pixels are then without data.
        name: Name in errors; by default that of the file.
        max_pixels: Pixels that are decoded at most; Pillow's limit when not given.
        no_data: No-data values, where all bands have them, besides the one that a TIFF declares; an empty
            sequence ignores what files declare.

    Raises:
        DataError: Not an image, truncated, too large, or of other bands.
    """
    name = name or str(file)
    declared: list[float] = list(no_data or ())
    try:
        image = _open(file, max_pixels)
        with image:
            own = image.size
            if max_pixels is not None and own[0] * own[1] > max_pixels:
                _draft_below(image, max_pixels, name)
            draft(image, size)
            (frames, hidden), stored = _pages(image, file), _stored_as(image)
            if image.format == "TIFF" and no_data != ():
                mark = parse_no_data(str(image.tag_v2.get(_GDAL_NODATA, "")), name)  # type: ignore[attr-defined]
                declared += [] if mark is None else [mark]
            scrambled = (
                image.format == "TIFF"
                and image.info.get("compression") == "raw"
                and image.getexif().get(_ORIENTATION) in TURNED
            )
            image.load()
            orientation = image.getexif().get(_ORIENTATION, 1)
            reduced = reduction((own[1], own[0]), (image.size[1], image.size[0])) if image.format != "TIFF" else None
            reduced = reduced and reduced.turned(orientation, (image.size[1], image.size[0]))
    except DataError:
        raise
    except _FAULTS as error:
        raise _unreadable(file, name, error) from error
    if _DEEP_STORED in stored:
        raise _too_deep(name, stored)
    if scrambled:
        image = _turned_tiff(file, image)
    pixels = _to_bands(image, name, color, band_problem(image.mode, frames, color), convert)
    if no_data == ():
        hidden = None
    elif convert:
        hidden = _transparent(image, hidden)
    mask = None if hidden is None else Image.fromarray(hidden)
    if mask is not None and image.format != "TIFF":
        mask.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
        ImageOps.exif_transpose(mask, in_place=True)
    ImageOps.exif_transpose(pixels, in_place=True)
    array = np.array(pixels)
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    invalid = None if mask is None else np.array(mask)
    for mark in declared:
        same = (planes == mark).all(0)
        invalid = same if invalid is None else invalid | same
    if invalid is not None and (not invalid.any() or invalid.shape != planes.shape[1:]):
        invalid = None
    return Picture(torch.from_numpy(planes), invalid, own[0] * own[1], reduced)


def _open(file: Path | bytes, max_pixels: int | None) -> Image.Image:
    """Open an image; our own limit replaces a smaller one of Pillow."""

    def begin() -> Image.Image:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)

    if max_pixels is None:
        return begin()
    try:
        return begin()
    except Image.DecompressionBombError:
        with _PILLOW_LIMIT:
            limit = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = None
            try:
                return begin()
            finally:
                Image.MAX_IMAGE_PIXELS = limit


def _draft_below(image: Image.Image, max_pixels: int, name: str) -> None:
    """Request decoding at a reduced size that the limit allows.

    Raises:
        UnreadableError: Its format does not allow it, or not enough.
    """
    width, height = image.size
    share = math.sqrt(max_pixels / (width * height))
    for step in (2, 4, 8):
        if 1 / step <= share:
            image.draft(image.mode, (width // step, height // step))
            break
    if image.size[0] * image.size[1] > max_pixels:
        raise too_large(name, (height, width), max_pixels)


def _turned_tiff(file: Path | bytes, image: Image.Image) -> Image.Image:
    """Read an uncompressed TIFF that its tag rotates by 90 degrees; Pillow 13.0 cuts its lines at the wrong length."""
    from vitrail.data.rasters import open_raster

    planes = open_raster(io.BytesIO(file) if isinstance(file, bytes) else file).values
    upright = Image.fromarray(np.ascontiguousarray(np.moveaxis(planes, 0, 2).squeeze()), image.mode)
    upright.format = image.format
    return upright


def _transparent(image: Image.Image, hidden: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
    """Add the pixels that an alpha band or transparent colour removes."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return hidden
    clear: npt.NDArray[np.bool_] = np.array(image.convert("RGBA").getchannel("A")) == 0
    if not clear.any():
        return hidden
    return clear if hidden is None else hidden | clear


def _pages(image: Image.Image, file: Path | bytes) -> tuple[int, npt.NDArray[np.bool_] | None]:
    """Count the images of a file, and find the pixels that a mask page removes."""
    if image.format == _ONE_PICTURE:
        return 1, None
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1), None
    from vitrail.data.rasters import inspect_pages, mask_beside

    if not image.tag_v2.next and (isinstance(file, bytes) or mask_beside(file) is None):  # type: ignore[attr-defined]
        return 1, None
    return inspect_pages(io.BytesIO(file) if isinstance(file, bytes) else file)


def _stored_as(image: Image.Image) -> str:
    """Return Pillow's name of the stored mode of an image that is not loaded yet; empty if unknown."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if arguments and isinstance(arguments[0], str):
            return arguments[0]
    return ""


def _too_deep(path: Path | str, mode: str) -> BandError:
    return BandError(
        f"{path} has more than 8 bits a band (mode {mode}), which a picture cannot hold without loss",
        "scale it to 8 bits, or make it a TIFF and name its bands (data.bands.names)",
        DEEP,
        f"have more than 8 bits a band (mode {mode}), which a picture cannot hold without loss",
    )


def _to_bands(image: Image.Image, path: str, color: str, problem: str | None, convert: bool) -> Image.Image:
    mode, wanted = _MODES[color], f"where {color} ({len(BANDS[color])}) is wanted"
    if image.mode.split(";")[0] in _DEEP_MODES:
        raise _too_deep(path, image.mode)
    if problem is not None:
        if not convert:
            frames = problem.startswith("holds")
            raise BandError(
                f"{path} {problem} {wanted}",
                f"extract what is wanted, or {CONVERT}, which takes the first"
                if frames
                else f"convert it, or {CONVERT}",
                "" if frames else _KINDS.get(_BANDS_OF_MODE.get(image.mode, 0), ""),
                f"{_of_many(problem)} {wanted}",
            )
        try:
            return image.convert(mode)
        except ValueError as error:
            raise BandError(f"{path} cannot be converted from {image.mode} to {mode}", "convert it yourself") from error
    if image.mode == mode:
        return image
    if image.mode == "P":
        # A palette is only a way to store colours: decoding it loses nothing.
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    bands = f"{plural(len(image.getbands()), 'band')} ({image.mode})"
    if image.mode in ("RGBA", "LA", "PA"):
        alpha = image.getchannel("A").getextrema()
        if alpha != (255, 255) and not convert:
            raise BandError(
                f"{path} has {bands} and is partly transparent {wanted}",
                f"flatten it, or {CONVERT}",
                "transparent",
                f"have {bands} and are partly transparent {wanted}",
            )
        image = image.convert(image.mode[:-1])
    if len(image.getbands()) != len(BANDS[color]) and not convert:
        kind = _KINDS.get(len(image.getbands()), "")
        raise BandError(f"{path} has {bands} {wanted}", f"convert it, or {CONVERT}", kind, f"have {bands} {wanted}")
    return image.convert(mode)


def _of_many(problem: str) -> str:
    """Rephrase a problem of :func:`band_problem` for several images; the number of frames may differ."""
    if problem.startswith("has "):
        return problem.replace("has ", "have ", 1)
    return re.sub(r"^holds \d+", "hold several", problem)


def resize_picture(x: Tensor, size: tuple[int, int], how: str, reduced: Reduction | None = None) -> Tensor:
    """Resize, bicubic and without aliases, in torch.

    For 8 bits it is two to three times as fast as Pillow, and equal to a level.

    Args:
        x: Shape ``(C, H, W)``, uint8.
        size: Height and width wanted.
        how: "crop" or "squash".
        reduced: Reduction of a JPEG in decoding.
    """
    height, width = x.shape[1:] if reduced is None else reduced.size
    # The part that the centre crop keeps is scaled in one step: no pixel is computed and cut off.
    top, left, rows, columns = centre_box(height, width, size) if how == "crop" else (0, 0, height, width)
    if reduced is not None:
        return reduced.resize(x, (top, left, rows, columns), size)
    x = x[:, top : top + rows, left : left + columns]
    if x.shape[1:] == size:
        return x.contiguous()
    return F.interpolate(x[None], size=size, mode="bicubic", antialias=True)[0].contiguous()


def _unreadable(file: Path | bytes, name: Path | str, error: Exception) -> UnreadableError:
    if is_lfs_pointer(file):
        return PointerError(name)
    reason = str(error) if str(error) and not isinstance(error, UnidentifiedImageError) else "unknown format"
    return UnreadableError(f"{name} is not a readable image ({reason})", "remove or replace it")
