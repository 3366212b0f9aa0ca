"""The MLP of every transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from vitrail.layers.fast.dispatch import with_fast_path
from vitrail.layers.gelu import Approximate, Gelu


class Mlp(nn.Module):
    """Linear, GELU, linear, applied to each token alone.

    Args:
        dim: Number of channels of the input.
        hidden_dim: Number of channels of the hidden layer.
        out_dim: Number of channels of the output; ``dim`` when not given.
        approximate: ``"none"`` for the exact (erf) GELU, ``"tanh"`` for the form of flax and TensorFlow.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, equation 3.
    """

    def __init__(
        self, dim: int, hidden_dim: int, out_dim: int | None = None, approximate: Approximate = "none"
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = Gelu(approximate)
        self.fc2 = nn.Linear(hidden_dim, dim if out_dim is None else out_dim)

    @with_fast_path("mlp")
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to ``(..., out_dim)``."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out
