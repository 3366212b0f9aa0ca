"""Reading TIFF files of any number of bands and of 8, 16 or 32 bits, through tifffile."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.faults import BandError, PointerError, UnreadableError
from vitrail.errors import DataError
from vitrail.files import is_lfs_pointer

# What tifffile raises for files that are damaged, cut off, or compressed in a way that needs another package.
_FAULTS = (OSError, ValueError, KeyError, IndexError, TypeError, struct.error, zlib.error, RuntimeError)


def read_raster(path: Path) -> npt.NDArray[Any]:
    """The pixels of a TIFF file as they are stored.

    Args:
        path: The file. Its bands may be interleaved, planes, or pages of one size.

    Returns:
        Shape ``(C, H, W)``, of the file's own type.

    Raises:
        DataError: Not a TIFF that can be read, or one that holds more than one image of several bands.
    """
    import tifffile

    # What it logs about a damaged file beside raising would be a second message about the same thing.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    if is_lfs_pointer(path):
        raise PointerError(path)
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series
            if not series:
                raise UnreadableError(f"{path} is no TIFF that can be read (it holds no image)", "remove or replace it")
            if len(series) != 1:
                sizes = ", ".join("x".join(map(str, part.shape)) for part in series[:4])
                raise BandError(f"{path} holds {len(series)} images ({sizes}) where one is wanted; keep one")
            array, axes = series[0].asarray(), series[0].axes
    except DataError:
        raise
    except _FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "`pip install 'vitrail[rasters]'` brings it" if "imagecodecs" in reason else "remove or replace it"
        raise UnreadableError(f"{path} is no TIFF that can be read ({reason})", remedy) from error
    if "Y" not in axes or "X" not in axes or array.ndim > 3:
        raise BandError(f"{path} has the axes {axes} {array.shape}; one image of several bands is wanted")
    height, width = axes.index("Y"), axes.index("X")
    others = [axis for axis in range(array.ndim) if axis not in (height, width)]
    order: npt.NDArray[Any] = array.transpose(*others, height, width)
    return order.reshape(-1, *order.shape[-2:])


def full_range(dtype: np.dtype[Any], scale: float | None, what: str, setting: str = "data.scale") -> float:
    """The value that becomes 1: the given one, or the largest of an integer type.

    Args:
        dtype: The type of the values.
        scale: The given value.
        what: What is read, for the error.
        setting: Where to give it.

    Raises:
        DataError: Values that are not integers, and no scale.
    """
    if dtype.kind not in "uif":
        raise DataError(f"{what} holds {dtype} values; integers or floats are wanted")
    if scale is not None:
        return scale
    if dtype.kind == "f":
        raise DataError(
            f"{what} holds {dtype} values, whose range only you know; give {setting} the value that shall become 1 "
            "(for reflectances --data.scale 1)"
        )
    return float(np.iinfo(dtype).max)


def unit_range(array: npt.NDArray[Any], scale: float, what: str) -> Tensor:
    """Divide by ``scale`` and cut off at 0 and 1.

    Raises:
        UnreadableError: Values that are not finite.
    """
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if array.dtype.kind == "f" and not torch.isfinite(values).all():
        raise UnreadableError(f"{what} holds values that are not finite; fill them, or leave it out")
    return values.div_(scale).clamp_(0, 1)


def resize_tensor(x: Tensor, size: tuple[int, int], how: Literal["crop", "squash"]) -> Tensor:
    """Bring images of any number of bands to a size, bilinearly and without aliases.

    Args:
        x: Shape ``(C, H, W)`` or ``(B, C, H, W)``, float32.
        size: Height and width wanted.
        how: "crop" takes the largest centre of the wanted shape, "squash" takes all.

    Returns:
        Shape ``(..., C, *size)``.
    """
    height, width = x.shape[-2:]
    if (height, width) == tuple(size):
        return x
    if how == "crop":
        scale = max(size[0] / height, size[1] / width)
        rows, columns = min(round(size[0] / scale), height), min(round(size[1] / scale), width)
        top, left = (height - rows) // 2, (width - columns) // 2
        x = x[..., top : top + rows, left : left + columns]
    batch = x if x.ndim == 4 else x[None]
    small = F.interpolate(batch, size=size, mode="bilinear", antialias=True)
    return small if x.ndim == 4 else small[0]
