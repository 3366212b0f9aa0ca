"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.checks import check_named
from vitrail.layers.fast.dispatch import with_fast_path

Approximate = Literal["none", "tanh"]


@with_fast_path("gelu")
def gelu(x: Tensor, approximate: Approximate = "none") -> Tensor:
    """Apply GELU elementwise.

    Args:
        x: Any shape.
        approximate: ``"none"`` for the exact (erf) form, ``"tanh"`` for that of flax and TensorFlow.

    Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2.
    """
    return F.gelu(x, approximate=approximate)


class Gelu(nn.Module):
    """:func:`gelu` as a layer.

    Args:
        approximate: ``"none"`` or ``"tanh"``.
    """

    def __init__(self, approximate: Approximate = "none") -> None:
        super().__init__()
        self.approximate: Approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same."""
        return gelu(x, self.approximate)

    def extra_repr(self) -> str:
        """Show the form when the model is printed."""
        return f"approximate={self.approximate!r}"


class QuickGelu(nn.Module):
    """The logistic approximation of GELU, ``x sigmoid(1.702 x)``, of OpenAI's CLIP.

    Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": Gelu,
    "gelu_tanh": lambda: Gelu("tanh"),
    "quick_gelu": QuickGelu,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "mish": nn.Mish,
    "hard_swish": nn.Hardswish,
    "tanh": nn.Tanh,
}


def make_activation(name: str) -> nn.Module:
    """Make an activation function by its name in :data:`ACTIVATIONS`, those of timm.

    Raises:
        ConfigError: An unknown name.
    """
    check_named("act_layer", name, ACTIVATIONS)
    return ACTIVATIONS[name]()
