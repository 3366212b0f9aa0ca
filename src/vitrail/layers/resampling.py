"""Resampling of one axis as a matrix, made of torch's basic operators from the lengths.

Engines lack torch's resize with antialiasing, or compute another one; a matrix product every engine has.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Filter = Literal["bilinear", "bicubic"]

# Coefficient of the cubic of resizes with antialiasing (Keys 1981, as Pillow has it).
_A = -0.5


def resampling_matrix(
    old: int, new: int, filter: Filter = "bicubic", kept: Tensor | None = None, begin: Tensor | None = None
) -> Tensor:
    """Compute the weights of input positions in output positions, with antialiasing.

    Args:
        old: Number of input positions; a symbol while a graph is traced.
        new: Number of output positions, or a symbol.
        filter: The interpolation.
        kept: Number of input positions that are resampled, a scalar; all when not given.
        begin: First of the positions that are resampled, a scalar; 0 when not given.

    Returns:
        Shape ``(new, old)``, float32; each row sums to one.
    """
    index = torch.arange(old)
    if begin is not None:
        index = index - begin
    if kept is None:
        kept = torch.tensor(old)
    scale = kept.float() / new
    stretch = scale.clamp(min=1.0)
    centre = (torch.arange(new).float() + 0.5) * scale
    offset = (index.float()[None] + 0.5 - centre[:, None]) / stretch
    weights = (_triangle if filter == "bilinear" else _cubic)(offset.abs())
    weights = weights * ((index >= 0) & (index < kept)).float()
    return weights / weights.sum(dim=1, keepdim=True)


def resample_map(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resample maps ``(B, h, w, C)`` by the matrices ``(H, h)`` and ``(W, w)`` to ``(B, H, W, C)``."""
    tall = (rows @ x.flatten(2)).view(x.shape[0], rows.shape[0], columns.shape[1], x.shape[3])
    return columns @ tall


def linear_matrix(old: int, new: int) -> Tensor:
    """Compute the weights of linear interpolation without antialiasing, shape ``(new, old)``, edges repeated."""
    place = (torch.arange(new).float() + 0.5) * (torch.tensor(old).float() / new) - 0.5
    return _triangle((place.clamp(0.0, old - 1.0)[:, None] - torch.arange(old)[None]).abs())


def _triangle(x: Tensor) -> Tensor:
    return (1.0 - x).clamp(min=0.0)


def _cubic(x: Tensor) -> Tensor:
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
