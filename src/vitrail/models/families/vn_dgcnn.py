"""VN-DGCNN: a dynamic graph CNN with vector neurons.

Source: Deng et al. 2021, arXiv:2104.12229, section 4.1, and the authors' code (FlyingGiraffe/vnn), whose parameter
names the modules have.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.layers.checkpointing import run_block
from vitrail.layers.point_graphs import VNEdgeConv, nearest_points
from vitrail.layers.vector_neurons import VNLinearLeakyReLU, VNStdFeature
from vitrail.models.base import group_parameters
from vitrail.models.checks import as_config, check_rates
from vitrail.models.family import Family, register_family
from vitrail.models.point_cloud import (
    GraphSettings,
    PointCloudModel,
    PointPool,
    check_widths,
    join_mean,
    point_levels,
    split_vectors,
)
from vitrail.weights.rules import KeyMap, Rename


@dataclass(frozen=True)
class VNDGCNNConfig(GraphSettings):
    """Settings of a VN-DGCNN, beside those of :class:`~vitrail.models.point_cloud.GraphSettings`.

    Attributes:
        dims: Vectors of a point after each of the four edge layers, and after the layer that joins them.
        hidden_dims: Widths of the two hidden layers before the logits.
        vector_pool: Of vectors over neighbours, "mean" or "max".
        drop_rate: Dropout rate of both hidden layers in training.
        global_pool: "catavgmax" joins the largest value and the mean of each invariant feature over the points; "max",
            "avg": one of them.
    """

    dims: tuple[int, ...] = (21, 21, 42, 85, 341)
    hidden_dims: tuple[int, ...] = (512, 256)
    vector_pool: Literal["mean", "max"] = "mean"
    drop_rate: float = 0.5
    global_pool: PointPool = "catavgmax"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: A value out of range.
        """
        super().__post_init__()
        check_widths(self, dims=5, hidden_dims=2)
        check_rates(self, "drop_rate")


class VNDGCNN(PointCloudModel):
    """Four edge layers, each on the graph of its input's nearest points, invariant features, pooling and an MLP.

    Args:
        config: The settings.
    """

    def __init__(self, config: VNDGCNNConfig) -> None:
        super().__init__()
        self.config = config = as_config(VNDGCNNConfig, config)
        *dims, last = config.dims
        befores = [1, *dims[:-1]]
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            VNEdgeConv(before, after, config.vector_pool) for before, after in zip(befores, dims, strict=True)
        )
        self.conv5 = VNLinearLeakyReLU(sum(dims), last, share_direction=True)
        self.std_feature = VNStdFeature(2 * last)
        pooled = 6 * last * (2 if config.global_pool == "catavgmax" else 1)
        hidden, width = config.hidden_dims
        self.neck = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(pooled, hidden),
                bn1=nn.BatchNorm1d(hidden),
                act1=nn.LeakyReLU(0.2),
                dp1=nn.Dropout(config.drop_rate),
                linear2=nn.Linear(hidden, width),
                bn2=nn.BatchNorm1d(width),
                act2=nn.LeakyReLU(0.2),
                dp2=nn.Dropout(config.drop_rate),
            )
        )
        self.num_features = width
        names = ["conv1", "conv2", "conv3", "conv4", "conv5"]
        self.feature_info = point_levels(names, [config.in_chans * dim for dim in config.dims])
        self.grad_checkpointing = False
        self.head = self.build_head(config.num_classes)

    def encode(self, points: Tensor, mask: Tensor | None, stop: int | None) -> tuple[Tensor, list[Tensor]]:
        """Run the layers of the points; invariant features ``(B, N, 6 dims[-1])``."""
        x, levels = split_vectors(points), []
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4)[:stop]:
            # The first graph is that of the points; attributes count among the numbers of a point.
            index = nearest_points(x.flatten(2), self.config.num_neighbors, mask)
            x = run_block(conv, x, index, mask, checkpointing=self.grad_checkpointing and self.training)
            levels.append(x)
        if stop is not None and stop < len(self.feature_info):
            return x.flatten(2), levels
        x = self.conv5(torch.cat(levels, dim=-1), mask)
        return self.std_feature(join_mean(x, mask), mask), [*levels, x]

    def layer_groups(self) -> list[list[str]]:
        """Each edge layer, then the others."""
        edges = [["conv1"], ["conv2"], ["conv3"], ["conv4"]]
        return group_parameters(self, [*edges, ["conv5", "std_feature", "neck", "head"]])

    key_maps = (
        KeyMap(
            "vnn",  # the authors' names; vitrail's own pass unchanged
            (r"conv4\.map_to_feat\.weight", r"std_feature\.vn_lin\.weight"),
            (
                Rename(r"pool([1-4])\.(.*)", r"conv\1.pool.\2"),
                Rename(r"linear3\.(.*)", r"head.\1"),
                Rename(r"((?:linear|bn)[12]\.\w+)", r"neck.\1"),
            ),
        ),
    )


register_family(
    Family(
        name="vn_dgcnn",
        config=VNDGCNNConfig,
        build=VNDGCNN,
        variants={"vn_dgcnn_mean": {}, "vn_dgcnn_max": {"vector_pool": "max"}},
        test_config={
            "num_points": 32, "dims": (4, 4, 6, 6, 12), "hidden_dims": (16, 12), "drop_rate": 0.0,
            "num_neighbors": 6, "num_classes": 5,
        },
        source="Deng et al. 2021, arXiv:2104.12229",
    )
)  # fmt: skip
