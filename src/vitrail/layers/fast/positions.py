"""Resampling of positions in graphs for dynamic sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.layers.fast.dispatch import fast_path
from vitrail.layers.modes import is_dynamic


@torch.library.custom_op("vitrail::resampling_weights", mutates_args=())
def resampling_weights(like: Tensor, old: int, new: int) -> Tensor:
    """Compute the matrix that resamples one axis bicubically with antialiasing, opaque to the compiler.

    Args:
        like: Gives the type and the device.
        old: Positions along the axis.
        new: Positions after resampling.

    Returns:
        Shape ``(new, old)``; each row sums to one.
    """
    positions = torch.eye(old, dtype=like.dtype, device=like.device)
    return F.interpolate(positions[None, None], size=(new, old), mode="bicubic", antialias=True)[0, 0].clone()


@resampling_weights.register_fake
def _(like: Tensor, old: int, new: int) -> Tensor:
    return like.new_empty(new, old)


@fast_path("resample_positions", when=lambda grid, old, new: is_dynamic(new[0]) or is_dynamic(new[1]))
def resample_by_products(grid: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resample one axis after the other: torch's own operator has no gradient in a graph for dynamic sizes (2.13)."""
    rows, columns = (resampling_weights(grid.detach(), old, new) for old, new in zip(old_grid, new_grid, strict=True))
    with torch.autocast(grid.device.type, enabled=False):
        tall = (rows @ grid.reshape(old_grid[0], -1)).view(new_grid[0], old_grid[1], -1)
        resampled: Tensor = (columns @ tall).reshape(1, new_grid[0] * new_grid[1], -1)
    return resampled
