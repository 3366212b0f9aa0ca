"""GELU, exact or in the tanh form."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

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
