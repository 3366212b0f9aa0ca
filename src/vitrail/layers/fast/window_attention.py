"""Window attention: one reordering of tokens instead of roll and partition, cached masks, graphs for dynamic sizes.

torch.compile gets the indices and masks from a custom operator. Written in torch's operators, pads, rolls and
partitions become one formula of the token's index, which takes the compiler minutes to simplify, and again for each way
in which sizes do not divide.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from vitrail.layers.fast.dispatch import compiled_on_cpu, eager, fast_path
from vitrail.layers.fast.relative_position import KEEPS_TENSORS
from vitrail.layers.modes import in_compiler, is_dynamic
from vitrail.layers.shapes import grid_size
from vitrail.layers.window_attention import FittedWindows, Pair, ShiftedWindowAttention, masked_bias
from vitrail.layers.windows import Kind, pad_map, partition_map, shift_map, window_mask, window_padding

# Elements of a masked bias up to which a layer caches it: 16 MiB, for maps of about 170 windows of 7 x 7 and 10 heads.
_LARGEST_CACHED = 1 << 22

# Masks and orders of several hundred images of their own sizes, in a few stages, are small beside the maps.
_cached_mask = functools.lru_cache(maxsize=1024)(torch.inference_mode(False)(window_mask))


@functools.lru_cache(maxsize=1024)
def window_order(
    size: Pair,
    window: Pair,
    shift: Pair,
    pad_after_shift: bool = False,
    device: torch.device | None = None,
    kind: Kind = "window",
) -> tuple[Tensor, Tensor]:
    """Compute the order of the tokens of a padded map in its shifted windows, window by window.

    Args:
        size: Height and width of the map before padding.
        window: Height and width of a window.
        shift: Rows and columns of the cyclic shift.
        pad_after_shift: Whether the map is padded after the shift.
        device: Device of the results.
        kind: "window" or "grid".

    Returns:
        Index on the padded map of each token of the windows, and the inverse permutation, shapes ``(H * W,)``.
    """
    padding = window_padding(size, window)
    height, width = size[0] + padding[0], size[1] + padding[1]
    with torch.inference_mode(False):
        index = torch.arange(height * width, device=device).view(1, height, width, 1)
        if pad_after_shift:  # the padding stays at the bottom and right
            index[:, : size[0], : size[1]] = shift_map(index[:, : size[0], : size[1]], (0, 0), shift)
        else:
            index = shift_map(index, (0, 0), shift)
        order = partition_map(index, window, kind).flatten()
        return order, order.argsort()


@functools.lru_cache(maxsize=64)
def _cached_indices(
    size: Pair,
    window: Pair,
    shift: Pair,
    kind: Kind,
    mask_padding: bool,
    pad_after_shift: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    (H, W), padding = size, window_padding(size, window)
    padded = (H + padding[0], W + padding[1])
    order, inverse = window_order(size, window, shift, pad_after_shift, device, kind)
    with torch.inference_mode(False):
        tokens = torch.full(padded, H * W, device=device)
        tokens[:H, :W] = torch.arange(H * W, device=device).view(H, W)
        taken, back = tokens.flatten()[order], inverse.view(padded)[:H, :W].flatten()
        return taken, back, _cached_mask(size, window, shift, mask_padding, device, kind)


@torch.library.custom_op("vitrail::window_indices", mutates_args=(), tags=KEEPS_TENSORS)
def window_indices(
    x: Tensor, window: Sequence[int], shift: Sequence[int], kind: str, mask_padding: bool, pad_after_shift: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute token indices and mask of the windows of a feature map, opaque to the compiler.

    Args:
        x: Feature map, shape ``(B, H, W, C)``; only its size and device count.
        window: Height and width of a window.
        shift: Rows and columns of the cyclic shift.
        kind: "window" or "grid".
        mask_padding: Whether padded tokens are masked.
        pad_after_shift: Whether the map is padded after the shift.

    Returns:
        Index on the map of each token of the windows, H * W for padding; index in the windows of each token of the map;
        mask, shape ``(windows, n, n)``.
    """
    (H, W), (h, w), (down, across) = x.shape[1:3], window, shift
    known_kind: Kind = "window" if kind == "window" else "grid"
    cached = _cached_indices((H, W), (h, w), (down, across), known_kind, mask_padding, pad_after_shift, x.device)
    # Cloned because Inductor may reuse the buffers in place.
    taken, back, mask = (tensor.clone() for tensor in cached)
    return taken, back, mask


@window_indices.register_fake
def _(
    x: Tensor, window: Sequence[int], shift: Sequence[int], kind: str, mask_padding: bool, pad_after_shift: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = grid_size((x.shape[1], x.shape[2]), (window[0], window[1]))
    n = window[0] * window[1]
    return (
        x.new_empty(rows * columns * n, dtype=torch.int64),
        x.new_empty(x.shape[1] * x.shape[2], dtype=torch.int64),
        x.new_empty(rows * columns, n, n, dtype=torch.bool),
    )


def _indices(layer: ShiftedWindowAttention, x: Tensor, fit: FittedWindows) -> tuple[Tensor, Tensor, Tensor]:
    taken, back, mask = window_indices(x, fit.window, fit.shift, layer.kind, layer.mask_padding, layer.pad_after_shift)
    return taken, back, mask


def _has_dynamic_size(layer: ShiftedWindowAttention, x: Tensor) -> bool:
    return in_compiler() and x.ndim == 4 and (is_dynamic(x.shape[1]) or is_dynamic(x.shape[2]))


@fast_path("window_attention", when=_has_dynamic_size)
def attend_by_indices(layer: ShiftedWindowAttention, x: Tensor) -> Tensor:
    """Gather the tokens of the windows: one graph for maps of all sizes."""
    fit = layer.fit_windows(x)
    taken, back, mask = _indices(layer, x, fit)
    # A row of zeros for the padding.
    windows = F.pad(x.flatten(1, 2), (0, 0, 0, 1)).index_select(1, taken)
    windows = windows.view(-1, fit.window[0] * fit.window[1], x.shape[-1])
    mixed = layer.attend_in_windows(windows, fit, layer.attention_bias(fit, mask, x.dtype))
    return mixed.view(x.shape[0], -1, x.shape[-1]).index_select(1, back).view(x.shape)


def _is_shifted(layer: ShiftedWindowAttention, x: Tensor) -> bool:
    return eager(x) and layer.shift != (0, 0) and layer.fit_windows(x).shift != (0, 0)


@fast_path("window_attention", when=_is_shifted)
def attend_in_window_order(layer: ShiftedWindowAttention, x: Tensor) -> Tensor:
    """Attend in windows; permute tokens in one pass instead of three (two rolls, partition)."""
    fit, (_, H, W, C) = layer.fit_windows(x), x.shape
    order, inverse = window_order(fit.size, fit.window, fit.shift, layer.pad_after_shift, x.device, layer.kind)
    bias = layer.attention_bias(fit, layer.attention_mask(x, fit), x.dtype)
    padded = pad_map(x, fit.padded_size)
    tokens = padded.flatten(1, 2)
    windows = reorder(tokens, order, inverse).view(-1, fit.window[0] * fit.window[1], C)
    mixed = layer.attend_in_windows(windows, fit, bias).view(tokens.shape)
    return reorder(mixed, inverse, order).view(padded.shape)[:, :H, :W]


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
    """Permute tokens, with a cheap gradient.

    The backward pass of indexing is a scatter-add; that of a permutation is a gather by the inverse.

    Args:
        x: Tokens, shape ``(B, N, C)``.
        order: Permutation, shape ``(N,)``.
        inverse: Its inverse.
    """
    out: Tensor = _Reorder.apply(x, order, inverse)  # type: ignore[no-untyped-call]
    return out


def _masks_anything(layer: ShiftedWindowAttention, fit: FittedWindows) -> bool:
    return fit.shift != (0, 0) or (layer.mask_padding and fit.padding != (0, 0))


@fast_path("attention_mask", when=lambda layer, x, fit: eager(x) and _masks_anything(layer, fit))
def reuse_mask(layer: ShiftedWindowAttention, x: Tensor, fit: FittedWindows) -> Tensor:
    """Reuse the mask of all maps of a size."""
    return _cached_mask(fit.size, fit.window, fit.shift, layer.mask_padding, x.device, layer.kind)


@fast_path("attention_mask", when=lambda layer, x, fit: compiled_on_cpu(x) and _masks_anything(layer, fit))
def mask_by_operator(layer: ShiftedWindowAttention, x: Tensor, fit: FittedWindows) -> Tensor:
    """Take the mask from an operator: Inductor would compute it again for each score."""
    return _indices(layer, x, fit)[2]


# The last position bias, mask and their sum of each layer; and the sums of masks alone. Copies of a layer start empty.
_SUMS: weakref.WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor, Tensor]] = weakref.WeakKeyDictionary()
_MASKS_ALONE: dict[torch.dtype, Any] = {}


def _is_cacheable(layer: ShiftedWindowAttention, fit: FittedWindows, mask: Tensor | None, dtype: torch.dtype) -> bool:
    return mask is not None and eager(mask)


@fast_path("attention_bias", when=_is_cacheable)
def reuse_sum(layer: ShiftedWindowAttention, fit: FittedWindows, mask: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Reuse the sum for as long as the position bias, without a gradient, and the mask are the same tensors."""
    bias = layer.position_bias(fit.window)
    if bias is None:
        alone = _MASKS_ALONE.setdefault(dtype, WeakTensorKeyDictionary())
        if mask not in alone:
            with torch.inference_mode(False):
                alone[mask] = masked_bias(None, mask, dtype)
        total: Tensor = alone[mask]
        return total
    if bias.requires_grad or not eager(bias):
        return masked_bias(bias, mask, dtype)
    last = _SUMS.get(layer)
    if last is not None and last[0] is bias and last[1] is mask:
        return last[2]
    with torch.inference_mode(False), torch.no_grad():
        total = bias.masked_fill(mask[:, None], float("-inf"))
    if total.numel() <= _LARGEST_CACHED and total.device.type == "cpu":
        _SUMS[layer] = (bias, mask, total)
    return total
