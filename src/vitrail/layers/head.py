"""From the last tokens to logits: pooling, then a classifier."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.attention import attend, attention_weights
from vitrail.layers.mlp import make_mlp
from vitrail.layers.norms import make_norm
from vitrail.layers.symbolic import one_node

Pool = Literal["avg", "max", "avgmax", "map", ""]
_FIXED = ("token", "avg", "max", "avgmax", "")


def pool_tokens(x: Tensor, pool: str, dims: tuple[int, ...], num_prefix: int = 0, num_class_tokens: int = 1) -> Tensor:
    """Pool tokens over their positions.

    Args:
        x: Tokens, of any shape; with prefix tokens ``(B, N, C)``.
        pool: "avg" for the mean, "max" for the largest value of each channel, "avgmax" for the mean of the two,
            "token" for the class token or the mean of several, "" for all tokens as they are.
        dims: Dimensions of the positions, which are pooled away.
        num_prefix: Tokens before the patches, which only "token" and "" read.
        num_class_tokens: Class tokens among them, at the start.

    Raises:
        ConfigError: Another pooling.
    """
    if pool not in _FIXED:
        raise ConfigError(f"pool must be {' or '.join(map(repr, _FIXED))}, got {pool!r}; for 'map' use AttentionPool")
    if not pool:
        return x
    if pool == "token":
        return x[:, 0] if num_class_tokens == 1 else x[:, :num_class_tokens].mean(dim=1)
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


class AttentionPool(nn.Module):
    """Pool tokens by the attention of one learned query, then an MLP on a residual branch.

    Args:
        dim: Number of channels.
        num_heads: Number of attention heads; divides ``dim``.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        norm_layer: Name of the norm.
        norm_eps: Epsilon of the norm.
        act_layer: Name of the MLP's activation; GELU when not given.

    Source: Zhai et al. 2022, arXiv:2106.04560, section 3.3 (MAP head); names as timm's AttentionPoolLatent.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        norm_layer: str = "layernorm",
        norm_eps: float = 1e-6,
        act_layer: str | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=dim**-0.5))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = make_norm(norm_layer, dim, norm_eps)
        self.mlp = make_mlp("mlp", dim, int(dim * mlp_ratio), act_layer=act_layer)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the query, keys and values by head, ``(B, heads, 1 or N, d)``, of tokens ``(B, N, C)``."""
        B, N, C = x.shape
        q = self.q(self.latent.expand(B, -1, -1)).view(B, 1, self.num_heads, C // self.num_heads)
        kv = self.kv(x).view(B, N, 2, self.num_heads, C // self.num_heads)
        k, v = kv.unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def weights(self, x: Tensor) -> Tensor:
        """Compute the weight of each token ``(B, N, C)`` in the pooling, by head, ``(B, heads, N)``."""
        q, k, _ = self.queries_keys_values(x)
        return attention_weights(q, k)[:, :, 0]

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Pool ``(B, N, C)`` to ``(B, C)``."""
        q, k, v = self.queries_keys_values(x)
        mixed = attend(q, k, v)
        pooled = self.proj(mixed.transpose(1, 2).flatten(2))
        out: Tensor = pooled + self.mlp(self.norm(pooled))
        return out[:, 0]
