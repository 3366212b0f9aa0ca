"""Attention inside windows or inside grids that are spread over the map, on maps of any size."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vitrail.layers.attention import Attention
from vitrail.layers.relative_position import RelativePositionBias, in_graph
from vitrail.layers.shapes import KEEPS_TENSORS, changing, compiled_on_cpu, known
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import TokenLayout
from vitrail.layers.windows import (
    count_groups,
    cut_map,
    merge_grid,
    merge_windows,
    pad_map,
    padding_regions,
    partition_grid,
    partition_windows,
    places_in_groups,
    places_on_map,
    same_region,
    shapes_of_places,
    take_tokens,
    window_padding,
)

Pair = tuple[int, int]
Kind = Literal["window", "grid"]


def padding_blocked(grid: Pair, window: Pair, kind: Kind, device: torch.device | None = None) -> Tensor:
    """Which tokens of a group may not attend to which, where a map is padded at the bottom and right.

    Args:
        grid: Height and width of the map before padding.
        window: Height and width of a group.
        kind: Whether groups are windows or spread over the map.
        device: Where to make it.

    Returns:
        True where a token may not attend to another, shape ``(groups, n, n)``. Padding is kept to itself, so
        that no row is all True.
    """
    regions = padding_regions(grid, window_padding(grid, window), device)[None, :, :, None]
    partition = partition_windows if kind == "window" else partition_grid
    return ~same_region(partition(regions, window).squeeze(-1))


@functools.lru_cache(maxsize=64)
def _kept_padding_blocked(grid: Pair, window: Pair, kind: Kind, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return padding_blocked(grid, window, kind, device)


@functools.lru_cache(maxsize=64)
def _kept_places(grid: Pair, window: Pair, kind: Kind, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    padding = window_padding(grid, window)
    full = grid[0] + padding[0], grid[1] + padding[1]
    partition = partition_windows if kind == "window" else partition_grid
    with torch.inference_mode(False):
        order = partition(places_on_map(full, device), window).flatten()
        return *places_in_groups(order, grid, full), _kept_padding_blocked(grid, window, kind, device)


@torch.library.custom_op("vitrail::partition_places", mutates_args=(), tags=KEEPS_TENSORS)
def partition_places(x: Tensor, window: Sequence[int], kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`vitrail.layers.window_attention.window_places`, for groups of either kind.

    Args:
        x: The map, shape ``(B, H, W, C)``; only its size and device count.
        window: Height and width of a group.
        kind: "window" or "grid".
    """
    (H, W), (h, w) = x.shape[1:3], window
    taken, back, blocked = _kept_places((H, W), (h, w), "window" if kind == "window" else "grid", x.device)
    # Copies: who compiles may write over what it is given.
    return taken.clone(), back.clone(), blocked.clone()


@partition_places.register_fake
def _(x: Tensor, window: Sequence[int], kind: str) -> tuple[Tensor, Tensor, Tensor]:
    return shapes_of_places(x, window)


class PartitionAttention(Attention):
    """Multi-head self-attention in groups of a map, with a bias for the relative position within the group.

    A group is a window of neighbours, or a grid of tokens spread over the whole map at equal distances. A map
    that is no multiple of the group's size is padded at the bottom and right up to one, and the padding is
    masked. A grid of G rows then takes every ``ceil(H / G)``-th row.

    The tap gets weights ``(B * groups, heads, n, n)``, in the order of ``partition_windows`` or
    ``partition_grid`` on the padded map. Rows of padded tokens are of no consequence: they are dropped.

    Args:
        dim: Width of a token.
        dim_head: Width of a head.
        window: Height and width of a group, in tokens.
        kind: "window" or "grid".
        qkv_bias: Whether queries, keys and values have a bias.
        scale_by_width: Whether scores are divided by the root of ``dim`` instead of that of ``dim_head``.

    Source: Tu et al. 2022, arXiv:2204.01697, section 3.2 and figure 3.
    """

    def __init__(
        self,
        dim: int,
        dim_head: int,
        window: Pair,
        kind: Kind,
        qkv_bias: bool = True,
        scale_by_width: bool = False,
    ) -> None:
        super().__init__(dim, dim // dim_head, qkv_bias)
        self.window = window
        self.kind: Kind = kind
        if scale_by_width:
            self.factor = (dim_head / dim) ** 0.5
        self.rel_pos = RelativePositionBias(window, self.num_heads)

    @one_node
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # a map instead of a row of tokens
        """Mix the tokens of each group.

        Args:
            x: Tokens, shape ``(B, H, W, C)``.

        Returns:
            Tokens, shape ``(B, H, W, C)``.
        """
        B, H, W, C = x.shape
        window, kind = self.window, self.kind
        padding = window_padding((H, W), window)
        full = (H + padding[0], W + padding[1])
        layout = TokenLayout(kind, query_grid=(H, W), key_grid=(H, W), window=window, padding=padding)
        split = (B, count_groups(full, window), window[0] * window[1], C)
        if changing(H) or changing(W):
            order, inverse, blocked = partition_places(x, window, kind)
            mixed = self.mix(take_tokens(x, order).view(split), layout, self.rel_pos(blocked)).reshape(B, -1, C)
            return mixed.index_select(1, inverse).view(x.shape)
        blocked = None
        if not known(padding[0] == 0) or not known(padding[1] == 0):
            if compiled_on_cpu(x):
                blocked = partition_places(x, window, kind)[2]
            else:
                make = padding_blocked if in_graph(x) else _kept_padding_blocked
                blocked = make((H, W), window, kind, x.device)
        partition, merge = (partition_windows, merge_windows) if kind == "window" else (partition_grid, merge_grid)
        groups = partition(pad_map(x, padding), window).view(split)
        mixed = self.mix(groups, layout, self.rel_pos(blocked))
        return cut_map(merge(mixed.flatten(0, 1), window, full), (H, W))

    def extra_repr(self) -> str:
        """Show the groups when the model is printed."""
        return f"{self.kind}={self.window}"
