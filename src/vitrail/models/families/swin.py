"""Swin: attention inside windows that shift from block to block, on a hierarchy of grids.

Source: Liu et al. 2021, arXiv:2103.14030. Parameter names are timm's, so that its checkpoints load unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.block import Block, Stage
from vitrail.layers.drop_path import drop_path_schedule
from vitrail.layers.head import Head, Pool
from vitrail.layers.init import init_linears, init_patch_projection
from vitrail.layers.norms import make_norm
from vitrail.layers.patch_merging import PatchMerging
from vitrail.layers.patches import PatchEmbed
from vitrail.layers.positions import (
    add_position_table,
    add_positions,
    init_position_table,
    resample_relative_table,
)
from vitrail.layers.shapes import check_img_size, grid_size, to_pair
from vitrail.layers.window_attention import ShiftedWindowAttention, WindowAttention
from vitrail.models.checkpoint_sizes import fit_positions, old_window, read_each_stage, read_stages, read_width
from vitrail.models.checks import as_config, check_at_least, check_mlp_ratio, check_rates, check_stages
from vitrail.models.facts import FeatureInfo
from vitrail.models.family import Family, Results, register_family
from vitrail.models.layer_settings import LayerSettings
from vitrail.models.peer import Peer, build_timm, build_torchvision, missing_in_torchvision, missing_layers
from vitrail.models.pyramid import Pyramid
from vitrail.models.settings import check_choices
from vitrail.weights.huggingface import block_rules
from vitrail.weights.rules import Drop, KeyMap, Rename, Rule

Pair = tuple[int, int]
_NORM_EPS = 1e-5


@dataclass(frozen=True)
class SwinConfig(LayerSettings):
    """Settings of a Swin, beside those of :class:`~vitrail.models.layer_settings.LayerSettings`.

    Attributes:
        img_size: Height and width in pixels that the model is made for; others run too.
        in_chans: Bands.
        num_classes: Width of the logits; 0 gives the pooled features.
        patch_size: Height and width of a patch in pixels.
        embed_dim: Width of a token in the first stage; each further stage doubles it.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage; must divide its width.
        window_size: Height and width of a window in tokens.
        mask_padding: Whether the tokens that fill up a window at the edge of the map are masked, so that they
            change nothing. Without, they take part as keys, as in the code of the authors and of torchvision.
        pad_after_shift: Whether a shifted map is rolled before it is padded and a window larger than the map shrinks
            to it, as in timm: with ``mask_padding=False`` the model then equals timm's where there is padding.
        mlp_ratio: Hidden width of the MLPs over the token width.
        qkv_bias: Whether queries, keys and values have a bias.
        global_pool: "avg" reads the mean over all tokens, "max" the largest value of each channel, "avgmax" the mean
            of these two, "map" attention with a learned query (arXiv:2106.04560); "" classifies each token.
        pos_embed: "relative" biases inside windows, "learned" or "sincos2d" absolute positions added to the patches,
            "learned+relative" or "sincos2d+relative" both, or "none"; the paper's table 4.
        pos_drop_rate: Dropout of the patches with absolute positions, in training.
        drop_path_rate: Stochastic depth of the last block.
    """

    img_size: int | tuple[int, int] = 224
    in_chans: int = 3
    num_classes: int = 1000
    patch_size: int | tuple[int, int] = 4
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int | tuple[int, int] = 7
    mask_padding: bool = True
    pad_after_shift: bool = False
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_path_rate: float = 0.0
    global_pool: Pool = "avg"
    pos_embed: Literal["relative", "none", "learned", "sincos2d", "learned+relative", "sincos2d+relative"] = "relative"
    pos_drop_rate: float = 0.0

    absent: ClassVar[Mapping[str, str]] = {
        "patch_drop_rate": "windows need the whole grid of patches; use drop_path_rate, or a ViT",
        "token_merging": "windows need the whole grid of patches; use a ViT",
        "class_token": "windows hold patches alone; use global_pool avg, max, avgmax or map",
        "global_pool=token": "there is no class token",
        "reg_tokens": "windows hold patches alone; a ViT has register tokens",
    }

    def __post_init__(self) -> None:
        """Check settings that the layers do not check themselves.

        Raises:
            ConfigError: A value out of range, or settings that contradict each other.
        """
        for name in ("img_size", "patch_size", "window_size"):
            object.__setattr__(self, name, to_pair(getattr(self, name), name))
        check_at_least(self, 1, "in_chans", "embed_dim")
        check_at_least(self, 0, "num_classes")
        check_choices(self)
        check_stages(self, "depths", "num_heads")
        check_mlp_ratio(self.mlp_ratio, self.embed_dim)
        self.check_layers()
        check_rates(self, "pos_drop_rate")
        if self.pos_drop_rate and self.absolute == "none":
            raise ConfigError(
                f"pos_drop_rate {self.pos_drop_rate} acts on patches with absolute positions, and pos_embed "
                f"{self.pos_embed!r} adds none; use proj_drop_rate, or pos_embed 'learned+relative'"
            )

    @property
    def absolute(self) -> str:
        """Kind of the absolute positions, "none" without."""
        kind = self.pos_embed.partition("+")[0]
        return "none" if kind == "relative" else kind


# More stages than any published Swin has.
_MOST_STAGES = 8

# Patch merging at the end of stage i belongs to stage i + 1 here; last first, so that none collide.
_LATER_DOWNSAMPLE = tuple(
    Rename(rf"layers\.{i}\.downsample\.(.*)", rf"layers.{i + 1}.downsample.\1") for i in reversed(range(_MOST_STAGES))
)

_BUFFERS = Drop(r".*\.(attn_mask|relative_position_index)", "computed here, not learned")
_HEAD = Rename(r"head\.(weight|bias)", r"head.fc.\1")

_MICROSOFT: tuple[Rule, ...] = (_BUFFERS, Rename("absolute_pos_embed", "pos_embed"), *_LATER_DOWNSAMPLE, _HEAD)

_TORCHVISION: tuple[Rule, ...] = (
    _BUFFERS,
    Rename(r"features\.0\.0\.(.*)", r"patch_embed.proj.\1"),
    Rename(r"features\.0\.2\.(.*)", r"patch_embed.norm.\1"),
    *(
        Rename(rf"features\.{2 * i}\.((?:norm|reduction)\..*)", rf"layers.{i}.downsample.\1")
        for i in range(1, _MOST_STAGES)
    ),
    *(Rename(rf"features\.{2 * i + 1}\.(\d+\..*)", rf"layers.{i}.blocks.\1") for i in range(_MOST_STAGES)),
    Rename(r"(layers\..*\.mlp)\.0\.(.*)", r"\1.fc1.\2"),
    Rename(r"(layers\..*\.mlp)\.3\.(.*)", r"\1.fc2.\2"),
    _HEAD,
)

_HUGGINGFACE: tuple[Rule, ...] = (
    _BUFFERS,
    Rename(r"swin\.(.*)", r"\1"),
    Rename(r"embeddings\.mask_token", "mask_token"),
    Rename(r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
    Rename(r"embeddings\.norm\.(.*)", r"patch_embed.norm.\1"),
    Rename(r"encoder\.(layers\..*)", r"\1"),
    *_LATER_DOWNSAMPLE,
    Rename(r"(layers\..*)\.attention\..*\.?relative_position_bias_table", r"\1.attn.relative_position_bias_table"),
    *block_rules(r"layers\..*", "self"),
    Rename(r"layernorm\.(.*)", r"norm.\1"),
    Rename(r"classifier\.(.*)", r"head.fc.\1"),
)

# The authors' layout differs from timm's only in where it keeps the patch merging, so it is looked for first.
_KEY_MAPS = (
    KeyMap("microsoft", (r"layers\.0\.downsample\.reduction\.weight", r"patch_embed\.proj\.weight"), _MICROSOFT),
    KeyMap(
        "timm",
        (r"patch_embed\.norm\.weight", r"layers\.0\.blocks\.0\.attn\.qkv\.weight"),
        (_BUFFERS, _HEAD),
    ),
    KeyMap("torchvision", (r"features\.0\.0\.weight", r"features\.1\.0\.attn\.qkv\.weight"), _TORCHVISION),
    KeyMap(
        "huggingface",
        (
            r"(swin\.)?embeddings\.patch_embeddings\.projection\.weight",
            r"(swin\.)?(encoder\.)?layers\.0\.blocks\.0\.layernorm_before\.weight",
        ),
        _HUGGINGFACE,
    ),
)


def _build_stage(config: SwinConfig, index: int, drop_path: Sequence[float]) -> Stage:
    """Build patch merging, except in the first stage, then blocks; every second one shifts its windows.

    Source: arXiv:2103.14030, section 3.1 and equation 3.
    """
    dim, heads = config.embed_dim * 2**index, config.num_heads[index]
    window = to_pair(config.window_size)
    shifts = ((0, 0), (window[0] // 2, window[1] // 2))
    kind = WindowAttention if "relative" in config.pos_embed else ShiftedWindowAttention
    padding = (config.mask_padding, config.pad_after_shift)
    mixers = (
        kind(dim, heads, window, shifts[i % 2], config.qkv_bias, *padding, **config.attention_options)
        for i in range(len(drop_path))
    )
    blocks = (
        Block(dim, attn, config.mlp_ratio, rate, **config.block_options)
        for attn, rate in zip(mixers, drop_path, strict=True)
    )
    return Stage(blocks, PatchMerging(dim // 2, dim, norm_layer=config.norm_layer) if index else None)


class Swin(Pyramid):
    """Swin transformer.

    Args:
        config: The settings.

    Source: Liu et al. 2021, arXiv:2103.14030.
    """

    key_maps = _KEY_MAPS
    classifier = "head.fc"
    stages_name = "layers"
    config: SwinConfig
    pos_embed: Tensor | None

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config = as_config(SwinConfig, config)
        ph, pw = to_pair(config.patch_size)
        check_img_size(to_pair(config.img_size), (ph, pw))
        dims = [config.embed_dim * 2**i for i in range(len(config.depths))]
        self.num_classes = config.num_classes
        self.num_features = dims[-1]
        self.patch_embed = PatchEmbed(config.in_chans, dims[0], (ph, pw), config.norm_layer)
        self.grid = grid_size(to_pair(config.img_size), (ph, pw))
        add_position_table(self, config.absolute, self.grid, dims[0])
        self.pos_drop = nn.Dropout(config.pos_drop_rate)
        rates = iter(drop_path_schedule(config.drop_path_rate, sum(config.depths)))
        self.layers = nn.ModuleList(
            _build_stage(config, i, [next(rates) for _ in range(depth)]) for i, depth in enumerate(config.depths)
        )
        self.norm = make_norm(config.norm_layer, dims[-1], _NORM_EPS)
        self.head = Head(dims[-1], config.num_classes, drop_rate=config.drop_rate)
        self.feature_info = [FeatureInfo(f"layers.{i}", dim, (ph * 2**i, pw * 2**i)) for i, dim in enumerate(dims)]
        init_linears(self)
        self.attn_pool = self.build_pool()
        init_position_table(self)
        init_patch_projection(self.patch_embed.proj)

    def add_positions(self, patches: Tensor) -> Tensor:
        """Add absolute positions to patches ``(B, H, W, C)``, where there are any."""
        dropped: Tensor = self.pos_drop(add_positions(patches, self.pos_embed, self.grid))
        return dropped

    def build_head(self, num_classes: int) -> nn.Module:
        """Build the linear layer inside of its module ``head``, as in timm."""
        head = Head(self.num_features, num_classes, drop_rate=self.config.drop_rate)
        init_linears(head)
        return head

    def fit_tensor(
        self, key: str, value: Tensor, state: Mapping[str, Tensor], made_for: Mapping[str, Any]
    ) -> tuple[Tensor, str] | None:
        """Make a table of relative positions fit that was learned for another window, or of absolute ones for a grid.

        timm and the authors shrink the window of a stage to its map where that is smaller. Their table then
        holds all offsets that occur there and moves to the middle of ours unchanged; any other table is
        resampled bicubically (its window is taken to be square where no settings tell).
        """
        if key == "pos_embed":
            return fit_positions(self.pos_embed, self.grid, value, self.patch_embed.patch_size, made_for)
        match = re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.attn\.relative_position_bias_table", key)
        if match is None or value.ndim != 2 or int(match[1]) >= len(self.layers):
            return None
        stage = int(match[1])
        if value.shape[1] != self.config.num_heads[stage]:
            return None
        window, info = to_pair(self.config.window_size), self.feature_info[stage]
        grid = grid_size(to_pair(self.config.img_size), info.stride)
        small = (min(window[0], grid[0]), min(window[1], grid[1]))
        old = old_window(value.shape[0], made_for)
        told = "window_size" in made_for and old == to_pair(made_for["window_size"])
        if value.shape[0] == (2 * small[0] - 1) * (2 * small[1] - 1) and not told:
            how = f"relative positions of a {small[0]} x {small[1]} window put in the middle of ours"
            return _embed_table(value, small, window), how
        if old is None:
            return None
        how = f"relative positions from {old[0]} x {old[1]} to {window[0]} x {window[1]}, bicubic"
        return resample_relative_table(value, old, window), how

    @classmethod
    def read_structure(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read depth and width, as far as the shapes show them."""
        depths = read_stages(state, "layers")
        table, count = "layers.{}.blocks.0.attn.relative_position_bias_table", len(depths.get("depths", ()))
        heads = read_each_stage(state, table, count, "num_heads", ndim=2, axis=1)
        return {**read_width(state, "patch_embed.proj.weight"), **depths, **heads}

    @classmethod
    def read_settings(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read also the window of the first stage."""
        table = state.get("layers.0.blocks.0.attn.relative_position_bias_table")
        window = None if table is None else old_window(table.shape[0], {})
        return {**super().read_settings(state), **({} if window is None else {"window_size": window})}


def _embed_table(table: Tensor, old: Pair, new: Pair) -> Tensor:
    """Place ``old``'s offsets in the table of a larger window, with zero for the others."""
    bottom, right = new[0] - old[0], new[1] - old[1]
    grid = table.t().reshape(-1, 2 * old[0] - 1, 2 * old[1] - 1)
    return F.pad(grid, (right, right, bottom, bottom)).flatten(1).t().contiguous()


# arXiv:2103.14030, section 3.3.
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}

_SHARED_WITH_TIMM = (
    "img_size", "in_chans", "num_classes", "mlp_ratio", "qkv_bias", "drop_path_rate", "patch_size", "embed_dim",
    "depths", "num_heads", "window_size", "drop_rate", "proj_drop_rate", "attn_drop_rate",
)  # fmt: skip


def _build_timm(settings: Mapping[str, Any]) -> nn.Module:
    return build_timm("swin_tiny_patch4_window7_224", settings, _SHARED_WITH_TIMM)


def _build_torchvision(settings: Mapping[str, Any]) -> nn.Module:
    return build_torchvision(
        "SwinTransformer",
        patch_size=list(to_pair(settings["patch_size"])),
        embed_dim=settings["embed_dim"],
        depths=list(settings["depths"]),
        num_heads=list(settings["num_heads"]),
        window_size=list(to_pair(settings["window_size"])),
        mlp_ratio=settings["mlp_ratio"],
        stochastic_depth_prob=settings["drop_path_rate"],
        num_classes=settings["num_classes"],
    )


def _missing_in_torchvision(settings: Mapping[str, Any]) -> str:
    return missing_layers(settings, rates=False) or missing_in_torchvision(settings)


# The weights that the authors released reach 81.2 (tiny) and 83.2 (small) by their README.
_TOP1 = {
    "swin_tiny_patch4_window7_224": 81.3,
    "swin_small_patch4_window7_224": 83.0,
    "swin_base_patch4_window7_224": 83.5,
    "swin_base_patch4_window12_384": 84.5,
}

register_family(
    Family(
        name="swin",
        config=SwinConfig,
        build=Swin,
        variants={
            f"swin_{size}_patch4_window{window}_{pixels}": {
                **settings,
                "window_size": window,
                "img_size": pixels,
            }
            for size, settings in _SIZES.items()
            for window, pixels in ((7, 224), (12, 384))
            if pixels == 224 or size in ("base", "large")
        },
        test_config={
            "img_size": 32,
            "patch_size": 4,
            "embed_dim": 12,
            "depths": (2, 2),
            "num_heads": (2, 4),
            "window_size": 4,
            "num_classes": 5,
        },
        published=_TOP1,
        results=(
            Results("ImageNet-1k", "Liu et al. 2021, arXiv:2103.14030, table 1a", _TOP1),
            Results(
                "ImageNet-21k",
                "Liu et al. 2021, arXiv:2103.14030, table 1b",
                {
                    "swin_base_patch4_window7_224": 85.2,
                    "swin_base_patch4_window12_384": 86.4,
                    "swin_large_patch4_window12_384": 87.3,
                },
            ),
            Results(
                "ImageNet-21k",
                "README of microsoft/Swin-Transformer, the code of arXiv:2103.14030",
                {"swin_large_patch4_window7_224": 86.3},
            ),
        ),
        source="Liu et al. 2021, arXiv:2103.14030",
        peers={
            "timm": Peer(_build_timm, missing_layers),
            "torchvision": Peer(_build_torchvision, _missing_in_torchvision),
        },
    )
)
