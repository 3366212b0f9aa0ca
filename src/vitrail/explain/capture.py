"""Arming the taps of a model for the length of a ``with`` block."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, closest
from vitrail.layers.tap import AttentionTap, TokenLayout, named_taps


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


@dataclass
class AttentionRecord:
    """What was captured, in the order in which the layers ran."""

    steps: list[CapturedMixing] = field(default_factory=list)

    def add(self, name: str, weights: Tensor, layout: TokenLayout) -> None:
        """Append one layer's mixing."""
        self.steps.append(CapturedMixing(name, weights, layout))

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


@contextmanager
def capture_attention(
    model: nn.Module, layers: str = "*", keep: Callable[[Tensor, TokenLayout], Tensor] | None = None
) -> Iterator[AttentionRecord]:
    """Capture how layers mix tokens during forward passes inside the block.

    The results of the model stay the same to rounding, gradients reach the captured weights, and the taps are
    restored however the block ends. A compiled model runs uncompiled inside the block, and with gradient
    checkpointing the blocks that are watched keep their activations.

    Args:
        model: Any model of vitrail.
        layers: Shell pattern of layer names, for example ``"blocks.3.attn"``.
        keep: What to keep of a layer's weights, where all of them would take too much memory; everything
            without it.

    Yields:
        The record, which fills as the model runs.

    Raises:
        ConfigError: The pattern matches no layer; the message gives the closest.
    """
    taps = tapped_layers(model)
    chosen = {name: tap for name, tap in taps.items() if fnmatch.fnmatchcase(name, layers)}
    if not chosen:
        raise ConfigError(f"no layer with attention matches {layers!r}{closest(layers, taps)}")
    record = AttentionRecord()
    before = {name: tap.consumer for name, tap in chosen.items()}
    try:
        for name, tap in chosen.items():
            tap.consumer = partial(_add, record, keep, name)
        with torch.compiler.set_stance("force_eager"):
            yield record
    finally:
        for name, tap in chosen.items():
            tap.consumer = before[name]


def _add(
    record: AttentionRecord,
    keep: Callable[[Tensor, TokenLayout], Tensor] | None,
    name: str,
    weights: Tensor,
    layout: TokenLayout,
) -> None:
    record.add(name, weights if keep is None else keep(weights, layout), layout)
