"""Tables of positions: initial values, adding them to tokens, and resampling to another grid."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.fast.dispatch import with_fast_path
from vitrail.layers.modes import known
from vitrail.layers.resampling import linear_matrix
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import Grid


def sincos_positions(grid: tuple[int, int], dim: int, device: torch.device | None = None) -> Tensor:
    """Compute sines and cosines of columns and rows, at wavelengths from 2 pi to 20,000 pi tokens.

    Args:
        grid: Height and width, in tokens.
        dim: Number of channels; a multiple of 4, at least 8.
        device: Device of the result.

    Returns:
        Positions, shape ``(1, H * W, dim)``, row-major: a quarter each of the sines and cosines of the column, the
        sines and the cosines of the row.

    Raises:
        ConfigError: Another width.

    Source: Beyer et al. 2022, arXiv:2205.01580, section 2.
    """
    if dim % 4 or dim < 8:
        raise ConfigError(f"sine and cosine positions need a width that is a multiple of 4 and at least 8, got {dim}")
    frequencies = 10000.0 ** -torch.linspace(0, 1, dim // 4, device=device)
    rows, columns = (torch.arange(float(length), device=device) for length in grid)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    angles = [index.flatten()[:, None] * frequencies for index in (column, row)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)[None]


def sincos_sequence(length: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Compute a 1-D sine-cosine position embedding, in raster order for an image.

    Args:
        length: Tokens.
        dim: Number of channels, even.
        device: Device of the result.

    Returns:
        Positions, shape ``(1, length, dim)``: sines in the even channels, cosines in the odd ones.

    Raises:
        ConfigError: An odd width.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    if dim % 2:
        raise ConfigError(f"sine and cosine positions in one dimension need an even width, got {dim}")
    # In double precision: late positions have many rotations, whose rounding would reach the sines.
    frequencies = 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    angles = torch.arange(length, dtype=torch.float64, device=device)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None].to(torch.get_default_dtype())


def _resample_patches(
    table: Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    num_prefix: int,
    resample: Callable[[Tensor, tuple[int, int], tuple[int, int]], Tensor],
) -> Tensor:
    """Resample the positions of a table after its prefix; arguments and result as of :func:`resample_positions`."""
    # A graph for dynamic sizes is not specialised to the grid at hand: there equal grids are resampled, to the same.
    if known(old_grid[0] == new_grid[0]) and known(old_grid[1] == new_grid[1]):
        return table
    prefix, patches = table[:, :num_prefix], table[:, num_prefix:]
    # Half precision is resampled in single; double stays double.
    wide = patches.to(torch.promote_types(table.dtype, torch.float32))
    resampled = resample(wide, old_grid, new_grid).to(table.dtype)
    return torch.cat([prefix, resampled], dim=1) if num_prefix else resampled


@one_node
def resample_sequence(
    table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix: int = 0
) -> Tensor:
    """Resample positions in raster order linearly along the sequence; prefix tokens keep theirs.

    Arguments and result are those of :func:`resample_positions`. Rows have no meaning in a sequence: where the width of
    the grid changes, positions do not stay in their columns.
    """
    return _resample_patches(table, old_grid, new_grid, num_prefix, _resample_line)


def _resample_line(line: Tensor, _: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resample positions ``(B, H * W, C)`` linearly to ``(B, H' * W', C)``."""
    length = new_grid[0] * new_grid[1]
    if torch.compiler.is_exporting():
        # OpenVINO interpolates an axis whose length is free in another way.
        return linear_matrix(line.shape[1], length).to(line.dtype) @ line
    return F.interpolate(line.transpose(1, 2), size=length, mode="linear", align_corners=False).transpose(1, 2)


@one_node
def rotary_positions(grid: tuple[int, int], dim: int, like: Tensor) -> Tensor:
    """Compute the sines and cosines by which rotary positions rotate queries and keys, for two axes.

    Rows and columns run from -1 to 1 whatever the grid, so that images of all sizes have the same positions.

    Args:
        grid: Height and width, in tokens.
        dim: Channels of a head, a multiple of 4.
        like: Gives the device and, unless it is shorter than float32, the type.

    Returns:
        Shape ``(H * W, 2 * dim)``, row-major: the sines of all channels, then the cosines.

    Source: Siméoni et al. 2025, arXiv:2508.10104 (DINOv3), and the authors' code, base 100.
    """
    device, dtype = like.device, torch.promote_types(like.dtype, torch.float32)
    periods = 100.0 ** torch.linspace(0, 1, dim // 4 + 1, device=device, dtype=dtype)[:-1]
    rows, columns = (2.0 * (torch.arange(length, device=device, dtype=dtype) + 0.5) / length - 1.0 for length in grid)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    angles = [2.0 * torch.pi * axis.flatten()[:, None] / periods for axis in (row, column)]
    angle = torch.cat([*angles, *angles], dim=1)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def rotate(x: Tensor, rotation: Tensor, num_prefix: int = 0) -> Tensor:
    """Rotate queries or keys by their positions (RoPE); channel ``i`` pairs with channel ``i + d / 2``.

    Args:
        x: Queries or keys, shape ``(B, heads, num_prefix + N, d)``.
        rotation: As of :func:`rotary_positions`, shape ``(N, 2 * d)``, or ``(B, 1, N, 2 * d)`` for tokens that differ
            from image to image.
        num_prefix: Tokens at the start, which have no position.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.2, in two dimensions.
    """
    prefix, tokens = x[..., :num_prefix, :], x[..., num_prefix:, :]
    sines, cosines = rotation.chunk(2, dim=-1)
    first, second = tokens.chunk(2, dim=-1)
    rotated = tokens * cosines + torch.cat([-second, first], dim=-1) * sines
    return torch.cat([prefix, rotated.to(x.dtype)], dim=-2)


LEARNED_TABLES = ("learned", "learned1d")
FIXED_TABLES = ("sincos2d", "sincos1d")
_IN_ORDER = ("learned1d", "sincos1d")


def fixed_positions(kind: str, grid: tuple[int, int], dim: int) -> Tensor:
    """Compute sines and cosines of a grid, shape ``(1, H * W, dim)``: in raster order for a kind of one dimension."""
    return sincos_sequence(grid[0] * grid[1], dim) if kind in _IN_ORDER else sincos_positions(grid, dim)


def add_position_table(
    owner: nn.Module, kind: str, grid: tuple[int, int], dim: int, num_prefix: int = 0, persistent: bool = False
) -> None:
    """Add the attribute ``pos_embed`` to a module: absolute positions of a grid, to be added to its tokens.

    Args:
        owner: The module.
        kind: "learned" or "learned1d": a parameter, zero until :func:`init_position_table`; "sincos2d" or "sincos1d":
            fixed, a buffer; anything else: None.
        grid: Height and width, in tokens.
        dim: Number of channels.
        num_prefix: Prefix tokens with a position of their own, at the start; zero where positions are fixed.
        persistent: Whether fixed positions are part of the state dict.

    Raises:
        ConfigError: A width that fixed positions do not fit.
    """
    if kind in FIXED_TABLES:
        table = torch.cat([torch.zeros(1, num_prefix, dim), fixed_positions(kind, grid, dim)], dim=1)
        owner.register_buffer("pos_embed", table, persistent=persistent)
    elif kind in LEARNED_TABLES:
        owner.register_parameter("pos_embed", nn.Parameter(torch.zeros(1, num_prefix + grid[0] * grid[1], dim)))
    else:
        owner.register_parameter("pos_embed", None)


def add_positions(tokens: Tensor, table: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """Add positions to the tokens of a map, resampled to its size.

    Args:
        tokens: Shape ``(B, H, W, C)``.
        table: Positions of :func:`add_position_table` without prefix tokens; None leaves the tokens as they are.
        grid: Height and width of the table's grid.

    Returns:
        Shape ``(B, H, W, C)``.
    """
    if table is None:
        return tokens
    _, H, W, C = tokens.shape
    return tokens + resample_positions(table, grid, (H, W)).view(1, H, W, C)


def init_position_table(owner: nn.Module, start: Tensor | None = None) -> None:
    """Initialise learned positions of :func:`add_position_table`, truncated normal of deviation 0.02.

    Args:
        owner: The module.
        start: Positions of the grid instead, shape ``(1, H * W, dim)``.
    """
    if isinstance(owner.pos_embed, nn.Parameter):
        nn.init.trunc_normal_(owner.pos_embed, std=0.02)
        if start is not None:
            with torch.no_grad():
                owner.pos_embed[:, -start.shape[1] :] = start


def resample_table(
    kind: str, table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix: int = 0
) -> Tensor:
    """Resample a table as its kind asks: along the sequence for kinds of one dimension, else on the grid."""
    resample = resample_sequence if kind in _IN_ORDER else resample_positions
    return resample(table, old_grid, new_grid, num_prefix)


@one_node
def resample_positions(
    table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix: int = 0
) -> Tensor:
    """Resample a table of absolute positions bicubically, with antialiasing; prefix tokens keep theirs.

    Args:
        table: Positions, shape ``(1, num_prefix + H * W, C)`` for the old grid, row-major.
        old_grid: Height and width of the table's grid.
        new_grid: Height and width of the new grid.
        num_prefix: Positions of prefix tokens, at the start.

    Returns:
        Positions, shape ``(1, num_prefix + H' * W', C)``; the table itself when the grids are equal.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2; antialiasing as in timm.
    """
    return _resample_patches(table, old_grid, new_grid, num_prefix, resample_grid)


@with_fast_path("resample_positions")
def resample_grid(grid: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resample positions ``(1, H * W, C)`` bicubically to ``(1, H' * W', C)``."""
    image = grid.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new_grid, mode="bicubic", antialias=True)
    return image.permute(0, 2, 3, 1).flatten(1, 2)


@one_node
def resample_space_time(table: Tensor, old_grid: Grid, new_grid: Grid, num_prefix: int = 0) -> Tensor:
    """Resample positions of a clip: bicubically in space, slice by slice, then linearly in time.

    Args:
        table: Positions, shape ``(1, num_prefix + T * H * W, C)`` for the old grid, in the order time, row, column.
        old_grid: T, H and W of the table.
        new_grid: T, H and W of the new grid.
        num_prefix: Positions of prefix tokens, at the start, which stay.

    Returns:
        Positions, shape ``(1, num_prefix + T' * H' * W', C)``; the table itself when the grids are equal.
    """
    if all(known(old == new) for old, new in zip(old_grid, new_grid, strict=True)):
        return table
    frames, width = old_grid[0], table.shape[-1]
    prefix, slices = table[:, :num_prefix], table[:, num_prefix:].view(frames, -1, width)
    # The slices are channels of one image.
    image = slices.transpose(0, 1).reshape(1, -1, frames * width)
    image = resample_positions(image, (old_grid[1], old_grid[2]), (new_grid[1], new_grid[2]))
    series = resample_time(image.view(-1, frames, width), new_grid[0])
    resampled = series.transpose(0, 1).reshape(1, -1, width)
    return torch.cat([prefix, resampled], dim=1) if num_prefix else resampled


@one_node
def resample_time(table: Tensor, length: int, num_prefix: int = 0) -> Tensor:
    """Resample positions ``(B, num_prefix + T, C)`` linearly to another length; prefix tokens keep theirs."""
    return _resample_patches(table, (table.shape[1] - num_prefix, 1), (length, 1), num_prefix, _resample_line)


def resample_relative_table(table: Tensor, old_window: tuple[int, int], new_window: tuple[int, int]) -> Tensor:
    """Resample a table of relative positions bicubically to another window.

    Args:
        table: Shape ``((2 * wh - 1) * (2 * ww - 1), heads)`` for the old window, row-major over the offsets.
        old_window: Height and width of the table's window.
        new_window: Height and width of the new window.

    Returns:
        Shape ``((2 * wh' - 1) * (2 * ww' - 1), heads)``; the table itself when the windows are equal.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2.
    """
    if old_window == new_window:
        return table
    offsets = (2 * old_window[0] - 1, 2 * old_window[1] - 1)
    wanted = (2 * new_window[0] - 1, 2 * new_window[1] - 1)
    image = table.t().reshape(1, -1, *offsets).float()
    image = F.interpolate(image, size=wanted, mode="bicubic", align_corners=False)
    return image.flatten(2).squeeze(0).t().contiguous().to(table.dtype)
