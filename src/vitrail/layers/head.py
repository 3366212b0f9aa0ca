"""From the last tokens to logits: pooling, then a classifier."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from vitrail.layers.norms import make_norm

Pool = Literal["avg", "max", "avgmax", ""]
POOLS = ("avg", "max", "avgmax", "")


def pool_tokens(x: Tensor, pool: str, dims: tuple[int, ...], num_prefix: int = 0) -> Tensor:
    """Pool tokens over their positions.

    Args:
        x: Tokens, of any shape; with prefix tokens ``(B, N, C)``.
        pool: "avg" for the mean, "max" for the largest value of each channel, "avgmax" for the mean of the two,
            "token" for the first token, "" for all tokens as they are.
        dims: Dimensions of the positions, which are pooled away.
        num_prefix: Tokens before the patches, which only "token" and "" read.
    """
    if not pool:
        return x
    if pool == "token":
        return x[:, 0]
    patches = x[:, num_prefix:] if num_prefix else x
    if pool == "avg":
        return patches.mean(dim=dims)
    largest = patches.amax(dim=dims)
    return largest if pool == "max" else 0.5 * (largest + patches.mean(dim=dims))


def linear_classifier(dim: int, num_classes: int, bias: bool = True) -> nn.Module:
    """Make a linear layer from ``dim`` features to logits; the identity for no classes."""
    return nn.Linear(dim, num_classes, bias=bias) if num_classes else nn.Identity()


class Head(nn.Module):
    """Classifier of pooled tokens: where wanted a norm and a hidden layer with tanh, then a linear layer.

    Args:
        dim: Number of channels of the pooled tokens.
        num_classes: Number of logits; 0: no linear layer.
        hidden_dim: Width of the hidden layer; 0: neither norm nor hidden layer.
        bias: Whether the linear layer has a bias.
        norm_eps: Epsilon of the norm.
        drop_rate: Dropout rate of the linear layer's input in training.
        norm_layer: Name of the norm, see :mod:`vitrail.layers.norms`.

    Source: Tu et al. 2022, arXiv:2204.01697, the authors' code for the hidden layer.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        hidden_dim: int = 0,
        bias: bool = True,
        norm_eps: float = 1e-5,
        drop_rate: float = 0.0,
        norm_layer: str = "layernorm",
    ) -> None:
        super().__init__()
        self.norm: nn.Module = nn.Identity()
        self.pre_logits: nn.Module = nn.Identity()
        if hidden_dim:
            self.norm = make_norm(norm_layer, dim, norm_eps)
            self.pre_logits = nn.Sequential()
            self.pre_logits.add_module("fc", nn.Linear(dim, hidden_dim))
            self.pre_logits.add_module("act", nn.Tanh())
        self.drop = nn.Dropout(drop_rate)
        self.fc = linear_classifier(hidden_dim or dim, num_classes, bias)

    def hidden(self, x: Tensor) -> Tensor:
        """Compute the linear layer's input; pooled tokens ``(B, dim)`` to ``(B, hidden_dim or dim)``."""
        out: Tensor = self.pre_logits(self.norm(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Classify pooled tokens; ``(B, dim)`` to logits ``(B, num_classes)``."""
        logits: Tensor = self.fc(self.drop(self.hidden(x)))
        return logits
