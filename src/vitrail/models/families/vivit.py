"""ViViT: four ways of attention over the tubelets of a clip, with TokenLearner in each slice of time if wanted.

Sources: Arnab et al. 2021, arXiv:2103.15691 (ViViT); Ryoo et al. 2021, arXiv:2106.11297 (TokenLearner). Checkpoints of
VideoMAE (Tong et al. 2022, arXiv:2203.12602) and TimeSformer (Bertasius et al. 2021, arXiv:2102.05095) are settings of
the same family. Parameter names are those of the ViT family, so that a ViT's checkpoint loads into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, plural
from vitrail.layers.attention import Attention
from vitrail.layers.block import Block, BlockOptions
from vitrail.layers.checkpointing import run_block
from vitrail.layers.drop_path import DropPath, drop_path_schedule
from vitrail.layers.head import linear_classifier
from vitrail.layers.init import init_linears
from vitrail.layers.mixer import call_mixer
from vitrail.layers.norms import make_norm
from vitrail.layers.positions import (
    init_position_table,
    resample_positions,
    resample_space_time,
    resample_time,
    sincos_sequence,
)
from vitrail.layers.shapes import product, to_pair
from vitrail.layers.space_time_attention import AxisAttention, SliceAttention, SliceSummary, SplitHeadAttention
from vitrail.layers.tap import Grid
from vitrail.layers.token_learner import TokenFuser, TokenLearner
from vitrail.layers.tubelets import TubeletEmbed, inflate_kernel, init_tubelet_projection, to_triple
from vitrail.models.base import VisionModel
from vitrail.models.checkpoint_sizes import count_numbered, count_prefix, embeds_prefix
from vitrail.models.checks import as_config, check_at_least, check_mlp_ratio, check_rates
from vitrail.models.facts import Ends, FeatureInfo, Stream
from vitrail.models.family import Family, register_family
from vitrail.models.isotropic import Isotropic
from vitrail.models.layer_settings import LayerSettings
from vitrail.models.modality import VIDEO, Modality
from vitrail.models.settings import check_choices
from vitrail.models.token_learner_settings import TokenLearnerConfig, build_token_learners, complete_token_learner
from vitrail.models.video_positions import VideoTable, fit_video_positions
from vitrail.weights.kernels import InputKernel
from vitrail.weights.plain_encoder import TIMM_RULES
from vitrail.weights.report import LoadReport
from vitrail.weights.rules import KeyMap, Rename
from vitrail.weights.video_encoder import SCENIC_RULES, TRANSFORMERS_VIDEO_RULES


@dataclass(frozen=True)
class ViViTConfig(LayerSettings):
    """Settings of a ViViT, beside those of :class:`~vitrail.models.layer_settings.LayerSettings`.

    Attributes:
        num_frames: Frames that the positions are learned for; other numbers run too.
        img_size: Height and width in pixels that the positions are learned for; other sizes run too.
        in_chans: Bands.
        num_classes: Width of the logits; 0 gives the pooled features.
        tubelet_size: Frames, height and width of a tubelet.
        embedding: "tubelet", a convolution over whole tubelets, or "uniform_frames", over the middle frame of each
            (section 3.2).
        attention: "joint" over all tokens (model 1); "factorised_encoder", a spatial encoder of each slice of time,
            then a temporal encoder of the slices (model 2); "factorised_self_attention", in each block over time, then
            over space (model 3); "factorised_dot_product", half of the heads over time, half over space (model 4).
        temporal_depth: Blocks of the temporal encoder of "factorised_encoder"; 0 for the mean over time.
        embed_dim: Width of a token.
        depth: Blocks, those of the spatial encoder for "factorised_encoder".
        num_heads: Attention heads; must divide the width.
        mlp_ratio: Hidden width of the MLPs over the token width.
        qkv_bias: Whether queries, keys and values have a bias.
        class_token: Whether a class token is prepended; models 3 and 4 of the paper have none, and
            "factorised_dot_product" cannot have one.
        global_pool: "token" reads the class token, "avg" the mean over the tokens, "max" the largest value of each
            channel, "avgmax" the mean of these two, "map" attention with a learned query; "" classifies each token.
        fc_norm: Whether the last norm comes after the pooling, as in VideoMAE.
        norm_eps: Epsilon of the norms.
        pos_drop_rate: Dropout of the tokens after positions are added, in training.
        drop_path_rate: Stochastic depth of the last block.
        pos_embed: Positions: "learned", one for each token; "space_time", the sum of one in the frame and one in
            time, as in TimeSformer; "sincos1d", fixed sines and cosines in the order of the tokens, as in
            VideoMAE; "none".
        inflation: Rule that converts the kernel of a patch to that of a tubelet, for fresh weights and for those of a
            ViT: "central_frame" (zeros at the other frames) or "inflation" (over the number of frames, at each).
        temporal_init: Attention over time of "factorised_self_attention" that starts from a ViT: "zero", whose output
            starts at zero (section 3.4), or "copy" of the attention over space.
        token_learner: TokenLearner's settings, for "joint" (as published) and for the spatial encoder of
            "factorised_encoder" (not in the paper); each slice of time learns its own tokens. None without it.
    """

    num_frames: int = 32
    img_size: int | tuple[int, int] = 224
    in_chans: int = 3
    num_classes: int = 400
    tubelet_size: tuple[int, int, int] = (2, 16, 16)
    embedding: Literal["tubelet", "uniform_frames"] = "tubelet"
    attention: Literal["joint", "factorised_encoder", "factorised_self_attention", "factorised_dot_product"] = "joint"
    temporal_depth: int = 4
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    class_token: bool = True
    global_pool: Literal["token", "avg", "max", "avgmax", "map", ""] = "token"
    fc_norm: bool = False
    norm_eps: float = 1e-6
    pos_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    pos_embed: Literal["learned", "space_time", "sincos1d", "none"] = "learned"
    inflation: Literal["central_frame", "inflation"] = "central_frame"
    temporal_init: Literal["zero", "copy"] = "zero"
    token_learner: TokenLearnerConfig | None = None
    absent: ClassVar[Mapping[str, str]] = {
        "patch_drop_rate": "attention along time and space needs whole slices; use drop_path_rate",
        "token_merging": "attention along time and space needs whole slices",
        "reg_tokens": "no published model of clips has register tokens; a ViT has them",
    }

    def __post_init__(self) -> None:
        """Check settings that the layers do not check themselves.

        Raises:
            ConfigError: A value out of range, or settings that contradict each other.
        """
        object.__setattr__(self, "img_size", to_pair(self.img_size, "img_size"))
        object.__setattr__(self, "tubelet_size", to_triple(self.tubelet_size, "tubelet_size"))
        check_at_least(self, 1, "num_frames", "in_chans", "embed_dim", "depth", "num_heads")
        check_at_least(self, 0, "num_classes", "temporal_depth")
        check_mlp_ratio(self.mlp_ratio, self.embed_dim)
        self.check_layers()
        check_rates(self, "pos_drop_rate", "drop_path_rate")
        check_choices(self)
        for name, length, step in zip(
            ("num_frames", "img_size", "img_size"), self.size, self.tubelet_size, strict=True
        ):
            if length < step and not (name == "num_frames" and self.embedding == "uniform_frames"):
                raise ConfigError(f"{name} {length} is smaller than one tubelet of {self.tubelet_size}; make it larger")
        if self.global_pool == "token" and not self.class_token:
            raise ConfigError("global_pool='token' needs class_token=True; use global_pool='avg' without one")
        if self.class_token and self.attention == "factorised_dot_product":
            raise ConfigError(
                "attention 'factorised_dot_product' has no class token; set class_token false and global_pool 'avg'"
            )
        if self.attention == "factorised_dot_product" and self.num_heads % 2:
            raise ConfigError(f"attention 'factorised_dot_product' needs an even num_heads, got {self.num_heads}")
        if self.attention == "factorised_encoder" and (self.fc_norm or self.pos_embed == "space_time"):
            raise ConfigError(
                "attention 'factorised_encoder' has a norm and positions in each of its encoders; leave fc_norm false "
                "and choose another pos_embed than 'space_time'"
            )
        if self.token_learner is not None:
            if self.attention not in ("joint", "factorised_encoder"):
                raise ConfigError(
                    f"token_learner needs attention 'joint' or 'factorised_encoder', got {self.attention!r}: learned "
                    "tokens of one time have no counterparts at another"
                )
            object.__setattr__(self, "token_learner", complete_token_learner(self.token_learner, self.depth))

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        return self.num_frames, *to_pair(self.img_size)

    @property
    def block_options(self) -> BlockOptions:
        """Options of every block; the MLP's GELU is the tanh approximation, as in the authors' code."""
        options = super().block_options
        if self.act_layer is None and self.mlp_layer == "mlp":
            options["act_layer"] = "gelu_tanh"
        return options


class FactorisedBlock(Block):
    """Attention over time, attention over space, then an MLP, each on a residual branch.

    Source: Arnab et al. 2021, arXiv:2103.15691, section 3.3, model 3.
    """

    def __init__(self, config: ViViTConfig, attn_time: nn.Module, attn: nn.Module, drop_path: float) -> None:
        super().__init__(config.embed_dim, attn, config.mlp_ratio, drop_path, config.norm_eps, **config.block_options)
        self.norm_time = make_norm(config.norm_layer, config.embed_dim, config.norm_eps)
        self.attn_time = attn_time
        self.drop_path_time = DropPath(drop_path)

    def forward(
        self, x: Tensor, grid: Grid | None = None, num_prefix: int | None = None, rotation: Tensor | None = None
    ) -> Tensor:
        """Mix tokens ``(B, P + T * H * W, C)`` over time, then over space, then the channels of each."""
        x = x + self.drop_path_time(call_mixer(self.attn_time, self.norm_time(x), grid, num_prefix))
        return super().forward(x, grid, num_prefix)


class TemporalEncoder(nn.Module):
    """Transformer over the slices of a clip, each one token.

    Args:
        config: Settings of the model.
        times: Slices that positions are learned for.
        rates: Stochastic depth of each block.

    Source: Arnab et al. 2021, arXiv:2103.15691, section 3.3, model 2.
    """

    pos_embed: Tensor

    def __init__(self, config: ViViTConfig, times: int, rates: Sequence[float]) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_prefix = int(config.class_token)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_prefix + times, dim))
        self.blocks = nn.ModuleList(_block(config, rate) for rate in rates)
        self.norm = make_norm(config.norm_layer, dim, config.norm_eps)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Mix slices ``(B, T, C)``; class token first, shape ``(B, P + T, C)``."""
        times = x.shape[1]
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + resample_time(self.pos_embed, times, self.num_prefix)
        for block in self.blocks:
            checkpointing = self.grad_checkpointing and self.training
            x = run_block(block, x, (times,), self.num_prefix, checkpointing=checkpointing)
        out: Tensor = self.norm(x)
        return out


class ViViT(Isotropic):
    """Video vision transformer.

    Args:
        config: The settings.

    Source: Arnab et al. 2021, arXiv:2103.15691; TokenLearner: Ryoo et al. 2021, arXiv:2106.11297.
    """

    modality: ClassVar[Modality] = VIDEO
    input_kernels: ClassVar[Mapping[str, InputKernel]] = {"patch_embed.proj.weight": InputKernel("video")}
    not_decayed = (*VisionModel.not_decayed, "time_embed")
    config: ViViTConfig
    pos_embed: Tensor | None
    time_embed: nn.Parameter | None

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        self.config = config = as_config(ViViTConfig, config)
        dim = self.num_features = config.embed_dim
        self.num_classes = config.num_classes
        # Slices of time that the blocks see one by one.
        self.sliced = config.attention == "factorised_encoder"
        self.block_prefix = int(config.class_token)
        self.num_prefix = self.block_prefix if config.temporal_depth or not self.sliced else 0
        self.patch_stride = config.tubelet_size
        uniform = config.embedding == "uniform_frames"
        self.patch_embed = TubeletEmbed(config.in_chans, dim, config.tubelet_size, uniform)
        self.grid = self.patch_embed.grid_of(config.size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self._build_positions()
        self.pos_drop = nn.Dropout(config.pos_drop_rate)
        later = config.temporal_depth if self.sliced else 0
        rates = drop_path_schedule(config.drop_path_rate, config.depth + later)
        self.blocks = nn.ModuleList(_block(config, rate, config.attention) for rate in rates[: config.depth])
        learners = build_token_learners(config.token_learner, dim, config.depth)
        self.learn_at, self.token_learners, self.token_fusers = learners
        self.norm = nn.Identity() if config.fc_norm else make_norm(config.norm_layer, dim, config.norm_eps)
        self.summary = SliceSummary(self.block_prefix) if self.sliced else None
        self.temporal = TemporalEncoder(config, self.grid[0], rates[config.depth :]) if later else None
        self.attn_pool = self.build_pool()
        self.fc_norm = make_norm(config.norm_layer, dim, config.norm_eps) if config.fc_norm else nn.Identity()
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = linear_classifier(dim, config.num_classes)
        self.grad_checkpointing = False
        on_grid = config.depth if self.token_fusers else min(config.depth, self.learn_at)
        self.feature_info = [FeatureInfo(f"blocks.{i}", dim, config.tubelet_size) for i in range(on_grid)]
        self._init_weights()

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the tokens after the last norm.

        Args:
            x: Clips, shape ``(B, in_chans, T, H, W)``.

        Returns:
            Shape ``(B, N, C)``, class token first; for "factorised_encoder" N counts slices of time, for other kinds of
            attention tubelets or learned tokens.

        Raises:
            ShapeError: No batch of clips of the right number of bands and type, or smaller than a tubelet.
        """
        tokens, grid, _ = self.tokenize(*self.embed(x))
        return self.finish(self.run_blocks(tokens, grid)[0], grid)

    def embed(self, x: Tensor) -> tuple[Tensor, ...]:
        """Embed tubelets ``(B, T, H, W, C)`` before positions, as :meth:`VisionModel.embed`."""
        return (self.patch_embed(x),)

    def tokenize(self, patches: Tensor) -> tuple[Tensor, Grid, None]:
        """Prepend the class token and add positions, as :meth:`Isotropic.tokenize`.

        For "factorised_encoder" each slice of time is a sequence of its own, ``(B * T, P + H * W, C)``.
        """
        grid = tuple(patches.shape[1:4])
        x = patches.flatten(0, 1).flatten(1, 2) if self.sliced else patches.flatten(1, 3)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.pos_drop(self.add_positions(x, grid)), grid, None

    def add_positions(self, x: Tensor, grid: Grid) -> Tensor:
        """Add the positions of a grid, also to the class token, to tokens ``(B, P + N, C)``."""
        return x if self.pos_embed is None else x + self._positions(self.pos_embed, grid)

    def _positions(self, table: Tensor, grid: Grid) -> Tensor:
        """Compute the positions of a grid, for the class token too."""
        P = self.block_prefix
        if not self._of_slices:
            return resample_space_time(table, self.grid, grid, P)
        space = resample_positions(table, (self.grid[1], self.grid[2]), (grid[1], grid[2]), P)
        if self.time_embed is None:
            return space
        times = resample_time(self.time_embed, grid[0])
        sums = (times[:, :, None] + space[:, None, P:]).flatten(1, 2)
        return torch.cat([space[:, :P], sums], dim=1)

    @property
    def _of_slices(self) -> bool:
        """Whether the table of positions is that of one slice of time."""
        return self.sliced or self.config.pos_embed == "space_time"

    def finish(self, x: Tensor, grid: Grid) -> Tensor:
        """Apply the last norm; for "factorised_encoder" also summarise the slices, and mix them over time."""
        x = self.norm(x)
        if self.summary is not None:
            x = self.summary(x.reshape(-1, grid[0], *x.shape[1:]))
        return x if self.temporal is None else self.temporal(x)

    def pool(self, features: Tensor, dims: tuple[int, ...] = (1,)) -> Tensor:
        """Pool as :meth:`VisionModel.pool`; without a temporal encoder the mean over the slices of time."""
        if self.sliced and self.temporal is None and self.global_pool == "token":
            return features.mean(dim=1)
        return super().pool(features, dims)

    def fuse(self, learned: Tensor, x: Tensor, grid: Grid | None, index: int) -> Tensor:
        """Spread the learned tokens of each slice of time over its tokens."""
        assert grid is not None
        clips = (
            part.reshape(-1, product(grid) if part is x else grid[0] * self._learned, self.num_features)
            for part in (learned, x)
        )
        spread: Tensor = self.token_fusers[index](*clips, grid[0])
        return spread.reshape(x.shape)

    @property
    def _learned(self) -> int:
        """Learned tokens of a slice of time."""
        learner = self.config.token_learner
        return 0 if learner is None else learner.num_tokens

    def learned_grid(self, grid: Grid | None) -> Grid | None:
        """Return the grid of learned tokens of slices that attend one by one, a column each; None without slices."""
        return (grid[0], self._learned, 1) if self.sliced and grid is not None else None

    def _build_positions(self) -> None:
        kind, dim = self.config.pos_embed, self.config.embed_dim
        count = self.grid[1] * self.grid[2] if self._of_slices else product(self.grid)
        self.time_embed = nn.Parameter(torch.zeros(1, self.grid[0], dim)) if kind == "space_time" else None
        if kind == "sincos1d":
            fixed = torch.cat([torch.zeros(1, self.block_prefix, dim), sincos_sequence(count, dim)], dim=1)
            self.register_buffer("pos_embed", fixed, persistent=False)
        else:
            table = None if kind == "none" else nn.Parameter(torch.zeros(1, self.block_prefix + count, dim))
            self.register_parameter("pos_embed", table)

    def _init_weights(self) -> None:
        # TokenLearner and TokenFuser have begun as their authors have them; class tokens begin at zero.
        init_linears(self.blocks, self.head)
        init_position_table(self)
        if self.time_embed is not None:
            nn.init.trunc_normal_(self.time_embed, std=0.02)
        if self.temporal is not None:
            init_linears(self.temporal)
            init_position_table(self.temporal)
        init_tubelet_projection(self.patch_embed.proj, self.config.inflation)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """One clip."""
        return (Stream("video", self.config.in_chans, self.config.size),)

    @property
    def ends(self) -> tuple[Ends, ...]:
        """Ends as of :attr:`Isotropic.ends`; none of slices of time."""
        return () if self.sliced else super().ends

    @property
    def reads_class_token(self) -> bool:
        """Not the mean over time of slices, even where each is a class token."""
        return super().reads_class_token and self.num_prefix > 0

    def lacks_grid(self) -> str:
        """Return the reason why tokens form no grid: slices of time, or a TokenLearner without fuser."""
        if self.sliced:
            return "the last tokens of attention 'factorised_encoder' are slices of time; choose another attention"
        return super().lacks_grid()

    def lacks_visible(self) -> str:
        """Return the reason why all tubelets are needed: a TokenLearner, or attention that is not joint."""
        joint = self.config.attention == "joint"
        lack = "" if joint else f"attention {self.config.attention!r} needs whole slices of time; choose 'joint'"
        return super().lacks_visible() or lack

    def level_as_map(self, index: int, output: Tensor, size: Grid) -> Tensor:
        """View a level as a map, as :meth:`VisionModel.level_as_map`; each slice may be a sequence of its own."""
        count = size[1] * size[2] if self.sliced else product(size)
        patches = output[:, -count:] if output.shape[1] <= count + self.block_prefix else output
        return patches.reshape(-1, *size, output.shape[-1]).movedim(-1, 1)

    def reads_level(self, index: int) -> bool:
        """Return whether the logits depend on a level's tubelets; of the last level a class token alone may be read."""
        reads_class = self.config.class_token if self.sliced else self.global_pool == "token"
        return not (reads_class and index == len(self.blocks) - 1)

    def later_groups(self) -> list[list[str]]:
        """Return groups of the temporal encoder: its embedding, then its blocks."""
        if self.temporal is None:
            return []
        first = ["norm", "temporal.cls_token", "temporal.pos_embed"]
        return [first, *([f"temporal.blocks.{i}"] for i in range(len(self.temporal.blocks)))]

    def adapt_state(self, state: dict[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
        """Complete a ViT's checkpoint: the parts that see time keep their fresh weights, or start from those of space.

        Source: Arnab et al. 2021, arXiv:2103.15691, section 3.4.
        """
        kernel = state.get("patch_embed.proj.weight")
        if kernel is None or kernel.ndim != 4:
            return state
        out = dict(state)
        if "fc_norm.weight" in state and not self.config.fc_norm:
            for part in ("weight", "bias"):
                out[f"norm.{part}"] = out.pop(f"fc_norm.{part}")
        if self.cls_token is None and "cls_token" in out:
            report.dropped["cls_token"] = "this model has no class token"
            table = out.get("pos_embed")
            if table is not None and table.ndim == 3 and embeds_prefix(table.shape[1], state):
                out["pos_embed"] = table[:, count_prefix(state) :]
            del out["cls_token"]
        own = self.state_dict()
        lacking = [key for key in own if key not in out and not key.startswith(f"{self.classifier}.")]
        # Parts that see time, which an image model does not have.
        fresh = [key for key in lacking if key.startswith("temporal.") or key == "time_embed" or ".norm_time." in key]
        copied = [key for key in lacking if ".attn_time." in key and key.replace(".attn_time.", ".attn.") in out]
        zero = self.config.temporal_init == "zero"
        for key in fresh:
            out[key] = own[key]
        for key in copied:
            same = out[key.replace(".attn_time.", ".attn.")]
            out[key] = torch.zeros_like(same) if zero and ".attn_time.proj." in key else same
        if fresh or copied:
            start = f", {len(copied)} start from the attention over space" if copied else ""
            start += ", its output at zero" if copied and zero else ""
            report.notes.append(
                f"weights of an image model: {plural(len(fresh), 'tensor')} of time with fresh weights{start}"
            )
        return out

    def fit_tensor(
        self, key: str, value: Tensor, state: Mapping[str, Tensor], made_for: Mapping[str, Any]
    ) -> tuple[Tensor, str] | None:
        """Inflate the kernel of patches, tile the positions of an image, resample those of other sizes."""
        if key == "patch_embed.proj.weight" and value.ndim == 4 and not self.patch_embed.uniform:
            frames, rule = self.config.tubelet_size[0], self.config.inflation
            return inflate_kernel(value, frames, rule), f"kernel of a patch to {plural(frames, 'frame')}, {rule}"
        if key == "patch_embed.proj.weight" and value.ndim == 4:
            return value[:, :, None], "kernel of a patch for single frames"
        width = self.num_features
        if key == "time_embed" and value.ndim == 3 and value.shape[-1] == width:
            return resample_time(
                value, self.grid[0]
            ), f"positions of {plural(value.shape[1], 'time')} to {self.grid[0]}, linear"
        if key == "temporal.pos_embed" and self.temporal is not None and value.ndim == 3 and value.shape[-1] == width:
            prefix = self.temporal.num_prefix
            how = f"positions of {value.shape[1] - prefix} slices to {self.grid[0]}, linear"
            return resample_time(value, self.grid[0], prefix), how
        if key == "pos_embed" and value.ndim == 3 and value.shape[-1] == width:
            table = VideoTable(self.grid, self.config.tubelet_size, self.block_prefix, self._of_slices)
            return fit_video_positions(table, value, state, made_for)
        return None

    @classmethod
    def read_structure(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read depths, width and kind of attention off the keys; heads and model 4 cannot be read."""
        depth, later = count_numbered(state, "blocks"), count_numbered(state, "temporal.blocks")
        found: dict[str, Any] = {"depth": depth} if depth else {}
        kernel = state.get("patch_embed.proj.weight")
        if kernel is None or kernel.ndim != 5:
            return found
        found["embed_dim"] = kernel.shape[0]
        if later:
            found |= {"attention": "factorised_encoder", "temporal_depth": later}
        elif "blocks.0.attn_time.qkv.weight" in state:
            found["attention"] = "factorised_self_attention"
        return found

    @classmethod
    def read_settings(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read also bands, tubelet, class token and pooling."""
        found = {**super().read_settings(state), **cls.read_structure(state)}
        kernel = state.get("patch_embed.proj.weight")
        if kernel is not None and kernel.ndim == 5:
            found |= {"in_chans": kernel.shape[1], "tubelet_size": tuple(kernel.shape[2:])}
        has_token = "cls_token" in state
        return found | {"class_token": has_token, "global_pool": "token" if has_token else "avg"}

    key_maps = (
        KeyMap("vitrail", (r"patch_embed\.proj\.weight", r"blocks\.(0\.)?0\.attn\.qkv\.weight"), TIMM_RULES),
        KeyMap(
            "huggingface",
            (r"(\w+\.)?embeddings\.patch_embeddings\.projection\.weight",),
            (Rename(r"(?:vivit|videomae|timesformer|vit|deit)\.(.*)", r"\1"), *TRANSFORMERS_VIDEO_RULES),
        ),
        KeyMap("scenic", (r"(Spatial)?Transformer/encoderblock_0/.*", r"embedding/kernel"), SCENIC_RULES),
    )


def _block(config: ViViTConfig, drop_path: float, attention: str = "joint") -> nn.Module:
    """Build a block with the attention of a kind of model."""
    sizes: tuple[int, int, bool] = (config.embed_dim, config.num_heads, config.qkv_bias)
    options = config.attention_options
    options["norm_eps"] = config.norm_eps
    if attention == "factorised_self_attention":
        time, space = (AxisAttention(axis, *sizes, **options) for axis in ("time", "space"))
        return FactorisedBlock(config, time, space, drop_path)
    kinds: dict[str, type[Attention]] = {
        "factorised_encoder": SliceAttention,
        "factorised_dot_product": SplitHeadAttention,
    }
    attn = kinds.get(attention, Attention)(*sizes, **options)
    return Block(config.embed_dim, attn, config.mlp_ratio, drop_path, config.norm_eps, **config.block_options)


_SIZES: dict[str, dict[str, int]] = {
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
_GAP: dict[str, Any] = {"class_token": False, "global_pool": "avg"}
# Section 3.3 of the paper: models 2 to 4; model 1 has no suffix.
_MODELS: dict[str, dict[str, Any]] = {
    "": {},
    "_factorised_encoder": {"attention": "factorised_encoder"},
    "_factorised_self_attention": {"attention": "factorised_self_attention", **_GAP},
    "_factorised_dot_product": {"attention": "factorised_dot_product", **_GAP},
}
_VARIANTS: dict[str, dict[str, Any]] = {
    f"vivit_{size}_patch16x2_224{suffix}": {**settings, **more}
    for size, settings in _SIZES.items()
    for suffix, more in _MODELS.items()
}

register_family(
    Family(
        name="vivit",
        config=ViViTConfig,
        build=ViViT,
        variants=_VARIANTS,
        test_config={
            "num_frames": 6,
            "img_size": 24,
            "tubelet_size": (2, 8, 8),
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 3,
            "num_classes": 5,
        },
        source="Arnab et al. 2021, arXiv:2103.15691; TokenLearner: Ryoo et al. 2021, arXiv:2106.11297",
        layers=(TokenFuser, TokenLearner),
    )
)
