"""The bias of relative positions: an operator in compiled graphs, cached where no gradient is wanted."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitrail.layers.fast.dispatch import compiled_on_cpu, eager, fast_path
from vitrail.layers.relative_position import expand_by_index, expand_table, relative_position_index, table_of
from vitrail.layers.shapes import product
from vitrail.layers.tap import Grid

# Of operators that return cached tensors: a CUDA graph must not record them, as they are not part of its memory.
KEEPS_TENSORS = (torch.Tag.cudagraph_unsafe,)


@functools.lru_cache(maxsize=64)
def _cached_index(window: Grid, device: torch.device, table_window: Grid) -> Tensor:
    with torch.inference_mode(False):
        return relative_position_index(window, device, table_window)


@torch.library.custom_op("vitrail::index_in_table", mutates_args=(), tags=KEEPS_TENSORS)
def index_in_table(table: Tensor, window: Sequence[int], table_window: Sequence[int]) -> Tensor:
    """Compute :func:`relative_position_index` as an operator opaque to the compiler, on the device of ``table``."""
    # Cloned because Inductor may reuse the buffer in place.
    return _cached_index(tuple(window), table.device, tuple(table_window)).clone()


@index_in_table.register_fake
def _(table: Tensor, window: Sequence[int], table_window: Sequence[int]) -> Tensor:
    n = product(window)
    return table.new_empty(n, n, dtype=torch.int64)


@fast_path("position_bias", when=lambda layer, window, table_window: compiled_on_cpu(table_of(layer)))
def expand_by_operator(layer: nn.Module, window: Grid, table_window: Grid) -> Tensor:
    """Take the index from an operator: Inductor would compute it again for each score."""
    table = table_of(layer)
    return expand_by_index(table, index_in_table(table.detach(), window, table_window))


@dataclasses.dataclass(frozen=True)
class _Expanded:
    """A bias and the table that it was expanded from."""

    table: Tensor
    window: Grid
    bias: Tensor


# Read once and replaced whole: another thread may run the layer on a map of another size. Copies start empty.
_EXPANDED: weakref.WeakKeyDictionary[nn.Module, _Expanded] = weakref.WeakKeyDictionary()


def _is_constant(layer: nn.Module, window: Grid, table_window: Grid) -> bool:
    table = table_of(layer)
    # Only a parameter: torch.func puts a tensor in its place that stands for others. On other devices than the CPU the
    # comparison of the values would wait for the device.
    constant = type(table) is nn.Parameter and not (table.requires_grad and torch.is_grad_enabled())
    return constant and eager(table) and table.device.type == "cpu"


@fast_path("position_bias", when=_is_constant)
def expand_once(layer: nn.Module, window: Grid, table_window: Grid) -> Tensor:
    """Reuse the bias for as long as the values of the table do not change, however they are changed."""
    table = table_of(layer)
    cached = _EXPANDED.get(layer)
    if (
        cached is None
        or cached.window != window
        or cached.table.dtype != table.dtype
        or not torch.equal(cached.table, table)
    ):
        with torch.inference_mode(False), torch.no_grad():
            copy = table.detach().clone()
            cached = _EXPANDED[layer] = _Expanded(copy, window, expand_table(copy, window, table_window))
    return cached.bias


@fast_path("position_bias", when=lambda layer, window, table_window: eager(table_of(layer)))
def expand_by_cached_index(layer: nn.Module, window: Grid, table_window: Grid) -> Tensor:
    """Reuse the index alone."""
    table = table_of(layer)
    return expand_by_index(table, _cached_index(window, table.device, table_window))
