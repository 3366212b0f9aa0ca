"""Occlusion: drop of the class's logit when a window of the image is covered, by captum."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.forwarding import Inputs, forward_of, in_batches, inputs_by_stream
from vitrail.explain.methods.baselines import make_baseline
from vitrail.explain.methods.maps import StreamMap, as_streams
from vitrail.explain.methods.registry import register_method
from vitrail.layers.shapes import to_pair
from vitrail.models.base import VisionModel

# Default number of windows along a side.
_WINDOWS = 8


@register_method("occlusion", by_class=True, signed=True)
def _occlusion(
    model: VisionModel,
    inputs: Inputs,
    target: Tensor | None,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    baseline: str = "zero",
    batch_size: int = 16,
) -> dict[str, StreamMap]:
    """Drop of the class's logit when a window of the image is covered (Zeiler & Fergus 2014).

    Signed: negative where the logit rises. A pixel has the mean over the windows that cover it. Window and stride, in
    pixels, are by default an eighth and a sixteenth of the sides: about 225 forward passes for each image and stream.
    Streams are covered one at a time. ``baseline`` replaces the window: "zero" (the mean of the data set), "mean" (of
    each band of the image) or "blur". Source: arXiv:1311.2901, section 4.2.
    """
    from captum.attr import Occlusion

    assert target is not None, "explain() passes a target to methods by class"
    images = inputs_by_stream(model, inputs)
    forward = forward_of(model, inputs)
    maps = []
    for position, (name, image) in enumerate(images.items()):
        size = (image.shape[2], image.shape[3])
        shape, step = _window(name, size, window, stride)
        pieces = []
        for part in in_batches(len(image), batch_size):
            others = [x[part] for x in images.values()]

            def covered(x: Tensor, *rest: Tensor, position: int = position) -> Tensor:
                return forward(*rest[:position], x, *rest[position:])

            with torch.no_grad():
                found = Occlusion(covered).attribute(
                    others[position],
                    (image.shape[1], *shape),
                    (image.shape[1], *step),
                    make_baseline(others[position], baseline),
                    target[part],
                    tuple(others[:position] + others[position + 1 :]),
                    perturbations_per_eval=max(1, batch_size // len(others[position])),
                )
            pieces.append(found[:, 0])  # all bands are covered together
        maps.append(torch.cat(pieces))
    return as_streams(list(images), maps)


def _window(
    name: str,
    size: tuple[int, int],
    window: int | tuple[int, int] | None,
    stride: int | tuple[int, int] | None,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Resolve window and stride of a stream."""
    if window is None:
        shape = (max(1, size[0] // _WINDOWS), max(1, size[1] // _WINDOWS))
    else:
        shape = to_pair(window, "window")
    step = (max(1, shape[0] // 2), max(1, shape[1] // 2)) if stride is None else to_pair(stride, "stride")
    for side, cover, move in zip(size, shape, step, strict=True):
        if not 1 <= cover <= side:
            raise ConfigError(f"window must be from 1 to {side} pixels, the side of {name!r}, got {shape}")
        if not 1 <= move <= cover:
            raise ConfigError(
                f"stride must be from 1 to {cover} pixels, the side of the window, got {step}; others leave gaps"
            )
    return shape, step
