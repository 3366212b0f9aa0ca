"""Pixels without data: detection in stored values, and filling in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.data.image_errors import UnreadableError
from vitrail.data.value_range import ValueRule

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def no_data_mask(
    values: Array, rule: ValueRule, declared: float | None = None, invalid: Mask | None = None
) -> Mask | None:
    """Find pixels without data.

    Args:
        values: As they are stored, shape ``(..., H, W)``.
        rule: The stream's.
        declared: The value that the file itself calls no data.
        invalid: Pixels that a mask or an alpha band takes out, shape ``(H, W)``.

    Returns:
        The shape of ``values``; None where all are measurements.
    """
    if rule.no_data == ():
        return None
    marks = [*(rule.no_data or ()), *([] if declared is None else [declared])]
    found = np.zeros(values.shape, dtype=bool)
    for mark in marks:
        found |= _equal(values, mark)
    if invalid is not None:
        found |= invalid
    return found if found.any() else None


def _equal(values: Array, mark: float) -> Mask | bool:
    if values.dtype.kind == "b":
        values = values.view(np.uint8)
    if math.isnan(mark):
        return np.isnan(values) if values.dtype.kind == "f" else False
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            # Written with as many digits as the type has: compared as the type rounds it.
            same: Mask = values == values.dtype.type(mark)
        return same
    info = np.iinfo(values.dtype)
    if not math.isfinite(mark) or mark != int(mark) or not info.min <= int(mark) <= info.max:
        return False
    same = values == values.dtype.type(int(mark))
    return same


def fill_no_data(images: Tensor, means: Sequence[float] | None = None) -> Tensor:
    """Fill pixels without data.

    Args:
        images: Shape ``(B, C, H, W)``, NaN where there is no data.
        means: Fill value of each band; by default each image's own mean of the band (0 where nothing is
            valid).

    Returns:
        The same shape without NaN; the input itself where there is nothing to fill.
    """
    lost = images.isnan()
    if not lost.any():
        return images
    if means is None:
        own = images.nanmean((2, 3), keepdim=True).nan_to_num_(0.0)
    else:
        own = torch.tensor(means, dtype=images.dtype, device=images.device).view(-1, 1, 1)
    return torch.where(lost, own, images)


def parse_no_data(text: str, name: object) -> float | None:
    """Parse the value of the tag GDAL_NODATA; None if it is empty.

    Args:
        text: The tag.
        name: Name of the file in errors.

    Raises:
        UnreadableError: It is not a number.
    """
    text = text.strip(" \0").replace(",", ".")
    try:
        return float(text) if text else None
    except ValueError as error:
        raise UnreadableError(
            f"{name} cannot be read: its tag GDAL_NODATA is {text!r}, which is not a number",
            "correct or remove the tag",
        ) from error
