"""Attention inside windows, which may be shifted, on maps of any size."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitrail.errors import ConfigError, ShapeError
from vitrail.layers.attention import Attention
from vitrail.layers.relative_position import RelativeBiasCache, in_graph, relative_table
from vitrail.layers.shapes import Size, padding_to_multiple, to_pair
from vitrail.layers.shapes import known as known
from vitrail.layers.tap import TokenLayout
from vitrail.layers.windows import (
    merge_windows,
    pad_map,
    partition_windows,
    same_region,
    shifted_regions,
    window_padding,
)

Pair = tuple[int, int]


def place_windows(length: int, window: int, shift: int, mask_padding: bool) -> tuple[int, int, int]:
    """Window, shift and padding along one axis.

    An axis along which the map is not larger than the window is not shifted. Where padding is masked, so that
    it changes nothing, the window shrinks to the map instead of being filled up.

    Args:
        length: Tokens along the axis.
        window: Wanted tokens of a window.
        shift: Wanted shift.
        mask_padding: Whether padded tokens are masked.
    """
    if mask_padding and known(length <= window):
        return length, 0, 0
    return window, shift if length > window else 0, padding_to_multiple(length, window)


class WindowPlan(NamedTuple):
    """How the tokens of a padded map are ordered into shifted windows, and who may not attend to whom.

    Attributes:
        order: Place on the padded map of each token, window by window, shape ``(H * W,)``; None: no shift.
        inverse: Place in that order of each token of the padded map.
        blocked: True where a token may not attend to another, shape ``(windows, n, n)``; None: it always may.
    """

    order: Tensor | None
    inverse: Tensor | None
    blocked: Tensor | None


def blocked_pairs(
    grid: Pair, window: Pair, shift: Pair, mask_padding: bool, device: torch.device | None = None
) -> Tensor:
    """Which tokens of a window may not attend to which.

    Args:
        grid: Height and width of the map before padding.
        window: Height and width of a window.
        shift: Rows and columns by which the windows are shifted.
        mask_padding: Whether padded tokens are kept from being attended to.
        device: Where to make it.

    Returns:
        True where a token may not attend to another, shape ``(windows, n, n)``; no row is all True.
    """
    regions = shifted_regions(grid, window_padding(grid, window), shift, mask_padding, device)
    return ~same_region(partition_windows(regions[None, :, :, None], window).squeeze(-1))


@functools.lru_cache(maxsize=32)
def plan_windows(
    grid: Pair, window: Pair, shift: Pair, mask_padding: bool, device: torch.device | None = None
) -> WindowPlan:
    """The plan of a map, kept for the next one of its size; arguments as for :func:`blocked_pairs`."""
    padding = window_padding(grid, window)
    order = inverse = blocked = None
    with torch.inference_mode(False):
        if shift != (0, 0):
            H, W = grid[0] + padding[0], grid[1] + padding[1]
            places = torch.arange(H * W, device=device).view(1, H, W, 1)
            order = partition_windows(places.roll((-shift[0], -shift[1]), (1, 2)), window).flatten()
            inverse = order.argsort()
        if shift != (0, 0) or (mask_padding and padding != (0, 0)):
            blocked = blocked_pairs(grid, window, shift, mask_padding, device)
    return WindowPlan(order, inverse, blocked)


class _Reorder(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return x.index_select(1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return reorder(grad, inverse, order), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        order, inverse = ctx.saved_tensors
        return reorder(tangent, order, inverse)


def reorder(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Put tokens into another order: one pass over them, forward and backward.

    Rolling by rows and columns and splitting into windows would be three; the gradient of plain indexing adds
    up where a permutation only has to be undone.

    Args:
        x: Tokens, shape ``(B, N, C)``.
        order: For each new place the old one, shape ``(N,)``: a permutation.
        inverse: Its inverse.
    """
    out: Tensor = _Reorder.apply(x, order, inverse)  # type: ignore[no-untyped-call]
    return out


class WindowAttention(Attention):
    """Multi-head self-attention among the tokens of a window, with a bias for their relative position.

    A map that is no multiple of the window is padded at the bottom and right. An axis along which the map is
    not larger than the window is not shifted.

    The tap gets weights ``(B * windows, heads, n, n)``, windows row-major on the padded and rolled map, kind
    "window". Rows of padded tokens, if any, are of no consequence: their results are dropped.

    Args:
        dim: Width of a token.
        num_heads: Heads; must divide ``dim``.
        window: Height and width of a window, in tokens.
        shift: Rows and columns by which the windows are shifted; less than a window.
        qkv_bias: Whether queries, keys and values have a bias.
        mask_padding: Whether padded tokens are masked, so that they change nothing. Without, they take part
            as keys, as in torchvision and in the authors' code for detection.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``, or the shift is not inside the window.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: Size,
        shift: Pair = (0, 0),
        qkv_bias: bool = True,
        mask_padding: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias)
        self.dim = dim
        self.window = to_pair(window, "window_size")
        if not all(0 <= s < w for s, w in zip(shift, self.window, strict=True)):
            raise ConfigError(f"the shift must be inside the window of {self.window}, got {shift}")
        self.shift = shift
        self.mask_padding = mask_padding
        self.relative_position_bias_table = relative_table(self.window, num_heads)
        self._bias = RelativeBiasCache()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # a map instead of a row of tokens
        """Mix the tokens of each window.

        Args:
            x: Tokens, shape ``(B, H, W, C)``.

        Returns:
            Tokens, shape ``(B, H, W, C)``.

        Raises:
            ShapeError: Not four dimensions of the right width.
        """
        if x.ndim != 4 or x.shape[-1] != self.dim:
            raise ShapeError(f"expected tokens of shape (B, H, W, {self.dim}), got {tuple(x.shape)}")
        H, W = x.shape[1:3]
        rows = place_windows(H, self.window[0], self.shift[0], self.mask_padding)
        columns = place_windows(W, self.window[1], self.shift[1], self.mask_padding)
        window, shift, padding = ((rows[i], columns[i]) for i in range(3))
        layout = TokenLayout("window", query_grid=(H, W), key_grid=(H, W), window=window, shift=shift, padding=padding)
        padded = not known(padding[0] == 0) or not known(padding[1] == 0)
        grid = (H + padding[0], W + padding[1])
        if padded:
            x = pad_map(x, padding)
        x = self._mix_windows(x, grid, layout)
        if not padded:
            return x
        x = x[:, :H, :W]
        # A graph for changing sizes should not depend on whether the cut removed anything.
        return x.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else x

    def _mix_windows(self, x: Tensor, grid: Pair, layout: TokenLayout) -> Tensor:
        """Roll, split into windows, attend, and undo both, on a padded map of size ``grid``."""
        window, shift = layout.window, layout.shift
        assert window is not None
        assert layout.query_grid is not None
        key = (layout.query_grid, window, shift, self.mask_padding, x.device)
        bias = self._bias.expand(self.relative_position_bias_table, window, self.window)
        if not in_graph(x):
            plan = plan_windows(*key)
            bias = self._block(bias, plan.blocked, x.shape[0])
            if plan.order is None or plan.inverse is None:
                return merge_windows(self.mix(partition_windows(x, window), layout, bias), window, grid)
            tokens = reorder(x.flatten(1, 2), plan.order, plan.inverse)
            mixed = self.mix(tokens.view(-1, window[0] * window[1], self.dim), layout, bias)
            return reorder(mixed.view_as(tokens), plan.inverse, plan.order).view_as(x)
        shifted = not known(shift[0] == 0) or not known(shift[1] == 0)
        padded = not known(layout.padding[0] == 0) or not known(layout.padding[1] == 0)
        if shifted or (self.mask_padding and padded):
            bias = self._block(bias, blocked_pairs(*key), x.shape[0])
        if shifted:
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        x = merge_windows(self.mix(partition_windows(x, window), layout, bias), window, grid)
        return x.roll((shift[0], shift[1]), (1, 2)) if shifted else x

    @staticmethod
    def _block(bias: Tensor, blocked: Tensor | None, batch: int) -> Tensor:
        """Add the mask of each window, and repeat that for each image: ``(batch * windows, heads, n, n)``."""
        if blocked is None:
            return bias
        masked = bias.masked_fill(blocked[:, None], float("-inf"))
        return masked if known(batch == 1) else masked.expand(batch, -1, -1, -1, -1).flatten(0, 1)

    def extra_repr(self) -> str:
        """Show the window when the model is printed."""
        return f"window={self.window}, shift={self.shift}"
