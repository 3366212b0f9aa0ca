"""vnt: a rotation-invariant transformer of vector neurons.

After the abstract of Zisling & Sharf 2022, arXiv:2205.09690 (VNT-Net): vector neurons, multi-head self-attention made
equivariant to rotations, a network that is invariant as a whole. No published code was found; the graph embedding, the
blocks and all sizes are ours, and no accuracy of that paper applies to it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from vitrail.layers.checkpointing import run_block
from vitrail.layers.drop_path import drop_path_schedule
from vitrail.layers.masked import masked_mean
from vitrail.layers.point_graphs import VNEdgeConv, fading_neighbors
from vitrail.layers.vector_attention import VNBlock
from vitrail.layers.vector_neurons import VNLayerNorm, VNStdFeature
from vitrail.models.base import group_parameters
from vitrail.models.checks import as_config, check_at_least, check_mlp_ratio
from vitrail.models.family import Family, register_family
from vitrail.models.point_cloud import (
    COORDINATES,
    GraphSettings,
    PointCloudModel,
    PointPool,
    join_mean,
    neck_width,
    point_levels,
    split_vectors,
)
from vitrail.weights.rules import KeyMap


@dataclass(frozen=True)
class VNTConfig(GraphSettings):
    """Settings of a vnt, beside those of :class:`~vitrail.models.point_cloud.GraphSettings`.

    Attributes:
        embed_dim: Vectors of a point.
        depth: Blocks.
        num_heads: Attention heads; must divide the width.
        mlp_ratio: Hidden vectors of the MLPs over the width.
        head_hidden_size: Width of the hidden layer before the logits.
        cross: Whether the graph embedding has cross products of neighbours. They tell a cloud from its mirror image;
            without them both have the same logits.
        center: Whether the centroid of each cloud is subtracted first, so that shifts change nothing.
        negative_slope: Negative slope of all activations along learned directions.
        drop_path_rate: Stochastic depth of the last block.
        attn_drop_rate: Dropout rate of the attention weights in training.
        drop_rate: Dropout rate before the logits in training.
        global_pool: "catavgmax" joins the largest value and the mean of each invariant feature over the points; "max",
            "avg": one of them.
    """

    embed_dim: int = 64
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: float = 2.0
    head_hidden_size: int = 256
    cross: bool = True
    center: bool = True
    negative_slope: float = 0.2
    drop_path_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_rate: float = 0.0
    global_pool: PointPool = "catavgmax"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: A value out of range.
        """
        super().__post_init__()
        check_at_least(self, 1, "depth", "num_heads", "head_hidden_size")
        check_at_least(self, 2, "embed_dim")
        check_mlp_ratio(self.mlp_ratio, self.embed_dim)


class VNT(PointCloudModel):
    """Graph embedding, pre-norm equivariant blocks, invariant features, pooling and an MLP.

    Args:
        config: The settings.
    """

    key_maps = (KeyMap("vitrail", (r"embed_points\.map_to_feat\.weight", r"blocks\.0\.attn\.q\.map_to_feat\.weight")),)

    def __init__(self, config: VNTConfig) -> None:
        super().__init__()
        self.config = config = as_config(VNTConfig, config)
        dim, S = config.embed_dim, config.in_chans
        self.embed_points = VNEdgeConv(1, dim, "mean", config.negative_slope, config.cross)
        rates = drop_path_schedule(config.drop_path_rate, config.depth)
        self.blocks = nn.ModuleList(
            VNBlock(dim, config.num_heads, config.mlp_ratio, rate, S, config.negative_slope, config.attn_drop_rate)
            for rate in rates
        )
        self.norm = VNLayerNorm(dim)
        self.std_feature = VNStdFeature(2 * dim, config.negative_slope)
        pooled = neck_width(6 * dim, config)
        self.neck = nn.Sequential(
            OrderedDict(
                fc=nn.Linear(pooled, config.head_hidden_size),
                bn=nn.BatchNorm1d(config.head_hidden_size),
                act=nn.LeakyReLU(config.negative_slope),
                drop=nn.Dropout(config.drop_rate),
            )
        )
        self.num_features = config.head_hidden_size
        self.feature_info = point_levels([f"blocks.{i}" for i in range(config.depth)], [S * dim] * config.depth)
        self.grad_checkpointing = False
        self.head = self.build_head(config.num_classes)

    def encode(self, points: Tensor, mask: Tensor | None, stop: int | None) -> tuple[Tensor, list[Tensor]]:
        """Embed the points by their neighbours, mix them, and derive invariant features ``(B, N, 6 embed_dim)``."""
        coordinates = points[..., :COORDINATES]
        if self.config.center:
            shift = nn.functional.pad(masked_mean(coordinates, mask), (0, points.shape[-1] - COORDINATES))
            points = points - shift.unsqueeze(1)
            coordinates = points[..., :COORDINATES]
        index, weights = fading_neighbors(coordinates, self.config.num_neighbors, mask)
        x = self.embed_points(split_vectors(points), index, mask, weights)
        levels = []
        for block in self.blocks[:stop]:
            x = run_block(block, x, mask, checkpointing=self.grad_checkpointing and self.training)
            levels.append(x)
        if stop is not None:
            return x.flatten(2), levels
        return self.std_feature(join_mean(self.norm(x), mask), mask), levels

    def layer_groups(self) -> list[list[str]]:
        """Group the embedding, then each block, then invariant features and head."""
        blocks = [[f"blocks.{i}"] for i in range(len(self.blocks))]
        return group_parameters(self, [["embed_points"], *blocks, ["norm", "std_feature", "neck", "head"]])


register_family(
    Family(
        name="vnt",
        config=VNTConfig,
        build=VNT,
        variants={
            "vnt_tiny": {"embed_dim": 32, "depth": 2},
            "vnt_small": {"embed_dim": 64, "depth": 4},
            "vnt_base": {"embed_dim": 128, "depth": 6, "num_heads": 8},
        },
        test_config={
            "num_points": 32, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_neighbors": 6, "head_hidden_size": 16,
            "num_classes": 5,
        },
        source="after the abstract of Zisling & Sharf 2022, arXiv:2205.09690; no published code found, sizes are ours",
    )
)  # fmt: skip
