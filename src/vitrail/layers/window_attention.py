"""Attention inside (shifted) windows, on maps of any size.

Source: Liu et al. 2021, arXiv:2103.14030, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from vitrail.errors import ConfigError, ShapeError
from vitrail.layers.attention import Attention, AttentionOptions, mask_to_bias
from vitrail.layers.fast.dispatch import with_fast_path
from vitrail.layers.modes import known
from vitrail.layers.relative_position import position_bias, relative_table
from vitrail.layers.shapes import Size, divide_up, padding_to_multiple, to_pair
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import TokenLayout
from vitrail.layers.windows import (
    Kind,
    count_groups,
    crop_map,
    merge_map,
    pad_map,
    partition_map,
    roll_map,
    window_mask,
)

Pair = tuple[int, int]


def fit_window(
    length: int, window: int, shift: int, mask_padding: bool, pad_after_shift: bool = False
) -> tuple[int, int, int]:
    """Fit window, shift and padding to a map, along one axis.

    An axis not longer than the window is not shifted. Where padding is masked, so that it changes nothing, the window
    shrinks to the map instead, unless a graph for dynamic sizes is traced, which serves both.

    Args:
        length: Tokens along the axis.
        window: Tokens of a window.
        shift: Tokens of the cyclic shift.
        mask_padding: Whether padded tokens are masked.
        pad_after_shift: Whether the map is padded as in timm, where the window shrinks too.

    Returns:
        Window, shift and padding along the axis.
    """
    # With timm's order the results differ, so that a graph must be specialised.
    smaller = length <= window if pad_after_shift else mask_padding and known(length <= window)
    if smaller:
        return length, 0, 0
    return window, shift and shift * _is_longer(length, window), padding_to_multiple(length, window)


def _is_longer(length: int, window: int) -> int:
    """Return 1 or 0; for dynamic sizes a formula of the length, which does not specialise the graph."""
    if known(length > window) or known(length <= window):
        return int(length > window)
    # Of quotients alone: engines lack torch's sym_min and sym_max.
    return 1 - 1 // divide_up(length, window)


def masked_bias(bias: Tensor | None, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Apply a mask to a bias.

    Args:
        bias: Shape ``(1, heads, n, n)``, or None.
        mask: True where a query may not attend to a key, shape ``(windows, n, n)``, or None.
        dtype: Type of the result without a bias.

    Returns:
        Bias with minus infinity at masked pairs, shape ``(windows, heads or 1, n, n)``; ``bias`` without a mask.
    """
    if mask is None:
        return bias
    mask = mask[:, None]
    return mask_to_bias(mask, dtype) if bias is None else bias.masked_fill(mask, float("-inf"))


@dataclass(frozen=True)
class FittedWindows:
    """Windows on a batch of feature maps.

    Attributes:
        batch: Number of maps.
        size: Height and width of a map, in tokens.
        window: Height and width of a window.
        shift: Rows and columns of the cyclic shift.
        padding: Rows and columns to append at the bottom and right.
    """

    batch: int
    size: Pair
    window: Pair
    shift: Pair
    padding: Pair

    @property
    def padded_size(self) -> Pair:
        """Height and width of a padded map."""
        return self.size[0] + self.padding[0], self.size[1] + self.padding[1]

    @property
    def count(self) -> int:
        """Number of windows of a map."""
        return count_groups(self.padded_size, self.window)


class ShiftedWindowAttention(Attention):
    """Multi-head self-attention inside (shifted) windows, without positions.

    A map whose size is not a multiple of the window's is padded at the bottom and right.

    The tap gets weights ``(B * windows, heads, n, n)``, windows row-major on the padded and rolled map. Rows of padded
    tokens have no meaning: their results are cropped.

    Args:
        dim: Number of channels.
        num_heads: Number of attention heads; must divide ``dim``.
        window: Height and width of a window, in tokens.
        shift: Rows and columns of the cyclic shift; less than a window.
        qkv_bias: Whether queries, keys and values have a bias.
        mask_padding: Whether padded tokens are masked, so that they change nothing. Without, they take part
            as keys, as in torchvision and in the authors' code for detection.
        pad_after_shift: Whether the map is rolled before it is padded, and a window larger than the map shrinks
            to it, as in timm; only without ``mask_padding``.
        **options: Dropout rates and norms of queries and keys, see :class:`~vitrail.layers.attention.Attention`.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``, the shift is not inside the window, or padding is to
            be masked and appended in timm's order.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2.
    """

    kind: Kind = "window"
    # Whether windows larger than the map shrink to it.
    shrinks = True
    # Whether the layer attends over the whole map instead of windows.
    everywhere = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: Size,
        shift: Pair = (0, 0),
        qkv_bias: bool = True,
        mask_padding: bool = True,
        pad_after_shift: bool = False,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, **options)
        self.dim = dim
        self.window = to_pair(window, "window_size")
        if not all(0 <= s < w for s, w in zip(shift, self.window, strict=True)):
            raise ConfigError(f"the shift must be inside the window of {self.window}, got {shift}")
        if mask_padding and pad_after_shift:
            raise ConfigError("pad_after_shift is timm's way with padding that is not masked; set mask_padding=False")
        self.shift = shift
        self.mask_padding, self.pad_after_shift = mask_padding, pad_after_shift

    @one_node
    @with_fast_path("window_attention")
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # a map instead of a sequence
        """Mix the tokens of each window.

        Args:
            x: Feature map, shape ``(B, H, W, C)``.

        Returns:
            Feature map, shape ``(B, H, W, C)``.

        Raises:
            ShapeError: Not four dimensions with ``dim`` channels.
        """
        fit = self.fit_windows(x)
        bias = self.attention_bias(fit, self.attention_mask(x, fit), x.dtype)
        rolled_size = fit.size if self.pad_after_shift else fit.padded_size

        x = pad_map(x, rolled_size)
        x = roll_map(x, (-fit.shift[0], -fit.shift[1]))
        x = pad_map(x, fit.padded_size)
        windows = partition_map(x, fit.window, self.kind)
        windows = self.attend_in_windows(windows, fit, bias)
        x = merge_map(windows, fit.window, fit.padded_size, self.kind)
        x = crop_map(x, rolled_size)
        x = roll_map(x, fit.shift)
        return crop_map(x, fit.size)

    def fit_windows(self, x: Tensor) -> FittedWindows:
        """Fit the windows to a feature map ``(B, H, W, C)``."""
        if x.ndim != 4 or x.shape[-1] != self.dim:
            raise ShapeError(f"expected tokens of shape (B, H, W, {self.dim}), got {tuple(x.shape)}")
        size = (x.shape[1], x.shape[2])
        (h, down, bottom), (w, across, right) = (
            fit_window(length, window, shift, self.shrinks and self.mask_padding, self.pad_after_shift)
            for length, window, shift in zip(size, self.window, self.shift, strict=True)
        )
        return FittedWindows(x.shape[0], size, (h, w), (down, across), (bottom, right))

    @with_fast_path("attention_mask")
    def attention_mask(self, x: Tensor, fit: FittedWindows) -> Tensor | None:
        """Compute :func:`window_mask` on the device of ``x``; None where nothing is masked."""
        moved = (*fit.shift, *fit.padding) if self.mask_padding else fit.shift
        if all(known(length == 0) for length in moved):
            return None
        return window_mask(fit.size, fit.window, fit.shift, self.mask_padding, x.device, self.kind)

    def position_bias(self, window: Pair) -> Tensor | None:
        """Compute the bias of relative positions, shape ``(1, heads, n, n)``; None without positions."""
        return None

    @with_fast_path("attention_bias")
    def attention_bias(self, fit: FittedWindows, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Add bias and mask: shape ``(1 or windows, heads or 1, n, n)``; None for nothing."""
        return masked_bias(self.position_bias(fit.window), mask, dtype)

    def attend_in_windows(self, windows: Tensor, fit: FittedWindows, bias: Tensor | None) -> Tensor:
        """Attend inside each window; shape ``(B * windows, n, C)`` in and out."""
        layout = TokenLayout(self.kind, fit.size, fit.size, 0, fit.window, fit.shift, fit.padding, self.pad_after_shift)
        mixed = self.mix(windows.view(fit.batch, fit.count, *windows.shape[-2:]), layout, bias)
        return mixed.reshape(windows.shape)

    def extra_repr(self) -> str:
        """Show the window when the model is printed."""
        return f"window={self.window}, shift={self.shift}"


class WindowAttention(ShiftedWindowAttention):
    """Attention inside (shifted) windows, with a bias for the relative position.

    Arguments, errors and source are those of :class:`ShiftedWindowAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: Size,
        shift: Pair = (0, 0),
        qkv_bias: bool = True,
        mask_padding: bool = True,
        pad_after_shift: bool = False,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(dim, num_heads, window, shift, qkv_bias, mask_padding, pad_after_shift, **options)
        self.relative_position_bias_table = relative_table(self.window, num_heads)

    def position_bias(self, window: Pair) -> Tensor:
        """Compute B of equation 4, shape ``(1, heads, n, n)``, for windows of this size or smaller ones."""
        return position_bias(self, window, self.window)
