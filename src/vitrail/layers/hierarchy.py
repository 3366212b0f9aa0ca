"""A hierarchy of stages without relative positions: each stage has half the grid and twice the channels.

Attention is global, or inside shifted windows. Windows have no positions of their own, so that the same weights serve
both; where a window holds the whole grid the two are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.attention import AttentionOptions
from vitrail.layers.block import Block, BlockOptions, Stage
from vitrail.layers.drop_path import drop_path_schedule
from vitrail.layers.init import init_linears, init_patch_projection
from vitrail.layers.modes import known
from vitrail.layers.norms import make_norm
from vitrail.layers.patch_merging import PatchMerging
from vitrail.layers.patches import PatchEmbed
from vitrail.layers.positions import add_position_table, add_positions, init_position_table, rotary_positions
from vitrail.layers.shapes import check_img_size, grid_size
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import TokenLayout
from vitrail.layers.window_attention import ShiftedWindowAttention

Pair = tuple[int, int]
_NORM_EPS = 1e-5


class MapAttention(ShiftedWindowAttention):
    """Self-attention on a grid of tokens, over all of them or inside windows.

    Args:
        dim: Number of channels.
        num_heads: Number of attention heads; must divide ``dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        window: Height and width of a window in tokens; None for attention over all tokens.
        shifted: Whether windows are shifted by half their size, in the directions in which there are several.
        rope: Whether queries and keys are rotated by their positions; only for attention over all tokens.
        **options: Dropout rates and norms of queries and keys, see :class:`~vitrail.layers.attention.Attention`.

    Raises:
        ConfigError: ``num_heads`` does not divide ``dim``, or rotary positions do not fit windows or a head's width.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2, without its relative positions.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        window: Pair | None = None,
        shifted: bool = False,
        rope: bool = False,
        **options: Unpack[AttentionOptions],
    ) -> None:
        size = window or (1, 1)
        shift = (size[0] // 2, size[1] // 2) if shifted else (0, 0)
        super().__init__(dim, num_heads, size, shift, qkv_bias, **options)
        self.everywhere, self.rope = window is None, rope
        if rope and not self.everywhere:
            raise ConfigError(f"pos_embed 'rope' needs global attention, got windows of {window}; use 'learned'")
        if rope and dim // num_heads % 4:
            raise ConfigError(f"pos_embed 'rope' needs heads whose width is a multiple of 4, got {dim // num_heads}")

    @one_node
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # a map instead of a sequence
        """Mix tokens.

        Args:
            x: Tokens, shape ``(B, H, W, C)``. Where a window does not divide the grid, it is padded, and the padding
                masked.

        Returns:
            Tokens, shape ``(B, H, W, C)``.
        """
        B, H, W, C = x.shape
        if self.everywhere or (known(H <= self.window[0]) and known(W <= self.window[1])):
            layout = TokenLayout("global", query_grid=(H, W), key_grid=(H, W))
            rotation = rotary_positions((H, W), C // self.num_heads, x) if self.rope else None
            return self.mix(x.flatten(1, 2), layout, rotation=rotation).view(B, H, W, C)
        return super().forward(x)

    def extra_repr(self) -> str:
        """Show the window when the model is printed."""
        return "" if self.everywhere else super().extra_repr()


class HierarchicalEncoder(nn.Module):
    """Patch embedding with a norm, positions, stages, and a last norm.

    Args:
        in_chans: Bands.
        img_size: Height and width in pixels that the positions are learned for; others work too.
        patch_size: Height and width of a patch in pixels.
        embed_dim: Channels in the first stage.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        mlp_ratio: Hidden width of the MLPs over the number of channels.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_path_rate: Stochastic depth of the last block.
        window: As for :class:`MapAttention`.
        pos_embed: Positions: "learned", "sincos2d", "rope" or "none".
        pos_drop_rate: Dropout of the tokens with their positions, in training.
        attention: Options of every attention layer.
        block: Options of every block.

    Raises:
        ConfigError: The image is smaller than a patch, or a stage's heads do not divide its width.
    """

    pos_embed: Tensor | None
    norm: nn.Module

    def __init__(
        self,
        in_chans: int,
        img_size: Pair,
        patch_size: Pair,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        window: Pair | None = None,
        pos_embed: str = "learned",
        pos_drop_rate: float = 0.0,
        attention: AttentionOptions | None = None,
        block: BlockOptions | None = None,
    ) -> None:
        super().__init__()
        attention, block = attention or {}, block or {}
        norm_layer = block.get("norm_layer", "layernorm")
        check_img_size(img_size, patch_size)
        self.in_chans, self.img_size = in_chans, img_size
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size, norm_layer)
        self.grid = grid_size(img_size, patch_size)
        add_position_table(self, pos_embed, self.grid, embed_dim)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        rates = iter(drop_path_schedule(drop_path_rate, sum(depths)))
        self.dims = [embed_dim * 2**i for i in range(len(depths))]
        self.strides = [(patch_size[0] * 2**i, patch_size[1] * 2**i) for i in range(len(depths))]
        self.stages = nn.ModuleList()
        for i, (dim, heads, depth) in enumerate(zip(self.dims, num_heads, depths, strict=True)):
            downsample = PatchMerging(dim // 2, dim, norm_layer=norm_layer) if i else None
            mixers = (
                MapAttention(dim, heads, qkv_bias, window, j % 2 == 1, pos_embed == "rope", **attention)
                for j in range(depth)
            )
            self.stages.append(
                Stage((Block(dim, attn, mlp_ratio, next(rates), **block) for attn in mixers), downsample)
            )
        self.norm = make_norm(norm_layer, self.dims[-1], _NORM_EPS)
        init_linears(self)
        init_position_table(self)
        init_patch_projection(self.patch_embed.proj)

    def levels(self, x: Tensor, count: int | None = None) -> list[Tensor]:
        """Compute the outputs of all stages, before the last norm.

        Args:
            x: Images, shape ``(B, in_chans, H, W)``.
            count: Number of stages to run; all when not given.

        Returns:
            For each stage, shape ``(B, ceil(H / stride), ceil(W / stride), dim)``.
        """
        return self.levels_of(self.patch_embed(x), count)

    def levels_of(self, tokens: Tensor, count: int | None = None) -> list[Tensor]:
        """Run as :meth:`levels`, from patches ``(B, H, W, C)`` that have no positions yet."""
        tokens = self.pos_drop(add_positions(tokens, self.pos_embed, self.grid))
        levels: list[Tensor] = []
        for stage in list(self.stages)[:count]:
            tokens = stage(tokens)
            levels.append(tokens)
        return levels

    def forward(self, x: Tensor) -> Tensor:
        """Compute the tokens of the last stage after the norm: images ``(B, in_chans, H, W)`` to ``(B, h, w, dim)``."""
        tokens: Tensor = self.norm(self.levels(x)[-1])
        return tokens
