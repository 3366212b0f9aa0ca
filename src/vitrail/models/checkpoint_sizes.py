"""Sizes that the tensors of a checkpoint show: depths and widths, the grid or window of its positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.layers.positions import resample_table
from vitrail.layers.shapes import grid_size, to_pair


def old_grid(
    count: int, patch_size: tuple[int, int], made_for: Mapping[str, Any], prefix: str = ""
) -> tuple[int, int] | None:
    """Find the grid that a checkpoint's positions were learned for.

    Args:
        count: Positions on it.
        patch_size: Height and width of a patch, where the checkpoint's settings do not give it.
        made_for: Settings of the model that the checkpoint was made for; empty where they are not known.
        prefix: Prefix of the settings' names (``"spectral_"``).

    Returns:
        Height and width; where no settings tell them, those of a square. None where there is no such square.
    """
    size = made_for.get(f"{prefix}img_size") or made_for.get("img_size")
    patch = made_for.get(f"{prefix}patch_size") or made_for.get("patch_size") or patch_size
    if size is not None:
        grid = grid_size(to_pair(size, "img_size"), to_pair(patch, "patch_size"))
        if grid[0] * grid[1] == count:
            return grid
    side = math.isqrt(max(count, 0))
    return (side, side) if side * side == count and count > 0 else None


def fit_positions(
    own: Tensor | None,
    grid: tuple[int, int],
    value: Tensor,
    patch_size: tuple[int, int],
    made_for: Mapping[str, Any],
    prefix: str = "",
    kind: str = "learned",
    num_prefix: int = 0,
) -> tuple[Tensor, str] | None:
    """Resample a checkpoint's absolute positions to a model's grid (from a square one where no settings tell).

    Args:
        own: The model's positions, shape ``(1, num_prefix + H * W, C)``; None without.
        grid: Height and width of its grid.
        value: The checkpoint's positions.
        patch_size: As for :func:`old_grid`.
        made_for: As for :func:`old_grid`.
        prefix: As for :func:`old_grid`.
        kind: Kind of the positions, as for :func:`~vitrail.layers.positions.add_position_table`.
        num_prefix: Positions of prefix tokens, at the start of both tables; they stay.

    Returns:
        The positions and what was done, or None where they cannot fit.
    """
    if own is None or value.ndim != 3 or value.shape[-1] != own.shape[-1]:
        return None
    old = old_grid(value.shape[1] - num_prefix, patch_size, made_for, prefix)
    if old is None:
        return None
    form = "linear in raster order" if kind.endswith("1d") else "bicubic"
    how = f"positions from {old[0]} x {old[1]} to {grid[0]} x {grid[1]}, {form}"
    return resample_table(kind, value, old, grid, num_prefix), how


def count_prefix(state: Mapping[str, Tensor]) -> int:
    """Count the class, distillation and register tokens of a checkpoint, by our names."""
    tokens = (state[key] for key in ("cls_token", "dist_token", "reg_token") if key in state)
    return sum(token.shape[1] if token.ndim == 3 else 1 for token in tokens)


def embeds_prefix(count: int, state: Mapping[str, Tensor]) -> bool:
    """Return whether a checkpoint's ``count`` positions hold those of its prefix tokens before those of a square."""
    without = count - count_prefix(state)
    return math.isqrt(max(without, 0)) ** 2 == without or math.isqrt(count) ** 2 != count


def old_window(count: int, made_for: Mapping[str, Any]) -> tuple[int, int] | None:
    """Find the window that a checkpoint's table of relative positions was learned for.

    Args:
        count: Rows of the table.
        made_for: Settings of the model that the checkpoint was made for; empty where they are not known.

    Returns:
        Height and width; where no settings tell them, those of a square. None where there is no such square.
    """
    if made_for.get("window_size"):
        window = to_pair(made_for["window_size"], "window_size")
        if (2 * window[0] - 1) * (2 * window[1] - 1) == count:
            return window
    side = math.isqrt(max(count, 0))
    return ((side + 1) // 2, (side + 1) // 2) if side * side == count and side % 2 == 1 else None


def count_numbered(state: Mapping[str, Tensor], prefix: str) -> int:
    """Count the modules ``prefix.0``, ``prefix.1``, ... in a checkpoint, up to the highest index."""
    indices = {key[len(prefix) + 1 :].partition(".")[0] for key in state if key.startswith(f"{prefix}.")}
    return max((int(index) + 1 for index in indices if index.isdigit()), default=0)


def read_width(state: Mapping[str, Tensor], kernel: str, setting: str = "embed_dim") -> dict[str, int]:
    """Read the output channels of a convolution in a checkpoint, under the setting's name; empty without it."""
    weight = state.get(kernel)
    return {} if weight is None or weight.ndim != 4 else {setting: weight.shape[0]}


def read_stages(state: Mapping[str, Tensor], stages: str) -> dict[str, tuple[int, ...]]:
    """Count the blocks of ``stages.0``, ``stages.1``, ... in a checkpoint, as ``depths``; empty without any."""
    depths = tuple(count_numbered(state, f"{stages}.{i}.blocks") for i in range(count_numbered(state, stages)))
    return {"depths": depths} if depths and all(depths) else {}


def read_each_stage(
    state: Mapping[str, Tensor], key: str, count: int, setting: str, ndim: int, axis: int
) -> dict[str, tuple[int, ...]]:
    """Read an axis length of one tensor per stage, under the setting's name; empty unless all stages have it.

    Args:
        state: Tensors by our names.
        key: Name of the tensor, ``{}`` for the index of the stage.
        count: Number of stages.
        setting: Name of the setting.
        ndim: Dimensions of the tensor.
        axis: The axis.
    """
    tensors = [state[name] for name in map(key.format, range(count)) if name in state and state[name].ndim == ndim]
    return {setting: tuple(tensor.shape[axis] for tensor in tensors)} if len(tensors) == count > 0 else {}
