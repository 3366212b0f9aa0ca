"""Arming the taps of a model for the length of a ``with`` block."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, closest
from vitrail.layers.attention import Attention
from vitrail.layers.fusion import CrossAttention
from vitrail.layers.patches import PatchEmbed
from vitrail.layers.tap import AttentionTap, TokenLayout, named_taps
from vitrail.models.base import VisionModel


@dataclass(frozen=True)
class CapturedMixing:
    """How one layer mixed its tokens in one forward pass.

    Attributes:
        name: The layer's name in the model.
        weights: As :meth:`vitrail.layers.tap.AttentionTap.report` describes them.
        layout: What their rows and columns are.
    """

    name: str
    weights: Tensor
    layout: TokenLayout

    @property
    def nbytes(self) -> int:
        """Bytes of memory that are held for the weights, those of a whole tensor where they are a part of one."""
        return self.weights.untyped_storage().nbytes()


Keep = Callable[[CapturedMixing], Tensor | None]


@dataclass
class AttentionRecord:
    """What was captured, in the order in which the layers ran.

    Attributes:
        steps: The layers.
        memory_budget: Most bytes that their weights may take; None for any number.
    """

    steps: list[CapturedMixing] = field(default_factory=list)
    memory_budget: int | None = None

    def add(self, step: CapturedMixing) -> None:
        """Append one layer's mixing.

        Raises:
            ConfigError: It would take more memory than may be kept; nothing is kept then.
        """
        if self.memory_budget is not None:
            wanted, count = step.nbytes, len(self.steps)
            kept = sum({s.weights.untyped_storage().data_ptr(): s.nbytes for s in self.steps}.values())
            if kept + wanted > self.memory_budget:
                self.steps.clear()
                raise ConfigError(
                    f"the weights of {step.name} take {_amount(wanted)} and those of the {count} layers before it "
                    f"{_amount(kept)}, more than the memory budget of {_amount(self.memory_budget)}; capture fewer "
                    "layers (layers=...), fewer images at once or smaller ones, or keep less of each layer (keep=...)"
                )
        self.steps.append(step)

    def __getitem__(self, name: str) -> CapturedMixing:
        """The mixing of the layer of that name.

        Raises:
            ConfigError: It was not captured.
        """
        for step in self.steps:
            if step.name == name:
                return step
        raise ConfigError(f"no layer {name!r} was captured{closest(name, [s.name for s in self.steps])}")


def tapped_layers(model: nn.Module) -> dict[str, AttentionTap]:
    """The taps of a model by the names of their layers; a compiled model's too."""
    return named_taps(getattr(model, "_orig_mod", model))


def attention_layers(model: nn.Module) -> dict[str, Attention | CrossAttention]:
    """The layers of a model in which tokens attend to tokens, by name."""
    network = getattr(model, "_orig_mod", model)
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, Attention | CrossAttention)}


def layer_stride(model: VisionModel, layer: str) -> tuple[int, int]:
    """Pixels from one token to the next in a layer, by its name; where it begins a stage, after that."""
    return next(info.stride for info in model.feature_info if layer.startswith(info.name + "."))


def first_stride(model: VisionModel, stream: str) -> tuple[int, int]:
    """Pixels from one of the first tokens of a stream to the next; also where no level of the model has a grid."""
    prefix = model.stream_prefixes.get(stream, "")
    for name, module in model.named_modules():
        if name.startswith(prefix) and isinstance(module, PatchEmbed):
            return module.patch_size
    return next(info.stride for info in model.feature_info if info.name.startswith(prefix))


@contextmanager
def capture_attention(
    model: nn.Module,
    layers: str = "*",
    keep: Keep | None = None,
    memory_budget: int | None = None,
) -> Iterator[AttentionRecord]:
    """Capture how layers mix tokens during forward passes inside the block.

    The results of the model stay the same to rounding, gradients reach the captured weights, and the taps are
    restored however the block ends. A compiled model runs uncompiled inside the block, and with gradient
    checkpointing the blocks that are watched keep their activations. What other threads run meanwhile is not captured;
    two that capture at once need a model each.

    Args:
        model: Any model of vitrail.
        layers: Shell pattern of layer names, for example ``"blocks.3.attn"``.
        keep: Gets each layer's weights as soon as the layer has them and gives what to keep in their place, where all
            of them would take too much memory; None: nothing of this layer. Everything is kept without it.
        memory_budget: Most bytes that what is kept may take; any number without it.

    Yields:
        The record, which fills as the model runs.

    Raises:
        ConfigError: The pattern matches no layer (the message gives the closest); from the model's forward pass: what
            is to be kept exceeds the memory budget.
    """
    taps = tapped_layers(model)
    chosen = {name: tap for name, tap in taps.items() if fnmatch.fnmatchcase(name, layers)}
    if not chosen:
        raise ConfigError(f"no layer with attention matches {layers!r}{closest(layers, taps)}")
    if memory_budget is not None and memory_budget < 0:
        raise ConfigError(f"memory_budget is a number of bytes, at least 0, got {memory_budget}")
    record = AttentionRecord(memory_budget=memory_budget)
    before = {name: tap.consumer for name, tap in chosen.items()}
    try:
        for name, tap in chosen.items():
            tap.consumer = partial(_add, record, keep, threading.get_ident(), name)
        with torch.compiler.set_stance("force_eager"):
            yield record
    finally:
        for name, tap in chosen.items():
            tap.consumer = before[name]


def _add(
    record: AttentionRecord, keep: Keep | None, thread: int, name: str, weights: Tensor, layout: TokenLayout
) -> None:
    if threading.get_ident() != thread:
        return  # somebody else's images
    step = CapturedMixing(name, weights, layout)
    kept = weights if keep is None else keep(step)
    if kept is not None:
        record.add(replace(step, weights=kept))


def _amount(number: int) -> str:
    """Bytes for a reader."""
    return f"{number / 1e6:.4g} MB"
