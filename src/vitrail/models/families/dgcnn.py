"""DGCNN: convolutions along the edges of graphs of nearest points, one graph for each layer.

Source: Wang et al. 2019, arXiv:1801.07829, as in the code that VN-DGCNN was compared by (FlyingGiraffe/vnn). A
baseline: its logits change when a cloud is rotated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vitrail.layers.masked import MaskedBatchNorm
from vitrail.layers.point_graphs import EdgeConv, run_dynamic_graphs
from vitrail.models.base import group_parameters
from vitrail.models.checks import as_config
from vitrail.models.family import Family, register_family
from vitrail.models.point_cloud import (
    GraphSettings,
    PointCloudModel,
    PointPool,
    dgcnn_neck,
    neck_width,
    point_levels,
)
from vitrail.weights.rules import Convert, Drop, KeyMap, Rename


@dataclass(frozen=True)
class DGCNNConfig(GraphSettings):
    """Settings of a DGCNN, beside those of :class:`~vitrail.models.point_cloud.GraphSettings`.

    Attributes:
        dims: Channels of a point after each of the four edge layers, and after the layer that joins them.
        hidden_dims: Widths of the two hidden layers before the logits.
        drop_rate: Dropout rate of both hidden layers in training.
        global_pool: "catavgmax" joins the largest value and the mean of each channel over the points; "max", "avg":
            one of them.
    """

    num_widths: ClassVar[Mapping[str, int]] = {"dims": 5, "hidden_dims": 2}
    dims: tuple[int, ...] = (64, 64, 128, 256, 1024)
    hidden_dims: tuple[int, ...] = (512, 256)
    drop_rate: float = 0.5
    global_pool: PointPool = "catavgmax"


class DGCNN(PointCloudModel):
    """Four edge layers, each on the graph of its input's nearest points, a layer that joins them, pooling and an MLP.

    Args:
        config: The settings.
    """

    def __init__(self, config: DGCNNConfig) -> None:
        super().__init__()
        self.config = config = as_config(DGCNNConfig, config)
        *dims, last = config.dims
        befores = [config.in_chans, *dims[:-1]]
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            EdgeConv(before, after) for before, after in zip(befores, dims, strict=True)
        )
        self.conv5, self.bn5 = nn.Linear(sum(dims), last, bias=False), MaskedBatchNorm(last)
        self.act = nn.LeakyReLU(0.2)
        pooled = neck_width(last, config)
        self.neck = dgcnn_neck(pooled, config.hidden_dims, config.drop_rate, ("bn6", "bn7"), bias=False)
        self.num_features = config.hidden_dims[-1]
        self.feature_info = point_levels(["conv1", "conv2", "conv3", "conv4", "act"], config.dims)
        self.grad_checkpointing = False
        self.head = self.build_head(config.num_classes)

    def encode(self, points: Tensor, mask: Tensor | None, stop: int | None) -> tuple[Tensor, list[Tensor]]:
        """Run the layers of the points; features ``(B, N, dims[-1])``."""
        layers = (self.conv1, self.conv2, self.conv3, self.conv4)[:stop]
        checkpointing = self.grad_checkpointing and self.training
        levels = run_dynamic_graphs(layers, points, self.config.num_neighbors, mask, checkpointing)
        if stop is None or stop == len(self.feature_info):
            levels.append(self.act(self.bn5(self.conv5(torch.cat(levels, dim=-1)), mask)))
        return levels[-1], levels

    def layer_groups(self) -> list[list[str]]:
        """Group each edge layer, then the others."""
        edges = [["conv1"], ["conv2"], ["conv3"], ["conv4"]]
        return group_parameters(self, [*edges, ["conv5", "bn5", "neck", "head"]])

    key_maps = (
        KeyMap(
            "vnn",
            (r"conv1\.0\.weight", r"conv5\.0\.weight"),
            (
                # Each batch norm has two names there.
                Drop(r"conv\d\.1\..*", "the second name of a batch norm"),
                Rename(r"bn([1-4])\.(.*)", r"conv\1.bn.\2"),
                Rename(r"conv([1-4])\.0\.weight", r"conv\1.fc.weight"),
                Rename(r"conv5\.0\.weight", "conv5.weight"),
                Rename(r"linear3\.(.*)", r"head.\1"),
                Rename(r"((?:linear[12]|bn[67])\.\w+)", r"neck.\1"),
                Convert(r"conv\d\.(?:fc\.)?weight", lambda kernel: kernel.flatten(1)),
            ),
        ),
        KeyMap("vitrail", (r"conv1\.fc\.weight", r"conv5\.weight")),
    )


register_family(
    Family(
        name="dgcnn",
        config=DGCNNConfig,
        build=DGCNN,
        variants={"dgcnn_cls": {}},
        test_config={
            "num_points": 32, "dims": (4, 4, 6, 6, 12), "hidden_dims": (16, 12), "drop_rate": 0.0,
            "num_neighbors": 6, "num_classes": 5,
        },
        source="Wang et al. 2019, arXiv:1801.07829",
    )
)  # fmt: skip
