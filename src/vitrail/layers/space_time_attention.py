"""Attention over the tokens of a clip along time, along space, or along one with each half of the heads.

Tokens come as a sequence ``(B, P + T * H * W, C)`` in the order time, row, column, after P class tokens.

Source: Arnab et al. 2021 (ViViT), arXiv:2103.15691, section 3.3, models 3 and 4; class tokens: Bertasius et al. 2021
(TimeSformer), arXiv:2102.05095, section 3, and the authors' code.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from vitrail.layers.attention import Attention, AttentionOptions, attend, attention_weights, mask_to_bias
from vitrail.layers.modes import in_transform
from vitrail.layers.shapes import product
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import AttentionTap, Grid, TokenLayout


def slices_of(x: Tensor, grid: Grid, axis: str) -> Tensor:
    """Group tokens ``(..., T * S, C)`` by position or by time.

    Args:
        x: Tokens in the order time, row, column.
        grid: Tubelets along time, rows and columns.
        axis: "time" for groups of one position at all times, "space" for groups of one time at all positions.

    Returns:
        Shape ``(..., S, T, C)`` for "time", ``(..., T, S, C)`` for "space".
    """
    frames = x.view(*x.shape[:-2], grid[0], grid[1] * grid[2], x.shape[-1])
    return frames.transpose(-3, -2) if axis == "time" else frames


def from_slices(groups: Tensor, axis: str) -> Tensor:
    """Invert :func:`slices_of`: to ``(..., T * S, C)``."""
    frames = groups.transpose(-3, -2) if axis == "time" else groups
    return frames.flatten(-3, -2)


class AxisAttention(Attention):
    """Multi-head self-attention along one axis: over the times of each position, or the positions of each time.

    Class tokens take no part in attention over time. In attention over space they join the tokens of each time, and the
    result is their mean over time.

    Args:
        axis: "time" or "space".
        dim: Number of channels.
        num_heads: Number of attention heads.
        qkv_bias: Whether queries, keys and values have a bias.
        **options: Dropout rates and norms of queries and keys, see :class:`~vitrail.layers.attention.Attention`.
    """

    def __init__(
        self, axis: str, dim: int, num_heads: int, qkv_bias: bool = True, **options: Unpack[AttentionOptions]
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, **options)
        self.axis = axis

    @one_node
    def forward(
        self, x: Tensor, grid: Grid | None = None, num_prefix: int = 0, rotation: Tensor | None = None
    ) -> Tensor:
        """Mix tokens.

        Args:
            x: Tokens, shape ``(B, P + T * H * W, C)``.
            grid: T, H and W.
            num_prefix: P.
            rotation: None; axes have no rotary positions.

        Returns:
            Tokens, shape of ``x``; zeros for class tokens along time.
        """
        assert grid is not None, "attention along an axis has a grid"
        prefix, patches = x[:, :num_prefix], slices_of(x[:, num_prefix:], grid, self.axis)
        if not num_prefix:
            return from_slices(self.mix(patches, self._layout(grid)), self.axis)
        if self.tap.armed:
            return self._mix_armed(x, grid, num_prefix)
        if self.axis == "time":
            mixed = from_slices(self.mix(patches, self._layout(grid)), self.axis)
            return torch.cat([torch.zeros_like(prefix), mixed], dim=1)
        repeated = prefix[:, None].expand(-1, grid[0], -1, -1)
        frames = self.mix(torch.cat([repeated, patches], dim=2), self._layout(grid))
        return torch.cat([frames[:, :, :num_prefix].mean(dim=1), frames[:, :, num_prefix:].flatten(1, 2)], dim=1)

    def _layout(self, grid: Grid) -> TokenLayout:
        window = (grid[0], 1, 1) if self.axis == "time" else (1, *grid[1:])
        return TokenLayout("window", grid, grid, window=window, shift=(0, 0, 0), padding=(0, 0, 0))

    def _mix_armed(self, x: Tensor, grid: Grid, num_prefix: int) -> Tensor:
        """Mix tokens with class tokens by one matrix over all tokens, the one that the tap gets."""
        layout = TokenLayout("global", grid, grid, num_prefix)
        mask = axis_mask(grid, self.axis, num_prefix, x.device)
        if self.axis == "time":
            # A class token sees itself, so that its row is one; its branch is zero.
            mixed = self.mix(x, layout, mask_to_bias(~mask, x.dtype))
            return torch.cat([torch.zeros_like(x[:, :num_prefix]), mixed[:, num_prefix:]], dim=1)
        q, k, v = self.project(x, layout)
        weights = attention_weights(q, k, mask_to_bias(~mask, q.dtype))
        # The class tokens attend in each frame apart: softmax within the frame, then the mean over frames.
        scores = (q[:, :, :num_prefix] * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        own, others = scores[..., :num_prefix], slices_of(scores[..., num_prefix:, None], grid, "space")[..., 0]
        repeated = own[..., None, :].expand(*own.shape[:-1], grid[0], num_prefix)
        shares = torch.cat([repeated, others], dim=-1).softmax(dim=-1) / grid[0]
        first = torch.cat([shares[..., :num_prefix].sum(dim=-2), shares[..., num_prefix:].flatten(-2)], dim=-1)
        weights = torch.cat([first, weights[:, :, num_prefix:]], dim=2)
        self.tap.report(weights, layout)
        out: Tensor = self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))
        return out


class SplitHeadAttention(Attention):
    """Multi-head self-attention whose first half of heads attends over time, the second over space.

    The parameters are those of :class:`~vitrail.layers.attention.Attention`; the number of heads is even.

    Source: Arnab et al. 2021, arXiv:2103.15691, section 3.3, model 4 (factorised dot-product attention).
    """

    @one_node
    def forward(
        self, x: Tensor, grid: Grid | None = None, num_prefix: int = 0, rotation: Tensor | None = None
    ) -> Tensor:
        """Mix tokens.

        Args:
            x: Tokens, shape ``(B, T * H * W, C)``.
            grid: T, H and W.
            num_prefix: 0; the model has no class token.
            rotation: None; axes have no rotary positions.

        Returns:
            Tokens, shape of ``x``.
        """
        assert grid is not None, "attention along an axis has a grid"
        layout = TokenLayout("global", grid, grid)
        q, k, v = self.project(x, layout)
        half = self.num_heads // 2
        parts = (("time", slice(half)), ("space", slice(half, None)))
        if self.tap.armed or in_transform():
            masks = torch.stack([axis_mask(grid, axis, 0, x.device) for axis, _ in parts]).repeat_interleave(half, 0)
            return self.mix_heads(q, k, v, layout, mask_to_bias(~masks, q.dtype))
        dropout = self.attn_drop if self.training else 0.0
        mixed = torch.cat([_along(q[:, h], k[:, h], v[:, h], grid, axis, dropout) for axis, h in parts], dim=1)
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))
        return out


def _along(q: Tensor, k: Tensor, v: Tensor, grid: Grid, axis: str, dropout: float) -> Tensor:
    """Attend along an axis: ``(B, heads, T * S, d)`` to the same shape."""
    groups = [slices_of(part, grid, axis).transpose(1, 2) for part in (q, k, v)]
    mixed = attend(*groups, dropout=dropout)
    return from_slices(mixed.transpose(1, 2), axis)


def axis_mask(grid: Grid, axis: str, num_prefix: int, device: torch.device | None = None) -> Tensor:
    """Compute which tokens attend to each other along an axis.

    Args:
        grid: Tubelets along time, rows and columns.
        axis: "time" or "space".
        num_prefix: Class tokens, which see all tokens along space and themselves along time.
        device: Device of the result.

    Returns:
        True where allowed, shape ``(P + N, P + N)``, bool.
    """
    index = torch.arange(product(grid), device=device)
    label = index % (grid[1] * grid[2]) if axis == "time" else index // (grid[1] * grid[2])
    mask: Tensor = label[:, None] == label
    if not num_prefix:
        return mask
    count = num_prefix + len(index)
    whole = torch.full((count, count), axis == "space", dtype=torch.bool, device=device)
    whole[num_prefix:, num_prefix:] = mask
    whole[:num_prefix, :num_prefix] |= torch.eye(num_prefix, dtype=torch.bool, device=device)
    return whole


class SliceAttention(Attention):
    """Multi-head self-attention in each slice of time, where slices are sequences of their own.

    Source: Arnab et al. 2021, arXiv:2103.15691, section 3.3, model 2 (the spatial encoder).
    """

    @one_node
    def forward(
        self, x: Tensor, grid: Grid | None = None, num_prefix: int = 0, rotation: Tensor | None = None
    ) -> Tensor:
        """Mix tokens.

        Args:
            x: Tokens, shape ``(B * T, P + H * W, C)``.
            grid: T, H and W, for the tap.
            num_prefix: P, the class tokens of each slice.
            rotation: None; slices have no rotary positions.

        Returns:
            Tokens, shape of ``x``.
        """
        assert grid is not None, "slices of time have a grid"
        window, none = (1, *grid[1:]), (0, 0, 0)
        return self.mix(x, TokenLayout("window", grid, grid, num_prefix, window=window, shift=none, padding=none))


class SliceSummary(nn.Module):
    """One token for each slice of time: its class token, or the mean of its tokens without one.

    Args:
        num_prefix: Class tokens of a slice, 0 or 1.

    Source: Arnab et al. 2021, arXiv:2103.15691, section 3.3, model 2.
    """

    def __init__(self, num_prefix: int) -> None:
        super().__init__()
        self.num_prefix = num_prefix
        self.tap = AttentionTap()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, T, P + N, C)`` to ``(B, T, C)``."""
        if self.tap.armed:
            shares = x.new_zeros(x.shape[:3])
            shares[:, :, slice(1) if self.num_prefix else slice(None)] = 1.0 if self.num_prefix else 1.0 / x.shape[2]
            self.tap.report(shares, TokenLayout("slices", query_grid=(x.shape[1],), num_prefix=self.num_prefix))
        return x[:, :, 0] if self.num_prefix else x.mean(dim=2)
