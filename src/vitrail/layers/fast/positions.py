"""Resampling of positions in graphs for dynamic sizes: compiled, or exported to engines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.layers.fast.dispatch import fast_path
from vitrail.layers.modes import is_dynamic
from vitrail.layers.resampling import resample_map, resampling_matrix


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
        return _multiply(grid, rows, columns)


@fast_path("resample_positions", when=lambda grid, old, new: torch.compiler.is_exporting())
def resample_by_made_matrices(grid: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resample by matrices that the graph makes: OpenVINO lacks torch's operator, or errs (openvino#35893)."""
    rows, columns = (resampling_matrix(old, new).to(grid.dtype) for old, new in zip(old_grid, new_grid, strict=True))
    return _multiply(grid, rows, columns)


def _multiply(grid: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply positions ``(1, h * w, C)`` by the matrices ``(H, h)`` and ``(W, w)``: ``(1, H * W, C)``."""
    return resample_map(grid.view(1, rows.shape[1], columns.shape[1], -1), rows, columns).flatten(1, 2)
