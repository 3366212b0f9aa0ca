"""Capture the mixing of tokens (attention, pooling, merging) in a ``with`` block."""

from __future__ import annotations

import fnmatch
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, UnknownNameError, closest, plural
from vitrail.explain.capture.groups import token_positions
from vitrail.layers.attention import Attention
from vitrail.layers.fusion import CrossAttention
from vitrail.layers.modes import in_transform
from vitrail.layers.patches import PatchEmbed
from vitrail.layers.shapes import product
from vitrail.layers.tap import AttentionTap, Consumer, TokenLayout, named_taps
from vitrail.layers.tubelets import TubeletEmbed
from vitrail.models.base import VisionModel
from vitrail.models.facts import Tiles
from vitrail.weights.wrapped import unwrapped

T = TypeVar("T")


@dataclass(frozen=True)
class CapturedMixing:
    """Mixing of tokens by one layer in one forward pass.

    Attributes:
        name: The layer's name in the model.
        weights: See :meth:`vitrail.layers.tap.AttentionTap.report`.
        layout: Meaning of the rows and columns of ``weights``.
    """

    name: str
    weights: Tensor
    layout: TokenLayout

    @property
    def nbytes(self) -> int:
        """Memory of the weights in bytes, that of the whole tensor for a view."""
        return self.weights.untyped_storage().nbytes()

    def positions(self, of: Literal["queries", "keys"] = "queries") -> Tensor:
        """Compute the position of each token on the feature map, in the order of the rows of ``weights``.

        ``weights[w, head, i, j]`` is how much the token at ``positions("queries")[w % groups, i]`` attends to the one
        at ``positions("keys")[w % groups, j]``; for ``window`` and ``grid`` the groups of an image follow each other.

        Args:
            of: "queries" for the rows of ``weights``, "keys" for the columns.

        Returns:
            Shape ``(groups, n, 2)``, int64: row and column, for a clip frame, row and column. -1 for padding and for
            prefix tokens (class token).

        Raises:
            ConfigError: Tokens without a grid: learned tokens, or the columns of ``merge``.
        """
        return token_positions(self.layout, of, self.weights.device)


Keep = Callable[[CapturedMixing], Tensor | None]


@dataclass(repr=False)
class AttentionRecord:
    """Captured layers in the order of execution.

    Attributes:
        steps: The layers.
        memory_budget: Maximum memory of the weights in bytes; None for no limit.
        reported: Number of reports of each layer, including those that ``keep`` omitted.

    Length, iteration and indices are those of ``steps``; a name returns the layer of that name.
    """

    steps: list[CapturedMixing] = field(default_factory=list)
    memory_budget: int | None = None
    reported: Counter[str] = field(default_factory=Counter)

    def add(self, step: CapturedMixing) -> None:
        """Append a layer.

        Raises:
            ConfigError: The memory budget is exceeded; the record is cleared.
        """
        if self.memory_budget is not None:
            wanted, count = step.nbytes, len(self.steps)
            stored = sum({s.weights.untyped_storage().data_ptr(): s.nbytes for s in self.steps}.values())
            if stored + wanted > self.memory_budget:
                self.steps.clear()
                raise ConfigError(
                    f"the weights of {step.name} take {_amount(wanted)} and those of {plural(count, 'layer')} before "
                    f"it {_amount(stored)}, more than the memory budget of {_amount(self.memory_budget)}; capture "
                    "fewer layers (layers=...), fewer or smaller images, or a part of each layer (keep=...)"
                )
        self.steps.append(step)

    def __repr__(self) -> str:
        """List the captured layers with the shape of their weights and the kind of their layout."""
        lines = [f"  {step.name}: {tuple(step.weights.shape)}, {step.layout.kind}" for step in self.steps]
        return "\n".join([f"AttentionRecord of {plural(len(self.steps), 'layer')}", *lines])

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[CapturedMixing]:
        return iter(self.steps)

    def __contains__(self, name: object) -> bool:
        return any(step.name == name or step is name for step in self.steps)

    @overload
    def __getitem__(self, name: str | int) -> CapturedMixing: ...

    @overload
    def __getitem__(self, name: slice) -> list[CapturedMixing]: ...

    def __getitem__(self, name: str | int | slice) -> CapturedMixing | list[CapturedMixing]:
        """Return the layer of that name, or at that index or slice of ``steps``.

        Raises:
            ConfigError: No layer of that name was captured.
            IndexError: No such index.
        """
        if isinstance(name, int | slice):
            return self.steps[name]
        for step in self.steps:
            if step.name == name:
                return step
        raise UnknownNameError(f"no layer {name!r} was captured{closest(name, [s.name for s in self.steps])}")


def tapped_layers(model: nn.Module) -> dict[str, AttentionTap]:
    """Return the taps of a model, compiled or not, by layer name."""
    return named_taps(unwrapped(model, VisionModel))


def lacks_taps(model: VisionModel) -> str | None:
    """Return the reason why no mixing weights can be captured; None where the mixer of a block reports them."""
    taps = tapped_layers(model)
    if any(_is_in(tap, mixer) for mixer in model.mixers() for tap in taps):
        return None
    kind = type(model).__name__
    return f"no block of this {kind} reports how it mixes tokens (docs/extend.md, 'A mixer of your own')"


def attention_layers(model: nn.Module) -> dict[str, Attention | CrossAttention]:
    """Return the layers with attention, by name."""
    return {
        name: layer
        for name, layer in unwrapped(model, VisionModel).named_modules()
        if isinstance(layer, Attention | CrossAttention)
    }


def numbered_layers(model: VisionModel) -> list[str]:
    """List the names of layers with attention in the order of the blocks.

    A block whose mixer has no tap is listed by the name of the mixer, so that indices are those of blocks.
    """
    taps = tapped_layers(model)
    layers = [next((tap for tap in taps if _is_in(tap, mixer)), mixer) for mixer in model.mixers()]
    return layers + [name for name in attention_layers(model) if not any(_is_in(name, layer) for layer in layers)]


def check_reports(model: VisionModel, mixers: Sequence[str], record: AttentionRecord) -> None:
    """Raise unless each module that mixes tokens reported its weights once.

    Args:
        model: The model.
        mixers: Names of modules that must have reported, themselves or by a submodule.
        record: Record of one forward pass.

    Raises:
        ConfigError: A module did not report, or reported more than once.
    """
    for mixer in mixers:
        if not any(_is_in(name, mixer) for name in record.reported):
            kind = type(model.get_submodule(mixer)).__name__
            raise ConfigError(
                f"{mixer} ({kind}) does not report how it mixes tokens: give it `tap = AttentionTap()` and call "
                "`tap.report(weights, layout)` in its forward (docs/extend.md, 'A mixer of your own'), or choose a "
                "method that needs no mixing weights, 'gradcam' for instance"
            )
        twice = next((name for name, count in record.reported.items() if count > 1 and _is_in(name, mixer)), None)
        if twice is not None:
            raise ConfigError(
                f"{twice} reports its mixing weights {plural(record.reported[twice], 'time')} in one forward pass; "
                "report them once (docs/extend.md, 'A mixer of your own')"
            )


def running_mixers(model: VisionModel, inputs: Sequence[Tensor | None]) -> list[str]:
    """List the names of modules that mix tokens in the streams with an input."""
    streams = zip(model.streams, [*inputs, *[None] * len(model.streams)], strict=False)
    absent = [model.stream_prefixes[stream.name] for stream, x in streams if x is None]
    return [name for name in model.mixers() if not any(name.startswith(prefix) for prefix in absent)]


def measure_layers(
    model: VisionModel, inputs: Sequence[Tensor | None], measure: Callable[[CapturedMixing], T | None]
) -> list[T]:
    """Measure the layers with attention in one forward pass, without storing their weights.

    Args:
        model: The model.
        inputs: Normalised images, one for each stream.
        measure: Returns the result of a layer; None leaves it out.

    Returns:
        The results in the order of execution.

    Raises:
        ConfigError: A layer that does not report its attention.
    """
    layers = numbered_layers(model)
    found: list[T] = []

    def keep(step: CapturedMixing) -> None:
        if step.name in layers and (result := measure(step)) is not None:
            found.append(result)

    with torch.no_grad(), capture_attention(model, keep=keep) as record:
        model.forward_features(*inputs)
    check_reports(model, running_mixers(model, inputs), record)
    return found


def _is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def class_tokens(model: VisionModel, num_prefix: int) -> int:
    """Return the number of class tokens among the prefix tokens of a layer."""
    return min(model.num_class_tokens, num_prefix)


def layer_tiles(model: VisionModel, layer: str) -> Tiles:
    """Return the pixels of each token in a layer; for a merging layer after merging."""
    found = next((info.tiles for info in model.feature_info if layer.startswith(info.name + ".")), None)
    if found is not None:
        return found
    # A block that is not a level because it merges tokens attends on the grid of the first tokens.
    stream = next(s.name for s in model.streams if layer.startswith(model.stream_prefixes.get(s.name, "")))
    return first_tiles(model, stream)


def first_tiles(model: VisionModel, stream: str) -> Tiles:
    """Return the pixels of each first token of a stream; also for a model without levels."""
    prefix = model.stream_prefixes.get(stream, "")
    for name, module in model.named_modules():
        if name.startswith(prefix) and isinstance(module, PatchEmbed | TubeletEmbed):
            return Tiles(module.pixel_stride, module.pixel_offset)
    return next(info.tiles for info in model.feature_info if info.name.startswith(prefix))


def last_tiles(model: VisionModel, stream: str) -> Tiles:
    """Return the pixels of each last token of a stream."""
    prefix = model.stream_prefixes[stream]
    return [info.tiles for info in model.feature_info if info.name.startswith(prefix)][-1]


def layer_at(layers: Sequence[str], index: int) -> str:
    """Return the layer of a block.

    Args:
        layers: Names in the order of the blocks, as :func:`numbered_layers` lists them.
        index: Index of the block; negative from the end.

    Raises:
        ConfigError: No block has the index.
    """
    if not -len(layers) <= index < len(layers):
        raise ConfigError(f"layer must be from {-len(layers)} to {len(layers) - 1}, got {index}")
    return layers[index]


def _matching_layers(model: nn.Module, taps: Iterable[str], layers: str | int | Sequence[str | int]) -> list[str]:
    """Return the names of the tapped layers that patterns and indices of blocks choose, in the order of the model."""
    asked = [layers] if isinstance(layers, str | int) else list(layers)
    chosen: set[str] = set()
    for one in asked:
        if isinstance(one, bool) or not isinstance(one, str | int):
            raise ConfigError(f"layers must be patterns of names or indices of blocks, got {one!r}")
        network = unwrapped(model, VisionModel)
        if isinstance(one, str):
            pattern = one
        elif isinstance(network, VisionModel):
            pattern = layer_at(numbered_layers(network), one)
        else:
            raise ConfigError(
                f"layers {one}: a {type(network).__name__} has no numbered blocks; give a pattern of names"
            )
        found = [name for name in taps if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise ConfigError(f"no layer with attention matches {pattern!r}{closest(pattern, taps)}")
        chosen.update(found)
    if not chosen:
        raise ConfigError("layers is empty; give patterns of names or indices of blocks ('*': all)")
    return [name for name in taps if name in chosen]


@contextmanager
def capture_attention(
    model: nn.Module,
    layers: str | int | Sequence[str | int] = "*",
    keep: Keep | None = None,
    memory_budget: int | None = None,
) -> Iterator[AttentionRecord]:
    """Capture the mixing of tokens in forward passes inside the block.

    Outputs stay equal to rounding, gradients reach the captured weights, and the taps are restored on exit. A compiled
    model runs uncompiled, and with gradient checkpointing captured blocks store their activations. Forward passes of
    other threads are not captured; two threads that capture at once need a model each.

    Args:
        model: Any model of vitrail.
        layers: Shell pattern of layer names, for example ``"blocks.3.attn"``; the index of a block (negative: from the
            end), as :func:`attention_maps` takes it; or several of either.
        keep: Maps each layer to the tensor that is stored instead of its weights, to save memory, or to None, which
            omits the layer. By default weights are stored.
        memory_budget: Maximum memory of the stored tensors in bytes; by default no limit.

    Yields:
        The record, to which each forward pass adds.

    Raises:
        ConfigError: A pattern matches no layer, or no block has the index; in the forward pass: the memory budget is
            exceeded.
    """
    taps = tapped_layers(model)
    chosen = {name: taps[name] for name in _matching_layers(model, taps, layers)}
    if memory_budget is not None and memory_budget < 0:
        raise ConfigError(f"memory_budget must be at least 0 bytes, got {memory_budget}")
    record = AttentionRecord(memory_budget=memory_budget)
    consumers = {name: partial(_add, record, keep, threading.get_ident(), name) for name in chosen}
    with armed(chosen, consumers), torch.compiler.set_stance("force_eager"):
        yield record


@contextmanager
def armed(taps: Mapping[str, AttentionTap], consumers: Mapping[str, Consumer]) -> Iterator[None]:
    """Give taps their consumers in the block, and restore those before it.

    Args:
        taps: Taps by the name of their layer.
        consumers: Consumer of each.
    """
    before = {name: tap.consumer for name, tap in taps.items()}
    try:
        for name, tap in taps.items():
            tap.consumer = consumers[name]
        yield
    finally:
        for name, tap in taps.items():
            tap.consumer = before[name]


def _add(
    record: AttentionRecord, keep: Keep | None, thread: int, name: str, weights: Tensor, layout: TokenLayout
) -> None:
    if threading.get_ident() != thread:
        return  # a forward pass of another thread
    _check_weights(name, weights, layout)
    record.reported[name] += 1
    step = CapturedMixing(name, weights, layout)
    stored = weights if keep is None else keep(step)
    if stored is not None:
        record.add(replace(step, weights=stored))


# Kinds of layouts with rows that sum to one. Those of TokenLearner 1.0 and of TokenFuser do not.
_MEANS = ("global", "window", "grid", "cross")
# Maximum deviation of a row's sum from one, for bfloat16 with its three significant digits.
_ROW_TOLERANCE = 0.03


def _check_weights(name: str, weights: Tensor, layout: TokenLayout) -> None:
    """Check mixing weights against the contract of :class:`~vitrail.layers.tap.AttentionTap`.

    Raises:
        ConfigError: Shape, range or row sums violate the contract.
    """
    if layout.kind not in _MEANS or not weights.numel() or in_transform():
        return
    fault = _fault_of_shape(weights.shape, layout)
    if not fault:
        rows, least = weights.detach().sum(-1), weights.detach().amin()
        if not bool(torch.isfinite(rows).all()):
            fault = "have values that are infinite or not a number"
        elif float(least) < 0:
            fault = f"have negative values, as low as {float(least):.3g}"
        elif float((rows - 1).abs().amax()) > _ROW_TOLERANCE:
            fault = f"have rows that sum to {float(rows.amin()):.3g} to {float(rows.amax()):.3g}"
    if fault:
        raise ConfigError(
            f"the mixing weights that {name} reports {fault}; report a softmax over the keys, shape (B, heads, "
            "queries, keys), or for signed weights their absolute values with each row divided by its sum "
            "(docs/extend.md, 'A mixer of your own')"
        )


def _fault_of_shape(shape: torch.Size, layout: TokenLayout) -> str:
    if len(shape) != 4:
        return f"have the shape {tuple(shape)}"
    if layout.window is not None:
        wanted = (product(layout.window) + layout.num_prefix,) * 2
    elif layout.query_grid is not None and layout.key_grid is not None:
        queries, keys = (product(grid) + layout.num_prefix for grid in (layout.query_grid, layout.key_grid))
        wanted = (queries, keys)
    else:
        return ""  # tokens without a grid: any count
    found = (shape[2], shape[3])
    return "" if found == wanted else f"have {found[0]} queries and {found[1]} keys where the layout has {wanted}"


def _amount(number: int) -> str:
    """Format a number of bytes."""
    return f"{number / 1e6:.4g} MB"
