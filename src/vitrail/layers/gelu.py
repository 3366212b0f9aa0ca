"""GELU, exact or in the tanh form; the tanh form at half the price on a CPU that only infers."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.modes import in_transform
from vitrail.layers.symbolic import is_symbolic

Approximate = Literal["none", "tanh"]

# 0.5 x (1 + tanh(sqrt(2 / pi) (x + c x^3))) = x sigmoid(2 sqrt(2 / pi) (x + c x^3)), this c and factor.
_CUBIC = 0.044715
_FACTOR = 2.0 * (2.0 / torch.pi) ** 0.5


def infers_on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is a plain float tensor on the CPU in eager code without gradients or transforms.

    Only there may a layer take a route that differs from its plain operations in memory traffic alone: a
    compiler arranges that better by itself, and what is exported or differentiated should be what is written.
    """
    return (
        not is_symbolic(x)
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()
        and not in_transform()
        and not torch.is_autocast_enabled("cpu")
    )


def gelu(x: Tensor, approximate: Approximate = "none") -> Tensor:
    """GELU of any shape.

    torch's CPU kernel computes the hyperbolic tangent at several times the price of the logistic function,
    which gives the same to rounding; on large inputs that outweighs the additional passes over memory.

    Args:
        x: Any shape.
        approximate: ``"none"`` for the exact (erf) form, ``"tanh"`` for the one that flax and TensorFlow use.

    Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2.
    """
    if approximate == "none" or not infers_on_cpu(x):
        return F.gelu(x, approximate=approximate)
    gate = x.pow(3)
    torch.add(x, gate, alpha=_CUBIC, out=gate)
    return gate.mul_(_FACTOR).sigmoid_().mul_(x)


def gelu_(x: Tensor, approximate: Approximate = "none") -> Tensor:
    """:func:`gelu` that may overwrite ``x``, and does where that is the quicker way; for inference on a CPU."""
    return torch.ops.aten.gelu_(x) if approximate == "none" else gelu(x, approximate)


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
