"""The two-layer perceptron of every transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from vitrail.layers.gelu import Approximate, Gelu


class Mlp(nn.Module):
    """Linear, GELU, linear, applied to each token alone.

    Args:
        dim: Width of a token.
        hidden_dim: Width between the two layers.
        out_dim: Width of the result; ``dim`` when not given.
        approximate: ``"none"`` for the exact (erf) GELU, ``"tanh"`` for flax's and TensorFlow's form.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, equation 3.
    """

    def __init__(
        self, dim: int, hidden_dim: int, out_dim: int | None = None, approximate: Approximate = "none"
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = Gelu(approximate)
        self.fc2 = nn.Linear(hidden_dim, dim if out_dim is None else out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to ``(..., out_dim)``."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out
