"""Occlusion of point clouds: drop of the class's logit without the neighbourhood of a point."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.explain.capture.forwarding import Inputs, check_count, in_batches
from vitrail.explain.capture.prepare import labels_points
from vitrail.explain.methods.maps import StreamMap
from vitrail.explain.methods.registry import register_method
from vitrail.layers.point_graphs import nearest_points
from vitrail.models.base import VisionModel
from vitrail.models.modality import POINTS


def _lacks_points(model: VisionModel) -> str | None:
    """Return the reason why no points can be removed; None for a model of point clouds."""
    if labels_points(model):
        return "it removes points, and a part's score is a sum over points"
    if model.modality == POINTS:
        return None
    return f"it explains point clouds, and this model takes {model.modality.noun}"


@register_method("neighborhood_occlusion", by_class=True, signed=True, lacks=_lacks_points, any_grid=True)
def _neighborhood_occlusion(
    model: VisionModel, inputs: Inputs, target: Tensor | None, num_points: int = 16, batch_size: int = 64
) -> dict[str, StreamMap]:
    """Drop of the class's logit without the points around one, for each point of a cloud.

    Signed: negative where the logit rises. ``num_points`` nearest points are removed at a time, the point itself among
    them, always fewer than the cloud has; a point has the mean over the neighbourhoods that hold it. One forward pass
    for each point, ``batch_size`` at a time.
    """
    assert target is not None, "explain() passes a target to methods by class"
    check_count("num_points", num_points)
    points, *others = [x for x in inputs if x is not None]
    maps = torch.zeros(points.shape[:2], device=points.device)
    with torch.no_grad():
        for row, cloud in enumerate(points):
            real = cloud.isfinite().all(dim=-1)
            count = int(real.sum())
            size = min(num_points, count - 1)
            if size < 1:
                continue  # nothing is left of a cloud without its only point
            rest = [x[row : row + 1] for x in others]
            whole = model(cloud[None], *rest)[0, target[row]]
            index = nearest_points(cloud[real][None], size)[0]
            drops = []
            for part in in_batches(count, batch_size):
                own = index[part]
                covered = cloud.repeat(len(own), 1, 1)
                covered[torch.arange(len(own))[:, None], real.nonzero()[:, 0][own]] = float("nan")
                logits = model(covered, *(x.expand(len(own), -1, -1) for x in rest))
                drops.append(whole - logits[:, target[row]])
            drop = torch.cat(drops)[:, None].expand_as(index).flatten()
            held, total = torch.zeros(2, count, device=points.device)
            held.index_add_(0, index.flatten(), torch.ones_like(drop))
            total.index_add_(0, index.flatten(), drop)
            # A point is in its own neighbourhood, but where another lies at the same place.
            maps[row, real] = total / held.clamp_min(1.0)
    return {model.streams[0].name: StreamMap(maps, maps)}
