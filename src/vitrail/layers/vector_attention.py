"""Attention between lists of vectors, and the equivariant transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.attention import attend, mask_to_bias
from vitrail.layers.drop_path import DropPath
from vitrail.layers.masked import masked_mean
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import AttentionTap, TokenLayout
from vitrail.layers.vector_neurons import VNLayerNorm, VNLeakyReLU, VNLinear


class VNAttention(nn.Module):
    """Multi-head attention whose scores are Frobenius products, ``<Q_i, K_j> / sqrt(S d)``.

    A product of two lists of d vectors with S coordinates is that of two lists of S d numbers, so that the fused kernel
    of ordinary attention computes it, with its own scale. Scores are invariant, so the result is equivariant.

    Args:
        dim: Number of channels.
        num_heads: Number of attention heads; must divide ``dim``.
        bias_eps: As of :class:`~vitrail.layers.vector_neurons.VNLinear`.
        num_coords: Coordinates of a vector.
        attn_drop: Dropout rate of the weights in training; dropping numbers of a vector would break equivariance.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``.

    Source: Assaad et al. 2022, arXiv:2206.04176, section 4.2.
    """

    def __init__(
        self, dim: int, num_heads: int, bias_eps: float = 0.0, num_coords: int = 3, attn_drop: float = 0.0
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(f"num_heads must divide the width {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.q, self.k, self.v, self.proj = (VNLinear(dim, dim, bias_eps, num_coords) for _ in range(4))
        self.tap = AttentionTap()

    def split_heads(self, x: Tensor) -> Tensor:
        """Reshape ``(B, N, S, C)`` to ``(B, heads, N, S d)``."""
        B, N, S, C = x.shape
        return x.view(B, N, S, self.num_heads, C // self.num_heads).permute(0, 3, 1, 2, 4).flatten(-2)

    def merge_heads(self, x: Tensor, num_coords: int) -> Tensor:
        """Reshape ``(B, heads, N, S d)`` to ``(B, N, S, C)``."""
        B, H, N, _ = x.shape
        return x.view(B, H, N, num_coords, -1).permute(0, 2, 3, 1, 4).flatten(-2)

    @one_node
    def forward(self, x: Tensor, mask: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """Mix points.

        Args:
            x: Vectors, shape ``(B, N, S, C)``.
            mask: True for real points, shape ``(B, N)``; others are not keys.
            queries: Vectors that attend to the points, shape ``(B, M, S, C)``; the points themselves when not given.

        Returns:
            Shape ``(B, N, S, C)``, or ``(B, M, S, C)``.
        """
        points = (x.shape[1],)
        layout = TokenLayout("global", points, points) if queries is None else TokenLayout("cross", None, points)
        q = self.split_heads(self.q(x if queries is None else queries))
        k, v = self.split_heads(self.k(x)), self.split_heads(self.v(x))
        bias = None if mask is None else mask_to_bias(~mask, q.dtype)[:, None, None]
        dropout = self.attn_drop if self.training else 0.0
        mixed = attend(q, k, v, tap=self.tap, layout=layout, bias=bias, dropout=dropout)
        out: Tensor = self.proj(self.merge_heads(mixed, x.shape[-2]))
        return out


class VNLatentQueries(nn.Module):
    """Queries that are learned linear maps of the mean over the points.

    Attention of M queries to N points costs N M scores instead of N^2.

    Args:
        dim: Number of channels.
        num_queries: Number of queries.
        out_dim: Channels of a query; ``dim`` when not given.

    Source: arXiv:2206.04176, section 6.
    """

    def __init__(self, dim: int, num_queries: int, out_dim: int | None = None) -> None:
        super().__init__()
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(num_queries, out_dim or dim, dim).uniform_(-bound, bound))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map points ``(B, N, S, C)`` to queries ``(B, M, S, C')``; ``mask`` is true for real points."""
        return torch.einsum("bsc,mdc->bmsd", masked_mean(x, mask), self.weight)


class VNMlp(nn.Module):
    """Two linear layers with a ReLU along learned directions between them.

    Args:
        dim: Number of channels.
        hidden_dim: Channels between the layers.
        negative_slope: As of :class:`~vitrail.layers.vector_neurons.VNLeakyReLU`.
    """

    def __init__(self, dim: int, hidden_dim: int, negative_slope: float = 0.0) -> None:
        super().__init__()
        self.fc1 = VNLinear(dim, hidden_dim)
        self.act = VNLeakyReLU(hidden_dim, negative_slope)
        self.fc2 = VNLinear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., S, dim)`` to the same shape."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class VNBlock(nn.Module):
    """Pre-norm equivariant transformer block: attention and an MLP, each on a residual branch.

    Args:
        dim: Number of channels.
        num_heads: Number of attention heads.
        mlp_ratio: Hidden channels of the MLP over ``dim``.
        drop_path: Probability of dropping a branch.
        num_coords: Coordinates of a vector.
        negative_slope: Negative slope of the MLP's activation.
        attn_drop: Dropout rate of the attention weights in training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        num_coords: int = 3,
        negative_slope: float = 0.0,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = VNLayerNorm(dim)
        self.attn = VNAttention(dim, num_heads, num_coords=num_coords, attn_drop=attn_drop)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = VNLayerNorm(dim)
        self.mlp = VNMlp(dim, int(dim * mlp_ratio), negative_slope)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the points, then the channels of each; ``(B, N, S, C)`` in and out."""
        x = x + self.drop_path1(self.attn(self.norm1(x), mask))
        out: Tensor = x + self.drop_path2(self.mlp(self.norm2(x)))
        return out
