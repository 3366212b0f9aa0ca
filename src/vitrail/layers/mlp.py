"""The MLP of every transformer block, plain or gated."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vitrail.layers.activations import make_activation
from vitrail.layers.checks import check_named
from vitrail.layers.fast.dispatch import with_fast_path


class Mlp(nn.Module):
    """Linear, activation, linear, applied to each token alone, with dropout after both.

    Args:
        dim: Number of channels of the input.
        hidden_dim: Number of channels of the hidden layer.
        out_dim: Number of channels of the output; ``dim`` when not given.
        act_layer: Name of the activation, see :mod:`vitrail.layers.activations`.
        drop: Dropout rate in training.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, equation 3.
    """

    def __init__(
        self, dim: int, hidden_dim: int, out_dim: int | None = None, act_layer: str = "gelu", drop: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = make_activation(act_layer)
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, dim if out_dim is None else out_dim)
        self.drop2 = nn.Dropout(drop)

    @with_fast_path("mlp")
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to ``(..., out_dim)``."""
        hidden = self.drop1(self.act(self.fc1(x)))
        out: Tensor = self.drop2(self.fc2(hidden))
        return out


class SwiGlu(nn.Module):
    """Gated MLP: a linear map, times an activation of another one, then a linear map, with dropout after both.

    Gate and value are one matrix, gate first, as in DINOv2.

    Args:
        dim: Number of channels of the input.
        hidden_dim: Number of channels of the hidden layer.
        out_dim: Number of channels of the output; ``dim`` when not given.
        act_layer: Name of the gate's activation, see :mod:`vitrail.layers.activations`.
        drop: Dropout rate in training.

    Source: Shazeer 2020, arXiv:2002.05202, equation 6.
    """

    def __init__(
        self, dim: int, hidden_dim: int, out_dim: int | None = None, act_layer: str = "silu", drop: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.fc1 = nn.Linear(dim, 2 * hidden_dim)
        self.act = make_activation(act_layer)
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, dim if out_dim is None else out_dim)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to ``(..., out_dim)``."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        hidden = self.drop1(self.act(gate) * value)
        out: Tensor = self.drop2(self.fc2(hidden))
        return out


MLPS: Mapping[str, type[Mlp] | type[SwiGlu]] = {"mlp": Mlp, "swiglu": SwiGlu}
# The activation of each where none is given.
_ACTIVATIONS = {"mlp": "gelu", "swiglu": "silu"}


def make_mlp(name: str, dim: int, hidden_dim: int, act_layer: str | None = None, drop: float = 0.0) -> nn.Module:
    """Make an MLP by its name in :data:`MLPS`.

    Args:
        name: "mlp" or "swiglu".
        dim: Number of channels of the input.
        hidden_dim: Number of channels of the hidden layer.
        act_layer: Name of the activation; when not given GELU for "mlp" and SiLU for "swiglu".
        drop: Dropout rate in training.

    Raises:
        ConfigError: An unknown name.
    """
    check_named("mlp_layer", name, MLPS)
    return MLPS[name](dim, hidden_dim, act_layer=act_layer or _ACTIVATIONS[name], drop=drop)
