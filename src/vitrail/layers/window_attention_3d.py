"""Attention in shifted windows of a clip, over time, rows and columns."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from vitrail.layers.attention import Attention, AttentionOptions
from vitrail.layers.modes import known
from vitrail.layers.patch_merging import PatchMerging
from vitrail.layers.relative_position import position_bias, relative_table
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import Grid, TokenLayout
from vitrail.layers.windows import (
    merge_windows,
    partition_windows,
    shift_map,
    unshift_map,
    window_mask,
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
        self.relative_position_bias_table = relative_table(window, num_heads)

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
        bias: Tensor = position_bias(self, window, self.window)
        masked = self.mask_padding and not all(known(count == 0) for count in padding)
        if not any(shift) and not masked:
            return bias
        mask = window_mask(grid, window, shift, masked, bias.device)
        return bias.masked_fill(mask[:, None], float("-inf"))


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
