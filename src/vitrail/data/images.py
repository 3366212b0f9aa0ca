"""Reading image files: what is no image, or has other bands, is an error and never a black square."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vitrail.data.faults import CONVERT, DEEP, GRAY, RGB, BandError, PointerError, UnreadableError
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
# Values of it for images that lie on their side.
_TURNED = (5, 6, 7, 8)
_FAULTS = (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError)


def inspect_image(path: Path) -> tuple[str, int]:
    """Read a file's header.

    Returns:
        PIL's mode, and the number of frames.

    Raises:
        DataError: Not an image that can be read.
    """
    try:
        with Image.open(path) as image:
            return image.mode, _frames(image)
    except _FAULTS as error:
        raise _unreadable(path, path, error) from error


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as it is shown, from its header.

    Raises:
        DataError: Not an image that can be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _TURNED
    except _FAULTS as error:
        raise _unreadable(path, path, error) from error
    return (width, height) if turned else (height, width)


def band_problem(mode: str, frames: int, color: str) -> str | None:
    """Why an image's header does not fit the wanted bands; None where it does or only its pixels can tell."""
    if frames > 1:
        return f"holds {frames} images (the frames of an animation, or pages)"
    bands = _BANDS_OF_MODE.get(mode)
    if bands is not None and bands != len(BANDS[color]):
        return f"has {bands} {'band' if bands == 1 else 'bands'} ({mode})"
    return None


def read_image(
    file: Path | bytes,
    color: str = "rgb",
    size: tuple[int, int] | None = None,
    resize: Literal["crop", "squash"] = "crop",
    convert: bool = False,
    name: str = "",
) -> Tensor:
    """Decode an image.

    Args:
        file: A file of any format that Pillow reads, or what would be in it.
        color: "rgb" or "gray".
        size: Height and width to bring it to; its own when not given.
        resize: "crop" scales the shorter side and cuts the centre, "squash" scales both sides.
        convert: Convert an image of other bands (drop an alpha band, copy or mix bands) instead of refusing it.
        name: What to call it in errors; the file's own name when not given.

    Returns:
        Shape ``(C, H, W)``, uint8.

    Raises:
        DataError: Not an image, truncated, or of other bands.
    """
    name = name or str(file)
    try:
        image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
        with image:
            if size is not None:
                # JPEG can be decoded at a half, a quarter or an eighth of its size; never below what is wanted.
                image.draft(image.mode, (size[1], size[0]))
            frames, stored = _frames(image), _stored_as(image)
            image.load()
    except _FAULTS as error:
        raise _unreadable(file, name, error) from error
    if _DEEP_STORED in stored:
        raise _too_deep(name, stored)
    pixels = _to_bands(image, name, color, band_problem(image.mode, frames, color), convert)
    ImageOps.exif_transpose(pixels, in_place=True)
    array = np.array(pixels)
    planes = torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    return planes.contiguous() if size is None else _resize(planes, size, resize)


def _frames(image: Image.Image) -> int:
    return 1 if image.format == _ONE_PICTURE else getattr(image, "n_frames", 1)


def _stored_as(image: Image.Image) -> str:
    """Pillow's name for how the bands of an image that is not loaded yet lie in its file; empty where it has none."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if arguments and isinstance(arguments[0], str):
            return arguments[0]
    return ""


def _too_deep(path: Path | str, mode: str) -> BandError:
    return BandError(
        f"{path} has more than 8 bits a band (mode {mode}), which a picture cannot hold without loss",
        "scale it to 8 bits, or make it a TIFF and name its bands (data.band_names)",
        DEEP,
        f"have more than 8 bits a band (mode {mode}), which a picture cannot hold without loss",
    )


def _to_bands(image: Image.Image, path: str, color: str, problem: str | None, convert: bool) -> Image.Image:
    mode, wanted = _MODES[color], f"where {color} ({len(BANDS[color])}) is wanted"
    if image.mode.split(";")[0] in _DEEP_MODES:
        raise _too_deep(path, image.mode)
    if problem is not None:
        if not convert:
            raise BandError(
                f"{path} {problem} {wanted}",
                f"convert it, or {CONVERT}",
                _KINDS.get(_BANDS_OF_MODE.get(image.mode, 0), ""),
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
    bands = f"{len(image.getbands())} bands ({image.mode})"
    if image.mode in ("RGBA", "LA", "PA"):
        alpha = image.getchannel("A").getextrema()
        if alpha != (255, 255) and not convert:
            raise BandError(
                f"{path} has {bands} and is transparent in places {wanted}",
                f"flatten it, or {CONVERT}",
                "transparent",
                f"have {bands} and are transparent in places {wanted}",
            )
        image = image.convert(image.mode[:-1])
    if len(image.getbands()) != len(BANDS[color]) and not convert:
        kind = _KINDS.get(len(image.getbands()), "")
        raise BandError(f"{path} has {bands} {wanted}", f"convert it, or {CONVERT}", kind, f"have {bands} {wanted}")
    return image.convert(mode)


def _of_many(problem: str) -> str:
    """What :func:`band_problem` says of one image, of several; the number of frames may differ."""
    if problem.startswith("has "):
        return problem.replace("has ", "have ", 1)
    return re.sub(r"^holds \d+", "hold several", problem)


def _resize(x: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """Bicubic and without aliases, in torch: for 8 bits two to three times as fast as Pillow, and equal to a level."""
    height, width = x.shape[1:]
    if how == "crop":
        # The part that the centre crop keeps is scaled in one step: no pixel is computed and cut off.
        scale = max(size[0] / height, size[1] / width)
        rows, columns = min(max(round(size[0] / scale), 1), height), min(max(round(size[1] / scale), 1), width)
        top, left = (height - rows) // 2, (width - columns) // 2
        x = x[:, top : top + rows, left : left + columns]
    if x.shape[1:] == size:
        return x.contiguous()
    return F.interpolate(x[None], size=size, mode="bicubic", antialias=True)[0].contiguous()


def _unreadable(file: Path | bytes, name: Path | str, error: Exception) -> UnreadableError:
    if is_lfs_pointer(file):
        return PointerError(name)
    reason = str(error) if str(error) and not isinstance(error, UnidentifiedImageError) else "unknown format"
    return UnreadableError(f"{name} is no image that can be read ({reason})", "remove or replace it")
