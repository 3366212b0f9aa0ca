"""Groups of tokens that attend among themselves: windows (neighbours) and grids (tokens spread over the map).

A map whose size is not a multiple of the group's is padded at the bottom and right. *Regions* label tokens: tokens of a
group attend to each other where their labels are equal. Padding is a region of its own, so that it never reaches a real
token and no row of the attention is empty.

Windows may have any number of axes, with time before height and width for a clip; grids have two.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ShapeError, plural
from vitrail.layers.modes import known
from vitrail.layers.shapes import padding_to_multiple, product
from vitrail.layers.tap import Grid

Kind = Literal["window", "grid"]


def partition_windows(x: Tensor, window: Grid) -> Tensor:
    """Split a feature map into non-overlapping windows of neighbours.

    Args:
        x: Features, shape ``(B, H, W, C)``, or ``(B, T, H, W, C)`` of a clip.
        window: Size of a window along each axis, in tokens.

    Returns:
        Windows, shape ``(B * H/wh * W/ww, wh * ww, C)``: row-major over the windows of a map, and row-major
        over the tokens of a window.

    Raises:
        ShapeError: H or W is not a multiple of the window; the message gives the padding needed.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2.
    """
    B, grid, C = _map_shape(x, len(window))
    _check_multiple(grid, window, "window")
    axes = len(window)
    split = [part for length, size in zip(grid, window, strict=True) for part in (length // size, size)]
    windows = x.reshape(B, *split, C).permute(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    return windows.reshape(-1, product(window), C)


def merge_windows(windows: Tensor, window: Grid, grid: Grid) -> Tensor:
    """Join windows to a feature map; the inverse of :func:`partition_windows`.

    Args:
        windows: Shape ``(B * H/wh * W/ww, wh * ww, C)``.
        window: Size of a window along each axis, in tokens.
        grid: Size of the map.

    Returns:
        Features, shape ``(B, *grid, C)``.

    Raises:
        ShapeError: The windows do not make up whole maps of that size.
    """
    _check_groups(windows, window, grid, "window")
    axes = len(window)
    counts = [length // size for length, size in zip(grid, window, strict=True)]
    spread = windows.reshape(-1, *counts, *window, windows.shape[-1])
    pairs = [axis for i in range(1, axes + 1) for axis in (i, axes + i)]
    return spread.permute(0, *pairs, 2 * axes + 1).reshape(-1, *grid, windows.shape[-1])


def partition_grid(x: Tensor, grid_size: Grid) -> Tensor:
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
    B, (H, W), C = _map_shape(x, 2)
    _check_multiple((H, W), grid_size, "grid")
    gh, gw = grid_size
    groups = x.reshape(B, gh, H // gh, gw, W // gw, C).permute(0, 2, 4, 1, 3, 5)
    return groups.reshape(-1, gh * gw, C)


def merge_grid(groups: Tensor, grid_size: Grid, grid: Grid) -> Tensor:
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


def count_groups(grid: Grid, group: Grid) -> int:
    """Count the groups of a map whose size is a multiple of theirs."""
    return product([length // size for length, size in zip(grid, group, strict=True)])


def window_padding(grid: Grid, window: Grid) -> Grid:
    """Count the rows and columns to append so that ``grid`` becomes a multiple of ``window``."""
    return tuple(padding_to_multiple(length, size) for length, size in zip(grid, window, strict=True))


def pad_map(x: Tensor, size: Grid) -> Tensor:
    """Zero-pad ``(B, H, W, C)`` at the bottom and right to a map of this size."""
    missing = [wanted - length for wanted, length in zip(size, x.shape[1:-1], strict=True)]
    if all(known(count == 0) for count in missing):
        return x
    return F.pad(x, (0, 0, *(pad for count in reversed(missing) for pad in (0, count))))


def crop_map(x: Tensor, size: Grid) -> Tensor:
    """Crop ``(B, H, W, C)`` at the bottom and right to a map of this size; undoes :func:`pad_map`."""
    if all(known(length == wanted) for length, wanted in zip(x.shape[1:-1], size, strict=True)):
        return x
    x = x[(slice(None), *map(slice, size))]
    # A graph for dynamic sizes should not depend on whether the crop removed anything.
    return x.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else x


def roll_map(x: Tensor, shift: Grid) -> Tensor:
    """Roll ``(B, H, W, C)`` down and to the right by rows and columns."""
    return x if all(known(step == 0) for step in shift) else x.roll(shift, tuple(range(1, len(shift) + 1)))


def shift_map(x: Tensor, padding: Grid, shift: Grid, pad_after_shift: bool = False) -> Tensor:
    """Pad ``(B, H, W, C)`` at the bottom and right and roll it up and left.

    Args:
        x: Features.
        padding: Rows and columns to append.
        shift: Rows and columns of the roll.
        pad_after_shift: Whether to roll first, as timm does: the padding then stays where it was appended.
    """
    size = tuple(length + count for length, count in zip(x.shape[1:-1], padding, strict=True))
    back = tuple(-step for step in shift)
    return pad_map(roll_map(x, back), size) if pad_after_shift else roll_map(pad_map(x, size), back)


def unshift_map(x: Tensor, grid: Grid, shift: Grid, pad_after_shift: bool = False) -> Tensor:
    """Invert :func:`shift_map`, to a map of size ``grid``."""
    return roll_map(crop_map(x, grid), shift) if pad_after_shift else crop_map(roll_map(x, shift), grid)


def shifted_regions(
    grid: Grid, padding: Grid, shift: Grid, mask_padding: bool = True, device: torch.device | None = None
) -> Tensor:
    """Label the regions of a padded map after a roll up and left by ``shift``.

    Rows that were rolled from the top to the bottom have no neighbours there in the image, nor do such
    columns: each combination of rolled and not rolled is a region.

    Args:
        grid: Height and width before padding; times before them for a clip.
        padding: Rows and columns appended at the bottom and right before rolling.
        shift: Rows and columns of the roll.
        mask_padding: Whether the padding is a region of its own (-1), or belongs to where it lies.
        device: Device of the result.

    Returns:
        Labels, shape ``(H + padding rows, W + padding columns)``, int64; besides the padding 0 to 3, of a clip 0 to 7.

    Source: Liu et al. 2021, arXiv:2103.14030, figure 4.
    """
    lengths = [length + count for length, count in zip(grid, padding, strict=True)]
    at = [torch.arange(length, device=device) for length in lengths]
    rolled = [(index >= length - step).long() for index, length, step in zip(at, lengths, shift, strict=True)]
    labels: Tensor = reduce(lambda outer, inner: 2 * outer[..., None] + inner, rolled)
    if not mask_padding or all(known(count == 0) for count in padding):
        return labels
    axes = zip(at, lengths, shift, grid, strict=True)
    inside = [(index + step) % padded < length for index, padded, step, length in axes]
    real: Tensor = reduce(lambda outer, inner: outer[..., None] & inner, inside)
    return labels.masked_fill(~real, -1)


def same_region(groups: Tensor) -> Tensor:
    """Compute which tokens of a group attend to each other: those with the same label.

    Args:
        groups: Labels of the tokens of each group, shape ``(groups, n)``: regions that were partitioned like
            the tokens, ``partition_windows(regions[None, ..., None], window).squeeze(-1)``.

    Returns:
        True where allowed, shape ``(groups, n, n)``; every row has at least one, the token itself.
    """
    return groups[:, :, None] == groups[:, None, :]


def _map_shape(x: Tensor, axes: int) -> tuple[int, Grid, int]:
    if x.ndim != axes + 2:
        names = "(B, H, W, C)" if axes == 2 else "(B, T, H, W, C)"
        raise ShapeError(f"expected a feature map of shape {names}, got {tuple(x.shape)}")
    return x.shape[0], tuple(x.shape[1:-1]), x.shape[-1]


def _by(size: Grid) -> str:
    return " x ".join(map(str, size))


def _check_multiple(grid: Grid, group: Grid, name: str) -> None:
    if any(length % size for length, size in zip(grid, group, strict=True)):
        *frames, rows, columns = window_padding(grid, group)
        parts = [*(plural(count, "frame") for count in frames), plural(rows, "row"), plural(columns, "column")]
        raise ShapeError(
            f"a map of {_by(grid)} is not a multiple of the {name} of {_by(group)}; append {' and '.join(parts)}"
        )


def _check_groups(groups: Tensor, group: Grid, grid: Grid, name: str) -> None:
    _check_multiple(grid, group, name)
    count, tokens = count_groups(grid, group), product(group)
    if groups.ndim != 3 or groups.shape[1] != tokens or groups.shape[0] % count:
        raise ShapeError(
            f"expected {name}s of shape (B * {count}, {tokens}, C) for a map of {_by(grid)}, got {tuple(groups.shape)}"
        )


def partition_map(x: Tensor, group: Grid, kind: Kind) -> Tensor:
    """Partition a map into windows or grids, shape ``(B * groups, tokens, C)``."""
    return partition_windows(x, group) if kind == "window" else partition_grid(x, group)


def merge_map(groups: Tensor, group: Grid, grid: Grid, kind: Kind) -> Tensor:
    """Merge windows or grids into a map, the inverse of :func:`partition_map`."""
    return merge_windows(groups, group, grid) if kind == "window" else merge_grid(groups, group, grid)


def window_mask(
    grid: Grid,
    window: Grid,
    shift: Grid,
    mask_padding: bool,
    device: torch.device | None = None,
    kind: Kind = "window",
) -> Tensor:
    """Compute the attention mask of shifted windows or of grids: pairs of tokens from different regions of the map.

    Masked scores are minus infinity here; the authors' code of Swin adds -100, which leaves a weight of about 1e-44.

    Args:
        grid: Height and width of the map before padding, in tokens; times before them for a clip.
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
    return ~same_region(partition_map(regions[None, ..., None], window, kind).squeeze(-1))
