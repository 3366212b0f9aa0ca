"""The two-layer perceptron of every transformer block."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, GELU, linear, applied to each token alone.

    Args:
        dim: Width of a token.
        hidden_dim: Width between the two layers.
        out_dim: Width of the result; ``dim`` when not given.
        approximate: ``"none"`` for the exact (erf) GELU, ``"tanh"`` for the form that flax and TensorFlow use.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, equation 3.
    """

    def __init__(
        self, dim: int, hidden_dim: int, out_dim: int | None = None, approximate: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU(approximate=approximate)
        self.fc2 = nn.Linear(hidden_dim, dim if out_dim is None else out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to ``(..., out_dim)``."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out
