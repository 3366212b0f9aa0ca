"""``torch.jit.script``: the TorchScript form of a model is a trace that checks its limits at each call.

Layers that TorchScript could compile would have neither taps nor cached plans of windows nor fast paths, and torch 2.13
deprecates TorchScript.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class _Traced(nn.Module):
    """A trace that runs in the mode and on the sizes it was recorded with.

    Args:
        traced: The trace.
        sizes: Height and width of each input.
    """

    def __init__(self, traced: nn.Module, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.traced = traced
        self.size, self.spectral_size = list(sizes[0]), list(sizes[-1])
        self.train(traced.training)
        self.recorded_in_training = traced.training

    def check(self, x: Tensor, size: list[int]) -> None:
        """Refuse inputs that the trace would compute wrongly."""
        if self.training != self.recorded_in_training:
            raise ValueError("scripted in another mode; call train() or eval() before torch.jit.script")
        if x.dim() != 4 or x.size(2) != size[0] or x.size(3) != size[1]:
            raise ValueError(f"scripted for inputs of {size[0]} x {size[1]}; build the model with another img_size")


class TracedModel(_Traced):
    """Classifies images ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        self.check(x, self.size)
        logits: Tensor = self.traced(x)
        return logits


class TracedTwoStreams(_Traced):
    """Classifies images ``(B, C, H, W)`` with spectral inputs ``(B, S, h, w)``."""

    def forward(self, image: Tensor, spectral: Tensor) -> Tensor:  # noqa: D102
        self.check(image, self.size)
        self.check(spectral, self.spectral_size)
        logits: Tensor = self.traced(image, spectral)
        return logits


class TracedEncoder(_Traced):
    """Computes the feature maps of images ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> list[Tensor]:  # noqa: D102
        self.check(x, self.size)
        maps: list[Tensor] = self.traced(x)
        return maps


class TracedTwoStreamEncoder(_Traced):
    """Computes the feature maps of images ``(B, C, H, W)`` with spectral inputs ``(B, S, h, w)``."""

    def forward(self, x: Tensor, spectral: Tensor) -> list[Tensor]:  # noqa: D102
        self.check(x, self.size)
        self.check(spectral, self.spectral_size)
        maps: list[Tensor] = self.traced(x, spectral)
        return maps


def as_traced(model: nn.Module, shapes: Sequence[tuple[int, int, int]], encoder: bool = False) -> nn.Module:
    """Trace a model for ``torch.jit.script``; its buffers and the random state stay as they are.

    Args:
        model: A model or a feature encoder, in the mode in which the script is to run.
        shapes: Bands, height and width of each input.
        encoder: Whether the result is a list of maps.
    """
    parameter = next(model.parameters())
    inputs = tuple(torch.zeros(2, *shape, device=parameter.device, dtype=parameter.dtype) for shape in shapes)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(), warnings.catch_warnings():
        # The trace depends on the sizes, which are checked at each call.
        warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
        # A second run would draw other samples for stochastic depth and count batches twice.
        traced = torch.jit.trace(model, inputs, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    kinds = (TracedEncoder, TracedTwoStreamEncoder) if encoder else (TracedModel, TracedTwoStreams)
    return kinds[len(shapes) - 1](traced, [shape[1:] for shape in shapes])
