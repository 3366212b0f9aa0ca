"""Scaled dot-product attention: fused when nobody watches, explicit when a tap is armed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.modes import in_transform
from vitrail.layers.tap import AttentionTap, TokenLayout


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d) + bias), the matrix that the fused kernel never shows.

    Args:
        q: Queries, shape ``(B, heads, N, d)``.
        k: Keys, shape ``(B, heads, M, d)``.
        bias: Added before the softmax, broadcast to ``(B, heads, N, M)``.

    Returns:
        Weights, shape ``(B, heads, N, M)``; each row sums to one.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1.
    """
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, tap: AttentionTap, layout: TokenLayout, bias: Tensor | None = None
) -> Tensor:
    """Attention through the fused kernel, or explicitly while ``tap`` is armed; equal to rounding.

    Args:
        q: Queries, shape ``(B, heads, N, d)``.
        k: Keys, shape ``(B, heads, M, d)``.
        v: Values, shape ``(B, heads, M, e)``.
        tap: Receives the weights while armed.
        layout: What the rows and columns of the weights are.
        bias: Added before the softmax, broadcast to ``(B, heads, N, M)``; minus infinity masks a key.

    Returns:
        Mixed values, shape ``(B, heads, N, e)``.
    """
    # On the CPU a bias with a gradient sends the fused kernel to a fallback slower than the plain products.
    slow = bias is not None and bias.requires_grad and bias.device.type == "cpu"
    if not tap.armed and not slow and not in_transform():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    weights = attention_weights(q, k, bias)
    tap.report(weights, layout)
    return weights @ v


class Attention(nn.Module):
    """Multi-head self-attention over all tokens.

    Args:
        dim: Width of a token.
        num_heads: Heads; must divide ``dim``.
        qkv_bias: Whether queries, keys and values have a bias.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, appendix A.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(f"num_heads must divide the width {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.tap = AttentionTap()

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None, num_prefix: int = 0) -> Tensor:
        """Mix tokens.

        Args:
            x: Tokens, shape ``(B, N, C)``.
            grid: Height and width of the grid that the tokens after the prefix form, if they do; for the tap.
            num_prefix: Tokens before the grid; for the tap.

        Returns:
            Tokens, shape ``(B, N, C)``.
        """
        return self.mix(x, TokenLayout("global", query_grid=grid, key_grid=grid, num_prefix=num_prefix))

    def mix(self, x: Tensor, layout: TokenLayout, bias: Tensor | None = None) -> Tensor:
        """Mix tokens in groups: each row of the batch is a group of its own.

        Args:
            x: Tokens, shape ``(B, N, C)``; ``B`` counts groups, for example windows.
            layout: What the groups are, for the tap.
            bias: Added before the softmax, broadcast to ``(B, heads, N, N)``; minus infinity masks a key.

        Returns:
            Tokens, shape ``(B, N, C)``.
        """
        B, N, C = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(q, k, v, tap=self.tap, layout=layout, bias=bias)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(B, N, C))
        return out


def mask_to_bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask (True = may attend) into the bias that enforces it: 0 or minus infinity."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, float("-inf"))
