"""MaxViT: in each block an inverted bottleneck, attention in windows and attention in spread grids.

Source: Tu et al. 2022, arXiv:2204.01697. Parameter names are timm's, so that its checkpoints load with no
more than a change of layout in their tables of relative positions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.layers.block import Block, Stage
from vitrail.layers.drop_path import drop_path_schedule
from vitrail.layers.head import Head, Pool
from vitrail.layers.init import init_linears
from vitrail.layers.mbconv import TENSORFLOW, TORCHVISION, ConvFlavour, MBConv, Stem
from vitrail.layers.mixer import call_mixer
from vitrail.layers.norms import make_norm
from vitrail.layers.partition_attention import PartitionAttention
from vitrail.layers.positions import resample_relative_table
from vitrail.layers.shapes import to_pair
from vitrail.layers.windows import Kind
from vitrail.models.checkpoint_sizes import old_window, read_each_stage, read_stages, read_width
from vitrail.models.checks import as_config, check_at_least, check_mlp_ratio, check_stages
from vitrail.models.facts import FeatureInfo
from vitrail.models.family import Family, Results, register_family
from vitrail.models.layer_settings import LayerSettings
from vitrail.models.peer import Peer, build_timm, build_torchvision, missing_in_torchvision, missing_layers
from vitrail.models.pyramid import Pyramid
from vitrail.models.settings import check_choices
from vitrail.weights.kernels import InputKernel
from vitrail.weights.rules import Convert, Drop, KeyMap, Rename

_NORM_EPS = 1e-5
# The published models attend in windows and grids of a 32nd of the image: 7 at 224, 12 at 384, 16 at 512.
_PARTITION_RATIO = 32
# The squeeze of squeeze and excitation has a quarter of the width.
_LEAST_WIDTH = 4
_FLAVOURS = {"tf": TENSORFLOW, "torchvision": TORCHVISION}


@dataclass(frozen=True)
class MaxViTConfig(LayerSettings):
    """Settings of a MaxViT, beside those of :class:`~vitrail.models.layer_settings.LayerSettings`.

    ``act_layer`` is the activation of stem and MBConv, too; ``norm_layer`` the norm of tokens, beside their BatchNorms.

    Attributes:
        img_size: Height and width in pixels that the model is meant for; other sizes run too.
        in_chans: Bands.
        num_classes: Width of the logits; 0 gives the pooled features.
        stem_width: Channels after the stem.
        embed_dim: Channels of each stage.
        depths: Blocks of each stage.
        dim_head: Width of an attention head; must divide every stage's channels.
        window_size: Height and width of windows and grids alike, in tokens; when not given, a 32nd of
            ``img_size``.
        head_hidden_size: Width of the hidden layer before the classifier; that of the last stage when not
            given, 0 for none (the norm then comes before the pooling).
        mlp_ratio: Hidden width of the MLPs over the token width.
        qkv_bias: Whether queries, keys and values have a bias.
        global_pool: "avg" reads the mean over all tokens, "max" the largest value of each channel, "avgmax" the mean
            of these two, "map" attention with a learned query (arXiv:2106.04560); "" classifies each token.
        pos_embed: "relative" biases inside windows and grids, or "none": the convolutions alone tell positions apart.
        drop_path_rate: Stochastic depth of the last block.
        flavour: "tf" computes what the published TensorFlow models do (and timm's "tf"); "torchvision" has
            the exact GELU, symmetric padding, a 3 x 3 average and always a projection in the shortcut,
            attention scaled by the whole width instead of a head's, a slower BatchNorm, and no bias in the
            stem's first and the head's last layer.
    """

    img_size: int | tuple[int, int] = 224
    in_chans: int = 3
    num_classes: int = 1000
    stem_width: int = 64
    embed_dim: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 5, 2)
    dim_head: int = 32
    window_size: int | tuple[int, int] | None = None
    head_hidden_size: int | None = None
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_path_rate: float = 0.0
    global_pool: Pool = "avg"
    flavour: Literal["tf", "torchvision"] = "tf"
    pos_embed: Literal["relative", "none"] = "relative"

    absent: ClassVar[Mapping[str, str]] = {
        "pos_drop_rate": "no positions are added to its tokens; use proj_drop_rate",
        "patch_drop_rate": "windows and convolutions need the whole map; use drop_path_rate, or a ViT",
        "token_merging": "windows and convolutions need the whole map; use a ViT",
        "class_token": "windows hold positions of the map alone; use global_pool avg, max, avgmax or map",
        "global_pool=token": "there is no class token",
        "reg_tokens": "windows hold positions of the map alone; a ViT has register tokens",
    }

    def __post_init__(self) -> None:
        """Check settings that the layers do not check themselves.

        Raises:
            ConfigError: A value out of range, or settings that contradict each other.
        """
        height, width = to_pair(self.img_size, "img_size")
        object.__setattr__(self, "img_size", (height, width))
        window = self.window_size
        if window is None:
            window = (max(1, height // _PARTITION_RATIO), max(1, width // _PARTITION_RATIO))
        object.__setattr__(self, "window_size", to_pair(window, "window_size"))
        check_stages(self, "embed_dim", "depths")
        check_at_least(self, 1, "in_chans", "stem_width", "dim_head")
        check_at_least(self, 0, "num_classes")
        check_choices(self)
        if self.head_hidden_size is None:
            object.__setattr__(self, "head_hidden_size", self.embed_dim[-1])
        check_at_least(self, 0, "head_hidden_size")
        for dim in self.embed_dim:
            if dim % self.dim_head:
                raise ConfigError(f"dim_head must divide every width of embed_dim, got {self.dim_head} for {dim}")
            if dim < _LEAST_WIDTH:
                raise ConfigError(f"embed_dim must be at least {_LEAST_WIDTH} in every stage, got {dim}")
        check_mlp_ratio(self.mlp_ratio, min(self.embed_dim))
        self.check_layers()

    @property
    def convolution(self) -> ConvFlavour:
        """Details of stem and MBConv."""
        flavour = _FLAVOURS[self.flavour]
        return flavour if self.act_layer is None else dataclasses.replace(flavour, act_layer=self.act_layer)


class MaxViTBlock(nn.Module):
    """MBConv, attention in windows, attention in grids.

    Args:
        dim: Channels of the input.
        out_dim: Channels of the output.
        stride: Stride of the MBConv.
        config: The model's settings.
        drop_path: Probability of dropping a branch.

    Source: arXiv:2204.01697, figure 2.
    """

    def __init__(self, dim: int, out_dim: int, stride: int, config: MaxViTConfig, drop_path: float) -> None:
        super().__init__()
        self.conv = MBConv(dim, out_dim, stride, config.convolution, drop_path)
        self.attn_block = _build_block(out_dim, config, "window", drop_path)
        self.attn_grid = _build_block(out_dim, config, "grid", drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, dim, H, W)`` to ``(B, out_dim, ceil(H / stride), ceil(W / stride))``."""
        tokens = self.conv(x).permute(0, 2, 3, 1)
        tokens = call_mixer(self.attn_grid, call_mixer(self.attn_block, tokens))
        out: Tensor = tokens.permute(0, 3, 1, 2)
        return out


def _build_block(dim: int, config: MaxViTConfig, kind: Kind, drop_path: float) -> Block:
    """Build a transformer block whose tokens attend inside windows, or inside grids spread over the map."""
    by_width = config.flavour == "torchvision"
    window = to_pair(config.window_size or 1)
    relative, options = config.pos_embed == "relative", config.block_options
    attn = PartitionAttention(
        dim, config.dim_head, window, kind, config.qkv_bias, by_width, relative, **config.attention_options
    )
    if config.mlp_layer == "mlp":
        options["act_layer"] = config.convolution.act_layer
    return Block(dim, attn, config.mlp_ratio, drop_path, _NORM_EPS, **options)


def _flatten_table(table: Tensor) -> Tensor:
    """Convert timm's table ``(heads, 2 wh - 1, 2 ww - 1)``, key minus query, to ours, query minus key."""
    return table.flip(1, 2).flatten(1).t().contiguous() if table.ndim == 3 else table


class MaxViT(Pyramid):
    """Multi-axis vision transformer.

    Maps are in ``channels_last`` memory, which is the tokens' own order; weights are contiguous.

    Args:
        config: The settings.

    Source: Tu et al. 2022, arXiv:2204.01697.
    """

    classifier = "head.fc"
    channels_first = True
    stem_name = "stem"
    stem_is_level = True
    per_stage = ("embed_dim", "depths")
    input_kernels = {"stem.conv1.weight": InputKernel("image", is_patch=False)}  # noqa: RUF012
    config: MaxViTConfig

    def __init__(self, config: MaxViTConfig) -> None:
        super().__init__()
        self.config = config = as_config(MaxViTConfig, config)
        self.num_classes = config.num_classes
        hidden = config.head_hidden_size or 0
        self.num_features = hidden or config.embed_dim[-1]
        published = config.flavour == "tf"
        self.stem = Stem(config.in_chans, config.stem_width, config.convolution, first_bias=published)
        rates = iter(drop_path_schedule(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList()
        self.feature_info = [FeatureInfo("stem", config.stem_width, (2, 2))]
        dim = config.stem_width
        for i, (out_dim, depth) in enumerate(zip(config.embed_dim, config.depths, strict=True)):
            blocks = (
                MaxViTBlock(out_dim if j else dim, out_dim, 1 if j else 2, config, next(rates)) for j in range(depth)
            )
            self.stages.append(Stage(blocks))
            self.feature_info.append(FeatureInfo(f"stages.{i}", out_dim, (4 << i, 4 << i)))
            dim = out_dim
        # Without a hidden layer the norm comes before the pooling, as in timm.
        self.norm = nn.Identity() if hidden else make_norm(config.norm_layer, dim, _NORM_EPS)
        self.head = self.build_head(config.num_classes)
        self._init_weights()
        self.attn_pool = self.build_pool()

    @property
    def pool_sizes(self) -> tuple[int, int]:
        """Channels and heads of the last stage."""
        dim = self.config.embed_dim[-1]
        return dim, dim // self.config.dim_head

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(self.head, Head):
            init_linears(self.head.fc)

    def build_head(self, num_classes: int) -> nn.Module:
        """Build norm, hidden layer and classifier, of which the classifier alone is initialised here."""
        config = self.config
        hidden, published = config.head_hidden_size or 0, config.flavour == "tf"
        head = Head(
            config.embed_dim[-1], num_classes, hidden, published, _NORM_EPS, config.drop_rate, config.norm_layer
        )
        init_linears(head.fc)
        return head

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool ``(B, C, H, W)`` and classify; ``(B, num_features)`` with ``pre_logits``."""
        pool = self.config.global_pool
        x = self.pool(features, (2, 3)) if pool else features.permute(0, 2, 3, 1)
        if not pre_logits:
            x = self.head(x)
        elif isinstance(self.head, Head):
            x = self.head.hidden(x)
        # Without pooling each position is classified, as a map again.
        return x if pool else x.permute(0, 3, 1, 2)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, as :meth:`VisionModel.reset_classifier`; the hidden layer stays."""
        head = self.head
        super().reset_classifier(num_classes, global_pool)
        if isinstance(head, Head) and isinstance(self.head, Head):
            head.fc, self.head = self.head.fc, head

    def _keep_levels(self, count: int) -> None:
        if count < len(self.feature_info):
            super()._keep_levels(count)
            # The head's norm and hidden layer are as wide as the last stage was.
            self.config = dataclasses.replace(self.config, head_hidden_size=0)
            self.head = self.build_head(0)

    def fit_tensor(
        self, key: str, value: Tensor, state: Mapping[str, Tensor], made_for: Mapping[str, Any]
    ) -> tuple[Tensor, str] | None:
        """Resample a table of relative positions that was learned for another window (square where none is told)."""
        match = re.fullmatch(r"stages\.(\d+)\.blocks\.\d+\.attn_(?:block|grid)\..*relative_position_bias_table", key)
        if match is None or value.ndim != 2 or int(match[1]) >= len(self.config.embed_dim):
            return None
        old, new = old_window(value.shape[0], made_for), to_pair(self.config.window_size or 1)
        if old is None or value.shape[1] != self.config.embed_dim[int(match[1])] // self.config.dim_head:
            return None
        how = f"relative positions from {old[0]} x {old[1]} to {new[0]} x {new[1]}, bicubic"
        return resample_relative_table(value, old, new), how

    @classmethod
    def read_structure(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read depth and width, as far as the shapes show them."""
        depths = read_stages(state, "stages")
        norm, count = "stages.{}.blocks.0.attn_block.norm1.weight", len(depths.get("depths", ()))
        widths = read_each_stage(state, norm, count, "embed_dim", ndim=1, axis=0)
        return {**read_width(state, "stem.conv1.weight", "stem_width"), **widths, **depths}

    @classmethod
    def first_width(cls, config: MaxViTConfig) -> int | None:
        """Return the channels after the stem."""
        return config.stem_width

    @classmethod
    def read_settings(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read also the window, with the image it is a 32nd of, the flavour, and the head's hidden width."""
        settings: dict[str, Any] = {"head_hidden_size": len(state.get("head.pre_logits.fc.weight", ()))}
        settings["flavour"] = "tf" if "stem.conv1.bias" in state else "torchvision"
        table = state.get("stages.0.blocks.0.attn_block.attn.rel_pos.relative_position_bias_table")
        if window := old_window(0 if table is None else len(table), {}):
            settings |= {"window_size": window, "img_size": tuple(_PARTITION_RATIO * w for w in window)}
        return super().read_settings(state) | settings

    key_maps = (
        KeyMap(
            "timm",  # also vitrail's own names
            (r"stem\.conv1\.weight", r"stages\.0\.blocks\.0\.attn_grid\.attn\.qkv\.weight"),
            (
                Drop(r".*\.rel_pos\.(height|width)_lookup", "an index, which is computed"),
                Convert(r".*\.relative_position_bias_table", _flatten_table),
            ),
        ),
        KeyMap(
            "torchvision",
            (r"stem\.0\.0\.weight", r"blocks\.0\.layers\.0\.layers\.MBconv\.layers\.conv_a\.0\.weight"),
            (
                Drop(r".*\.relative_position_index", "an index, which is computed"),
                Rename(r"stem\.0\.0\.(.*)", r"stem.conv1.\1"),
                Rename(r"stem\.0\.1\.(.*)", r"stem.norm1.\1"),
                Rename(r"stem\.1\.0\.(.*)", r"stem.conv2.\1"),
                Rename(r"blocks\.(\d+)\.layers\.(\d+)\.layers\.(.*)", r"stages.\1.blocks.\2.\3"),
                Rename(r"(.*)\.MBconv\.layers\.(.*)", r"\1.conv.\2"),
                Rename(r"(.*)\.MBconv\.proj\.1\.(.*)", r"\1.conv.shortcut.expand.\2"),
                Rename(r"(.*\.conv)\.conv_a\.0\.(.*)", r"\1.conv1_1x1.\2"),
                Rename(r"(.*\.conv)\.conv_a\.1\.(.*)", r"\1.norm1.\2"),
                Rename(r"(.*\.conv)\.conv_b\.0\.(.*)", r"\1.conv2_kxk.\2"),
                Rename(r"(.*\.conv)\.conv_b\.1\.(.*)", r"\1.norm2.\2"),
                Rename(r"(.*\.conv)\.squeeze_excitation\.(.*)", r"\1.se.\2"),
                Rename(r"(.*\.conv)\.conv_c\.(.*)", r"\1.conv3_1x1.\2"),
                Rename(r"(.*)\.window_attention\.(.*)", r"\1.attn_block.\2"),
                Rename(r"(.*)\.grid_attention\.(.*)", r"\1.attn_grid.\2"),
                Rename(r"(.*)\.attn_layer\.0\.(.*)", r"\1.norm1.\2"),
                Rename(r"(.*)\.attn_layer\.1\.to_qkv\.(.*)", r"\1.attn.qkv.\2"),
                Rename(r"(.*)\.attn_layer\.1\.merge\.(.*)", r"\1.attn.proj.\2"),
                Rename(r"(.*)\.attn_layer\.1\.(relative_position_bias_table)", r"\1.attn.rel_pos.\2"),
                Rename(r"(.*)\.mlp_layer\.0\.(.*)", r"\1.norm2.\2"),
                Rename(r"(.*)\.mlp_layer\.1\.(.*)", r"\1.mlp.fc1.\2"),
                Rename(r"(.*)\.mlp_layer\.3\.(.*)", r"\1.mlp.fc2.\2"),
                Rename(r"classifier\.2\.(.*)", r"head.norm.\1"),
                Rename(r"classifier\.3\.(.*)", r"head.pre_logits.fc.\1"),
                Rename(r"classifier\.5\.(.*)", r"head.fc.\1"),
            ),
        ),
    )


# arXiv:2204.01697, table 1 (its "2 2 5 2" and "2 6 14 2" blocks); xlarge: appendix A.1 and the authors' code.
_WIDTHS: dict[str, dict[str, Any]] = {
    "tiny": {"stem_width": 64, "embed_dim": (64, 128, 256, 512), "depths": (2, 2, 5, 2)},
    "small": {"stem_width": 64, "embed_dim": (96, 192, 384, 768), "depths": (2, 2, 5, 2)},
    "base": {"stem_width": 64, "embed_dim": (96, 192, 384, 768), "depths": (2, 6, 14, 2)},
    "large": {"stem_width": 128, "embed_dim": (128, 256, 512, 1024), "depths": (2, 6, 14, 2)},
    "xlarge": {"stem_width": 192, "embed_dim": (192, 384, 768, 1536), "depths": (2, 6, 14, 2)},
}
# The authors' ImageNet-1k top-1 without further data, by input size: table 2 of the paper and the authors' README.
_TOP1 = {
    224: {"tiny": 83.62, "small": 84.45, "base": 84.95, "large": 85.17},
    384: {"tiny": 85.24, "small": 85.74, "base": 86.34, "large": 86.40},
    512: {"tiny": 85.72, "small": 86.19, "base": 86.66, "large": 86.70},
}
# The same after pre-training: table 3 of the paper.
_PRETRAINED_TOP1 = {
    "ImageNet-21k": {
        384: {"base": 88.24, "large": 88.32, "xlarge": 88.51},
        512: {"base": 88.38, "large": 88.46, "xlarge": 88.70},
    },
    "JFT-300M": {
        384: {"base": 88.69, "large": 89.12, "xlarge": 89.36},
        512: {"base": 88.82, "large": 89.41, "xlarge": 89.53},
    },
}


def _by_variant(table: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    return {f"maxvit_{width}_tf_{size}": top1 for size, row in table.items() for width, top1 in row.items()}


def _variants() -> dict[str, dict[str, Any]]:
    variants: dict[str, dict[str, Any]] = {}
    for width, settings in _WIDTHS.items():
        for size in _TOP1:
            window = size // _PARTITION_RATIO
            variants[f"maxvit_{width}_tf_{size}"] = {**settings, "img_size": size, "window_size": window}
    # The only weights under this name are those of ImageNet-21k, as in timm.
    variants["maxvit_xlarge_tf_224"]["num_classes"] = 21843
    return variants


_SHARED_WITH_TIMM = (
    "img_size", "in_chans", "num_classes", "drop_path_rate", "stem_width", "embed_dim", "depths", "head_hidden_size",
    "drop_rate",
)  # fmt: skip


def _build_timm(settings: Mapping[str, Any]) -> nn.Module:
    return build_timm(
        "maxvit_tiny_tf_224",
        settings,
        _SHARED_WITH_TIMM,
        block_type=("M",) * len(settings["depths"]),
        transformer_window_size=settings["window_size"],
        transformer_grid_size=settings["window_size"],
        transformer_dim_head=settings["dim_head"],
        transformer_expand_ratio=settings["mlp_ratio"],
        transformer_attn_bias=settings["qkv_bias"],
        transformer_attn_drop=settings["attn_drop_rate"],
        transformer_proj_drop=settings["proj_drop_rate"],
        transformer_init_values=settings["init_values"],
    )


def _build_torchvision(settings: Mapping[str, Any]) -> nn.Module:
    return build_torchvision(
        "MaxVit",
        input_size=to_pair(settings["img_size"]),
        stem_channels=settings["stem_width"],
        partition_size=to_pair(settings["window_size"])[0],
        block_channels=list(settings["embed_dim"]),
        block_layers=list(settings["depths"]),
        head_dim=settings["dim_head"],
        stochastic_depth_prob=settings["drop_path_rate"],
        mlp_ratio=int(settings["mlp_ratio"]),
        num_classes=settings["num_classes"],
    )


def _missing_in_timm(settings: Mapping[str, Any]) -> str:
    if settings["flavour"] != "tf":
        return f"no flavour {settings['flavour']!r}"
    return missing_layers({**settings, "init_values": None})


def _missing_in_torchvision(settings: Mapping[str, Any]) -> str:
    return missing_layers(settings, rates=False) or missing_in_torchvision(settings, "img_size", "window_size")


register_family(
    Family(
        name="maxvit",
        config=MaxViTConfig,
        build=MaxViT,
        variants=_variants(),
        test_config={
            "img_size": 32,
            "stem_width": 8,
            "embed_dim": (16, 32),
            "depths": (1, 2),
            "dim_head": 8,
            "window_size": 2,
            "num_classes": 5,
        },
        published=_by_variant(_TOP1),
        results=(
            Results("ImageNet-1k", "Tu et al. 2022, arXiv:2204.01697, table 2", _by_variant(_TOP1)),
            *(
                Results(images, "Tu et al. 2022, arXiv:2204.01697, table 3", _by_variant(table))
                for images, table in _PRETRAINED_TOP1.items()
            ),
        ),
        source="Tu et al. 2022, arXiv:2204.01697",
        peers={
            "timm": Peer(_build_timm, _missing_in_timm),
            "torchvision": Peer(_build_torchvision, _missing_in_torchvision, {"flavour": "torchvision"}),
        },
    )
)
