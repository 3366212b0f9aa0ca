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
        shapes: Shape of each input without its batch.
    """

    def __init__(self, traced: nn.Module, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.traced = traced
        self.shape, self.spectral_shape = list(shapes[0]), list(shapes[-1])
        self.train(traced.training)
        self.recorded_in_training = traced.training

    def check(self, x: Tensor, shape: list[int]) -> None:
        """Refuse inputs that the trace would compute wrongly."""
        if self.training != self.recorded_in_training:
            raise ValueError("scripted in another mode; call train() or eval() before torch.jit.script")
        if list(x.shape)[1:] != shape:
            raise ValueError(f"scripted for inputs of shape {shape}; build the model with another img_size")


class TracedModel(_Traced):
    """Classifies images ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        self.check(x, self.shape)
        logits: Tensor = self.traced(x)
        return logits


class TracedTwoStreams(_Traced):
    """Classifies images ``(B, C, H, W)`` with spectral inputs ``(B, S, h, w)``."""

    def forward(self, image: Tensor, spectral: Tensor) -> Tensor:  # noqa: D102
        self.check(image, self.shape)
        self.check(spectral, self.spectral_shape)
        logits: Tensor = self.traced(image, spectral)
        return logits


class TracedEncoder(_Traced):
    """Computes the feature maps of images ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> list[Tensor]:  # noqa: D102
        self.check(x, self.shape)
        maps: list[Tensor] = self.traced(x)
        return maps


class TracedTwoStreamEncoder(_Traced):
    """Computes the feature maps of images ``(B, C, H, W)`` with spectral inputs ``(B, S, h, w)``."""

    def forward(self, x: Tensor, spectral: Tensor) -> list[Tensor]:  # noqa: D102
        self.check(x, self.shape)
        self.check(spectral, self.spectral_shape)
        maps: list[Tensor] = self.traced(x, spectral)
        return maps


def as_traced(model: nn.Module, shapes: Sequence[tuple[int, ...]], encoder: bool = False) -> nn.Module:
    """Trace a model for ``torch.jit.script``; its buffers and the random state stay as they are.

    Args:
        model: A model or a feature encoder, in the mode in which the script is to run.
        shapes: Shape of each input without its batch.
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
    return kinds[len(shapes) - 1](traced, shapes)
