"""Partition of tokens into the groups (windows, grids) of a layer, and its inverse."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.layers.shapes import product
from vitrail.layers.tap import Grid, TokenLayout
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
        values: Shape ``(B, groups * P + N)``: the prefix tokens of each group, then those of the grid, row-major.
        layout: Layout of kind "window" or "grid"; its padding, shift and window have the axes of its grid.

    Returns:
        Shape ``(B * groups, P + n)``; zero at padding.
    """
    grid, window, padding, shift = _groups_of(layout)
    before = values.shape[1] - product(grid)
    rolled = shift_map(values[:, before:].reshape(-1, *grid, 1), padding, shift, layout.pad_after_shift)
    parted = partition_windows(rolled, window) if layout.kind == "window" else partition_grid(rolled, _plane(window))
    groups = parted.squeeze(-1)
    if not layout.num_prefix:
        return groups
    return torch.cat([values[:, :before].reshape(len(groups), layout.num_prefix), groups], dim=1)


def from_groups(groups: Tensor, layout: TokenLayout) -> Tensor:
    """Invert :func:`to_groups`: ``(B * groups, P + n)`` to ``(B, groups * P + N)``, without padding."""
    grid, window, padding, shift = _groups_of(layout)
    full = tuple(length + count for length, count in zip(grid, padding, strict=True))
    tokens = groups[:, layout.num_prefix :, None]
    if layout.kind == "window":
        merged = merge_windows(tokens, window, full)
    else:
        merged = merge_grid(tokens, _plane(window), _plane(full))
    values = unshift_map(merged, grid, shift, layout.pad_after_shift).flatten(1)
    if not layout.num_prefix:
        return values
    return torch.cat([groups[:, : layout.num_prefix].reshape(len(values), -1), values], dim=1)


def _groups_of(layout: TokenLayout) -> tuple[Grid, Grid, Grid, Grid]:
    """Return the grid of a layer, and window, padding and shift of its groups."""
    grid, window = layout.query_grid, layout.window
    assert grid is not None, "layers with groups have a grid"
    assert window is not None, "layers with groups have a window"
    return grid, window, layout.padding, layout.shift


def _plane(lengths: Grid) -> tuple[int, int]:
    """Return the two lengths of spread grids; they may be symbols of an export for any size, which nothing checks."""
    height, width = lengths
    return height, width


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
    count = product(layout.query_grid)
    indices = torch.arange(1, count + 1, device=device)
    if layout.num_prefix:
        assert layout.window is not None, "layers with groups have a window"
        # Prefix tokens are not positions, as padding is none.
        indices = F.pad(indices, (count // product(layout.window) * layout.num_prefix, 0))
    return to_groups(indices[None], layout) - 1


_cached_members = functools.lru_cache(maxsize=64)(_compute_members)


def layer_members(layout: TokenLayout, grid: Grid, device: torch.device | None = None) -> Tensor:
    """Return the row-major index on a grid of each token of a layer; -1 is padding or a prefix token.

    Args:
        layout: Layout of the layer.
        grid: Grid of the queries or keys.
        device: Device of the result.

    Returns:
        Shape ``(groups, n)``; one group for layers without groups.
    """
    if layout.kind in ("window", "grid"):
        return group_members(layout, device)
    return F.pad(torch.arange(product(grid), device=device), (layout.num_prefix, 0), value=-1)[None]


def coordinates(members: Tensor, grid: Grid) -> list[Tensor]:
    """Return the position of row-major indices along each axis of a grid; meaningless for -1."""
    found = []
    for length in reversed(grid):
        found.append(members % length)
        members = members // length
    return found[::-1]


def token_positions(layout: TokenLayout, of: str = "queries", device: torch.device | None = None) -> Tensor:
    """Compute the row and column (for a clip the frame, row and column) on the feature map of each token of a layer.

    Args:
        layout: Layout of the layer.
        of: "queries" (rows of the weights) or "keys" (columns).
        device: Device of the result.

    Returns:
        Shape ``(groups, n, axes)``, int64; -1 for padding and prefix tokens.

    Raises:
        ConfigError: Tokens without a grid, or an invalid ``of``.
    """
    if of not in ("queries", "keys"):
        raise ConfigError(f"of must be 'queries' or 'keys', got {of!r}")
    grid = layout.query_grid if of == "queries" else layout.key_grid
    if grid is None or (layout.kind == "merge" and of == "keys"):
        raise ConfigError(f"the {of} of a layer of kind {layout.kind!r} have no positions on a grid")
    index = layer_members(layout, grid, device)
    return torch.stack(coordinates(index, grid), dim=-1).masked_fill(index[..., None] < 0, -1)


def real_tokens(layout: TokenLayout, device: torch.device | None = None) -> Tensor:
    """Return which tokens of each group are not padding, bool, shape ``(groups, n)``."""
    return group_members(layout, device) >= 0


def normalize_rows(matrix: Tensor) -> Tensor:
    """Scale each row (last dimension) to sum to one; rows of zeros stay zero."""
    return matrix / matrix.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
