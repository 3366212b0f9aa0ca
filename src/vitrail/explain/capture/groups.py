"""Partition of tokens into the groups (windows, grids) of a layer, and its inverse."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.layers.tap import TokenLayout
from vitrail.layers.windows import (
    merge_grid,
    merge_windows,
    partition_grid,
    partition_windows,
    shift_map,
    unshift_map,
)


def to_groups(values: Tensor, layout: TokenLayout) -> Tensor:
    """Partition a value of each token into the groups of a layer.

    Args:
        values: Shape ``(B, H * W)``, row-major on the grid.
        layout: Layout of kind "window" or "grid".

    Returns:
        Shape ``(B * groups, n)``; zero at padding.
    """
    grid, window = layout.query_grid, layout.window
    assert grid is not None, "layers with groups have a grid"
    assert window is not None, "layers with groups have a window"
    rolled = shift_map(values.view(values.shape[0], *grid, 1), layout.padding, layout.shift, layout.pad_after_shift)
    return (partition_windows if layout.kind == "window" else partition_grid)(rolled, window).squeeze(-1)


def from_groups(groups: Tensor, layout: TokenLayout) -> Tensor:
    """Invert :func:`to_groups`: ``(B * groups, n)`` to ``(B, H * W)``, without padding."""
    grid, window = layout.query_grid, layout.window
    assert grid is not None, "layers with groups have a grid"
    assert window is not None, "layers with groups have a window"
    full = (grid[0] + layout.padding[0], grid[1] + layout.padding[1])
    merged = (merge_windows if layout.kind == "window" else merge_grid)(groups[..., None], window, full)
    return unshift_map(merged, grid, layout.shift, layout.pad_after_shift).flatten(1)


def group_members(layout: TokenLayout, device: torch.device | None = None) -> Tensor:
    """Return the row-major index on the grid of each token of each group, shape ``(groups, n)``; -1 is padding."""
    if torch.compiler.is_compiling():
        # The tensors of a graph that is traced stand for others: cached, they would reach later calls.
        return _compute_members(layout, device)
    with torch.inference_mode(False):  # the cached tensor is also used outside of inference mode
        return _cached_members(layout, device)


def _compute_members(layout: TokenLayout, device: torch.device | None) -> Tensor:
    assert layout.query_grid is not None, "layers with groups have a grid"
    # Indices start at 1 for the partition, so that zero padding differs.
    indices = torch.arange(1, layout.query_grid[0] * layout.query_grid[1] + 1, device=device)
    return to_groups(indices[None], layout) - 1


_cached_members = functools.lru_cache(maxsize=64)(_compute_members)


def token_positions(layout: TokenLayout, of: str = "queries", device: torch.device | None = None) -> Tensor:
    """Compute the row and column on the feature map of each token of a layer.

    Args:
        layout: Layout of the layer.
        of: "queries" (rows of the weights) or "keys" (columns).
        device: Device of the result.

    Returns:
        Shape ``(groups, n, 2)``, int64; -1 for padding and prefix tokens.

    Raises:
        ConfigError: Tokens without a grid, or an invalid ``of``.
    """
    if of not in ("queries", "keys"):
        raise ConfigError(f"of must be 'queries' or 'keys', got {of!r}")
    grid = layout.query_grid if of == "queries" else layout.key_grid
    if grid is None or (layout.kind == "merge" and of == "keys"):
        raise ConfigError(f"the {of} of a layer of kind {layout.kind!r} have no positions on a grid")
    if layout.kind in ("window", "grid"):
        index = group_members(layout, device)
    else:
        prefix = torch.full((layout.num_prefix,), -1, device=device)
        index = torch.cat([prefix, torch.arange(grid[0] * grid[1], device=device)])[None]
    positions = torch.stack([index // grid[1], index % grid[1]], dim=-1)
    return positions.masked_fill(index[..., None] < 0, -1)


def real_tokens(layout: TokenLayout, device: torch.device | None = None) -> Tensor:
    """Return which tokens of each group are not padding, bool, shape ``(groups, n)``."""
    return group_members(layout, device) >= 0


def normalize_rows(matrix: Tensor) -> Tensor:
    """Scale each row (last dimension) to sum to one; rows of zeros stay zero."""
    return matrix / matrix.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
