"""Fusion of two streams of tokens: an image, and other bands of the same scene.

The result has the grid of the first stream; the second may have another number of channels and another grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError, ShapeError
from vitrail.layers.attention import AttentionOptions, attend, head_norm
from vitrail.layers.block import BlockOptions
from vitrail.layers.mlp import make_mlp
from vitrail.layers.modes import known
from vitrail.layers.norms import make_norm
from vitrail.layers.resampling import resample_map, resampling_matrix
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import AttentionTap, TokenLayout

_NORM_EPS = 1e-5


def _check_pair(x: Tensor, context: Tensor, dim: int, context_dim: int) -> None:
    wrong_width = x.shape[-1] != dim or context.shape[-1] != context_dim
    if x.ndim != 4 or context.ndim != 4 or wrong_width or x.shape[0] != context.shape[0]:
        raise ShapeError(
            f"expected two streams of tokens of one batch, (B, H, W, {dim}) and (B, h, w, {context_dim}), "
            f"got {tuple(x.shape)} and {tuple(context.shape)}"
        )


class CrossAttention(nn.Module):
    """Multi-head attention from one stream of tokens to another.

    Args:
        dim: Channels of the queries' tokens and of the result.
        context_dim: Channels of the keys' and values' tokens.
        num_heads: Number of attention heads; must divide ``dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        **options: Dropout rates and norms of queries and keys, see :class:`~vitrail.layers.attention.Attention`.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3 (encoder-decoder attention).
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(f"fusion_heads must divide the width {dim} of the last stage, got {num_heads}")
        self.dim, self.context_dim, self.num_heads = dim, context_dim, num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(context_dim, 2 * dim, bias=qkv_bias)
        self.q_norm, self.k_norm = (head_norm(dim // num_heads, options) for _ in range(2))
        self.attn_drop = options.get("attn_drop", 0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(options.get("proj_drop", 0.0))
        self.tap = AttentionTap()

    @one_node
    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from each token of ``x`` to all tokens of ``context``.

        Args:
            x: Queries, shape ``(B, H, W, dim)``.
            context: Keys and values, shape ``(B, h, w, context_dim)``.

        Returns:
            Mixed values, shape ``(B, H, W, dim)``.

        Raises:
            ShapeError: Other dimensions, widths, or two batch sizes.
        """
        _check_pair(x, context, self.dim, self.context_dim)
        B, H, W, C = x.shape
        h, w = context.shape[1:3]
        head_dim = C // self.num_heads
        q = self.q(x).view(B, H * W, self.num_heads, head_dim).transpose(1, 2)
        kv = self.kv(context).view(B, h * w, 2, self.num_heads, head_dim)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        layout = TokenLayout("cross", query_grid=(H, W), key_grid=(h, w))
        dropout = self.attn_drop if self.training else 0.0
        mixed = attend(self.q_norm(q), self.k_norm(k), v, tap=self.tap, layout=layout, dropout=dropout)
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).reshape(B, H, W, C)))
        return out


class CrossAttentionFusion(nn.Module):
    """Cross-attention from image tokens to spectral tokens, then an MLP; norms after the residuals.

    A learned prompt, the same for all, is added to every spectral token before keys and values are computed.

    Args:
        dim: Channels of the image tokens and of the result.
        context_dim: Channels of the spectral tokens.
        num_heads: Number of attention heads; must divide ``dim``.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        attention: Options of the attention.
        block: Options of a block; without layer scale.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``.

    Source: the DFCA module of the RGB + spectral research code (Leaf-Effects); norms after residuals as in
    Vaswani et al. 2017, arXiv:1706.03762, section 3.1.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        attention: AttentionOptions | None = None,
        block: BlockOptions | None = None,
    ) -> None:
        super().__init__()
        attention, block = attention or {}, block or {}
        norm_layer, act_layer = block.get("norm_layer", "layernorm"), block.get("act_layer")
        hidden, drop = int(dim * mlp_ratio), block.get("drop", 0.0)
        self.prompt = nn.Parameter(torch.zeros(1, 1, 1, context_dim))
        nn.init.trunc_normal_(self.prompt, std=0.02)
        self.attn = CrossAttention(dim, context_dim, num_heads, qkv_bias, **attention)
        self.norm1 = make_norm(norm_layer, dim, _NORM_EPS)
        self.mlp = make_mlp(block.get("mlp_layer", "mlp"), dim, hidden, act_layer=act_layer, drop=drop)
        self.norm2 = make_norm(norm_layer, dim, _NORM_EPS)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Fuse ``(B, H, W, dim)`` with ``(B, h, w, context_dim)`` into ``(B, H, W, dim)``.

        Raises:
            ShapeError: Other dimensions, widths, or two batch sizes.
        """
        x = self.norm1(x + self.attn(x, context + self.prompt))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


class ConcatFusion(nn.Module):
    """Concatenate the two tokens of each position and project them to one.

    Where the grids differ, the spectral tokens are resampled to the image's, bilinearly with antialiasing.

    Args:
        dim: Channels of the image tokens and of the result.
        context_dim: Channels of the spectral tokens.

    Source: the alternative fusion of the RGB + spectral research code (Leaf-Effects).
    """

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        self.dim, self.context_dim = dim, context_dim
        self.proj = nn.Linear(dim + context_dim, dim)
        self.tap = AttentionTap()

    @one_node
    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Fuse ``(B, H, W, dim)`` with ``(B, h, w, context_dim)`` into ``(B, H, W, dim)``.

        Raises:
            ShapeError: Other dimensions, widths, or two batch sizes.
        """
        _check_pair(x, context, self.dim, self.context_dim)
        if self.tap.armed:
            context = self._resample_explicitly(x, context)
        elif not _same_grid(context.shape[1:3], x.shape[1:3]):
            context = _resample_tokens(context, (x.shape[1], x.shape[2]))
        out: Tensor = self.proj(torch.cat([x, context.to(x.dtype)], dim=-1))
        return out

    def _resample_explicitly(self, x: Tensor, context: Tensor) -> Tensor:
        """Resample by a matrix that the tap reports, so that gradients reach it."""
        query_grid, key_grid = (x.shape[1], x.shape[2]), (context.shape[1], context.shape[2])
        keys = key_grid[0] * key_grid[1]
        one_hot = torch.eye(keys, dtype=context.dtype, device=x.device).view(1, *key_grid, keys)
        weights = one_hot if _same_grid(query_grid, key_grid) else _resample_tokens(one_hot, query_grid)
        reported = weights.view(1, 1, -1, keys).expand(x.shape[0], -1, -1, -1)
        self.tap.report(reported, TokenLayout("cross", query_grid=query_grid, key_grid=key_grid))
        return (reported[:, 0] @ context.flatten(1, 2)).view(x.shape[0], *query_grid, context.shape[-1])


def _same_grid(one: Sequence[int], other: Sequence[int]) -> bool:
    # Axis by axis: tuples of symbols would be compared by their values in the example.
    return all(known(a == b) for a, b in zip(one, other, strict=True))


def _resample_tokens(x: Tensor, grid: tuple[int, int]) -> Tensor:
    # Half precision has no antialiased kernel on the CPU; double precision stays double.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if torch.compiler.is_exporting():
        # OpenVINO lacks torch's operator.
        rows, columns = (
            resampling_matrix(old, new, "bilinear").to(wide.dtype) for old, new in zip(x.shape[1:3], grid, strict=True)
        )
        return resample_map(wide, rows, columns).to(x.dtype)
    wide = wide.permute(0, 3, 1, 2)
    wide = F.interpolate(wide, size=grid, mode="bilinear", antialias=True)
    return wide.permute(0, 2, 3, 1).to(x.dtype)
