"""Convolutions of vectors along edges, without the features of edges.

A linear map of [x_j - x_i, x_i] is A x_j + (B - A) x_i: two products for each point instead of one for each edge. Both
maps of the layer share one gather. Only cross products are mapped edge by edge. Without gradients one neighbour of all
points is taken at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.layers.fast.dispatch import fast_path, infers_on_cpu, is_plain
from vitrail.layers.masked import MaskedBatchNorm
from vitrail.layers.point_graphs import VNEdgeConv, cross_product, take_neighbours
from vitrail.layers.vector_neurons import EPS, VNBatchNorm, VNMeanPool, clip_along, squared_lengths

# Vectors of a point below which mapping the edges costs no more than adding the shares of their ends.
_FEW = 4


def _has_plain_parts(layer: VNEdgeConv) -> bool:
    return (
        is_plain(nn.Linear, layer.map_to_feat, layer.map_to_dir)
        and is_plain(VNBatchNorm, layer.batchnorm)
        and is_plain(MaskedBatchNorm, layer.batchnorm.bn)
    )


def _map_ends(layer: VNEdgeConv, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the shares of an edge's two ends in its features and directions, both ``(B, N, S, 2 C')``.

    Returns:
        Share of the neighbour, share of the point, and the weights of cross products, if the layer has them.
    """
    weight = torch.cat([layer.map_to_feat.weight, layer.map_to_dir.weight])
    of_neighbour, of_centre, *of_cross = torch.split(weight, layer.in_channels, dim=1)
    neighbour = nn.functional.linear(x, of_neighbour)
    centre = nn.functional.linear(x, of_centre - of_neighbour)
    return neighbour, centre, of_cross[0] if of_cross else None


def _infers_mean(layer: VNEdgeConv, x: Tensor, index: Tensor, mask: Tensor | None, weights: Tensor | None) -> bool:
    return (
        infers_on_cpu(x)
        and not layer.batchnorm.bn.training
        and is_plain(VNMeanPool, layer.pool)
        and _has_plain_parts(layer)
    )


@fast_path("vector_edges", when=_infers_mean)
def average_edges(layer: VNEdgeConv, x: Tensor, index: Tensor, mask: Tensor | None, weights: Tensor | None) -> Tensor:
    """Add up the edges to the first neighbours of all points, the second, and so on."""
    neighbour, centre, of_cross = _map_ends(layer, x)
    bn = layer.batchnorm.bn
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    shift = bn.bias - bn.running_mean * scale
    rows = neighbour.flatten(0, 1)
    first = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    total = torch.zeros_like(centre[..., : len(scale)])
    for step in range(index.shape[2]):
        at = (index[:, :, step] + first).flatten()
        edges = rows.index_select(0, at).view_as(centre).add_(centre)
        if of_cross is not None:
            edges += nn.functional.linear(cross_product(x.flatten(0, 1)[at].view_as(x), x), of_cross)
        features, directions = edges.chunk(2, dim=-1)
        length = squared_lengths(features).sqrt_().add_(EPS)
        # Batch norm of a length and its division by it, in one factor.
        factor = (shift / length).add_(scale)
        against = (features * directions).sum(dim=-2, keepdim=True).mul_(factor).clamp_(max=0.0)
        against.div_(squared_lengths(directions).add_(EPS)).mul_(layer.negative_slope - 1.0)
        if weights is not None:
            own = weights[:, :, step, None, None]
            factor, against = factor.mul_(own), against.mul_(own)
        total.addcmul_(features, factor).addcmul_(directions, against)
    return total if weights is not None else total.div_(index.shape[2])


def _maps_many(layer: VNEdgeConv, x: Tensor, index: Tensor, mask: Tensor | None, weights: Tensor | None) -> bool:
    return layer.in_channels >= _FEW and _has_plain_parts(layer)


@fast_path("vector_edges", when=_maps_many)
def convolve_ends(layer: VNEdgeConv, x: Tensor, index: Tensor, mask: Tensor | None, weights: Tensor | None) -> Tensor:
    """Map the points, then add the shares of both ends of each edge."""
    neighbour, centre, of_cross = _map_ends(layer, x)
    edges = take_neighbours(neighbour, index) + centre[:, :, None]
    if of_cross is not None:
        edges = edges + nn.functional.linear(cross_product(take_neighbours(x, index), x[:, :, None]), of_cross)
    features, directions = edges.chunk(2, dim=-1)
    out: Tensor = layer.pool(clip_along(layer.batchnorm(features, mask), directions, layer.negative_slope), weights)
    return out
