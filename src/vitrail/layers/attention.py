"""Scaled dot-product attention: fused, or explicit while a tap is armed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.fast.dispatch import with_fast_path
from vitrail.layers.modes import in_transform, known
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import AttentionTap, TokenLayout


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute softmax(Q K^T / sqrt(d) + bias), which the fused kernel does not return.

    Args:
        q: Queries, shape ``(..., heads, N, d)``.
        k: Keys, shape ``(..., heads, M, d)``.
        bias: Added before the softmax, broadcast to ``(..., heads, N, M)``.

    Returns:
        Weights, shape ``(..., heads, N, M)``; each row sums to one.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1.
    """
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, tap: AttentionTap, layout: TokenLayout, bias: Tensor | None = None
) -> Tensor:
    """Attend through the fused kernel, or explicitly while ``tap`` is armed; equal to rounding.

    Args:
        q: Queries, shape ``(B, heads, N, d)``, or ``(B, G, heads, N, d)`` for G groups of tokens in each image.
        k: Keys, shape ``(B, heads, M, d)``, or ``(B, G, heads, M, d)``.
        v: Values, shape ``(B, heads, M, e)``, or ``(B, G, heads, M, e)``.
        tap: Receives the weights while armed, those of groups as ``(B * G, heads, N, M)``.
        layout: What the rows and columns of the weights are.
        bias: Added before the softmax, broadcast to ``(B, heads, N, M)``, or one for each group, ``(G, heads or
            1, N, M)``; minus infinity masks a key.

    Returns:
        Mixed values, shape ``(B, heads, N, e)`` or ``(B, G, heads, N, e)``.
    """
    # torch.func has no rules for the fused kernel.
    if not tap.armed and not in_transform():
        return fused_attention(q, k, v, bias)
    weights = attention_weights(q, k, bias)
    # The reported tensor is the one that mixes the values, so that gradients reach it.
    reported = weights.flatten(0, -4)
    tap.report(reported, layout)
    return reported.view_as(weights) @ v


@with_fast_path("attention")
def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend through torch's fused kernel, whose one batch dimension holds the groups of all images.

    Arguments and result are those of :func:`attend`.
    """
    if q.ndim == 4:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    images, groups = q.shape[:2]
    if bias is not None and not known(bias.shape[0] == 1):
        bias = bias.expand(images, -1, -1, -1, -1).flatten(0, 1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).view(images, groups, *v.shape[1:])


class Attention(nn.Module):
    """Multi-head self-attention over all tokens.

    Args:
        dim: Number of channels.
        num_heads: Number of attention heads; must divide ``dim``.
        qkv_bias: Whether queries, keys and values have a bias.

    Attributes:
        factor: Of the scores, besides the root of the width of a head.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, appendix A.
    """

    factor = 1.0

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(f"num_heads must divide the width {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.tap = AttentionTap()

    @one_node
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
        """Mix tokens in groups, for example windows.

        Args:
            x: Tokens, shape ``(B, N, C)``, or ``(B, G, N, C)`` for G groups of tokens in each image.
            layout: What the groups are, for the tap.
            bias: Added before the softmax, as for :func:`attend`.

        Returns:
            Tokens, shape of ``x``.
        """
        qkv = self.qkv(x).view(*x.shape[:-1], 3, self.num_heads, x.shape[-1] // self.num_heads)
        q, k, v = (part.transpose(-3, -2) for part in qkv.unbind(-3))
        if self.factor != 1.0:
            q = q * self.factor
        mixed = attend(q, k, v, tap=self.tap, layout=layout, bias=bias)
        out: Tensor = self.proj(mixed.transpose(-3, -2).flatten(-2))
        return out


def mask_to_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask (True: masked) into the bias that applies it: 0 or minus infinity."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
