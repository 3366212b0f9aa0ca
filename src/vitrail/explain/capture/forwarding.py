"""Models as functions of the inputs that were given, as captum wants them, and in pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.models.base import VisionModel

Inputs = Sequence[Tensor | None]
SCORES = ("probability", "independent", "logit")


def given(model: VisionModel, inputs: Inputs) -> dict[str, Tensor]:
    """The inputs that are there, by the names of their streams."""
    return {stream.name: x for stream, x in zip(model.streams, inputs, strict=False) if x is not None}


def forward_of(model: VisionModel, inputs: Inputs) -> Callable[..., Tensor]:
    """The model as a function of those inputs alone that are there; the others stay left out."""
    present = [x is not None for x in inputs]

    def forward(*tensors: Tensor) -> Tensor:
        remaining = iter(tensors)
        logits: Tensor = model(*(next(remaining) if there else None for there in present))
        return logits

    return forward


def in_batches(count: int, batch_size: int) -> Iterator[slice]:
    """Slices of at most ``batch_size`` out of ``count``.

    Raises:
        ConfigError: A batch without images.
    """
    check_count("batch_size", batch_size)
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))


def check_count(name: str, value: int, minimum: int = 1) -> None:
    """Refuse what is no whole number or too small.

    Raises:
        ConfigError: Naming the setting and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} must be a whole number of at least {minimum}, got {value!r}")


def slice_inputs(inputs: Inputs, part: slice) -> tuple[Tensor | None, ...]:
    """Some of the images of every stream."""
    return tuple(None if x is None else x[part] for x in inputs)


def check_score(score: str) -> None:
    """Refuse a score that there is not.

    Raises:
        ConfigError: Naming those that there are.
    """
    if score not in SCORES:
        raise ConfigError(f"score must be one of {', '.join(SCORES)}, got {score!r}")


def to_scores(logits: Tensor, score: str) -> Tensor:
    """Logits as they are, as probabilities of one class out of all, or of each label independently."""
    if score == "logit":
        return logits
    return logits.softmax(dim=1) if score == "probability" else logits.sigmoid()


def score_class(model: VisionModel, inputs: Inputs, target: Tensor, score: str) -> Tensor:
    """The score of each image's class, shape ``(B,)``, without a graph."""
    with torch.no_grad():
        logits: Tensor = model(*inputs)
        return to_scores(logits.float(), score).gather(1, target[:, None])[:, 0]
