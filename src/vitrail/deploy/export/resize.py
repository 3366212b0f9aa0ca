"""Crop and resize of images of any size as two matrix products, made in the graph from the height and width.

A resize with antialiasing is separable: each output row is a weighted mean of input rows. As matrices, crop and resize
need no operator that engines lack, and height and width stay free.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vitrail.data.centre_crop import keep_length
from vitrail.layers.resampling import Filter, resampling_matrix

# torch keeps the weights of uint8 images as int16: times the largest power of two up to 2^22 that they allow.
_POWERS = tuple(2.0**power for power in range(1, 23))
_INT16 = 2.0**15


def resize_matrices(
    height: int, width: int, size: tuple[int, int], how: Literal["crop", "squash"], filter: Filter
) -> tuple[Tensor, Tensor]:
    """Compute the matrices of rows and of columns for crop and resize.

    Args:
        height: Height of the images; a symbol while a graph is traced.
        width: Width.
        size: Height and width wanted.
        how: "crop" takes the largest centre of the wanted shape, "squash" takes all.
        filter: The interpolation.

    Returns:
        Rows, shape ``(size[0], height)``, and columns, shape ``(size[1], width)``; each row sums to one.
    """
    # Tensors: arithmetic of symbols becomes operators (sym_max) that engines refuse.
    tall, wide = (torch.scalar_tensor(n, dtype=torch.int64) for n in (height, width))
    rows, columns = tall, wide
    if how == "crop":
        rows = torch.minimum(keep_length(wide, size[0], size[1]).clamp(min=1), tall)
        columns = torch.minimum(keep_length(tall, size[1], size[0]).clamp(min=1), wide)
    return (
        _matrix(height, tall, rows, size[0], filter),
        _matrix(width, wide, columns, size[1], filter),
    )


def _matrix(length: int, whole: Tensor, kept: Tensor, size: int, filter: Filter) -> Tensor:
    """Compute the weights of input pixels in output pixels: of ``kept`` central ones among all."""
    return resampling_matrix(length, size, filter, kept, torch.div(whole - kept, 2, rounding_mode="floor"))


def resize_by(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resize images ``(B, C, H, W)``, float32, by the matrices of :func:`resize_matrices`."""
    return rows @ (x @ columns.t())


def resize_levels(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resize images ``(B, C, H, W)`` of levels 0 to 255 as torch resizes uint8.

    Weights are rounded to steps of int16, and levels after each of the two passes.

    Returns:
        Levels, float32.
    """
    columns, power = _as_int16(columns)
    x = _to_levels(x @ columns.t(), power)
    rows, power = _as_int16(rows)
    return _to_levels(rows @ x, power)


def _to_levels(sums: Tensor, power: Tensor) -> Tensor:
    return torch.floor(sums / power + 0.5).clamp(0.0, 255.0)


def _as_int16(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights to integers; returns them and the power of two that they were multiplied by."""
    powers = torch.tensor(_POWERS)
    fits = torch.floor(weights.amax(dim=(0, 1)) * powers + 0.5) < _INT16
    power = (powers * fits.float()).amax(dim=0)
    return torch.floor(weights.abs() * power + 0.5) * weights.sign(), power
