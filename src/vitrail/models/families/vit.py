"""ViT, with TokenLearner at any layer, or token merging in its blocks, if wanted.

Sources: Dosovitskiy et al. 2021, arXiv:2010.11929 (ViT); Ryoo et al. 2021, arXiv:2106.11297 (TokenLearner); Bolya et
al. 2023, arXiv:2210.09461 (token merging).
Parameter names are timm's, so that its checkpoints load unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, plural
from vitrail.layers.attention import Attention
from vitrail.layers.block import Block
from vitrail.layers.checkpointing import run_block
from vitrail.layers.drop_path import drop_path_schedule
from vitrail.layers.head import linear_classifier
from vitrail.layers.init import init_linears, init_patch_projection
from vitrail.layers.norms import make_norm
from vitrail.layers.patches import (
    LinearPatchEmbed,
    PatchDropout,
    PatchEmbed,
    check_covers,
    check_images,
)
from vitrail.layers.positions import (
    LEARNED_TABLES,
    add_position_table,
    fixed_positions,
    init_position_table,
    resample_table,
    rotary_positions,
)
from vitrail.layers.shapes import check_img_size, grid_size, to_pair
from vitrail.layers.stems import check_multiples, first_convolution, make_stem, measure_stem
from vitrail.layers.symbolic import is_symbolic
from vitrail.layers.tap import Grid
from vitrail.layers.token_learner import TokenFuser, TokenLearner
from vitrail.layers.token_merging import Merged, Unmerge, lacks_merging, set_merging
from vitrail.models.checkpoint_sizes import count_numbered, count_prefix, embeds_prefix, fit_positions, read_width
from vitrail.models.checks import (
    as_config,
    check_at_least,
    check_mlp_ratio,
    check_rates,
)
from vitrail.models.facts import Ends, FeatureInfo
from vitrail.models.family import Family, Results, register_family
from vitrail.models.isotropic import Isotropic
from vitrail.models.layer_settings import LayerSettings
from vitrail.models.peer import Peer, build_timm, build_torchvision, missing_in_torchvision
from vitrail.models.settings import check_choices
from vitrail.models.token_learner_settings import TokenLearnerConfig, build_token_learners, complete_token_learner
from vitrail.weights.kernels import kernels_of_stem
from vitrail.weights.plain_encoder import TIMM_RULES, TORCHVISION_RULES, TRANSFORMERS_RULES
from vitrail.weights.rules import KeyMap, Rename

_NORM_EPS = 1e-6


@dataclass(frozen=True)
class ViTConfig(LayerSettings):
    """Settings of a ViT, beside those of :class:`~vitrail.models.layer_settings.LayerSettings`.

    Attributes:
        img_size: Height and width in pixels that the positions are learned for; other sizes run too.
        in_chans: Bands.
        num_classes: Width of the logits; 0 gives the pooled features.
        patch_size: Height and width of a patch in pixels.
        patch_stride: Pixels from one patch to the next; less than the patch size gives overlapping patches, none the
            patch size.
        patch_padding: Pixels of zeros on each side of the image.
        patch_embed: "conv", a convolution, or "linear", unfolding and a linear layer; equal with the same weights.
        stem: "" or a convolutional stem before the patches (hybrid): "resnet", of stride 4; from Python also any module
            from images to feature maps (B, C, h, w). Patches are cut of its map and keep their size in pixels.
        stem_width: Channels of a stem that is given by its name.
        embed_dim: Width of a token.
        depth: Blocks.
        num_heads: Attention heads; must divide the width.
        mlp_ratio: Hidden width of the MLPs over the token width.
        qkv_bias: Whether queries, keys and values have a bias.
        class_token: Whether class tokens are prepended.
        num_class_tokens: Class tokens: 0 for none; 1 when not given and class_token is true.
        dist_token: Whether a distillation token with a classifier of its own follows the class token (DeiT,
            arXiv:2012.12877, section 4); the logits are the mean of both classifiers.
        reg_tokens: Register tokens after the class tokens, which no pooling reads (arXiv:2309.16588).
        global_pool: "token" reads the class token (the mean of several), "avg" the mean over the patches, "max" the
            largest value of each channel, "avgmax" the mean of these two, "map" attention with a learned query
            (arXiv:2106.04560); "" classifies each token.
        fc_norm: Whether the last norm comes after the pooling; where "avg", "max" or "avgmax" pools when not given.
        pos_drop_rate: Dropout of the tokens after positions are added, in training.
        patch_drop_rate: Share of patches that each image loses in training (arXiv:2208.07220); class and register
            tokens stay. Not in pre-training by masks, which has its own subset.
        drop_path_rate: Stochastic depth of the last block.
        pos_embed: Positions: "learned" on the grid; "learned1d" in raster order; "sincos2d" or "sincos1d", fixed sines
            and cosines; "rope", rotations of queries and keys by row and column (arXiv:2508.10104); "none".
        pos_embed_init: Initialisation of learned positions: "normal" (truncated normal) or "sincos" (sine-cosine,
            better on small data sets).
        no_embed_class: Whether class and register tokens have no positions, as in DeiT III and DINOv2 with registers.
        token_learner: TokenLearner's settings; none without it.
        token_merging: Pairs of similar patch tokens that each block merges, or a list with one number a block (Bolya
            et al. 2023, arXiv:2210.09461); at most half of the tokens that are left. 0 merges none.
    """

    img_size: int | tuple[int, int] = 224
    in_chans: int = 3
    num_classes: int = 1000
    patch_size: int | tuple[int, int] = 16
    patch_stride: int | tuple[int, int] | None = None
    patch_padding: int | tuple[int, int] = 0
    patch_embed: Literal["conv", "linear"] = "conv"
    stem: str | nn.Module = ""
    stem_width: int = 64
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    class_token: bool = True
    num_class_tokens: int | None = None
    dist_token: bool = False
    reg_tokens: int = 0
    global_pool: Literal["token", "avg", "max", "avgmax", "map", ""] = "token"
    fc_norm: bool | None = None
    pos_drop_rate: float = 0.0
    patch_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    pos_embed: Literal["learned", "learned1d", "sincos2d", "sincos1d", "rope", "none"] = "learned"
    pos_embed_init: Literal["normal", "sincos"] = "normal"
    no_embed_class: bool = False
    token_learner: TokenLearnerConfig | None = None
    token_merging: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        """Check settings that the layers do not check themselves.

        Raises:
            ConfigError: A value out of range, or settings that contradict each other.
        """
        object.__setattr__(self, "img_size", to_pair(self.img_size, "img_size"))
        object.__setattr__(self, "patch_size", to_pair(self.patch_size, "patch_size"))
        check_at_least(self, 1, "in_chans", "embed_dim", "depth", "num_heads")
        check_at_least(self, 0, "num_classes")
        check_mlp_ratio(self.mlp_ratio, self.embed_dim)
        check_at_least(self, 1, "stem_width")
        check_at_least(self, 0, "reg_tokens")
        self.check_layers()
        check_rates(self, "pos_drop_rate", "patch_drop_rate", "drop_path_rate")
        check_choices(self)
        self._check_tokens()
        if self.pos_embed == "rope" and (self.embed_dim // self.num_heads) % 4:
            raise ConfigError(
                f"pos_embed='rope' needs heads whose width is a multiple of 4, got {self.embed_dim // self.num_heads} "
                f"(embed_dim {self.embed_dim} over num_heads {self.num_heads})"
            )
        if self.token_learner is not None:
            object.__setattr__(self, "token_learner", complete_token_learner(self.token_learner, self.depth))
            if self.patch_drop_rate:
                raise ConfigError("token_learner needs the whole grid of patches; set patch_drop_rate 0")
        self._check_merging()

    def _check_merging(self) -> None:
        counts = [self.token_merging] if isinstance(self.token_merging, int) else list(self.token_merging)
        if any(not isinstance(r, int) or isinstance(r, bool) or r < 0 for r in counts):
            raise ConfigError(f"token_merging must be a whole number of at least 0, or one per block, got {counts}")
        if not isinstance(self.token_merging, int):
            object.__setattr__(self, "token_merging", tuple(counts))
            if len(counts) != self.depth:
                raise ConfigError(
                    f"token_merging has {plural(len(counts), 'number')} for {plural(self.depth, 'block')}; give one "
                    "each"
                )
        if not any(counts):
            return
        if self.token_learner is not None:
            raise ConfigError("token_learner replaces the patches that token_merging merges; leave one of them out")
        if self.pos_embed == "rope":
            raise ConfigError("token_merging cannot average the rotations of pos_embed='rope'; choose other positions")

    def _check_tokens(self) -> None:
        if self.num_class_tokens is not None:
            check_at_least(self, 0, "num_class_tokens")
            if self.num_class_tokens and not self.class_token:
                raise ConfigError(
                    f"num_class_tokens {self.num_class_tokens} contradicts class_token=False; leave out one of them"
                )
            object.__setattr__(self, "class_token", self.num_class_tokens > 0)
        if self.global_pool == "token" and not self.class_token:
            raise ConfigError("global_pool='token' needs class_token=True; use global_pool='avg' without one")
        if self.dist_token and (self.class_tokens != 1 or self.global_pool not in ("token", "") or self.fc_norm):
            raise ConfigError(
                "dist_token stands beside one class token: it needs class_token=True, global_pool='token', no fc_norm"
            )

    @property
    def merges(self) -> tuple[int, ...]:
        """Pairs of tokens that each block merges; empty where none does."""
        if isinstance(self.token_merging, int):
            return (self.token_merging,) * self.depth if self.token_merging else ()
        return self.token_merging if any(self.token_merging) else ()

    @property
    def class_tokens(self) -> int:
        """Number of class tokens, without the distillation token."""
        return int(self.class_token) if self.num_class_tokens is None else self.num_class_tokens


# What transformers calls the encoder inside of its classifiers.
_HUB_NAMES = r"(?:vit|deit|dinov2|dinov2_with_registers)"


class ViT(Isotropic):
    """Vision transformer.

    Args:
        config: The settings.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; TokenLearner: Ryoo et al. 2021, arXiv:2106.11297.
    """

    config: ViTConfig
    pos_embed: Tensor | None

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config = as_config(ViTConfig, config)
        dim = config.embed_dim
        self.num_classes = config.num_classes
        self.num_features = dim
        # The distillation token is a class token to all that reads class tokens.
        self.num_class_tokens = config.class_tokens + config.dist_token
        self.num_prefix = self.block_prefix = self.num_class_tokens + config.reg_tokens
        self._build_patches()
        self.cls_token = _token_parameter(config.class_tokens, dim)
        self.dist_token = _token_parameter(int(config.dist_token), dim)
        self.reg_token = _token_parameter(config.reg_tokens, dim)
        # Tokens at the start of the table of positions that are not patches.
        self.pos_prefix = 0 if config.no_embed_class else self.num_prefix
        add_position_table(self, config.pos_embed, self.grid, dim, self.pos_prefix, persistent=True)
        self.pos_drop = nn.Dropout(config.pos_drop_rate)
        self.patch_drop = PatchDropout(config.patch_drop_rate, self.num_prefix) if config.patch_drop_rate else None
        rates = drop_path_schedule(config.drop_path_rate, config.depth)
        attention = config.attention_options
        attention["norm_eps"] = _NORM_EPS
        self.blocks = nn.ModuleList(
            Block(
                dim,
                Attention(dim, config.num_heads, config.qkv_bias, **attention),
                config.mlp_ratio,
                rate,
                _NORM_EPS,
                **config.block_options,
            )
            for rate in rates
        )
        learners = build_token_learners(config.token_learner, dim, config.depth)
        self.learn_at, self.token_learners, self.token_fusers = learners
        # Where tokens are pooled the norm comes after the pooling, as in timm.
        pooled = config.global_pool in ("avg", "max", "avgmax") if config.fc_norm is None else config.fc_norm
        self.norm = nn.Identity() if pooled else make_norm(config.norm_layer, dim, _NORM_EPS)
        self.attn_pool = self.build_pool()
        self.fc_norm = make_norm(config.norm_layer, dim, _NORM_EPS) if pooled else nn.Identity()
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = linear_classifier(dim, config.num_classes)
        self.head_dist = linear_classifier(dim, config.num_classes) if config.dist_token else None
        self.distilled_training = False
        self.grad_checkpointing = False
        self.unmerge: Unmerge | None = None
        self._set_merging()
        self._init_weights()

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the tokens after the last norm.

        Args:
            x: Images, shape ``(B, in_chans, H, W)``.

        Returns:
            Shape ``(B, N, C)``, prefix tokens first; ``N`` counts the learned tokens where there are any.

        Raises:
            ShapeError: No batch of images of the right number of bands and type, or smaller than a patch.
        """
        tokens, grid, rotation = self.tokenize(*self.embed(x))
        whole = self.patch_drop is None or not self.patch_drop.active
        if self.patch_drop is not None:
            tokens, rotation = self.patch_drop(tokens, rotation)
        out: Tensor = self.norm(self.run_blocks(tokens, grid if whole else None, rotation)[0])
        return out

    def embed(self, x: Tensor) -> tuple[Tensor, ...]:
        """Embed patches ``(B, H, W, C)`` before positions, as :meth:`VisionModel.embed`."""
        if self.config.stem and not is_symbolic(x):
            check_images(x, self.config.in_chans, first_convolution(self.stem))
            check_covers(x, to_pair(self.config.patch_size))
        return (self.patch_embed(self.stem(x)),)

    def tokenize(self, patches: Tensor) -> tuple[Tensor, Grid, Tensor | None]:
        """Prepend class and register tokens and add positions, as :meth:`Isotropic.tokenize`."""
        # One by one, as torch.fx cannot iterate over a shape.
        grid, tokens = (patches.shape[1], patches.shape[2]), patches.flatten(1, 2)
        if self.config.no_embed_class:
            tokens = self.prepend_tokens(self.add_positions(tokens, grid))
        else:
            tokens = self.add_positions(self.prepend_tokens(tokens), grid)
        rotation = None
        if self.config.pos_embed == "rope":
            rotation = rotary_positions(grid, self.config.embed_dim // self.config.num_heads, tokens)
        return self.pos_drop(tokens), grid, rotation

    def prepend_tokens(self, x: Tensor) -> Tensor:
        """Prepend class, distillation and register tokens: ``(B, N, C)`` to ``(B, P + N, C)``."""
        prefix = (token for token in (self.cls_token, self.dist_token, self.reg_token) if token is not None)
        parts = [*(token.expand(x.shape[0], -1, -1) for token in prefix), x]
        return torch.cat(parts, dim=1) if len(parts) > 1 else x

    def add_positions(self, x: Tensor, grid: Grid) -> Tensor:
        """Add the table of positions, interpolated to the grid, to tokens ``(B, N, C)``."""
        if self.pos_embed is None:
            return x
        size = (grid[0], grid[1])
        return x + resample_table(self.config.pos_embed, self.pos_embed, self.grid, size, self.pos_prefix)

    def run_blocks(
        self,
        x: Tensor,
        grid: Grid | None,
        rotation: Tensor | None = None,
        levels: Sequence[int] = (),
        stop: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run blocks as :meth:`Isotropic.run_blocks`; at the end merged tokens stand at each of their patches."""
        if self.unmerge is None:
            return super().run_blocks(x, grid, rotation, levels, stop)
        found: list[Tensor] = []
        merged: Merged | None = None
        checkpointing = self.grad_checkpointing and self.training
        for i, block in enumerate(self.blocks[:stop]):
            if i < self.merge_at:
                x = self.run_block(block, x, grid)
            else:
                x, merged = run_block(block, x, grid, self.num_prefix, merged, checkpointing=checkpointing)
            if i in levels:
                found.append(x)
        return self.unmerge(x, self.num_prefix, merged), found

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool ``(B, N, C)`` and classify: ``(B, num_classes)``, or ``(B, C)`` with ``pre_logits``."""
        if self.head_dist is not None and self.global_pool == "token" and not pre_logits:
            distilled: Tensor = self._distilled_logits(features)
            return distilled
        return super().forward_head(features, pre_logits)

    def _distilled_logits(self, features: Tensor) -> Any:
        """Compute the mean of both classifiers, or in distilled training both."""
        assert self.head_dist is not None
        logits = self.head(self.head_drop(features[:, 0])), self.head_dist(features[:, 1])
        return logits if self.distilled_training and self.training else (logits[0] + logits[1]) / 2

    def _build_patches(self) -> None:
        """Build the stem and the patch embedding; set the grid and the pixels between patches."""
        config, size = self.config, to_pair(self.config.img_size)
        patch, padding = to_pair(config.patch_size), to_pair(config.patch_padding, "patch_padding", 0)
        stride = self.patch_stride = to_pair(config.patch_stride or patch, "patch_stride")
        check_img_size(size, patch)
        self.stem = make_stem(config.stem, config.in_chans, config.stem_width)
        chans, pixels = config.in_chans, (1, 1)
        if config.stem:
            chans, pixels = measure_stem(self.stem, config.in_chans, size)
            self.input_kernels = kernels_of_stem(self.stem, config.in_chans)  # type: ignore[misc]  # of this model
        check_multiples(pixels, patch_size=patch, patch_stride=stride, patch_padding=padding)
        patch, stride, padding = (
            (values[0] // pixels[0], values[1] // pixels[1]) for values in (patch, stride, padding)
        )
        kind = LinearPatchEmbed if config.patch_embed == "linear" else PatchEmbed
        self.patch_embed = kind(chans, config.embed_dim, patch, stride=stride, padding=padding, pixels=pixels)
        self.grid = self.patch_embed.grid_of(grid_size(size, pixels))

    def _init_weights(self) -> None:
        # TokenLearner and TokenFuser have begun as their authors have them.
        init_linears(self.blocks, self.head, *([] if self.head_dist is None else [self.head_dist]))
        kind, dim = self.config.pos_embed, self.config.embed_dim
        sincos = self.config.pos_embed_init == "sincos" and kind in LEARNED_TABLES
        init_position_table(self, fixed_positions(kind, self.grid, dim) if sincos else None)
        for token in (self.cls_token, self.dist_token, self.reg_token):
            if token is not None:
                # Several must differ from the start; a single one begins as in timm.
                nn.init.normal_(token, std=1e-6 if self.num_prefix == 1 else 0.02)
        init_patch_projection(self.patch_embed.proj)

    def _set_merging(self) -> None:
        """Let blocks from the first with pairs to merge return merged tokens; the blocks before it are levels."""
        config = self.config
        merges = config.merges
        self.merge_at = next((i for i, r in enumerate(merges) if r), config.depth)
        for i, block in enumerate(self.blocks if merges or self.unmerge is not None else ()):
            set_merging(block, merges[i] if i >= self.merge_at else None)
        self.unmerge = Unmerge() if merges else None
        on_grid = self.merge_at if self.token_fusers else min(self.merge_at, self.learn_at)
        tiles = self.patch_stride, self.patch_embed.pixel_offset
        self.feature_info = [FeatureInfo(f"blocks.{i}", config.embed_dim, *tiles) for i in range(on_grid)]

    def set_token_merging(self, r: int | Sequence[int]) -> None:
        """Merge tokens from now on, as :meth:`VisionModel.set_token_merging`."""
        merging = r if isinstance(r, int) else tuple(r)
        config = dataclasses.replace(self.config, token_merging=merging)
        if config.merges and (lack := self.lacks_merging()):
            raise ConfigError(f"tokens cannot be merged: {lack}")
        self.config = config
        self._set_merging()

    def lacks_merging(self) -> str:
        """Return the reason why blocks cannot merge: a TokenLearner, rotary positions, or a replaced block."""
        return next(filter(None, map(lacks_merging, self.blocks)), "")

    def set_distilled_training(self, enable: bool = True) -> bool:
        """Return both classifiers in training, as :meth:`VisionModel.set_distilled_training`."""
        self.distilled_training = enable and self.head_dist is not None
        return self.head_dist is not None

    @property
    def ends(self) -> tuple[Ends, ...]:
        """Ends as of :attr:`Isotropic.ends`; none where patches overlap or are merged."""
        return () if self._overlap or self.unmerge else super().ends

    @property
    def _overlap(self) -> str:
        """Reason why patches do not tile the image; empty where they do."""
        config = self.config
        padded = any(to_pair(config.patch_padding, "patch_padding", 0))
        if self.patch_stride == to_pair(config.patch_size) and not padded:
            return ""
        return "overlapping or padded patches do not tile the image; leave patch_stride and patch_padding out"

    def lacks_grid(self) -> str:
        """Return the reason why tokens form no grid: overlapping patches, merging, a TokenLearner without fuser."""
        if self.ends or self._overlap:
            return self._overlap
        if self.unmerge is not None:
            return "blocks merge tokens, which then form no grid; set token_merging 0, at least for the first blocks"
        return super().lacks_grid()

    def lacks_visible(self) -> str:
        """Return the reason why all patches are needed: a TokenLearner, merging, or overlap leaking masked pixels."""
        if self.unmerge is not None:
            return "the decoder needs each visible patch; set token_merging 0"
        return super().lacks_visible() or self._overlap

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, as :meth:`VisionModel.reset_classifier`."""
        if global_pool is not None:
            # The norm stays where it is.
            self.config = dataclasses.replace(self.config, fc_norm=not isinstance(self.fc_norm, nn.Identity))
        super().reset_classifier(num_classes, global_pool)
        if self.head_dist is not None:
            parameter = next(self.parameters())
            self.head_dist = self.build_head(num_classes).to(parameter.device, parameter.dtype)

    def _keep_levels(self, count: int) -> None:
        learner = self.config.token_learner
        if count <= self.learn_at:
            learner, self.learn_at = None, count + 1
        self.blocks = self.blocks[:count]
        kept = max(0, count - self.learn_at) if self.token_fusers else 0
        self.token_learners, self.token_fusers = self.token_learners[:kept], self.token_fusers[:kept]
        # Levels end before the first merging.
        self.config = dataclasses.replace(self.config, depth=count, token_learner=learner, token_merging=0)
        self._set_merging()

    def fit_tensor(
        self, key: str, value: Tensor, state: Mapping[str, Tensor], made_for: Mapping[str, Any]
    ) -> tuple[Tensor, str] | None:
        """Resample positions that were learned for another grid (a square one where no settings tell)."""
        prefix = 0 if self.config.no_embed_class else count_prefix(state)
        if key != "pos_embed" or prefix != self.pos_prefix:
            return None
        # The size of the image tells the grid of patches that tile it, not of overlapping ones.
        told = made_for if self.config.patch_stride is None else {**made_for, "img_size": None}
        own, kind = self.pos_embed, self.config.pos_embed
        return fit_positions(own, self.grid, value, self.patch_stride, told, kind=kind, num_prefix=prefix)

    @classmethod
    def read_structure(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read depth and width, as far as the shapes show them."""
        depth, registers = count_numbered(state, "blocks"), state.get("reg_token")
        found: dict[str, Any] = {"depth": depth} if depth else {}
        if registers is not None and registers.ndim == 3:
            found["reg_tokens"] = registers.shape[1]
            table = state.get("pos_embed")
            if table is not None and table.ndim == 3 and not embeds_prefix(table.shape[1], state):
                found["no_embed_class"] = True
        if "blocks.0.ls1.gamma" in state:
            found["init_values"] = 1e-5
        if "blocks.0.attn.q_norm.weight" in state:
            found["qk_norm"] = True
        first, last = state.get("blocks.0.mlp.fc1.weight"), state.get("blocks.0.mlp.fc2.weight")
        if first is not None and last is not None and first.ndim == last.ndim == 2 and first.shape[0] > last.shape[1]:
            found |= {"mlp_layer": "swiglu", "mlp_ratio": last.shape[1] / last.shape[0]}
        return read_width(state, "patch_embed.proj.weight") | found

    @classmethod
    def read_settings(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read also whether there is a class token, and the pooling."""
        pooled = "fc_norm.weight" in state
        pool = "map" if "attn_pool.latent" in state else "avg" if pooled else "token"
        names: dict[str, Any] = {
            "class_token": "cls_token" in state, "global_pool": pool, "dist_token": "dist_token" in state
        }  # fmt: skip
        token = state.get("cls_token")
        if token is not None and token.ndim == 3 and token.shape[1] > 1:
            names["num_class_tokens"] = token.shape[1]
        table = state.get("pos_embed")
        if table is not None and table.ndim == 3 and not embeds_prefix(table.shape[1], state):
            names["no_embed_class"] = True
        structure = cls.read_structure(state)
        names |= {key: structure[key] for key in _READ if key in structure}
        return {**super().read_settings(state), **names}

    key_maps = (
        KeyMap("timm", (r"patch_embed\.proj\.weight", r"blocks\.(0\.)?0\.attn\.qkv\.weight"), TIMM_RULES),
        KeyMap(
            "huggingface",
            (
                rf"({_HUB_NAMES}\.)?embeddings\.patch_embeddings\.projection\.weight",
                rf"({_HUB_NAMES}\.)?embeddings\.position_embeddings",
            ),
            (Rename(rf"{_HUB_NAMES}\.(.*)", r"\1"), *TRANSFORMERS_RULES),
        ),
        KeyMap("torchvision", (r"conv_proj\.weight", r"encoder\.pos_embedding"), TORCHVISION_RULES),
    )


# Settings read off a checkpoint that recognising passes to the variants.
_READ = ("reg_tokens", "init_values", "qk_norm", "mlp_layer", "mlp_ratio")


def _token_parameter(count: int, dim: int) -> nn.Parameter | None:
    return nn.Parameter(torch.zeros(1, count, dim)) if count else None


# arXiv:2010.11929, table 1, and the smaller widths of Touvron et al. 2021, arXiv:2012.12877, table 1.
_WIDTHS: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
_SIZES = (
    "tiny_patch16_224 tiny_patch16_384 small_patch8_224 small_patch16_224 small_patch16_384 small_patch32_224 "
    "small_patch32_384 base_patch8_224 base_patch16_224 base_patch16_384 base_patch32_224 base_patch32_384 "
    "large_patch14_224 large_patch16_224 large_patch16_384 large_patch32_224 large_patch32_384 huge_patch14_224"
).split()


def _variants() -> dict[str, dict[str, Any]]:
    variants: dict[str, dict[str, Any]] = {}
    for size in _SIZES:
        width, patch, pixels = size.split("_")
        settings: dict[str, Any] = {
            **_WIDTHS[width],
            "patch_size": int(patch.removeprefix("patch")),
            "img_size": int(pixels),
        }
        if width == "huge":
            # timm's variant has no classifier unless asked for one: the weights under this name are features.
            settings["num_classes"] = 0
        variants[f"vit_{size}"] = settings
        if patch == "patch16" and pixels == "224":
            # 8 or 16 tokens learned at the middle of the network: arXiv:2106.11297, section 3.
            for tokens in (8, 16):
                variants[f"vit_{size}_tokenlearner{tokens}"] = {
                    **settings,
                    "token_learner": {"num_tokens": tokens},
                }
            variants[f"vit_{size}_tokenlearner8_fuser"] = {
                **settings,
                "token_learner": {"num_tokens": 8, "fuse": True},
            }
    # Touvron et al. 2021, arXiv:2012.12877, table 1.
    for size in ("tiny_patch16_224", "small_patch16_224", "base_patch16_224", "base_patch16_384"):
        variants[f"deit_{_distilled_name(size)}"] = {**variants[f"vit_{size}"], "dist_token": True}
    return variants


def _distilled_name(size: str) -> str:
    """Write a size as timm names distilled models: tiny_patch16_224 as tiny_distilled_patch16_224."""
    width, _, rest = size.partition("_")
    return f"{width}_distilled_{rest}"


# Fine-tuned at 384 pixels.
_VIT_TOP1 = {
    "vit_base_patch16_384": 77.91,
    "vit_base_patch32_384": 73.38,
    "vit_large_patch16_384": 76.53,
    "vit_large_patch32_384": 71.16,
}
# The same in the authors' README_deit.md, but 85.2 at 384 pixels: those weights are of 1000 epochs.
_DEIT_TOP1 = {
    "deit_tiny_distilled_patch16_224": 74.5,
    "deit_small_distilled_patch16_224": 81.2,
    "deit_base_distilled_patch16_224": 83.4,
    "deit_base_distilled_patch16_384": 84.5,
}

_SHARED_WITH_TIMM = (
    "img_size", "in_chans", "num_classes", "mlp_ratio", "qkv_bias", "drop_path_rate", "patch_size", "embed_dim",
    "depth", "num_heads", "class_token", "global_pool",
)  # fmt: skip


def _build_timm(settings: Mapping[str, Any]) -> nn.Module:
    return build_timm("vit_small_patch16_224", settings, _SHARED_WITH_TIMM)


def _build_torchvision(settings: Mapping[str, Any]) -> nn.Module:
    return build_torchvision(
        "VisionTransformer",
        image_size=to_pair(settings["img_size"])[0],
        patch_size=to_pair(settings["patch_size"])[0],
        num_layers=settings["depth"],
        num_heads=settings["num_heads"],
        hidden_dim=settings["embed_dim"],
        mlp_dim=int(settings["embed_dim"] * settings["mlp_ratio"]),
        num_classes=settings["num_classes"],
    )


# Settings that timm's ViT has under other names, or lacks, beside their defaults.
_NOT_SHARED = (
    "patch_stride", "patch_padding", "stem", "num_class_tokens", "mlp_layer", "act_layer", "norm_layer", "pos_embed",
    "reg_tokens", "dist_token", "init_values", "qk_norm", "no_embed_class",
)  # fmt: skip


def _missing_in_timm(settings: Mapping[str, Any]) -> str:
    if settings["token_learner"] is not None:
        return "no TokenLearner"
    defaults = {field.name: field.default for field in dataclasses.fields(ViTConfig)}
    changed = [name for name in _NOT_SHARED if settings.get(name, defaults[name]) != defaults[name]]
    return f"compared with {changed[0]} at its default only" if changed else ""


def _missing_in_torchvision(settings: Mapping[str, Any]) -> str:
    if missing := _missing_in_timm(settings):
        return missing
    if settings["global_pool"] != "token":
        return "no mean over tokens"
    return missing_in_torchvision(settings, "img_size", "patch_size")


register_family(
    Family(
        name="vit",
        config=ViTConfig,
        build=ViT,
        variants=_variants(),
        test_config={
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 3,
            "num_classes": 5,
        },
        published=_VIT_TOP1 | _DEIT_TOP1,
        results=(
            Results(
                "ImageNet-1k",
                "Dosovitskiy et al. 2021, arXiv:2010.11929, table 5, fine-tuned at 384 pixels",
                _VIT_TOP1,
            ),
            Results("ImageNet-1k", "Touvron et al. 2021, arXiv:2012.12877, table 5, 300 epochs", _DEIT_TOP1),
            Results(
                "ImageNet-21k",
                "Dosovitskiy et al. 2021, arXiv:2010.11929, table 5, fine-tuned at 384 pixels",
                {
                    "vit_base_patch16_384": 83.97,
                    "vit_base_patch32_384": 81.28,
                    "vit_large_patch16_384": 85.15,
                    "vit_large_patch32_384": 80.99,
                },
            ),
            Results(
                "JFT-300M",
                "Dosovitskiy et al. 2021, arXiv:2010.11929, table 5, fine-tuned at 384 pixels",
                {
                    "vit_base_patch16_384": 84.15,
                    "vit_base_patch32_384": 80.73,
                    "vit_large_patch16_384": 87.12,
                    "vit_large_patch32_384": 84.37,
                },
            ),
        ),
        layers=(TokenFuser, TokenLearner),
        source="Dosovitskiy et al. 2021, arXiv:2010.11929; TokenLearner: Ryoo et al. 2021, arXiv:2106.11297",
        peers={
            "timm": Peer(_build_timm, _missing_in_timm),
            "torchvision": Peer(_build_torchvision, _missing_in_torchvision),
        },
    )
)
