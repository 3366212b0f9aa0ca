"""Swin transformer for clips: windows over time, rows and columns.

Source: Liu et al. 2022 (Video Swin), arXiv:2106.13230. Parameter names are those of the Swin family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from vitrail.layers.block import Block, Stage
from vitrail.layers.drop_path import drop_path_schedule
from vitrail.layers.head import Head
from vitrail.layers.init import init_linears
from vitrail.layers.norms import make_norm
from vitrail.layers.shapes import to_pair
from vitrail.layers.tubelets import TubeletEmbed, init_tubelet_projection, to_triple
from vitrail.layers.window_attention_3d import SliceMerging, WindowAttention3d
from vitrail.models.checkpoint_sizes import read_each_stage, read_stages
from vitrail.models.checks import as_config, check_at_least, check_mlp_ratio, check_rates, check_stages
from vitrail.models.facts import FeatureInfo, Stream
from vitrail.models.family import Family, register_family
from vitrail.models.layer_settings import LayerSettings
from vitrail.models.modality import VIDEO, Modality
from vitrail.models.pyramid import Pyramid
from vitrail.models.settings import check_choices
from vitrail.weights.kernels import InputKernel
from vitrail.weights.rules import Drop, KeyMap, Rename

_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Swin3dConfig(LayerSettings):
    """Settings of a Swin for clips, beside those of :class:`~vitrail.models.layer_settings.LayerSettings`.

    Attributes:
        num_frames: Frames that the model is made for; others run too.
        img_size: Height and width in pixels that the model is made for; others run too.
        in_chans: Bands.
        num_classes: Width of the logits; 0 gives the pooled features.
        tubelet_size: Frames, height and width of a tubelet.
        embed_dim: Width of a token in the first stage; each further stage doubles it.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage; must divide its width.
        window_size: Times, rows and columns of a window, in tokens.
        mask_padding: Whether the tokens that fill up a window at the edge of the clip are masked, so that they change
            nothing. Without, they take part as keys, as in torchvision.
        mlp_ratio: Hidden width of the MLPs over the token width.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_path_rate: Stochastic depth of the last block.
        global_pool: "avg" reads the mean over all tokens, "max" the largest value of each channel, "avgmax" the mean of
            these two, "map" attention with a learned query (arXiv:2106.04560); "" classifies each token.
        pos_embed: "relative" biases inside windows.
    """

    num_frames: int = 32
    img_size: int | tuple[int, int] = 224
    in_chans: int = 3
    num_classes: int = 400
    tubelet_size: tuple[int, int, int] = (2, 4, 4)
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: tuple[int, int, int] = (8, 7, 7)
    mask_padding: bool = True
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_path_rate: float = 0.0
    global_pool: Literal["avg", "max", "avgmax", "map", ""] = "avg"
    pos_embed: Literal["relative"] = "relative"
    absent: ClassVar[Mapping[str, str]] = {
        "patch_drop_rate": "windows need the whole grid of tubelets; use drop_path_rate",
        "class_token": "windows hold tubelets alone; use global_pool avg, max, avgmax or map",
        "global_pool=token": "there is no class token",
        "reg_tokens": "windows hold tubelets alone",
        "pos_drop_rate": "no positions are added to the tubelets; use proj_drop_rate",
        "token_merging": "windows need the whole grid of tubelets",
    }

    def __post_init__(self) -> None:
        """Check settings that the layers do not check themselves.

        Raises:
            ConfigError: A value out of range, or settings that contradict each other.
        """
        object.__setattr__(self, "img_size", to_pair(self.img_size, "img_size"))
        for name in ("tubelet_size", "window_size"):
            object.__setattr__(self, name, to_triple(getattr(self, name), name))
        check_at_least(self, 1, "num_frames", "in_chans", "embed_dim")
        check_at_least(self, 0, "num_classes")
        check_choices(self)
        check_stages(self, "depths", "num_heads")
        check_mlp_ratio(self.mlp_ratio, self.embed_dim)
        self.check_layers()
        check_rates(self, "drop_path_rate")

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        return self.num_frames, *to_pair(self.img_size)


def _build_stage(config: Swin3dConfig, index: int, drop_path: Sequence[float]) -> Stage:
    """Build patch merging, except in the first stage, then blocks; every second one shifts its windows."""
    dim, heads = config.embed_dim * 2**index, config.num_heads[index]
    half = tuple(length // 2 for length in config.window_size)
    blocks = [
        Block(
            dim,
            WindowAttention3d(
                dim,
                heads,
                config.window_size,
                half if i % 2 else (0, 0, 0),
                config.qkv_bias,
                config.mask_padding,
                **config.attention_options,
            ),
            config.mlp_ratio,
            rate,
            **config.block_options,
        )
        for i, rate in enumerate(drop_path)
    ]
    return Stage(blocks, SliceMerging(dim // 2, dim, norm_layer=config.norm_layer) if index else None)


class Swin3d(Pyramid):
    """Swin transformer for clips.

    Args:
        config: The settings.

    Source: Liu et al. 2022, arXiv:2106.13230.
    """

    modality: ClassVar[Modality] = VIDEO
    input_kernels: ClassVar[Mapping[str, InputKernel]] = {"patch_embed.proj.weight": InputKernel("video")}
    classifier = "head.fc"
    stages_name = "layers"
    config: Swin3dConfig

    def __init__(self, config: Swin3dConfig) -> None:
        super().__init__()
        self.config = config = as_config(Swin3dConfig, config)
        t, h, w = config.tubelet_size
        dims = [config.embed_dim * 2**i for i in range(len(config.depths))]
        self.num_classes = config.num_classes
        self.num_features = dims[-1]
        self.patch_embed = TubeletEmbed(config.in_chans, dims[0], config.tubelet_size, norm_layer=config.norm_layer)
        rates = iter(drop_path_schedule(config.drop_path_rate, sum(config.depths)))
        self.layers = nn.ModuleList(
            _build_stage(config, i, [next(rates) for _ in range(depth)]) for i, depth in enumerate(config.depths)
        )
        self.norm = make_norm(config.norm_layer, dims[-1], _NORM_EPS)
        self.head = Head(dims[-1], config.num_classes, drop_rate=config.drop_rate)
        self.feature_info = [FeatureInfo(f"layers.{i}", dim, (t, h * 2**i, w * 2**i)) for i, dim in enumerate(dims)]
        init_linears(self)
        self.attn_pool = self.build_pool()
        init_tubelet_projection(self.patch_embed.proj, "inflation")

    @property
    def streams(self) -> tuple[Stream, ...]:
        """One clip."""
        return (Stream("video", self.config.in_chans, self.config.size),)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a map ``(B, T, H, W, C)`` and classify: ``(B, num_classes)``, or ``(B, C)`` with ``pre_logits``."""
        pooled = self.pool(features, (1, 2, 3))
        logits: Tensor = pooled if pre_logits else self.head(pooled)
        return logits

    def build_head(self, num_classes: int) -> nn.Module:
        """Build the linear layer inside of its module ``head``, as in the Swin family."""
        head = Head(self.num_features, num_classes, drop_rate=self.config.drop_rate)
        init_linears(head)
        return head

    @classmethod
    def read_structure(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read depth and width, as far as the shapes show them."""
        depths = read_stages(state, "layers")
        table, count = "layers.{}.blocks.0.attn.relative_position_bias_table", len(depths.get("depths", ()))
        heads = read_each_stage(state, table, count, "num_heads", ndim=2, axis=1)
        kernel = state.get("patch_embed.proj.weight")
        if kernel is None or kernel.ndim != 5:
            return {}
        return {"embed_dim": kernel.shape[0], "tubelet_size": tuple(kernel.shape[2:]), **depths, **heads}

    key_maps = (
        KeyMap("vitrail", (r"patch_embed\.norm\.weight", r"layers\.0\.blocks\.0\.attn\.qkv\.weight")),
        KeyMap(
            "torchvision",
            (r"patch_embed\.norm\.weight", r"features\.0\.0\.attn\.qkv\.weight"),
            (
                Drop(r".*\.relative_position_index", "computed here, not learned"),
                *(
                    Rename(rf"features\.{2 * i + 1}\.((?:norm|reduction)\..*)", rf"layers.{i + 1}.downsample.\1")
                    for i in range(7)
                ),
                *(Rename(rf"features\.{2 * i}\.(\d+\..*)", rf"layers.{i}.blocks.\1") for i in range(8)),
                Rename(r"(layers\..*\.mlp)\.0\.(.*)", r"\1.fc1.\2"),
                Rename(r"(layers\..*\.mlp)\.3\.(.*)", r"\1.fc2.\2"),
                Rename(r"head\.(weight|bias)", r"head.fc.\1"),
            ),
        ),
    )


# arXiv:2106.13230, section 3.3.
_VARIANTS: dict[str, dict[str, Any]] = {
    "swin3d_tiny_patch4x2_window7x8_224": {},
    "swin3d_small_patch4x2_window7x8_224": {"depths": (2, 2, 18, 2)},
    "swin3d_base_patch4x2_window7x8_224": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}

register_family(
    Family(
        name="swin3d",
        config=Swin3dConfig,
        build=Swin3d,
        variants=_VARIANTS,
        test_config={
            "num_frames": 6,
            "img_size": 24,
            "tubelet_size": (2, 4, 4),
            "embed_dim": 12,
            "depths": (2, 2),
            "num_heads": (2, 4),
            "window_size": (2, 3, 3),
            "num_classes": 5,
        },
        source="Liu et al. 2022, arXiv:2106.13230",
    )
)
