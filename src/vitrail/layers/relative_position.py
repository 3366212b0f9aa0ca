"""Relative positions: a learned number for each offset between two tokens of a window, added to the scores.

The parameter is called ``relative_position_bias_table`` in timm, torchvision, transformers and the authors'
code, and so it is here. The index into it is computed, not stored in the state dict.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.modes import in_transform
from vitrail.layers.shapes import KEEPS_TENSORS, Size, compiled_on_cpu, to_pair

Pair = tuple[int, int]

# Numbers of a masked bias up to which a layer keeps it: 16 MiB, for maps of about 170 windows of 7 x 7 and 10 heads.
_MOST_KEPT = 1 << 22


def relative_coords(window: Pair, device: torch.device | None = None) -> Tensor:
    """Compute the offset between each pair of tokens of a window.

    Args:
        window: Height and width of the window, in tokens.
        device: Device of the result.

    Returns:
        Row and column of the query minus those of the key, shape ``(n, n, 2)`` for the ``n`` tokens of the window in
        row-major order, int64: queries in rows, keys in columns. A positive ``dx`` means that the key lies to the left
        of the query.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2, the range of relative positions.
    """
    height, width = window
    row = torch.arange(height, device=device).repeat_interleave(width)
    column = torch.arange(width, device=device).repeat(height)
    return torch.stack([row[:, None] - row[None, :], column[:, None] - column[None, :]], dim=-1)


def relative_position_index(
    window: Pair, device: torch.device | None = None, table_window: Pair | None = None
) -> Tensor:
    """Row of the table that belongs to each pair of tokens of a window.

    Args:
        window: Height and width of the window, in tokens.
        device: Where to make it.
        table_window: Window that the table was made for, where that is a larger one: the same offsets are at
            other rows there.

    Returns:
        ``(dy + wh - 1) * (2 * ww - 1) + (dx + ww - 1)``, where dy and dx are query minus key, and wh and ww
        the size of the table's window; shape ``(n, n)`` for the ``n`` tokens of the window, int64.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2.
    """
    wh, ww = table_window or window
    dy, dx = relative_coords(window, device).unbind(-1)
    return (dy + wh - 1) * (2 * ww - 1) + (dx + ww - 1)


@functools.lru_cache(maxsize=64)
def _kept_index(window: Pair, device: torch.device, table_window: Pair) -> Tensor:
    with torch.inference_mode(False):
        return relative_position_index(window, device, table_window)


@torch.library.custom_op("vitrail::index_in_table", mutates_args=(), tags=KEEPS_TENSORS)
def index_in_table(table: Tensor, window: Sequence[int], table_window: Sequence[int]) -> Tensor:
    """:func:`relative_position_index` out of a compiler's sight; of the table only the device counts."""
    (h, w), (wh, ww) = window, table_window
    # A copy: who compiles may write over what it is given.
    return _kept_index((h, w), table.device, (wh, ww)).clone()


@index_in_table.register_fake
def _(table: Tensor, window: Sequence[int], table_window: Sequence[int]) -> Tensor:
    n = window[0] * window[1]
    return table.new_empty(n, n, dtype=torch.int64)


def relative_table(window: Pair, num_heads: int) -> nn.Parameter:
    """A fresh table, ``((2 * wh - 1) * (2 * ww - 1), num_heads)``, truncated normal of deviation 0.02."""
    table = nn.Parameter(torch.empty((2 * window[0] - 1) * (2 * window[1] - 1), num_heads))
    nn.init.trunc_normal_(table, std=0.02)
    return table


def expand_table(table: Tensor, window: Pair, table_window: Pair | None = None) -> Tensor:
    """The bias that a table of relative positions gives all pairs of tokens of a window.

    Args:
        table: Shape ``((2 * wh - 1) * (2 * ww - 1), heads)``.
        window: Height and width of the window, in tokens.
        table_window: Window that the table was made for, where that is a larger one.

    Returns:
        Bias, shape ``(1, heads, n, n)`` for the ``n`` tokens of the window, contiguous.
    """
    n = window[0] * window[1]
    if compiled_on_cpu(table):
        index = index_in_table(table.detach(), window, table_window or window)
    else:
        make = relative_position_index if in_graph(table) else _kept_index
        index = make(window, table.device, table_window or window)
    return table.t().index_select(1, index.flatten()).view(1, -1, n, n)


def in_graph(x: Tensor) -> bool:
    """Whether ``x`` is being traced or stands for another tensor, so that nothing may be kept beside it."""
    return (
        torch.compiler.is_compiling()
        or bool(torch._C._get_tracing_state())
        or in_transform()
        or type(x) not in (Tensor, nn.Parameter)
    )


def masked_bias(bias: Tensor, blocked: Tensor | None) -> Tensor:
    """A bias with minus infinity where a mask blocks.

    Args:
        bias: Shape ``(1, heads, n, n)``.
        blocked: True where a token may not attend to another, shape ``(groups, n, n)``; None: it always may.

    Returns:
        Shape ``(groups, heads, n, n)``, or ``bias`` itself.
    """
    return bias if blocked is None else bias.masked_fill(blocked[:, None], float("-inf"))


@dataclasses.dataclass(slots=True)
class _Kept:
    """A bias, what it was made of, and the last mask that was asked for with the bias under it."""

    table: Tensor
    window: Pair
    bias: Tensor
    last: tuple[Tensor, Tensor] | None = None

    def serves(self, table: Tensor, window: Pair) -> bool:
        return self.window == window and self.table.dtype == table.dtype and torch.equal(self.table, table)

    def with_mask(self, blocked: Tensor) -> Tensor:
        last = self.last
        if last is not None and last[0] is blocked:
            return last[1]
        masked = masked_bias(self.bias, blocked)
        if masked.numel() <= _MOST_KEPT:
            self.last = (blocked, masked)
        return masked


class RelativeBiasCache:
    """Keeps the expanded bias of one table, and its last mask, for as long as the table does not change.

    Only where no gradient of the table is wanted; the bias is then a constant, so that fused attention takes
    its fast path. A copy or pickle of it starts empty. On the CPU the table's values are compared, so that no
    change is missed, however it was made; on other devices, where comparing would wait for the device, the
    bias is expanded anew, by one small kernel. Masks are told apart by identity, not by value.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def expand(
        self, table: Tensor, window: Pair, table_window: Pair | None = None, blocked: Tensor | None = None
    ) -> Tensor:
        """As :func:`expand_table` and :func:`masked_bias`, from the cache where that is possible."""
        wants_gradient = table.requires_grad and torch.is_grad_enabled()
        # Only a parameter is kept: under torch.func its place is taken by a tensor that means something else.
        constant = type(table) is nn.Parameter and not wants_gradient and not in_graph(table)
        if not constant or table.device.type != "cpu":
            return masked_bias(expand_table(table, window, table_window), blocked)
        with torch.inference_mode(False), torch.no_grad():
            # What is kept is read once and replaced whole: another thread may run the layer on a map of another size.
            kept = self._kept
            if kept is None or not kept.serves(table, window):
                copy = table.detach().clone()
                kept = self._kept = _Kept(copy, window, expand_table(copy, window, table_window))
            return kept.bias if blocked is None else kept.with_mask(blocked)

    def __deepcopy__(self, memo: dict[int, object]) -> RelativeBiasCache:
        return RelativeBiasCache()

    def __reduce__(self) -> tuple[type[RelativeBiasCache], tuple[()]]:
        return RelativeBiasCache, ()


class RelativePositionBias(nn.Module):
    """A learned bias for each head and each offset between two tokens of a window.

    Args:
        window: Height and width of the window, in tokens.
        num_heads: Attention heads.

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
        self._cache = RelativeBiasCache()

    def forward(self, blocked: Tensor | None = None) -> Tensor:
        """The bias to be added before the softmax.

        Args:
            blocked: True where a token may not attend to another, shape ``(groups, wh * ww, wh * ww)``; None: it
                always may.

        Returns:
            Shape ``(1 or groups, heads, wh * ww, wh * ww)``.
        """
        return self._cache.expand(self.relative_position_bias_table, self.window, blocked=blocked)
