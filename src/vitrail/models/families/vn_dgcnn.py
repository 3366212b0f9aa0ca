"""VN-DGCNN: a dynamic graph CNN with vector neurons.

Source: Deng et al. 2021, arXiv:2104.12229, section 4.1, and the authors' code (FlyingGiraffe/vnn), whose parameter
names the modules have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vitrail.layers.point_graphs import VNEdgeConv, run_dynamic_graphs
from vitrail.layers.vector_neurons import VNLinearLeakyReLU, VNStdFeature
from vitrail.models.base import group_parameters
from vitrail.models.checks import as_config
from vitrail.models.family import Family, register_family
from vitrail.models.point_cloud import (
    GraphSettings,
    PointCloudModel,
    PointPool,
    dgcnn_neck,
    join_mean,
    neck_width,
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
        vector_pool: Pooling of vectors over neighbours, "mean" or "max".
        drop_rate: Dropout rate of both hidden layers in training.
        global_pool: "catavgmax" joins the largest value and the mean of each invariant feature over the points; "max",
            "avg": one of them.
    """

    num_widths: ClassVar[Mapping[str, int]] = {"dims": 5, "hidden_dims": 2}
    dims: tuple[int, ...] = (21, 21, 42, 85, 341)
    hidden_dims: tuple[int, ...] = (512, 256)
    vector_pool: Literal["mean", "max"] = "mean"
    drop_rate: float = 0.5
    global_pool: PointPool = "catavgmax"


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
        pooled = neck_width(6 * last, config)
        self.neck = dgcnn_neck(pooled, config.hidden_dims, config.drop_rate, ("bn1", "bn2"), bias=True)
        self.num_features = config.hidden_dims[-1]
        names = ["conv1", "conv2", "conv3", "conv4", "conv5"]
        self.feature_info = point_levels(names, [config.in_chans * dim for dim in config.dims])
        self.grad_checkpointing = False
        self.head = self.build_head(config.num_classes)

    def encode(self, points: Tensor, mask: Tensor | None, stop: int | None) -> tuple[Tensor, list[Tensor]]:
        """Run the layers of the points; invariant features ``(B, N, 6 dims[-1])``."""
        layers = (self.conv1, self.conv2, self.conv3, self.conv4)[:stop]
        checkpointing = self.grad_checkpointing and self.training
        levels = run_dynamic_graphs(layers, split_vectors(points), self.config.num_neighbors, mask, checkpointing)
        if stop is not None and stop < len(self.feature_info):
            return levels[-1].flatten(2), levels
        x = self.conv5(torch.cat(levels, dim=-1), mask)
        return self.std_feature(join_mean(x, mask), mask), [*levels, x]

    def layer_groups(self) -> list[list[str]]:
        """Group each edge layer, then the others."""
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
