"""Tables of positions: what they begin as, and their resampling to another grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.layers.shapes import changing, known
from vitrail.layers.symbolic import one_node


def sincos_positions(grid: tuple[int, int], dim: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of columns and rows, at wavelengths from 2 pi to 20,000 pi tokens.

    Args:
        grid: Height and width, in tokens.
        dim: Width of a token; a multiple of 4, at least 8.
        device: Where to make them.

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
    angles = [place.flatten()[:, None] * frequencies for place in (column, row)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)[None]


@one_node
def resample_positions(
    table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix: int = 0
) -> Tensor:
    """Resample a table of absolute positions bicubically, with antialiasing; prefix tokens keep theirs.

    Args:
        table: Positions, shape ``(1, num_prefix + H * W, C)`` for the old grid, row-major.
        old_grid: Height and width that the table was made for.
        new_grid: Height and width that are wanted.
        num_prefix: Positions at the start that belong to no place in the image.

    Returns:
        Positions, shape ``(1, num_prefix + H' * W', C)``; the table itself when the grids are equal.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2; antialiasing as in timm.
    """
    # A graph for changing sizes is not tied to the grid at hand: there equal grids are resampled, to the same.
    if known(old_grid[0] == new_grid[0]) and known(old_grid[1] == new_grid[1]):
        return table
    prefix, grid = table[:, :num_prefix], table[:, num_prefix:]
    # Half precision is resampled in single; double stays double.
    wide = torch.promote_types(table.dtype, torch.float32)
    if changing(new_grid[0]) or changing(new_grid[1]):
        resampled = _resample_by_products(grid.to(wide), old_grid, new_grid)
    else:
        image = grid.reshape(1, *old_grid, -1).permute(0, 3, 1, 2).to(wide)
        image = F.interpolate(image, size=new_grid, mode="bicubic", antialias=True)
        resampled = image.permute(0, 2, 3, 1).flatten(1, 2)
    resampled = resampled.to(table.dtype)
    return torch.cat([prefix, resampled], dim=1) if num_prefix else resampled


@torch.library.custom_op("vitrail::resampling_weights", mutates_args=())
def resampling_weights(like: Tensor, old: int, new: int) -> Tensor:
    """What each new place along an axis takes of each old one, bicubically with antialiasing.

    Args:
        like: Gives the type and the device.
        old: Places that there are.
        new: Places that are wanted.

    Returns:
        Shape ``(new, old)``; each row sums to one.
    """
    places = torch.eye(old, dtype=like.dtype, device=like.device)
    return F.interpolate(places[None, None], size=(new, old), mode="bicubic", antialias=True)[0, 0].clone()


@resampling_weights.register_fake
def _(like: Tensor, old: int, new: int) -> Tensor:
    return like.new_empty(new, old)


def _resample_by_products(table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """The same one axis after the other; torch's own knows no gradient in a graph for changing sizes (2.13)."""
    rows, columns = (resampling_weights(table.detach(), old, new) for old, new in zip(old_grid, new_grid, strict=True))
    with torch.autocast(table.device.type, enabled=False):
        tall = (rows @ table.reshape(old_grid[0], -1)).view(new_grid[0], old_grid[1], -1)
        resampled: Tensor = (columns @ tall).reshape(1, new_grid[0] * new_grid[1], -1)
    return resampled


def resample_relative_table(table: Tensor, old_window: tuple[int, int], new_window: tuple[int, int]) -> Tensor:
    """Resample a table of relative positions bicubically to another window.

    Args:
        table: Shape ``((2 * wh - 1) * (2 * ww - 1), heads)`` for the old window, row-major over the offsets.
        old_window: Height and width that the table was made for.
        new_window: Height and width that are wanted.

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
