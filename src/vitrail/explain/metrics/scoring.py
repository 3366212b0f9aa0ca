"""Shared by measures of faithfulness: maps by stream, and the ranking of pixels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vitrail.errors import ConfigError, ShapeError
from vitrail.explain.capture.forwarding import Inputs, inputs_by_stream
from vitrail.explain.capture.prepare import Target
from vitrail.explain.methods.maps import Explanation, StreamMap
from vitrail.models.base import VisionModel

# An explanation, or maps (B, H, W) by stream.
Maps = Explanation | Mapping[str, Tensor] | Mapping[str, StreamMap]


def maps_of(model: VisionModel, inputs: Inputs, explanation: Maps) -> dict[str, Tensor]:
    """Check the maps of an explanation against the inputs.

    Returns:
        Stream -> map, shape ``(B, H, W)``, of the input's height and width.

    Raises:
        ConfigError: No map, a stream that the model does not have, or values that are not finite.
        ShapeError: A map of another size than its images.
    """
    images = inputs_by_stream(model, inputs)
    maps = {}
    for name, item in explanation.items():
        if name not in images:
            raise ConfigError(f"no input for stream {name!r}, which has a map; given: {', '.join(images)}")
        found = item.map if isinstance(item, StreamMap) else item
        wanted = (len(images[name]), *images[name].shape[2:])
        if tuple(found.shape) != wanted:
            raise ShapeError(f"the map of {name!r} has shape {tuple(found.shape)}, expected {wanted}")
        if not torch.isfinite(found).all():
            raise ConfigError(f"the map of {name!r} has values that are not finite")
        maps[name] = found.detach()
    if not maps:
        raise ConfigError("the explanation has no map to measure")
    return maps


def target_of(explanation: Maps, target: Target) -> Target:
    """Return the target, by default that of the explanation."""
    return explanation.target if target is None and isinstance(explanation, Explanation) else target


def rank_pixels(maps: Tensor, seed: int = 0) -> Tensor:
    """Rank pixels by relevance.

    Ties are broken at random: the order in memory would favour the top of the image.

    Args:
        maps: Shape ``(B, H, W)``.
        seed: Seed of the order of ties, the same for every image.

    Returns:
        Ranks, int64, shape ``(B, H, W)``; 0 is the most relevant pixel.
    """
    flat = maps.flatten(1)
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(flat.device)
    order = shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    ranks = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, ranks).reshape(maps.shape)
