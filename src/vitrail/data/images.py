"""Reading image files: what is no image, or has other bands, is an error and never a black square."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vitrail.errors import DataError

BANDS: dict[str, tuple[str, ...]] = {"rgb": ("red", "green", "blue"), "gray": ("gray",)}
_MODES = {"rgb": "RGB", "gray": "L"}
# Modes whose bands are known from the header; a palette (P) and an alpha band (RGBA, LA) need a closer look.
_BANDS_OF_MODE = {"1": 1, "L": 1, "RGB": 3, "YCbCr": 3, "CMYK": 4, "LAB": 3, "HSV": 3}
# Pillow would clip their values to 0..255: a white or black square.
_DEEP_MODES = ("I", "F")
# What file managers leave behind; not worth an error.
_LITTER = {"thumbs.db", "desktop.ini"}
_FAULTS = (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError)


class BandError(DataError):
    """An image that can be read and is not of the wanted bands."""


def list_files(folder: Path) -> list[Path]:
    """All files under a folder, linked folders too, in order; hidden ones and what file managers leave are passed over.

    A link that leads nowhere is listed: it is a fault to report, not to hide.

    Raises:
        DataError: A name that is not UTF-8.
    """
    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and name.lower() not in _LITTER:
                found.append(Path(place) / name)
    for path in found:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{str(path)!a}: the name is not UTF-8; rename the file") from error
    return sorted(found)


def inspect_image(path: Path) -> tuple[str, int]:
    """Read a file's header.

    Returns:
        PIL's mode, and the number of frames.

    Raises:
        DataError: Not an image that can be read.
    """
    try:
        with Image.open(path) as image:
            return image.mode, getattr(image, "n_frames", 1)
    except _FAULTS as error:
        raise DataError(_unreadable(path, error)) from error


def band_problem(path: Path, mode: str, frames: int, color: str) -> str | None:
    """Why an image's header does not fit the wanted bands; None where it does or only its pixels can tell."""
    if frames > 1:
        return f"{path} is an animation of {frames} frames"
    bands = _BANDS_OF_MODE.get(mode)
    if bands is not None and bands != len(BANDS[color]):
        return f"{path} has {bands} {'band' if bands == 1 else 'bands'} ({mode})"
    return None


def read_image(
    path: Path,
    color: str = "rgb",
    size: tuple[int, int] | None = None,
    resize: Literal["crop", "squash"] = "crop",
    convert: bool = False,
) -> Tensor:
    """Decode an image file.

    Args:
        path: Any format that Pillow reads.
        color: "rgb" or "gray".
        size: Height and width to bring it to; its own when not given.
        resize: "crop" scales the shorter side and cuts the centre, "squash" scales both sides.
        convert: Convert an image of other bands (drop an alpha band, copy or mix bands) instead of refusing it.

    Returns:
        Shape ``(C, H, W)``, uint8.

    Raises:
        DataError: Not an image, truncated, or of other bands.
    """
    try:
        image = Image.open(path)
        with image:
            if size is not None:
                # JPEG can be decoded at a half, a quarter or an eighth of its size; never below what is wanted.
                image.draft(image.mode, (size[1], size[0]))
            frames = getattr(image, "n_frames", 1)
            image.load()
    except _FAULTS as error:
        raise DataError(_unreadable(path, error)) from error
    pixels = _to_bands(image, path, color, band_problem(path, image.mode, frames, color), convert)
    pixels = ImageOps.exif_transpose(pixels) or pixels
    if size is not None:
        pixels = _resize(pixels, size, resize)
    array = np.array(pixels, dtype=np.uint8)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _to_bands(image: Image.Image, path: Path, color: str, problem: str | None, convert: bool) -> Image.Image:
    mode = _MODES[color]
    if image.mode.split(";")[0] in _DEEP_MODES:
        raise BandError(
            f"{path} has more than 8 bits a band (mode {image.mode}), which an image folder cannot hold without loss; "
            "scale it to 8 bits"
        )
    if problem is not None:
        if not convert:
            raise BandError(
                f"{problem} where {color} ({len(BANDS[color])}) is wanted; convert it, or pass "
                "--data.on_band_mismatch convert"
            )
        try:
            return image.convert(mode)
        except ValueError as error:
            raise BandError(f"{path} cannot be converted from {image.mode} to {mode}; convert it yourself") from error
    if image.mode == mode:
        return image
    if image.mode == "P":
        # A palette is only a way to store colours: decoding it loses nothing.
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("RGBA", "LA", "PA"):
        alpha = image.getchannel("A").getextrema()
        if alpha != (255, 255) and not convert:
            raise BandError(
                f"{path} has {len(image.getbands())} bands ({image.mode}) and is transparent in places where {color} "
                f"({len(BANDS[color])}) is wanted; flatten it, or pass --data.on_band_mismatch convert"
            )
        image = image.convert(image.mode[:-1])
    if len(image.getbands()) != len(BANDS[color]) and not convert:
        raise BandError(
            f"{path} has {len(image.getbands())} bands ({image.mode}) where {color} ({len(BANDS[color])}) is wanted; "
            "convert it, or pass --data.on_band_mismatch convert"
        )
    return image.convert(mode)


def _resize(image: Image.Image, size: tuple[int, int], how: str) -> Image.Image:
    height, width = size
    if how == "squash":
        return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    # The part of the original that the centre crop keeps, scaled in one step: no pixel is computed and cut off.
    scale = max(height / image.height, width / image.width)
    crop_width, crop_height = width / scale, height / scale
    left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
    # Rounding must not carry the box over the edge by a hair.
    right, bottom = min(left + crop_width, image.width), min(top + crop_height, image.height)
    box = (max(left, 0.0), max(top, 0.0), right, bottom)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error) if str(error) and not isinstance(error, UnidentifiedImageError) else "unknown format"
    return f"{path} is no image that can be read ({reason}); remove or replace it"
