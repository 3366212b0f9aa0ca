"""Attention in shifted windows of a clip, over time, rows and columns."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from vitrail.layers.attention import Attention, AttentionOptions
from vitrail.layers.modes import known
from vitrail.layers.patch_merging import PatchMerging
from vitrail.layers.shapes import product
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import Grid, TokenLayout
from vitrail.layers.windows import (
    merge_windows,
    partition_windows,
    same_region,
    shift_map,
    unshift_map,
    window_padding,
)


class WindowAttention3d(Attention):
    """Multi-head self-attention in windows of a clip, with a learned bias for each offset in time, rows and columns.

    Along an axis that is no longer than the window, the window shrinks to it and is not shifted.

    Args:
        dim: Number of channels.
        num_heads: Number of attention heads; must divide ``dim``.
        window: Times, rows and columns of a window, in tokens.
        shift: Times, rows and columns by which the windows are shifted.
        qkv_bias: Whether queries, keys and values have a bias.
        mask_padding: Whether padding is masked as keys; torchvision does not mask it.
        **options: Dropout rates and norms of queries and keys, see :class:`~vitrail.layers.attention.Attention`.

    Source: Liu et al. 2022 (Video Swin), arXiv:2106.13230, section 3.2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: Grid,
        shift: Grid = (0, 0, 0),
        qkv_bias: bool = True,
        mask_padding: bool = True,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, **options)
        self.window, self.shift, self.mask_padding = window, shift, mask_padding
        offsets = product([2 * length - 1 for length in window])
        self.relative_position_bias_table = nn.Parameter(torch.empty(offsets, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    @one_node
    def forward(  # type: ignore[override]  # maps, as of Swin's attention
        self, x: Tensor
    ) -> Tensor:
        """Mix tokens inside windows; shape ``(B, T, H, W, C)`` in and out."""
        grid: Grid = tuple(x.shape[1:4])
        window = tuple(min(own, length) for own, length in zip(self.window, grid, strict=True))
        shift = tuple(
            0 if own >= length else step for own, length, step in zip(self.window, grid, self.shift, strict=True)
        )
        padding = window_padding(grid, window)
        padded = tuple(length + count for length, count in zip(grid, padding, strict=True))
        windows = partition_windows(shift_map(x, padding, shift), window)
        windows = windows.view(x.shape[0], -1, *windows.shape[1:])
        layout = TokenLayout("window", grid, grid, window=window, shift=shift, padding=padding)
        mixed = self.mix(windows, layout, self._bias(grid, padding, window, shift))
        return unshift_map(merge_windows(mixed.flatten(0, 1), window, padded), grid, shift)

    def _bias(self, grid: Grid, padding: Grid, window: Grid, shift: Grid) -> Tensor:
        """Compute the bias of relative positions and of the mask, shape ``(1 or windows, heads, n, n)``."""
        device = self.relative_position_bias_table.device
        index = relative_position_index_3d(window, self.window, device)
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)[None]
        masked = self.mask_padding and not all(known(count == 0) for count in padding)
        if not any(shift) and not masked:
            return bias
        regions = _regions(grid, padding, shift, masked, device)
        allowed = same_region(partition_windows(regions[None, ..., None], window).squeeze(-1))
        return bias.masked_fill(~allowed[:, None], float("-inf"))


def relative_position_index_3d(window: Grid, table_window: Grid, device: torch.device | None = None) -> Tensor:
    """Compute the row of a bias table for each pair of tokens of a window.

    Args:
        window: Times, rows and columns of the window.
        table_window: Those of the table's window, which may be larger.
        device: Device of the result.

    Returns:
        Shape ``(n, n)``, int64; queries by keys.
    """
    axes = [torch.arange(length, device=device) for length in window]
    at = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    index = torch.zeros(len(at), len(at), dtype=torch.int64, device=device)
    for axis, length in enumerate(table_window):
        index = index * (2 * length - 1) + at[:, None, axis] - at[:, axis] + length - 1
    return index


def _regions(grid: Grid, padding: Grid, shift: Grid, mask_padding: bool, device: torch.device) -> Tensor:
    """Label the regions of a padded and rolled clip, shape of the padded grid; padding is -1 where it is masked."""
    labels = torch.zeros((), dtype=torch.int64, device=device)
    real = torch.ones((), dtype=torch.bool, device=device)
    for length, more, step in zip(grid, padding, shift, strict=True):
        index = torch.arange(length + more, device=device)
        labels = 2 * labels[..., None] + (index >= length + more - step).long()
        real = real[..., None] & ((index + step) % (length + more) < length)
    return labels.masked_fill(~real, -1) if mask_padding else labels


class SliceMerging(PatchMerging):
    """Patch merging of each slice of time: ``(B, T, H, W, C)`` to ``(B, T, ceil(H / 2), ceil(W / 2), 2 C)``.

    Source: Liu et al. 2022, arXiv:2106.13230, section 3.1; arguments as of
    :class:`~vitrail.layers.patch_merging.PatchMerging`.
    """

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Merge 2 x 2 neighbours of one time."""
        merged: Tensor = super().forward(x.flatten(0, 1))
        return merged.view(x.shape[0], -1, *merged.shape[1:])
