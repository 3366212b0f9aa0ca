"""VN-PointNet: PointNet with vector neurons.

Source: Deng et al. 2021, arXiv:2104.12229, section 4.1, and the authors' code (FlyingGiraffe/vnn), whose parameter
names the modules have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vitrail.layers.point_graphs import VNEdgeConv, nearest_points
from vitrail.layers.vector_neurons import (
    VNBatchNorm,
    VNLinear,
    VNLinearLeakyReLU,
    VNStdFeature,
    make_vector_pool,
)
from vitrail.models.base import group_parameters
from vitrail.models.checks import as_config
from vitrail.models.family import Family, register_family
from vitrail.models.point_cloud import (
    COORDINATES,
    GraphSettings,
    PointCloudModel,
    PointPool,
    join_mean,
    neck_width,
    point_levels,
    pointnet_neck,
    split_vectors,
)
from vitrail.weights.rules import KeyMap, Rename


@dataclass(frozen=True)
class VNPointNetConfig(GraphSettings):
    """Settings of a VN-PointNet, beside those of :class:`~vitrail.models.point_cloud.GraphSettings`.

    Attributes:
        dims: Vectors of a point after conv1, conv2, fc2, fc1 and conv3, where fc1 and fc2 are of the network for the
            global feature: 64, 128, 256, 512 and 1024 over three.
        hidden_dims: Widths of the two hidden layers before the logits.
        vector_pool: Pooling of vectors over neighbours and points, "mean" or "max".
        drop_rate: Dropout rate of the second hidden layer in training.
        global_pool: "max" takes the largest value of each invariant feature over the points; "avg", "catavgmax".
    """

    num_widths: ClassVar[Mapping[str, int]] = {"dims": 5, "hidden_dims": 2}
    dims: tuple[int, ...] = (21, 42, 85, 170, 341)
    hidden_dims: tuple[int, ...] = (512, 256)
    vector_pool: Literal["mean", "max"] = "mean"
    drop_rate: float = 0.4
    global_pool: PointPool = "max"


class VNGlobalFeature(nn.Module):
    """Vectors of the whole cloud, which stand for the transform that PointNet applies to its features (STN).

    Args:
        dims: As of :class:`VNPointNetConfig`.
        pooling: "mean" or "max".
    """

    def __init__(self, dims: tuple[int, ...], pooling: str) -> None:
        super().__init__()
        conv1_dim, conv2_dim, fc2_dim, fc1_dim, conv3_dim = dims
        self.conv1 = VNLinearLeakyReLU(conv1_dim, conv1_dim, 0.0)
        self.conv2 = VNLinearLeakyReLU(conv1_dim, conv2_dim, 0.0)
        self.conv3 = VNLinearLeakyReLU(conv2_dim, conv3_dim, 0.0)
        self.pool = make_vector_pool(pooling, conv3_dim)
        self.fc1 = VNLinearLeakyReLU(conv3_dim, fc1_dim, 0.0)
        self.fc2 = VNLinearLeakyReLU(fc1_dim, fc2_dim, 0.0)
        self.fc3 = VNLinear(fc2_dim, conv1_dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map points ``(B, N, S, C)`` to ``(B, S, C)``."""
        x = self.conv3(self.conv2(self.conv1(x, mask), mask), mask)
        out: Tensor = self.fc3(self.fc2(self.fc1(self.pool(x, mask))))
        return out


class VNPointNet(PointCloudModel):
    """Edge layer with cross products, layers on each point beside a global feature, invariant features, maximum, MLP.

    Args:
        config: The settings.
    """

    def __init__(self, config: VNPointNetConfig) -> None:
        super().__init__()
        self.config = config = as_config(VNPointNetConfig, config)
        conv1_dim, conv2_dim, *_, conv3_dim = config.dims
        self.conv_pos = VNEdgeConv(1, conv1_dim, config.vector_pool, 0.0, cross=True)
        self.conv1 = VNLinearLeakyReLU(conv1_dim, conv1_dim, 0.0)
        self.fstn = VNGlobalFeature(config.dims, config.vector_pool)
        self.conv2 = VNLinearLeakyReLU(2 * conv1_dim, conv2_dim, 0.0)
        self.conv3 = VNLinear(conv2_dim, conv3_dim)
        self.bn3 = VNBatchNorm(conv3_dim)
        self.std_feature = VNStdFeature(2 * conv3_dim, 0.0)
        pooled = neck_width(6 * conv3_dim, config)
        self.neck = pointnet_neck(pooled, config.hidden_dims, config.drop_rate)
        self.num_features = config.hidden_dims[-1]
        S = config.in_chans
        self.feature_info = point_levels(
            ["conv_pos", "conv1", "conv2", "bn3"], [S * conv1_dim, S * conv1_dim, S * conv2_dim, S * conv3_dim]
        )
        self.head = self.build_head(config.num_classes)

    def encode(self, points: Tensor, mask: Tensor | None, stop: int | None) -> tuple[Tensor, list[Tensor]]:
        """Run the layers of the points; invariant features ``(B, N, 6 dims[-1])``."""
        index = nearest_points(points[..., :COORDINATES], self.config.num_neighbors, mask)
        embedded = self.conv_pos(split_vectors(points), index, mask)
        first = self.conv1(embedded, mask)
        whole = self.fstn(first, mask).unsqueeze(1).expand_as(first)
        second = self.conv2(torch.cat([first, whole], dim=-1), mask)
        last = self.bn3(self.conv3(second), mask)
        levels = [embedded, first, second, last]
        if stop is not None:
            return levels[stop - 1].flatten(2), levels
        return self.std_feature(join_mean(last, mask), mask), levels

    def layer_groups(self) -> list[list[str]]:
        """Group edges, layers of the points, invariant features and head."""
        groups = [["conv_pos"], ["conv1", "fstn"], ["conv2", "conv3", "bn3"], ["std_feature", "neck", "head"]]
        return group_parameters(self, groups)

    key_maps = (
        KeyMap(
            "vnn",  # the authors' names; vitrail's own pass unchanged
            (r"(feat\.)?conv_pos\.map_to_feat\.weight", r"(feat\.)?std_feature\.vn_lin\.weight"),
            (
                Rename(r"feat\.pool\.(.*)", r"conv_pos.pool.\1"),
                Rename(r"feat\.(.*)", r"\1"),
                Rename(r"fc3\.(weight|bias)", r"head.\1"),
                Rename(r"((?:fc|bn)[12]\.\w+)", r"neck.\1"),
            ),
        ),
    )


register_family(
    Family(
        name="vn_pointnet",
        config=VNPointNetConfig,
        build=VNPointNet,
        variants={"vn_pointnet_mean": {}, "vn_pointnet_max": {"vector_pool": "max"}},
        test_config={
            "num_points": 32, "dims": (4, 6, 6, 8, 12), "hidden_dims": (16, 12), "drop_rate": 0.0,
            "num_neighbors": 6, "num_classes": 5,
        },
        source="Deng et al. 2021, arXiv:2104.12229",
    )
)  # fmt: skip
