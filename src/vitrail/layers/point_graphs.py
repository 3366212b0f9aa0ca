"""Graphs of nearest points, and convolutions along their edges.

Sources: Wang et al. 2019, arXiv:1801.07829 (EdgeConv); Deng et al. 2021, arXiv:2104.12229 (with vector neurons).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitrail.layers.checkpointing import run_block
from vitrail.layers.fast.dispatch import with_fast_path
from vitrail.layers.masked import MaskedBatchNorm
from vitrail.layers.vector_neurons import VNBatchNorm, clip_along, make_vector_pool

# Above this width squared distances come of a matrix product: faster, but less exact.
_EXACT_WIDTH = 3


def squared_distances(x: Tensor) -> Tensor:
    """Compute the squared distances of all pairs of points, ``(B, N, F)`` to ``(B, N, N)``.

    Those of coordinates are sums of squared differences. A matrix product would leave errors of the order of the
    squared coordinates, which choose other neighbours for a rotated cloud.
    """
    if x.shape[-1] <= _EXACT_WIDTH:
        return sum((part[:, :, None] - part[:, None]).square() for part in x.unbind(dim=-1))  # type: ignore[return-value]
    squares = x.square().sum(dim=-1)
    return squares[:, :, None] + squares[:, None] - 2.0 * x @ x.transpose(1, 2)


def nearest_points(x: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
    """Find the k nearest points of each point, itself among them.

    Args:
        x: Coordinates or features, shape ``(B, N, F)``.
        k: Number of neighbours; all points where a cloud has fewer.
        mask: True for real points, shape ``(B, N)``. Others are nobody's neighbours; where too few are left, a point is
            its own neighbour again.

    Returns:
        Indices, shape ``(B, N, k)``, nearest first; the order of points at one distance is open.
    """
    return _rank_points(x.detach(), k, mask)[1]


def _rank_points(x: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Find the k nearest points, nearest first: squared distances and indices, both ``(B, N, k)``."""
    distances = squared_distances(x)
    if mask is not None:
        distances = distances.masked_fill(~mask[:, None], float("inf"))
    nearest, index = distances.topk(min(k, x.shape[1]), dim=-1, largest=False)
    if mask is None:
        return nearest, index
    own = torch.arange(x.shape[1], device=x.device)[:, None]
    return nearest, torch.where(nearest.isinf(), own, index)


def fading_neighbors(x: Tensor, k: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the k nearest points of each point, and weights that fall to 0 at the distance of the next one.

    The weight is 16 (1 - (d / r)^2), at most 1, with d the distance of a neighbour and r that of neighbour k + 1. Where
    a rotation exchanges the last neighbour for the next point, by the rounding of two equal distances, both weights are
    about 0. With equal weights such exchanges changed the logits of a trained model by 2.7 % of their range on laser
    scans, whose coordinates lie on a grid of centimetres.

    Args:
        x: Coordinates, shape ``(B, N, F)``.
        k: Number of neighbours; all points where a cloud has fewer.
        mask: True for real points, shape ``(B, N)``.

    Returns:
        Indices, as of :func:`nearest_points`, and weights whose sum is 1 for each point, both of shape ``(B, N, k)``.
        All neighbours weigh the same where no further point exists; neighbours that lack weigh 0.
    """
    distances, index = _rank_points(x, k + 1, mask)
    weights = distances[..., :k].isfinite().to(x.dtype)
    if index.shape[2] > k:
        distances, radius, index = distances[..., :k], distances[..., k:], index[..., :k]
        # The distances of repeated points may all be 0, and lacking neighbours lie at infinity.
        fades = (radius > 0.0) & radius.isfinite()
        fading = (16.0 * (1.0 - distances / torch.where(fades, radius, 1.0))).clamp(max=1.0)
        weights = torch.where(fades, fading, weights)
    return index, weights / weights.sum(dim=-1, keepdim=True).clamp_min(1.0)


def found_neighbors(index: Tensor, mask: Tensor) -> Tensor:
    """Mark the neighbours that exist: a cloud of n points has n of them for each point, the nearest ones.

    Args:
        index: Neighbours of each point, nearest first, shape ``(B, N, k)``.
        mask: True for real points, shape ``(B, N)``.

    Returns:
        True for neighbours that exist, shape ``(B, N, k)``.
    """
    order = torch.arange(index.shape[2], device=index.device)
    return (order < mask.sum(dim=1)[:, None, None]).expand(index.shape)


def run_dynamic_graphs(
    layers: Sequence[nn.Module], x: Tensor, num_neighbors: int, mask: Tensor | None, checkpointing: bool
) -> list[Tensor]:
    """Run edge layers, each on the graph of its own input's nearest points (arXiv:1801.07829, section 3.1).

    Args:
        layers: Layers like :class:`EdgeConv`.
        x: Coordinates and attributes, shape ``(B, N, ...)``; all numbers of a point count in distances.
        num_neighbors: Neighbours of a point, itself among them.
        mask: True for real points, shape ``(B, N)``.
        checkpointing: Whether the layers are computed again in the backward pass instead of being kept.

    Returns:
        Output of each layer.
    """
    outputs: list[Tensor] = []
    for layer in layers:
        index = nearest_points(x.flatten(2), num_neighbors, mask)
        x = run_block(layer, x, index, mask, checkpointing=checkpointing)
        outputs.append(x)
    return outputs


def take_neighbours(x: Tensor, index: Tensor) -> Tensor:
    """Gather the neighbours of each point.

    Args:
        x: Features, shape ``(B, N, ...)``.
        index: Neighbours, shape ``(B, N, k)``.

    Returns:
        Shape ``(B, N, k, ...)``.
    """
    first = torch.arange(x.shape[0], device=x.device)[:, None, None] * x.shape[1]
    return x.flatten(0, 1)[index + first]


def graph_features(x: Tensor, index: Tensor, cross: bool = False) -> Tensor:
    """Compute the features of edges, neighbour minus point and point.

    Args:
        x: Features, shape ``(B, N, ..., C)``.
        index: Neighbours, shape ``(B, N, k)``.
        cross: Whether the cross product of neighbour and point follows. It rotates with the cloud, but a mirrored cloud
            has other ones. Of vectors with more than 3 coordinates it is that of the first three, and 0 beyond.

    Returns:
        Shape ``(B, N, k, ..., 2 C or 3 C)``.
    """
    neighbours = take_neighbours(x, index)
    centres = x[:, :, None].expand_as(neighbours)
    parts = [neighbours - centres, centres]
    if cross:
        parts.append(cross_product(neighbours, centres))
    return torch.cat(parts, dim=-1)


def cross_product(x: Tensor, y: Tensor) -> Tensor:
    """Compute cross products of vectors ``(..., S, C)``: those of the first three coordinates, 0 beyond."""
    # Without dim, torch.cross takes the first dimension of size 3: the batch, where it has 3 clouds.
    product = torch.linalg.cross(x[..., :3, :], y[..., :3, :], dim=-2)
    return nn.functional.pad(product, (0, 0, 0, x.shape[-2] - 3))


class VNEdgeConv(nn.Module):
    """Convolve vectors along the edges of a graph: linear layer, batch norm, leaky ReLU, mean or max over neighbours.

    Args:
        in_channels: Vectors of a point.
        out_channels: Vectors of the result.
        pooling: "mean" or "max", see :func:`~vitrail.layers.vector_neurons.make_vector_pool`.
        negative_slope: As of :class:`~vitrail.layers.vector_neurons.VNLeakyReLU`.
        cross: Whether edges have the cross product of their ends as a feature.

    Source: arXiv:2104.12229, section 4.1 and the authors' code.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        pooling: str = "mean",
        negative_slope: float = 0.2,
        cross: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.cross = in_channels, cross
        edge_channels = in_channels * (3 if cross else 2)
        self.map_to_feat = nn.Linear(edge_channels, out_channels, bias=False)
        self.batchnorm = VNBatchNorm(out_channels)
        self.map_to_dir = nn.Linear(edge_channels, out_channels, bias=False)
        self.pool = make_vector_pool(pooling, out_channels)
        self.negative_slope = negative_slope

    def forward(self, x: Tensor, index: Tensor, mask: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x: Vectors, shape ``(B, N, S, in_channels)``.
            index: Neighbours of each point, nearest first, shape ``(B, N, k)``.
            mask: True for real points, shape ``(B, N)``; edges of others, and those to neighbours that lack, are left
                out of the batch norm's statistics.
            weights: Weights of the neighbours in the pooling, whose sum is 1, shape ``(B, N, k)``; when not given those
                that exist weigh the same.

        Returns:
            Shape ``(B, N, S, out_channels)``.
        """
        edges = None
        if mask is not None:
            found = found_neighbors(index, mask)
            edges = found & mask[..., None]
            if weights is None:
                weights = found.to(x.dtype) / found.sum(dim=-1, keepdim=True).clamp_min(1)
        return convolve_edges(self, x, index, edges, weights)


@with_fast_path("vector_edges")
def convolve_edges(layer: VNEdgeConv, x: Tensor, index: Tensor, mask: Tensor | None, weights: Tensor | None) -> Tensor:
    """Run a :class:`VNEdgeConv`; ``mask`` is true for the edges in the batch norm's statistics, ``(B, N, k)``."""
    edges = graph_features(x, index, layer.cross)
    features = layer.batchnorm(layer.map_to_feat(edges), mask)
    out: Tensor = layer.pool(clip_along(features, layer.map_to_dir(edges), layer.negative_slope), weights)
    return out


class EdgeConv(nn.Module):
    """Convolve features along the edges of a graph: linear layer, batch norm, leaky ReLU, maximum over neighbours.

    Args:
        in_channels: Channels of a point.
        out_channels: Channels of the result.

    Source: arXiv:1801.07829, section 3.1 and the authors' code.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * in_channels, out_channels, bias=False)
        self.bn = MaskedBatchNorm(out_channels)
        self.act = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor, index: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map ``(B, N, C)`` to ``(B, N, C')``; ``index`` and ``mask`` are those of :class:`VNEdgeConv`."""
        found = None if mask is None else found_neighbors(index, mask) & mask[..., None]
        edges = self.fc(graph_features(x, index))
        # A point stands in for neighbours that lack, which changes no maximum.
        out: Tensor = self.act(self.bn(edges, found)).amax(dim=2)
        return out
