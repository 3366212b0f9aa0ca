"""Attention inside windows, which may be shifted, on maps of any size."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import ConfigError, ShapeError
from vitrail.layers.attention import Attention, mask_to_bias
from vitrail.layers.relative_position import RelativeBiasCache, in_graph, relative_table
from vitrail.layers.shapes import KEEPS_TENSORS, Size, changing, compiled_on_cpu, known, padding_to_multiple, to_pair
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import TokenLayout
from vitrail.layers.windows import (
    count_groups,
    cut_map,
    merge_windows,
    pad_map,
    partition_windows,
    places_in_groups,
    places_on_map,
    same_region,
    shapes_of_places,
    shift_map,
    shifted_regions,
    take_tokens,
    unshift_map,
    window_padding,
)

Pair = tuple[int, int]


def place_windows(
    length: int, window: int, shift: int, mask_padding: bool, pad_after_shift: bool = False
) -> tuple[int, int, int]:
    """Window, shift and padding along one axis.

    An axis along which the map is not larger than the window is not shifted. Where padding is masked, so that
    it changes nothing, the window shrinks to the map instead of being filled up, unless a graph for changing
    sizes is traced, which serves both.

    Args:
        length: Tokens along the axis.
        window: Wanted tokens of a window.
        shift: Wanted shift.
        mask_padding: Whether padded tokens are masked.
        pad_after_shift: Whether the map is padded as in timm, where the window shrinks too.
    """
    # In timm's way the two differ, so that a graph must be tied to the answer.
    smaller = length <= window if pad_after_shift else mask_padding and known(length <= window)
    if smaller:
        return length, 0, 0
    return window, shift * _is_larger(length, window), padding_to_multiple(length, window)


def _is_larger(length: int, window: int) -> int:
    """1 or 0; in a graph for changing sizes a formula of the length, which does not tie the graph to the answer."""
    if known(length > window) or known(length <= window):
        return int(length > window)
    formula: int = torch.sym_min(torch.sym_max(length - window, 0), 1)  # type: ignore[no-untyped-call]
    return formula


@dataclass(frozen=True)
class WindowPlan:
    """How the tokens of a padded map are ordered into shifted windows, and who may not attend to whom.

    Attributes:
        order: Place on the padded map of each token, window by window, shape ``(H * W,)``; None: no shift.
        inverse: Place in that order of each token of the padded map.
        blocked: True where a token may not attend to another, shape ``(windows, n, n)``; None: it always may.
    """

    order: Tensor | None = None
    inverse: Tensor | None = None
    blocked: Tensor | None = None
    _biases: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """What keeps tokens from those that are blocked, shape ``(windows, 1, n, n)``; kept with the plan."""
        if self.blocked is not None and dtype not in self._biases:
            with torch.inference_mode(False):
                self._biases[dtype] = mask_to_bias(self.blocked, dtype)[:, None]
        return self._biases.get(dtype)


def window_mask(
    grid: Pair, window: Pair, shift: Pair, mask_padding: bool, device: torch.device | None = None
) -> Tensor:
    """Compute the attention mask of shifted windows: pairs of tokens from different regions of the map.

    Masked scores are minus infinity here; the authors' code adds -100, which leaves a weight of about 1e-44.

    Args:
        grid: Height and width of the map before padding, in tokens.
        window: Height and width of a window.
        shift: Rows and columns by which the windows are shifted.
        mask_padding: Whether padded tokens are masked as keys.
        device: Device of the result.

    Returns:
        True where a query (row) may not attend to a key (column), shape ``(windows, n, n)``, bool; windows and tokens
        are row-major on the padded and shifted map. No row is all True.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2, figure 4.
    """
    regions = shifted_regions(grid, window_padding(grid, window), shift, mask_padding, device)
    return ~same_region(partition_windows(regions[None, :, :, None], window).squeeze(-1))


# A plan for each map of several hundred images of their own sizes, in a few stages: small beside the maps.
@functools.lru_cache(maxsize=1024)
def plan_windows(
    grid: Pair,
    window: Pair,
    shift: Pair,
    mask_padding: bool,
    pad_after_shift: bool = False,
    device: torch.device | None = None,
) -> WindowPlan:
    """The plan of a map, kept for the next one of its size.

    Args:
        grid: Height and width of the map before padding.
        window: Height and width of a window.
        shift: Rows and columns by which the windows are shifted.
        mask_padding: Whether padded tokens are kept from being attended to.
        pad_after_shift: Whether the map is padded after the shift.
        device: Where to make it.
    """
    padding = window_padding(grid, window)
    order = inverse = blocked = None
    with torch.inference_mode(False):
        if shift != (0, 0):
            H, W = grid[0] + padding[0], grid[1] + padding[1]
            places = places_on_map((H, W), device)
            moving = places[:, : grid[0], : grid[1]] if pad_after_shift else places
            moving.copy_(moving.roll((-shift[0], -shift[1]), (1, 2)))
            order = partition_windows(places, window).flatten()
            inverse = order.argsort()
        if shift != (0, 0) or (mask_padding and padding != (0, 0)):
            blocked = window_mask(grid, window, shift, mask_padding, device)
    return WindowPlan(order, inverse, blocked)


@functools.lru_cache(maxsize=64)
def _kept_places(
    grid: Pair, window: Pair, shift: Pair, mask_padding: bool, pad_after_shift: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    plan = plan_windows(grid, window, shift, mask_padding, pad_after_shift, device)
    padding = window_padding(grid, window)
    full = grid[0] + padding[0], grid[1] + padding[1]
    order, blocked = plan.order, plan.blocked
    with torch.inference_mode(False):
        if order is None:
            order = partition_windows(places_on_map(full, device), window).flatten()
        if blocked is None:
            n = window[0] * window[1]
            blocked = torch.zeros(len(order) // n, n, n, dtype=torch.bool, device=device)
        return *places_in_groups(order, grid, full), blocked


@torch.library.custom_op("vitrail::window_places", mutates_args=(), tags=KEEPS_TENSORS)
def window_places(
    x: Tensor, window: Sequence[int], shift: Sequence[int], mask_padding: bool, pad_after_shift: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The plan of a map whose size changes from call to call, out of a compiler's sight.

    Written in operators that it sees, pads, rolls and splits become one formula of the place, which takes it longer
    than minutes to simplify, and again for each way in which sizes do not divide.

    Args:
        x: The map, shape ``(B, H, W, C)``; only its size and device count.
        window: Height and width of a window.
        shift: Rows and columns by which the windows are shifted.
        mask_padding: As for :func:`plan_windows`.
        pad_after_shift: As for :func:`plan_windows`.

    Returns:
        For each place in the windows the token on the map, H * W for one that pads it; for each token its place in the
        windows; which pairs are blocked, shape ``(windows, n, n)``.
    """
    (H, W), (h, w), (down, across) = x.shape[1:3], window, shift
    taken, back, blocked = _kept_places((H, W), (h, w), (down, across), mask_padding, pad_after_shift, x.device)
    # Copies: who compiles may write over what it is given.
    return taken.clone(), back.clone(), blocked.clone()


@window_places.register_fake
def _(
    x: Tensor, window: Sequence[int], shift: Sequence[int], mask_padding: bool, pad_after_shift: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return shapes_of_places(x, window)


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


class ShiftedWindowAttention(Attention):
    """Multi-head self-attention among the tokens of a window, which know nothing of their positions.

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
        pad_after_shift: Whether the map is rolled before it is padded, and a window larger than the map shrinks
            to it, as in timm; only without ``mask_padding``.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``, the shift is not inside the window, or padding is to
            be masked and appended in timm's order.

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
        pad_after_shift: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias)
        self.dim = dim
        self.window = to_pair(window, "window_size")
        if not all(0 <= s < w for s, w in zip(shift, self.window, strict=True)):
            raise ConfigError(f"the shift must be inside the window of {self.window}, got {shift}")
        if mask_padding and pad_after_shift:
            raise ConfigError("pad_after_shift is timm's way with padding that is not masked; set mask_padding=False")
        self.shift = shift
        self.mask_padding, self.pad_after_shift = mask_padding, pad_after_shift

    def window_bias(self, window: Pair, plan: WindowPlan, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores.

        Args:
            window: Height and width of the windows at hand, which may be smaller than the layer's.
            plan: Of the map.
            dtype: Of the tokens.

        Returns:
            Shape ``(1 or windows, heads or 1, n, n)``; None for nothing.
        """
        return plan.bias(dtype)

    @one_node
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
        B, H, W, C = x.shape
        rows, columns = (
            place_windows(length, window, shift, self.mask_padding, self.pad_after_shift)
            for length, window, shift in zip((H, W), self.window, self.shift, strict=True)
        )
        window, shift, padding = ((rows[i], columns[i]) for i in range(3))
        after = self.pad_after_shift
        layout = TokenLayout("window", (H, W), (H, W), 0, window, shift, padding, after)
        full = (H + padding[0], W + padding[1])
        split = (B, count_groups(full, window), window[0] * window[1], C)
        if changing(H) or changing(W):
            order, inverse, blocked = window_places(x, window, shift, self.mask_padding, after)
            bias = self.window_bias(window, WindowPlan(blocked=blocked), x.dtype)
            mixed = self.mix(take_tokens(x, order).view(split), layout, bias).reshape(B, -1, C)
            return mixed.index_select(1, inverse).view(x.shape)
        plan = self._plan(x, layout)
        bias = self.window_bias(window, plan, x.dtype)
        if plan.order is not None and plan.inverse is not None:
            tokens = pad_map(x, padding).flatten(1, 2)
            mixed = self.mix(reorder(tokens, plan.order, plan.inverse).view(split), layout, bias)
            return cut_map(reorder(mixed.view_as(tokens), plan.inverse, plan.order).view(B, *full, C), (H, W))
        windows = partition_windows(shift_map(x, padding, shift, after), window)
        mixed = self.mix(windows.view(split), layout, bias)
        return unshift_map(merge_windows(mixed.flatten(0, 1), window, full), (H, W), shift, after)

    def _plan(self, x: Tensor, layout: TokenLayout) -> WindowPlan:
        """The plan, kept from the last map of this size; in a graph the mask alone, as tensors roll there."""
        grid, window, shift = layout.query_grid, layout.window, layout.shift
        assert grid is not None
        assert window is not None
        if not in_graph(x):
            return plan_windows(grid, window, shift, self.mask_padding, self.pad_after_shift, x.device)
        moved = shift if not self.mask_padding else (*shift, *layout.padding)
        if all(known(length == 0) for length in moved):
            return WindowPlan()
        if compiled_on_cpu(x):
            return WindowPlan(blocked=window_places(x, window, shift, self.mask_padding, self.pad_after_shift)[2])
        return WindowPlan(blocked=window_mask(grid, window, shift, self.mask_padding, x.device))

    def extra_repr(self) -> str:
        """Show the window when the model is printed."""
        return f"window={self.window}, shift={self.shift}"


class WindowAttention(ShiftedWindowAttention):
    """Attention among the tokens of a window, with a bias for their relative position.

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
    ) -> None:
        super().__init__(dim, num_heads, window, shift, qkv_bias, mask_padding, pad_after_shift)
        self.relative_position_bias_table = relative_table(self.window, num_heads)
        self._bias = RelativeBiasCache()

    def window_bias(self, window: Pair, plan: WindowPlan, dtype: torch.dtype) -> Tensor:
        """The bias of the relative positions, and minus infinity where the plan blocks."""
        return self._bias.expand(self.relative_position_bias_table, window, self.window, plan.blocked)
