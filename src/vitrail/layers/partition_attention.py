"""Attention inside windows, or inside grids that are spread over the map, on maps of any size."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from vitrail.layers.attention import AttentionOptions
from vitrail.layers.relative_position import RelativePositionBias
from vitrail.layers.window_attention import ShiftedWindowAttention
from vitrail.layers.windows import Kind

Pair = tuple[int, int]


class PartitionAttention(ShiftedWindowAttention):
    """Multi-head self-attention in groups of tokens, with a bias for the relative position within the group.

    A group is a window of neighbours, or a grid of tokens spread over the whole map at equal distances. The steps are
    those of window attention without a shift: pad, partition, attend, merge, crop; padding is masked. A grid of G rows
    takes every ``ceil(H / G)``-th row.

    The tap gets weights ``(B * groups, heads, n, n)``, in the order of ``partition_windows`` or ``partition_grid`` on
    the padded map. Rows of padded tokens have no meaning: they are cropped.

    Args:
        dim: Number of channels.
        dim_head: Width of an attention head.
        window: Height and width of a group, in tokens.
        kind: "window" or "grid".
        qkv_bias: Whether queries, keys and values have a bias.
        scale_by_width: Whether scores are divided by the root of ``dim`` instead of that of ``dim_head``.
        relative: Whether there is a bias for the relative position.
        **options: Dropout rates and norms of queries and keys, see :class:`~vitrail.layers.attention.Attention`.

    Source: Tu et al. 2022, arXiv:2204.01697, section 3.2 and figure 3.
    """

    shrinks = False

    def __init__(
        self,
        dim: int,
        dim_head: int,
        window: Pair,
        kind: Kind,
        qkv_bias: bool = True,
        scale_by_width: bool = False,
        relative: bool = True,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(dim, dim // dim_head, window, qkv_bias=qkv_bias, **options)
        self.kind = kind
        if scale_by_width:
            self.score_scale = (dim_head / dim) ** 0.5
        self.rel_pos = RelativePositionBias(window, self.num_heads) if relative else None

    def position_bias(self, window: Pair) -> Tensor | None:
        """Compute the bias of relative positions, shape ``(1, heads, n, n)``; None without positions."""
        return None if self.rel_pos is None else self.rel_pos()

    def extra_repr(self) -> str:
        """Show the groups when the model is printed."""
        return f"{self.kind}={self.window}"
