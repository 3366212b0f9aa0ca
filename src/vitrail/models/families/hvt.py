"""HVT: a hierarchical transformer with an image stream and, if wanted, a spectral stream.

Each stream is patch embedding, learned positions and stages of attention with patch merging between them;
the two meet after their last norms. Source: the RGB + spectral research code (Leaf-Effects); the hierarchy is
that of Liu et al. 2021, arXiv:2103.14030, section 3.1, with global instead of windowed attention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError, ShapeError
from vitrail.layers.fusion import ConcatFusion, CrossAttentionFusion
from vitrail.layers.head import Pool, linear_classifier
from vitrail.layers.hierarchy import HierarchicalEncoder
from vitrail.layers.init import init_linears
from vitrail.layers.norms import make_norm
from vitrail.layers.shapes import Size, to_pair
from vitrail.models.base import VisionModel, group_parameters
from vitrail.models.checkpoint_sizes import fit_positions, read_stages, read_width
from vitrail.models.checks import (
    as_config,
    check_at_least,
    check_mlp_ratio,
    check_rates,
    check_stages,
)
from vitrail.models.facts import Ends, FeatureInfo, LevelTokens, Stream, describe
from vitrail.models.family import Family, register_family
from vitrail.models.layer_settings import LayerSettings
from vitrail.models.settings import check_choices
from vitrail.models.two_streams import check_spectral_settings, check_two_streams, split_list
from vitrail.weights.kernels import InputKernel
from vitrail.weights.rules import KeyMap
from vitrail.weights.two_streams import RESEARCH_RULES

_NORM_EPS = 1e-5


@dataclass(frozen=True)
class HVTConfig(LayerSettings):
    """Settings of an HVT, beside those of :class:`~vitrail.models.layer_settings.LayerSettings`.

    Attributes:
        img_size: Height and width in pixels that the image's positions are learned for; other sizes run too.
        in_chans: Bands of the image.
        num_classes: Width of the logits; 0 gives the pooled features.
        patch_size: Height and width of a patch in pixels.
        embed_dim: Width of a token in the first stage; it doubles from stage to stage.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        mlp_ratio: Hidden width of the MLPs over the token width.
        qkv_bias: Whether queries, keys and values have a bias.
        global_pool: "avg" reads the mean over all tokens, "max" the largest value of each channel, "avgmax" the mean
            of these two, "map" attention with a learned query (arXiv:2106.04560); "" classifies each token.
        pos_embed: "learned" or "sincos2d" positions added to the patches, "rope" (queries and keys rotated by their
            positions, for global attention), or "none".
        pos_drop_rate: Dropout of the patches with their positions, in training.
        drop_path_rate: Stochastic depth of the last block.
        attention: "global", or the height and width of a window in tokens for large images: attention then
            stays inside windows that shift by half from block to block.
        spectral_chans: Bands of the spectral stream; 0 for an image alone.
        spectral_embed_dim: Width of its first stage; ``embed_dim`` when not given.
        spectral_img_size: Size that its positions are learned for; ``img_size`` when not given.
        spectral_patch_size: Its patch; ``patch_size`` when not given.
        fusion: "cross_attention" (image tokens attend to spectral tokens) or "concat" (side by side, projected).
        fusion_heads: Heads of the cross-attention; those of the last stage when not given.
        missing_spectral: "error" refuses a call of a two-stream model without its spectral input; "learned"
            puts a learned token in the place of the spectral tokens. Data-parallel training in which a whole
            batch may lack it needs ``find_unused_parameters=True``: such a batch leaves that stream out.
    """

    img_size: int | tuple[int, int] = 256
    in_chans: int = 3
    num_classes: int = 1000
    patch_size: int | tuple[int, int] = 16
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_path_rate: float = 0.0
    global_pool: Pool = "avg"
    attention: Literal["global"] | int | tuple[int, int] = "global"
    spectral_chans: int = 0
    spectral_embed_dim: int | None = None
    spectral_img_size: int | tuple[int, int] | None = None
    spectral_patch_size: int | tuple[int, int] | None = None
    fusion: Literal["cross_attention", "concat"] = "cross_attention"
    fusion_heads: int | None = None
    missing_spectral: Literal["error", "learned"] = "error"
    pos_embed: Literal["learned", "sincos2d", "rope", "none"] = "learned"
    pos_drop_rate: float = 0.0

    absent: ClassVar[Mapping[str, str]] = {
        "patch_drop_rate": "patch merging needs the whole grid; use drop_path_rate, or a ViT",
        "token_merging": "patch merging and the fusion of streams need the whole grid; use a ViT",
        "class_token": "patch merging needs a grid of patches alone; use global_pool avg, max, avgmax or map",
        "global_pool=token": "there is no class token",
        "reg_tokens": "patch merging needs a grid of patches alone; a ViT has register tokens",
    }

    def __post_init__(self) -> None:
        """Check settings that the layers do not check themselves.

        Raises:
            ConfigError: A value out of range, or settings that contradict each other.
        """
        object.__setattr__(self, "img_size", to_pair(self.img_size, "img_size"))
        object.__setattr__(self, "patch_size", to_pair(self.patch_size, "patch_size"))
        check_at_least(self, 1, "in_chans", "embed_dim")
        check_at_least(self, 0, "num_classes", "spectral_chans")
        check_choices(self)
        check_stages(self, "depths", "num_heads")
        check_mlp_ratio(self.mlp_ratio, self.embed_dim)
        if isinstance(self.attention, str):
            if self.attention != "global":
                raise ConfigError(f"attention must be 'global' or a window size, got {self.attention!r}")
        else:
            object.__setattr__(self, "attention", to_pair(self.attention, "attention"))
        self.check_layers()
        check_rates(self, "pos_drop_rate")
        if self.pos_embed == "rope" and self.attention != "global":
            raise ConfigError(f"pos_embed 'rope' needs attention 'global', got windows of {self.attention}")
        check_spectral_settings(self)


class HVT(VisionModel):
    """Hierarchical transformer with an image stream (``rgb``) and, if wanted, a spectral one (``spectral``).

    Args:
        config: The settings.

    Source: the RGB + spectral research code (Leaf-Effects); see the top of this file.
    """

    input_kernels = {  # noqa: RUF012
        "rgb.patch_embed.proj.weight": InputKernel("image"),
        "spectral.patch_embed.proj.weight": InputKernel("spectral"),
    }
    stream_prefixes = {"image": "rgb.", "spectral": "spectral."}  # noqa: RUF012
    not_decayed = ("pos_embed", "prompt", "spectral_token")
    config: HVTConfig

    def __init__(self, config: HVTConfig) -> None:
        super().__init__()
        self.config = config = as_config(HVTConfig, config)
        self.num_classes = config.num_classes
        self.rgb = _encoder(config, config.in_chans, config.img_size, config.patch_size, config.embed_dim)
        dim = self.num_features = self.rgb.dims[-1]
        self.spectral: HierarchicalEncoder | None = None
        self.fusion: nn.Module | None = None
        self.spectral_token: nn.Parameter | None = None
        if config.spectral_chans:
            self.spectral = _encoder(
                config,
                config.spectral_chans,
                config.spectral_img_size or config.img_size,
                config.spectral_patch_size or config.patch_size,
                config.spectral_embed_dim or config.embed_dim,
            )
            width = self.spectral.dims[-1]
            if config.fusion == "concat":
                self.fusion = ConcatFusion(dim, width)
            else:
                heads = config.fusion_heads or config.num_heads[-1]
                options = (config.attention_options, config.block_options)
                self.fusion = CrossAttentionFusion(dim, width, heads, config.mlp_ratio, config.qkv_bias, *options)
            if config.missing_spectral == "learned":
                self.spectral_token = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.attn_pool = self.build_pool()
        self.head_norm = make_norm(config.norm_layer, dim, _NORM_EPS)
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = linear_classifier(dim, config.num_classes)
        self.feature_info = [
            FeatureInfo(f"{name}.stages.{i}", channels, stride)
            for name, encoder in self._encoders()
            for i, (channels, stride) in enumerate(zip(encoder.dims, encoder.strides, strict=True))
        ]
        self._init_weights()

    def _encoders(self) -> list[tuple[str, HierarchicalEncoder]]:
        return [("rgb", self.rgb)] + ([("spectral", self.spectral)] if self.spectral is not None else [])

    def _init_weights(self) -> None:
        init_linears(*(part for part in (self.fusion, self.head) if part is not None))
        if self.spectral_token is not None:
            nn.init.trunc_normal_(self.spectral_token, std=0.02)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The image, and the spectral stream if there is one."""
        names = ("image", "spectral")
        return tuple(Stream(n, e.in_chans, e.img_size) for n, (_, e) in zip(names, self._encoders(), strict=False))

    def _check_inputs(self, image: Any, spectral: Any) -> tuple[Tensor, Tensor | None]:
        """Check the image and the spectral input; None where that stream is absent or may be missing."""
        bands = 0 if self.spectral is None else self.spectral.in_chans
        return check_two_streams(image, spectral, bands, may_miss=self.spectral_token is not None)

    def encode(self, image: Tensor, spectral: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Encode each stream by itself.

        Args:
            image: Image, shape ``(B, in_chans, H, W)``.
            spectral: Spectral input, shape ``(B, spectral_chans, h, w)``.

        Returns:
            Tokens of both streams after their last norms, ``(B, H, W, C)`` each. In place of the second: None
            if the model has one stream; the learned token, on a grid of one, if the input is missing.

        Raises:
            ShapeError: A stream too few or too many, other bands, another type of number, or an image smaller
                than a patch.
        """
        image, spectral = self._check_inputs(image, spectral)
        tokens: Tensor = self.rgb(image)
        own = self.spectral(spectral) if self.spectral is not None and spectral is not None else None
        return tokens, self._context(tokens, own)

    def _context(self, tokens: Tensor, spectral: Tensor | None) -> Tensor | None:
        """Return the spectral tokens for the fusion, or the learned token in their place; None without that stream."""
        if self.spectral is None:
            return None
        if spectral is not None:
            return self._with_learned_token(spectral)
        assert self.spectral_token is not None  # _check_inputs refuses otherwise
        return self.spectral_token.expand(tokens.shape[0], -1, -1, -1)

    def _with_learned_token(self, spectral: Tensor) -> Tensor:
        if self.training and self.spectral_token is not None:
            # It takes part, if with no weight: data-parallel training waits for a gradient of every parameter.
            return spectral + 0.0 * self.spectral_token
        return spectral

    def _fuse(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        if self.fusion is not None:
            tokens = self.fusion(tokens, context)
        return tokens.flatten(1, 2)

    def forward_features(  # type: ignore[override]  # also the stages
        self, image: Tensor, spectral: Tensor | None = None, return_stages: bool = False
    ) -> Tensor | tuple[Tensor, list[dict[str, Tensor]]]:
        """Compute image tokens after the last norm, fused with the spectral tokens where there is such a stream.

        Args:
            image: Image, shape ``(B, in_chans, H, W)``.
            spectral: Spectral input, shape ``(B, spectral_chans, h, w)``.
            return_stages: Whether to return the grids of each stage too.

        Returns:
            Shape ``(B, N, C)``, row-major over the last stage's grid. With ``return_stages`` also a list with a
            dictionary for each stage: the name of each stream that has an input ("image", "spectral") and its grid
            after the stage, before any norm, shape ``(B, C, H / stride, W / stride)``, rounded up.

        Raises:
            ShapeError: As for :meth:`encode`.
        """
        if not return_stages:
            return self._fuse(*self.encode(image, spectral))
        inputs = self._check_inputs(image, spectral)
        own, given = len(self.rgb.stages), sum(x is not None for x in inputs)
        features, levels = self.run_levels(inputs, range(own * given), None)
        maps = [levels[i].map.permute(0, 3, 1, 2) for i in range(own * given)]
        names = ("image", "spectral")[:given]
        return features, [dict(zip(names, maps[stage::own], strict=True)) for stage in range(own)]

    @property
    def ends(self) -> tuple[Ends, ...]:
        """Patches; the image's last tokens are fused ones, the spectral ones are its own beside the fused."""
        names, own = ("image", "spectral"), self.rgb.dims[-1]
        widths = (own, own + (self.spectral.dims[-1] if self.spectral is not None else 0))
        return tuple(
            Ends(name, encoder.dims[0], encoder.strides[0], width, encoder.strides[-1])
            for name, width, (_, encoder) in zip(names, widths, self._encoders(), strict=False)
        )

    def embed(self, image: Tensor, spectral: Tensor | None = None) -> tuple[Tensor, ...]:
        """Embed the patches of each stream, ``(B, H, W, C)``, as :meth:`VisionModel.embed`."""
        image, spectral = self._check_inputs(image, spectral)
        if self.spectral is None:
            return (self.rgb.patch_embed(image),)
        if spectral is None:
            raise ShapeError(f"the patches of both streams are wanted, got {describe((image, spectral))}")
        return self.rgb.patch_embed(image), self.spectral.patch_embed(spectral)

    def forward_embedded(self, *embedded: Tensor) -> tuple[Tensor, ...]:
        """Encode and fuse: the fused image tokens, then the spectral ones, as :meth:`VisionModel.forward_embedded`.

        The fused tokens are brought to the spectral grid bilinearly where it is another.
        """
        tokens: Tensor = self.rgb.norm(self.rgb.levels_of(embedded[0])[-1])
        if self.spectral is None or self.fusion is None:
            return (tokens,)
        context = self._with_learned_token(self.spectral.norm(self.spectral.levels_of(embedded[1])[-1]))
        fused: Tensor = self.fusion(tokens, context)
        spread = fused
        if fused.shape[1:3] != context.shape[1:3]:
            size = (context.shape[1], context.shape[2])
            spread = F.interpolate(fused.permute(0, 3, 1, 2), size, mode="bilinear").permute(0, 2, 3, 1)
        return fused, torch.cat([context, spread], dim=-1)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool ``(B, N, C)`` and classify: ``(B, num_classes)``, or ``(B, C)`` with ``pre_logits``."""
        pooled: Tensor = self.head_norm(self.pool(features))
        return pooled if pre_logits else self.head(self.head_drop(pooled))

    def forward(self, image: Tensor, spectral: Tensor | None = None) -> Tensor:
        """Classify.

        Args:
            image: Image, shape ``(B, in_chans, H, W)``.
            spectral: Spectral input of a two-stream model, shape ``(B, spectral_chans, h, w)``; may be None or left out
                if the model was built with ``missing_spectral="learned"``.

        Returns:
            Logits, shape ``(B, num_classes)``.

        Raises:
            ShapeError: As for :meth:`encode`.
        """
        return self.forward_head(self._fuse(*self.encode(image, spectral)))

    def forward_intermediates(  # type: ignore[override]  # a second stream before the options
        self,
        image: Tensor | Sequence[Tensor | None],
        spectral: Tensor | None = None,
        indices: int | Sequence[int] | None = None,
        **options: Any,
    ) -> Any:
        """Compute the feature pyramid: the stages of the image stream, then those of the spectral stream.

        Args:
            image: As for :meth:`forward`, or a list of both inputs.
            spectral: As for :meth:`forward`.
            indices: As for :meth:`VisionModel.forward_intermediates`; None without a spectral input, where it may be
                missing, for all levels of the image stream.
            **options: Options of :meth:`VisionModel.forward_intermediates`.

        Raises:
            ConfigError: A level that does not exist, or another format.
            ShapeError: As for :meth:`encode`; also a level of the spectral stream without its input.
        """
        image, spectral = self._check_inputs(*split_list(image, spectral))
        own = len(self.rgb.stages)
        wanted = range(own) if indices is None and spectral is None else indices
        if spectral is None and max(self.level_indices(wanted), default=0) >= own:
            raise ShapeError(
                f"levels {own} to {2 * own - 1} are of the spectral stream, whose input is missing; "
                f"give it, or ask for indices from 0 to {own - 1}"
            )
        inputs = (image,) if self.spectral is None else (image, spectral)
        return super().forward_intermediates(inputs, wanted, **options)

    def run_levels(
        self, inputs: Sequence[Any], wanted: Sequence[int], stop: int | None
    ) -> tuple[Tensor, dict[int, LevelTokens]]:
        """Run the stages of each stream that has a wanted level, or of both, as :meth:`VisionModel.run_levels`."""
        own = len(self.rgb.stages)
        found: dict[int, Tensor] = {}
        for start, x, (_, encoder) in zip((0, own), inputs, self._encoders(), strict=False):
            count = own if stop is None else max((i - start + 1 for i in wanted if i < start + own), default=0)
            if x is not None and count > 0:
                found |= dict(enumerate(encoder.levels(x, count), start))
        levels = {index: LevelTokens(found[index]) for index in wanted}
        if stop is not None:
            return found[stop - 1], levels
        tokens, last = self.rgb.norm(found[own - 1]), found.get(2 * own - 1)
        context = self.spectral.norm(last) if self.spectral is not None and last is not None else None
        return self._fuse(tokens, self._context(tokens, context)), levels

    def norm_level(self, index: int, tokens: Tensor) -> Tensor:
        """Apply the last norm of a stream to tokens ``(..., C)`` of its last stage."""
        stream, stage = divmod(index, len(self.rgb.stages))
        encoder = self._encoders()[stream][1]
        out: Tensor = encoder.norm(tokens) if stage == len(encoder.stages) - 1 else tokens
        return out

    def _keep_levels(self, count: int) -> None:
        if count == len(self.feature_info):
            return
        if self.spectral is not None:
            raise ConfigError("an HVT of two streams cannot be pruned; give forward_intermediates the indices")
        encoder, config = self.rgb, self.config
        encoder.stages = encoder.stages[:count]
        encoder.dims, encoder.strides = encoder.dims[:count], encoder.strides[:count]
        self.head_norm = nn.Identity()
        self.config = dataclasses.replace(config, depths=config.depths[:count], num_heads=config.num_heads[:count])

    def _drop_norm(self) -> None:
        for _, encoder in self._encoders():
            encoder.norm = nn.Identity()

    def layer_groups(self) -> list[list[str]]:
        """Group embeddings, each block of both streams with the merging before it, then norms, fusion and head."""
        names = [name for name, _ in self._encoders()]
        groups = [[f"{name}.{part}" for name in names for part in ("patch_embed", "pos_embed")]]
        for stage, depth in enumerate(self.config.depths):
            for block in range(depth):
                parts = ["downsample", "blocks.0"] if block == 0 else [f"blocks.{block}"]
                groups.append([f"{name}.stages.{stage}.{part}" for name in names for part in parts])
        last = ["rgb.norm", "spectral.norm", "spectral_token", "fusion", "attn_pool", "head_norm", "head"]
        return group_parameters(self, [*groups, last])

    def fit_tensor(
        self, key: str, value: Tensor, state: Mapping[str, Tensor], made_for: Mapping[str, Any]
    ) -> tuple[Tensor, str] | None:
        """Resample positions that were learned for another grid (a square one where no settings tell)."""
        encoder = dict(self._encoders()).get(key.removesuffix(".pos_embed"))
        if encoder is None:
            return None
        prefix = "spectral_" if encoder is self.spectral else ""
        patch_size = encoder.patch_embed.patch_size
        return fit_positions(encoder.pos_embed, encoder.grid, value, patch_size, made_for, prefix)

    @classmethod
    def read_structure(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read depth and width, as far as the shapes show them."""
        return {**read_width(state, "rgb.patch_embed.proj.weight"), **read_stages(state, "rgb.stages")}

    @classmethod
    def read_settings(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read also the spectral stream's width, the fusion of the streams, and whether one may be missing."""
        settings = super().read_settings(state)
        if "spectral.patch_embed.proj.weight" in state:
            settings["spectral_embed_dim"] = state["spectral.patch_embed.proj.weight"].shape[0]
            settings["fusion"] = "cross_attention" if "fusion.prompt" in state else "concat"
            settings["missing_spectral"] = "learned" if "spectral_token" in state else "error"
        return settings

    key_maps = (
        KeyMap("vitrail", (r"rgb\.patch_embed\.proj\.weight", r"rgb\.stages\.0\.blocks\.0\.norm1\.weight")),
        KeyMap(
            "hvit",
            (r"rgb_patch_embed\.proj\.weight", r"norm_rgb_final_encoder\.weight"),
            RESEARCH_RULES,
        ),
    )


def _encoder(config: HVTConfig, in_chans: int, img_size: Size, patch_size: Size, embed_dim: int) -> HierarchicalEncoder:
    return HierarchicalEncoder(
        in_chans,
        to_pair(img_size),
        to_pair(patch_size),
        embed_dim,
        config.depths,
        config.num_heads,
        config.mlp_ratio,
        config.qkv_bias,
        config.drop_path_rate,
        None if isinstance(config.attention, str) else to_pair(config.attention),
        config.pos_embed,
        config.pos_drop_rate,
        config.attention_options,
        config.block_options,
    )


# small and xlarge are the research code's; base has Swin-B's widths and depths, tiny is for small data.
_VARIANTS: dict[str, dict[str, Any]] = {
    "hvt_tiny": {"embed_dim": 64, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16), "fusion_heads": 8},
    "hvt_small": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "fusion_heads": 12},
    "hvt_base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "fusion_heads": 16},
    "hvt_xlarge": {
        "img_size": 448,
        "patch_size": 14,
        "embed_dim": 192,
        "depths": (3, 6, 24, 3),
        "num_heads": (6, 12, 24, 48),
        "fusion_heads": 32,
    },
}

register_family(
    Family(
        name="hvt",
        config=HVTConfig,
        build=HVT,
        variants=_VARIANTS,
        test_config={
            "img_size": 32,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": (1, 1),
            "num_heads": (2, 4),
            "num_classes": 5,
            "spectral_chans": 4,
            "spectral_embed_dim": 8,
            "fusion_heads": 2,
        },
        source="RGB + spectral research code (Leaf-Effects); hierarchy: Liu et al. 2021, arXiv:2103.14030",
    )
)
