"""Scaled dot-product attention: fused, or explicit while a tap is armed."""

from __future__ import annotations

from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.fast.dispatch import with_fast_path
from vitrail.layers.modes import in_transform, known
from vitrail.layers.norms import make_norm
from vitrail.layers.positions import rotate
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import AttentionTap, Grid, TokenLayout


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
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tap: AttentionTap | None = None,
    layout: TokenLayout | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend through the fused kernel, or explicitly while ``tap`` is armed; equal to rounding.

    Args:
        q: Queries, shape ``(B, heads, N, d)``, or ``(B, G, heads, N, d)`` for G groups of tokens in each image.
        k: Keys, shape ``(B, heads, M, d)``, or ``(B, G, heads, M, d)``.
        v: Values, shape ``(B, heads, M, e)``, or ``(B, G, heads, M, e)``.
        tap: Receives the weights while armed, those of groups as ``(B * G, heads, N, M)``; without dropout.
        layout: Layout of the rows and columns of the weights, for the tap.
        bias: Added before the softmax, broadcast to ``(B, heads, N, M)``, or one for each group, ``(G, heads or
            1, N, M)``; minus infinity masks a key.
        dropout: Probability of zeroing a weight.

    Returns:
        Mixed values, shape ``(B, heads, N, e)`` or ``(B, G, heads, N, e)``.
    """
    armed = tap is not None and tap.armed
    # torch.func has no rules for the fused kernel.
    if not armed and not in_transform():
        return fused_attention(q, k, v, bias, dropout)
    weights = attention_weights(q, k, bias)
    # The reported tensor is the one that mixes the values, so that gradients reach it.
    reported = weights.flatten(0, -4)
    if tap is not None and layout is not None:
        tap.report(reported, layout)
    return F.dropout(reported.view_as(weights), dropout) @ v


@with_fast_path("attention")
def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attend through torch's fused kernel, whose one batch dimension holds the groups of all images.

    Arguments and result are those of :func:`attend`.
    """
    if q.ndim == 4:
        return F.scaled_dot_product_attention(q, k, v, bias, dropout)
    images, groups = q.shape[:2]
    if bias is not None and not known(bias.shape[0] == 1):
        bias = bias.expand(images, -1, -1, -1, -1).flatten(0, 1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, bias, dropout).view(images, groups, *v.shape[1:])


class AttentionOptions(TypedDict, total=False):
    """Settings that every kind of attention passes on to :class:`Attention`."""

    attn_drop: float
    proj_drop: float
    qk_norm: bool
    norm_layer: str
    norm_eps: float


class Attention(nn.Module):
    """Multi-head self-attention over all tokens.

    Args:
        dim: Number of channels.
        num_heads: Number of attention heads; must divide ``dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        **options: ``attn_drop`` and ``proj_drop``, dropout rates in training of the weights and of the output;
            ``qk_norm``, whether queries and keys are normalised in each head, by the norm named ``norm_layer`` with
            ``norm_eps`` (Henry et al. 2020, arXiv:2010.04245; Dehghani et al. 2023, arXiv:2302.05442, section 2.2).

    Attributes:
        score_scale: Extra factor of the scores Q K^T / sqrt(d), d the width of a head; 1 by default.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, appendix A.
    """

    score_scale = 1.0

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, **options: Unpack[AttentionOptions]) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(f"num_heads must divide the width {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm, self.k_norm = (head_norm(dim // num_heads, options) for _ in range(2))
        # A rate: the fused attention drops the weights itself, and a module that is not called would mislead its hooks.
        self.attn_drop = options.get("attn_drop", 0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(options.get("proj_drop", 0.0))
        self.tap = AttentionTap()

    @one_node
    def forward(
        self,
        x: Tensor,
        grid: Grid | None = None,
        num_prefix: int = 0,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """Mix tokens.

        Args:
            x: Tokens, shape ``(B, N, C)``.
            grid: Height and width (of a clip times first) of the grid that the tokens after the prefix form, if they
                do; for the tap.
            num_prefix: Tokens before the grid.
            rotation: Rotary positions of the tokens after the prefix, as of :func:`rotary_positions`.

        Returns:
            Tokens, shape ``(B, N, C)``.
        """
        layout = TokenLayout("global", query_grid=grid, key_grid=grid, num_prefix=num_prefix)
        return self.mix(x, layout, rotation=rotation)

    def mix(self, x: Tensor, layout: TokenLayout, bias: Tensor | None = None, rotation: Tensor | None = None) -> Tensor:
        """Mix tokens in groups, for example windows.

        Args:
            x: Tokens, shape ``(B, N, C)``, or ``(B, G, N, C)`` for G groups of tokens in each image.
            layout: Layout of the groups, for the tap.
            bias: Added before the softmax, as for :func:`attend`.
            rotation: Rotary positions of the tokens after the prefix.

        Returns:
            Tokens, shape of ``x``.
        """
        return self.mix_heads(*self.project(x, layout, rotation), layout, bias)

    def project(self, x: Tensor, layout: TokenLayout, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values, each ``(B, heads, N, d)``, or ``(B, G, heads, N, d)`` for groups."""
        qkv = self.qkv(x).view(*x.shape[:-1], 3, self.num_heads, x.shape[-1] // self.num_heads)
        q, k, v = (part.transpose(-3, -2) for part in qkv.unbind(-3))
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = (rotate(part, rotation, layout.num_prefix) for part in (q, k))
        if self.score_scale != 1.0:
            q = q * self.score_scale
        return q, k, v

    def mix_heads(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, bias: Tensor | None = None) -> Tensor:
        """Attend with the result of :meth:`project`, and project to tokens; arguments as for :meth:`mix`."""
        dropout = self.attn_drop if self.training else 0.0
        mixed = attend(q, k, v, tap=self.tap, layout=layout, bias=bias, dropout=dropout)
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(-3, -2).flatten(-2)))
        return out


def head_norm(dim: int, options: AttentionOptions) -> nn.Module:
    """Make the norm of the queries or keys of a head; the identity unless ``qk_norm`` is set."""
    if not options.get("qk_norm", False):
        return nn.Identity()
    return make_norm(options.get("norm_layer", "layernorm"), dim, options.get("norm_eps", 1e-5))


def mask_to_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a boolean mask (True: masked) to the bias that applies it: 0 or minus infinity."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
