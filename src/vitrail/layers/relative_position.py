"""Relative positions: a learned bias for each offset between two tokens of a window, added to the scores.

The parameter is called ``relative_position_bias_table`` in timm, torchvision, transformers and the authors'
code, and so it is here. The index into it is computed, not stored in the state dict.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.fast.dispatch import with_fast_path
from vitrail.layers.shapes import Size, product, to_pair
from vitrail.layers.tap import Grid


def relative_coords(window: Grid, device: torch.device | None = None) -> Tensor:
    """Compute the offset between each pair of tokens of a window along each axis, as in Swin and MaxViT.

    ``docs/architectures/swin.md``, section 5, shows the index made of them; ``vitrail inspect --figures`` draws it.

    Args:
        window: Height and width of the window, in tokens; times before them for a clip.
        device: Device of the result.

    Returns:
        Row and column of the query minus those of the key, shape ``(n, n, 2)`` for the ``n`` tokens of the window in
        row-major order, int64: queries in rows, keys in columns. A positive ``dx`` means that the key lies to the left
        of the query.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2, the range of relative positions (``relative_coords`` in the
    authors' code); Tu et al. 2022, arXiv:2204.01697, equation 1.
    """
    axes = [torch.arange(length, device=device) for length in window]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    return index[:, None] - index


def relative_position_index(
    window: Grid, device: torch.device | None = None, table_window: Grid | None = None
) -> Tensor:
    """Compute the row of the bias table for each pair of tokens of a window.

    Args:
        window: Height and width of the window, in tokens; times before them for a clip.
        device: Device of the result.
        table_window: Window of the table, where that is a larger one: the same offsets have other rows there.

    Returns:
        ``(dy + wh - 1) * (2 * ww - 1) + (dx + ww - 1)``, where dy and dx are query minus key, and wh and ww
        the size of the table's window; of a clip likewise over three axes. Shape ``(n, n)`` for the ``n`` tokens
        of the window, int64.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2.
    """
    index = torch.zeros((), dtype=torch.int64, device=device)
    for offset, size in zip(relative_coords(window, device).unbind(-1), table_window or window, strict=True):
        index = index * (2 * size - 1) + (offset + size - 1)
    return index


def relative_table(window: Grid, num_heads: int) -> nn.Parameter:
    """Make a fresh table, ``((2 * wh - 1) * (2 * ww - 1), num_heads)``, truncated normal of deviation 0.02."""
    table = nn.Parameter(torch.empty(product(2 * length - 1 for length in window), num_heads))
    nn.init.trunc_normal_(table, std=0.02)
    return table


def expand_table(table: Tensor, window: Grid, table_window: Grid | None = None) -> Tensor:
    """Compute the bias of all pairs of tokens of a window from a table of relative positions.

    Args:
        table: Shape ``((2 * wh - 1) * (2 * ww - 1), heads)``.
        window: Height and width of the window, in tokens.
        table_window: Window of the table, where that is a larger one.

    Returns:
        Bias, shape ``(1, heads, n, n)`` for the ``n`` tokens of the window, contiguous.
    """
    return expand_by_index(table, relative_position_index(window, table.device, table_window))


def expand_by_index(table: Tensor, index: Tensor) -> Tensor:
    """Gather the rows of a table ``(rows, heads)`` at an index ``(n, n)``: a bias ``(1, heads, n, n)``, contiguous."""
    n = len(index)
    return table.t().index_select(1, index.flatten()).view(1, -1, n, n)


def table_of(layer: nn.Module) -> Tensor:
    """Return a layer's ``relative_position_bias_table``."""
    table = layer.relative_position_bias_table
    assert isinstance(table, Tensor)
    return table


@with_fast_path("position_bias")
def position_bias(layer: nn.Module, window: Grid, table_window: Grid) -> Tensor:
    """Expand the ``relative_position_bias_table`` of a layer, as :func:`expand_table`."""
    return expand_table(table_of(layer), window, table_window)


class RelativePositionBias(nn.Module):
    """A learned bias for each head and each offset between two tokens of a window.

    Args:
        window: Height and width of the window, in tokens.
        num_heads: Number of attention heads.

    Raises:
        ConfigError: A window or number of heads below one.

    Source: Liu et al. 2021, arXiv:2103.14030, equation 4.
    """

    def __init__(self, window: Size, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1:
            raise ConfigError(f"num_heads must be at least 1, got {num_heads}")
        self.window = to_pair(window, "window_size")
        self.relative_position_bias_table = relative_table(self.window, num_heads)

    def forward(self) -> Tensor:
        """Compute the bias to add before the softmax, shape ``(1, heads, wh * ww, wh * ww)``."""
        return position_bias(self, self.window, self.window)
