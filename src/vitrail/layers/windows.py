"""Groups of tokens that attend among themselves: windows (neighbours) and grids (tokens spread over the map).

A map whose size is no multiple of the group's is padded at the bottom and right. *Regions* say which tokens of a group
attend to each other: those with the same label. Padding is a region of its own, so that it never reaches a real token
and no row of the attention is empty.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ShapeError
from vitrail.layers.modes import known
from vitrail.layers.shapes import padding_to_multiple

Pair = tuple[int, int]
Kind = Literal["window", "grid"]


def partition_windows(x: Tensor, window: Pair) -> Tensor:
    """Split a feature map into non-overlapping windows of neighbours.

    Args:
        x: Features, shape ``(B, H, W, C)``.
        window: Height and width of a window, in tokens.

    Returns:
        Windows, shape ``(B * H/wh * W/ww, wh * ww, C)``: row-major over the windows of a map, and row-major
        over the tokens of a window.

    Raises:
        ShapeError: H or W is not a multiple of the window; the message gives the padding needed.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2.
    """
    B, H, W, C = _map_shape(x)
    _check_multiple((H, W), window, "window")
    wh, ww = window
    windows = x.reshape(B, H // wh, wh, W // ww, ww, C).transpose(2, 3)
    return windows.reshape(-1, wh * ww, C)


def merge_windows(windows: Tensor, window: Pair, grid: Pair) -> Tensor:
    """Join windows to a feature map; the inverse of :func:`partition_windows`.

    Args:
        windows: Shape ``(B * H/wh * W/ww, wh * ww, C)``.
        window: Height and width of a window, in tokens.
        grid: Height and width of the map.

    Returns:
        Features, shape ``(B, H, W, C)``.

    Raises:
        ShapeError: The windows do not make up whole maps of that size.
    """
    H, W = grid
    wh, ww = window
    _check_groups(windows, window, grid, "window")
    spread = windows.reshape(-1, H // wh, W // ww, wh, ww, windows.shape[-1]).transpose(2, 3)
    return spread.reshape(-1, H, W, windows.shape[-1])


def partition_grid(x: Tensor, grid_size: Pair) -> Tensor:
    """Split a feature map into groups whose tokens are spread evenly over the whole map.

    Tokens ``H/gh`` rows and ``W/gw`` columns apart share a group.

    Args:
        x: Features, shape ``(B, H, W, C)``.
        grid_size: Height and width of a group, in tokens.

    Returns:
        Groups, shape ``(B * H/gh * W/gw, gh * gw, C)``: row-major over the offsets of the groups, and
        row-major over the tokens of a group.

    Raises:
        ShapeError: H or W is not a multiple of the group's; the message gives the padding needed.

    Source: Tu et al. 2022, arXiv:2204.01697, section 3.2.
    """
    B, H, W, C = _map_shape(x)
    _check_multiple((H, W), grid_size, "grid")
    gh, gw = grid_size
    groups = x.reshape(B, gh, H // gh, gw, W // gw, C).permute(0, 2, 4, 1, 3, 5)
    return groups.reshape(-1, gh * gw, C)


def merge_grid(groups: Tensor, grid_size: Pair, grid: Pair) -> Tensor:
    """Join spread groups to a feature map; the inverse of :func:`partition_grid`.

    Args:
        groups: Shape ``(B * H/gh * W/gw, gh * gw, C)``.
        grid_size: Height and width of a group, in tokens.
        grid: Height and width of the map.

    Returns:
        Features, shape ``(B, H, W, C)``.

    Raises:
        ShapeError: The groups do not make up whole maps of that size.
    """
    H, W = grid
    gh, gw = grid_size
    _check_groups(groups, grid_size, grid, "grid")
    spread = groups.reshape(-1, H // gh, W // gw, gh, gw, groups.shape[-1]).permute(0, 3, 1, 4, 2, 5)
    return spread.reshape(-1, H, W, groups.shape[-1])


def count_groups(grid: Pair, group: Pair) -> int:
    """Count the groups of a map whose size is a multiple of theirs."""
    return grid[0] // group[0] * (grid[1] // group[1])


def window_padding(grid: Pair, window: Pair) -> Pair:
    """Rows and columns to append so that ``grid`` becomes a multiple of ``window``."""
    return padding_to_multiple(grid[0], window[0]), padding_to_multiple(grid[1], window[1])


def pad_map(x: Tensor, size: Pair) -> Tensor:
    """Zero-pad ``(B, H, W, C)`` at the bottom and right to a map of this height and width."""
    bottom, right = size[0] - x.shape[1], size[1] - x.shape[2]
    if known(bottom == 0) and known(right == 0):
        return x
    return F.pad(x, (0, 0, 0, right, 0, bottom))


def crop_map(x: Tensor, size: Pair) -> Tensor:
    """Crop ``(B, H, W, C)`` at the bottom and right to a map of this height and width; undoes :func:`pad_map`."""
    if known(x.shape[1] == size[0]) and known(x.shape[2] == size[1]):
        return x
    x = x[:, : size[0], : size[1]]
    # A graph for dynamic sizes should not depend on whether the crop removed anything.
    return x.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else x


def roll_map(x: Tensor, shift: Pair) -> Tensor:
    """Roll ``(B, H, W, C)`` down and to the right by rows and columns."""
    return x if known(shift[0] == 0) and known(shift[1] == 0) else x.roll(shift, (1, 2))


def shift_map(x: Tensor, padding: Pair, shift: Pair, pad_after_shift: bool = False) -> Tensor:
    """Pad ``(B, H, W, C)`` at the bottom and right and roll it up and left.

    Args:
        x: Features.
        padding: Rows and columns to append.
        shift: Rows and columns of the roll.
        pad_after_shift: Whether to roll first, as timm does: the padding then stays where it was appended.
    """
    size, back = (x.shape[1] + padding[0], x.shape[2] + padding[1]), (-shift[0], -shift[1])
    return pad_map(roll_map(x, back), size) if pad_after_shift else roll_map(pad_map(x, size), back)


def unshift_map(x: Tensor, grid: Pair, shift: Pair, pad_after_shift: bool = False) -> Tensor:
    """The inverse of :func:`shift_map`, to a map of size ``grid``."""
    return roll_map(crop_map(x, grid), shift) if pad_after_shift else crop_map(roll_map(x, shift), grid)


def padding_regions(grid: Pair, padding: Pair, device: torch.device | None = None) -> Tensor:
    """Label a padded map: 0 for real tokens, -1 for padding.

    Args:
        grid: Height and width before padding.
        padding: Rows and columns appended at the bottom and right.
        device: Device of the result.

    Returns:
        Labels, shape ``(H + padding rows, W + padding columns)``, int64.
    """
    rows = torch.arange(grid[0] + padding[0], device=device) < grid[0]
    columns = torch.arange(grid[1] + padding[1], device=device) < grid[1]
    return (rows[:, None] & columns).long() - 1


def shifted_regions(
    grid: Pair, padding: Pair, shift: Pair, mask_padding: bool = True, device: torch.device | None = None
) -> Tensor:
    """Label the regions of a padded map after a roll up and left by ``shift``.

    Rows that were rolled from the top to the bottom have no neighbours there in the image, nor do such
    columns: each combination of rolled and not rolled is a region.

    Args:
        grid: Height and width before padding.
        padding: Rows and columns appended at the bottom and right before rolling.
        shift: Rows and columns of the roll.
        mask_padding: Whether the padding is a region of its own (-1), or belongs to where it lies.
        device: Device of the result.

    Returns:
        Labels, shape ``(H + padding rows, W + padding columns)``, int64; 0 to 3 besides the padding.

    Source: Liu et al. 2021, arXiv:2103.14030, figure 4.
    """
    H, W = grid[0] + padding[0], grid[1] + padding[1]
    row, column = torch.arange(H, device=device), torch.arange(W, device=device)
    labels = 2 * (row >= H - shift[0]).long()[:, None] + (column >= W - shift[1]).long()
    if mask_padding and not (known(padding[0] == 0) and known(padding[1] == 0)):
        real = ((row + shift[0]) % H < grid[0])[:, None] & ((column + shift[1]) % W < grid[1])
        labels = labels.masked_fill(~real, -1)
    return labels


def same_region(groups: Tensor) -> Tensor:
    """Compute which tokens of a group attend to each other: those with the same label.

    Args:
        groups: Labels of the tokens of each group, shape ``(groups, n)``: regions that were partitioned like
            the tokens, ``partition_windows(regions[None, :, :, None], window).squeeze(-1)``.

    Returns:
        True where allowed, shape ``(groups, n, n)``; every row has at least one, the token itself.
    """
    return groups[:, :, None] == groups[:, None, :]


def _map_shape(x: Tensor) -> tuple[int, int, int, int]:
    if x.ndim != 4:
        raise ShapeError(f"expected a feature map of shape (B, H, W, C), got {tuple(x.shape)}")
    B, H, W, C = x.shape
    return B, H, W, C


def _check_multiple(grid: Pair, group: Pair, name: str) -> None:
    if grid[0] % group[0] or grid[1] % group[1]:
        bottom, right = window_padding(grid, group)
        raise ShapeError(
            f"a map of {grid[0]} x {grid[1]} is no multiple of the {name} of {group[0]} x {group[1]}; append "
            f"{bottom} rows and {right} columns"
        )


def _check_groups(groups: Tensor, group: Pair, grid: Pair, name: str) -> None:
    _check_multiple(grid, group, name)
    count = count_groups(grid, group)
    if groups.ndim != 3 or groups.shape[1] != group[0] * group[1] or groups.shape[0] % count:
        raise ShapeError(
            f"expected {name}s of shape (B * {count}, {group[0] * group[1]}, C) for a map of "
            f"{grid[0]} x {grid[1]}, got {tuple(groups.shape)}"
        )


def partition_map(x: Tensor, group: Pair, kind: Kind) -> Tensor:
    """:func:`partition_windows` or :func:`partition_grid`."""
    return partition_windows(x, group) if kind == "window" else partition_grid(x, group)


def merge_map(groups: Tensor, group: Pair, grid: Pair, kind: Kind) -> Tensor:
    """:func:`merge_windows` or :func:`merge_grid`."""
    return merge_windows(groups, group, grid) if kind == "window" else merge_grid(groups, group, grid)


def window_mask(
    grid: Pair,
    window: Pair,
    shift: Pair,
    mask_padding: bool,
    device: torch.device | None = None,
    kind: Kind = "window",
) -> Tensor:
    """Compute the attention mask of shifted windows or of grids: pairs of tokens from different regions of the map.

    Masked scores are minus infinity here; the authors' code of Swin adds -100, which leaves a weight of about 1e-44.

    Args:
        grid: Height and width of the map before padding, in tokens.
        window: Height and width of a window.
        shift: Rows and columns by which the windows are shifted.
        mask_padding: Whether padded tokens are masked as keys.
        device: Device of the result.
        kind: "window", or "grid" for tokens that are spread over the map.

    Returns:
        True where a query (row) may not attend to a key (column), shape ``(windows, n, n)``, bool; windows and tokens
        are row-major on the padded and shifted map. No row is all True.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2, figure 4.
    """
    regions = shifted_regions(grid, window_padding(grid, window), shift, mask_padding, device)
    return ~same_region(partition_map(regions[None, :, :, None], window, kind).squeeze(-1))
