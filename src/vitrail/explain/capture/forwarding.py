"""Models as functions of the inputs that were given, as captum wants them, and in pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.interface import StreamMap
from vitrail.models.base import VisionModel

Inputs = Sequence[Tensor | None]


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


def as_streams(names: Sequence[str], maps: Sequence[Tensor]) -> dict[str, StreamMap]:
    """Maps of pixels, whose own grid is that of the pixels, in single precision as those of all methods."""
    maps = [x.float() for x in maps]
    return {name: StreamMap(x, x) for name, x in zip(names, maps, strict=True)}


def check_count(name: str, value: int, minimum: int = 1) -> None:
    """Refuse what is no whole number or too small.

    Raises:
        ConfigError: Naming the setting and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
