"""Levels of a model's feature pyramid: their values, and the gradient of a class with respect to them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, did_you_mean
from vitrail.explain.capture.forwarding import frozen
from vitrail.explain.capture.scores import total_score
from vitrail.models.base import VisionModel
from vitrail.models.facts import Tiles


@dataclass(frozen=True)
class Level:
    """One level of one stream.

    Attributes:
        stream: Name of the stream.
        index: Its index in the model's ``feature_info``.
        name: Its name there.
        tiles: Pixels of each token.
    """

    stream: str
    index: int
    name: str
    tiles: Tiles


@dataclass(frozen=True)
class LevelGradient:
    """Values of a level and the gradient of a class.

    Attributes:
        level: The level.
        values: Shape ``(B, C, h, w)``.
        gradient: Gradient of the target's score with respect to ``values``, same shape.
    """

    level: Level
    values: Tensor
    gradient: Tensor


def lacks_levels(model: VisionModel) -> str | None:
    """Return the reason why no level of a model can be explained; None where one can."""
    if not model.feature_info:
        return f"this model has no level with a grid: {model.lacks_grid()}"
    if len(model.feature_info) == 1 and not model.reads_level(0):
        name = model.feature_info[0].name
        return f"the class token alone is read after {name}, and this model has no earlier level"
    return None


def choose_levels(model: VisionModel, inputs: Sequence[Tensor | None], layer: int | str | None) -> list[Level]:
    """Choose the level of each stream with an input.

    Args:
        model: The model.
        inputs: One tensor for each stream, or None.
        layer: Index of a level among those of its stream (negative: from the end), or a name of the model's
            ``feature_info``, which omits the other stream. By default the last level that the class depends on.

    Raises:
        ConfigError: No such level, no level at all, or a level that the class does not depend on.
    """
    lack = lacks_levels(model)
    if lack is not None:
        raise ConfigError(lack)
    names = [info.name for info in model.feature_info]
    if isinstance(layer, str) and layer not in names:
        raise ConfigError(f"no level {layer!r}{did_you_mean(layer, names)}; levels: {', '.join(names)}")
    prefixes = model.stream_prefixes or {model.streams[0].name: ""}
    chosen = []
    for stream, x in zip(model.streams, inputs, strict=False):
        own = [i for i, name in enumerate(names) if name.startswith(prefixes[stream.name])]
        if x is None or (isinstance(layer, str) and names.index(layer) not in own):
            continue
        index = names.index(layer) if isinstance(layer, str) else own[_position(model, own, layer)]
        if not model.reads_level(index):
            raise ConfigError(
                f"the class does not depend on the patches of {names[index]}: after it the class token alone is read; "
                + (f"take {names[index - 1]} or an earlier level" if index else "this model has no earlier level")
            )
        chosen.append(Level(stream.name, index, names[index], model.feature_info[index].tiles))
    if not chosen:
        raise ConfigError(f"level {layer!r} belongs to a stream without an input")
    return chosen


def _position(model: VisionModel, own: Sequence[int], layer: int | str | None) -> int:
    if layer is None:
        return -1 if model.reads_level(own[-1]) or len(own) == 1 else -2
    if isinstance(layer, bool) or not isinstance(layer, int) or not -len(own) <= layer < len(own):
        raise ConfigError(f"layer must be a level from {-len(own)} to {len(own) - 1}, got {layer!r}")
    return layer


def level_gradients(
    model: VisionModel, inputs: Sequence[Tensor | None], target: Tensor, levels: Sequence[Level]
) -> list[LevelGradient]:
    """Compute the values of levels and the gradients of each image's class with respect to them.

    Args:
        model: The model, in evaluation mode.
        inputs: One tensor ``(B, C, H, W)`` for each stream, or None.
        target: Class of each image, shape ``(B,)``.
        levels: The levels.
    """
    probes: dict[str, Tensor] = {}
    thread = threading.get_ident()
    handles = [
        model.level_module(level.index).register_forward_hook(partial(_probe, probes, thread, level.name))
        for level in levels
    ]
    try:
        with frozen(model), torch.enable_grad():
            logits = model(*inputs)
            score = total_score(logits, target)
            gradients = torch.autograd.grad(score, [probes[level.name] for level in levels])
    finally:
        for handle in handles:
            handle.remove()
    values = level_values(model, inputs, levels)
    return [
        LevelGradient(level, value, model.level_as_map(level.index, gradient, tuple(value.shape[2:])).float())
        for level, value, gradient in zip(levels, values, gradients, strict=True)
    ]


def level_values(model: VisionModel, inputs: Sequence[Tensor | None], levels: Sequence[Level]) -> list[Tensor]:
    """Compute the values of levels, ``(B, C, h, w)`` each, float32."""
    with torch.no_grad():
        maps = model.forward_intermediates(inputs, indices=[level.index for level in levels], intermediates_only=True)
    return [x.float() for x in maps]


def _probe(
    probes: dict[str, Tensor], thread: int, name: str, module: nn.Module, arguments: Any, output: Tensor
) -> Tensor:
    """Add zeros to the output of a module: their gradient is that of the output."""
    if threading.get_ident() != thread:
        return output  # another thread uses the model meanwhile
    probes[name] = torch.zeros_like(output, requires_grad=True)
    return output + probes[name]
