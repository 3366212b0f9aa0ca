"""Run a model on its present inputs, in batches, and score a class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.tap import Grid
from vitrail.models.base import VisionModel

Inputs = Sequence[Tensor | None]
SCORES = ("probability", "independent", "logit")


def inputs_by_stream(model: VisionModel, inputs: Inputs) -> dict[str, Tensor]:
    """Return the inputs that are not None, by stream."""
    return {stream.name: x for stream, x in zip(model.streams, inputs, strict=False) if x is not None}


def input_sizes(model: VisionModel, inputs: Inputs) -> dict[str, Grid]:
    """Return the size of the inputs that are not None, by stream: height and width, frames first for a clip."""
    pairs = zip(model.streams, inputs, strict=False)
    return {stream.name: stream.size_of(x) for stream, x in pairs if x is not None}


def forward_of(model: VisionModel, inputs: Inputs) -> Callable[..., Tensor]:
    """Return the model as a function of the inputs that are not None."""
    present = [x is not None for x in inputs]

    def forward(*tensors: Tensor) -> Tensor:
        remaining = iter(tensors)
        logits: Tensor = model(*(next(remaining) if is_present else None for is_present in present))
        return logits

    return forward


def in_batches(count: int, batch_size: int) -> Iterator[slice]:
    """Split ``range(count)`` into slices of at most ``batch_size``.

    Raises:
        ConfigError: ``batch_size`` is below 1.
    """
    check_count("batch_size", batch_size)
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))


def check_count(name: str, value: int, minimum: int = 1) -> None:
    """Check that a setting is a whole number of at least ``minimum``.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} must be a whole number of at least {minimum}, got {value!r}")


def check_positive(name: str, value: float) -> None:
    """Check that a setting is a finite number above 0.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name} must be a finite number above 0, got {value!r}")


def slice_inputs(inputs: Inputs, part: slice) -> tuple[Tensor | None, ...]:
    """Return a slice of the images of every stream."""
    return tuple(None if x is None else x[part] for x in inputs)


def check_score(score: str) -> None:
    """Check the name of a score.

    Raises:
        ConfigError: There is no such score.
    """
    if score not in SCORES:
        raise ConfigError(f"score must be one of {', '.join(SCORES)}, got {score!r}")


def to_scores(logits: Tensor, score: str) -> Tensor:
    """Convert logits to a score: "probability" (softmax), "independent" (sigmoid, for multi-label) or "logit"."""
    if score == "logit":
        return logits
    return logits.softmax(dim=1) if score == "probability" else logits.sigmoid()


def score_class(model: VisionModel, inputs: Inputs, target: Tensor, score: str) -> Tensor:
    """Compute the score of each image's class, shape ``(B,)``, without a graph."""
    with torch.no_grad():
        logits: Tensor = model(*inputs)
        return to_scores(logits.float(), score).gather(1, target[:, None])[:, 0]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Turn gradients of parameters off, so that no layer stores its input for them; restore on exit."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
