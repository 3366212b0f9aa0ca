"""PointNet: layers on each point, a learned alignment of points and features, and a maximum over the points.

Source: Qi et al. 2017, arXiv:1612.00593, as in the code that VN-PointNet was compared by (FlyingGiraffe/vnn). A
baseline: its logits change when a cloud is rotated. The loss that keeps the alignment of features near a rotation is
left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vitrail.layers.masked import MaskedBatchNorm, masked_max
from vitrail.models.base import group_parameters
from vitrail.models.checks import as_config
from vitrail.models.family import Family, register_family
from vitrail.models.point_cloud import (
    COORDINATES,
    PointCloudModel,
    PointPool,
    PointSettings,
    neck_width,
    point_levels,
    pointnet_neck,
)
from vitrail.weights.rules import Convert, KeyMap, Rename


@dataclass(frozen=True)
class PointNetConfig(PointSettings):
    """Settings of a PointNet, beside those of :class:`~vitrail.models.point_cloud.PointSettings`.

    Attributes:
        dims: Channels of a point after each of three layers, of the alignments too.
        hidden_dims: Widths of the two hidden layers before the logits, and of the alignments.
        drop_rate: Dropout rate of the second hidden layer in training.
        global_pool: "max" takes the largest value of each channel over the points; "avg", "catavgmax".
    """

    num_widths: ClassVar[Mapping[str, int]] = {"dims": 3, "hidden_dims": 2}
    dims: tuple[int, ...] = (64, 128, 1024)
    hidden_dims: tuple[int, ...] = (512, 256)
    drop_rate: float = 0.4
    global_pool: PointPool = "max"


class TransformNet(nn.Module):
    """Predict a matrix for each cloud that is multiplied with its points or features (T-Net).

    Args:
        in_channels: Channels of a point.
        out_dim: Rows and columns of the matrix.
        config: Widths.

    Source: arXiv:1612.00593, section 4.2.
    """

    def __init__(self, in_channels: int, out_dim: int, config: PointNetConfig) -> None:
        super().__init__()
        (first, second, last), (hidden, width) = config.dims, config.hidden_dims
        self.out_dim = out_dim
        self.conv1, self.bn1 = nn.Linear(in_channels, first), MaskedBatchNorm(first)
        self.conv2, self.bn2 = nn.Linear(first, second), MaskedBatchNorm(second)
        self.conv3, self.bn3 = nn.Linear(second, last), MaskedBatchNorm(last)
        self.fc1, self.bn4 = nn.Linear(last, hidden), nn.BatchNorm1d(hidden)
        self.fc2, self.bn5 = nn.Linear(hidden, width), nn.BatchNorm1d(width)
        self.fc3 = nn.Linear(width, out_dim**2)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map points ``(B, N, C)`` to matrices ``(B, out_dim, out_dim)``."""
        x = self.bn1(self.conv1(x), mask).relu()
        x = self.bn2(self.conv2(x), mask).relu()
        x = masked_max(self.bn3(self.conv3(x), mask).relu(), mask)
        x = self.bn5(self.fc2(self.bn4(self.fc1(x)).relu())).relu()
        matrix: Tensor = self.fc3(x).view(-1, self.out_dim, self.out_dim)
        return matrix + torch.eye(self.out_dim, dtype=x.dtype, device=x.device)


class PointNet(PointCloudModel):
    """Alignment of the points, layers of each point with an alignment of their features, maximum, MLP.

    Args:
        config: The settings.
    """

    def __init__(self, config: PointNetConfig) -> None:
        super().__init__()
        self.config = config = as_config(PointNetConfig, config)
        first, second, last = config.dims
        self.stn = TransformNet(config.in_chans, COORDINATES, config)
        self.conv1, self.bn1 = nn.Linear(config.in_chans, first), MaskedBatchNorm(first)
        self.fstn = TransformNet(first, first, config)
        self.conv2, self.bn2 = nn.Linear(first, second), MaskedBatchNorm(second)
        self.conv3, self.bn3 = nn.Linear(second, last), MaskedBatchNorm(last)
        pooled = neck_width(last, config)
        self.neck = pointnet_neck(pooled, config.hidden_dims, config.drop_rate)
        self.num_features = config.hidden_dims[-1]
        self.feature_info = point_levels(["bn1", "bn2", "bn3"], config.dims)
        self.head = self.build_head(config.num_classes)

    def encode(self, points: Tensor, mask: Tensor | None, stop: int | None) -> tuple[Tensor, list[Tensor]]:
        """Run the layers of the points; features ``(B, N, dims[-1])``."""
        aligned = points[..., :COORDINATES] @ self.stn(points, mask)
        first = self.bn1(self.conv1(torch.cat([aligned, points[..., COORDINATES:]], dim=-1)), mask)
        x = first.relu()
        second = self.bn2(self.conv2(x @ self.fstn(x, mask)), mask)
        last = self.bn3(self.conv3(second.relu()), mask)
        levels = [first, second, last]
        return levels[-1 if stop is None else stop - 1], levels

    def layer_groups(self) -> list[list[str]]:
        """Group the alignment of the points, layers of the points, head."""
        groups = [["stn"], ["conv1", "bn1", "fstn"], ["conv2", "bn2", "conv3", "bn3"], ["neck", "head"]]
        return group_parameters(self, groups)

    key_maps = (
        KeyMap(
            "vnn",
            (r"feat\.stn\.conv1\.weight", r"feat\.fstn\.fc3\.weight"),
            (
                Rename(r"fc3\.(weight|bias)", r"head.\1"),
                Rename(r"((?:fc|bn)[12]\.\w+)", r"neck.\1"),
                Rename(r"feat\.(.*)", r"\1"),
                Convert(r"(?:stn\.|fstn\.)?conv\d\.weight", lambda kernel: kernel.flatten(1)),
            ),
        ),
        KeyMap("vitrail", (r"stn\.conv1\.weight", r"fstn\.fc3\.weight")),
    )


register_family(
    Family(
        name="pointnet",
        config=PointNetConfig,
        build=PointNet,
        variants={"pointnet_cls": {}},
        test_config={"num_points": 32, "dims": (6, 8, 12), "hidden_dims": (16, 12), "drop_rate": 0.0, "num_classes": 5},
        source="Qi et al. 2017, arXiv:1612.00593",
    )
)
