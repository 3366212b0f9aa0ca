"""What measures of faithfulness share: maps beside their images, scores of a class, the order of pixels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vitrail.errors import ConfigError, ShapeError
from vitrail.explain.capture.forwarding import Inputs, given
from vitrail.explain.capture.prepare import Target
from vitrail.explain.methods.maps import Explanation, StreamMap
from vitrail.models.base import VisionModel

# What can be measured: an explanation, or maps (B, H, W) by the names of the streams.
Maps = Explanation | Mapping[str, Tensor] | Mapping[str, StreamMap]


def maps_of(model: VisionModel, inputs: Inputs, explanation: Maps) -> dict[str, Tensor]:
    """Maps of the streams that an explanation speaks of.

    Returns:
        Shape ``(B, H, W)``, each of its input's height and width.

    Raises:
        ConfigError: No map, a stream that the model does not have, or values that are not finite.
        ShapeError: A map that does not fit its images.
    """
    images = given(model, inputs)
    maps = {}
    for name, item in explanation.items():
        if name not in images:
            raise ConfigError(f"a map of {name!r}, but the images are of {', '.join(images)}")
        found = item.map if isinstance(item, StreamMap) else item
        wanted = (len(images[name]), *images[name].shape[2:])
        if tuple(found.shape) != wanted:
            raise ShapeError(f"a map of {name!r} of shape {tuple(found.shape)} for images that want {wanted}")
        if not torch.isfinite(found).all():
            raise ConfigError(f"the map of {name!r} has values that are not finite")
        maps[name] = found.detach()
    if not maps:
        raise ConfigError("no map to measure")
    return maps


def target_of(explanation: Maps, target: Target) -> Target:
    """The class asked for, or the one that was explained."""
    return explanation.target if target is None and isinstance(explanation, Explanation) else target


def rank_pixels(maps: Tensor, seed: int = 0) -> Tensor:
    """The place of every pixel in the order of relevance.

    Equal pixels are put in a random order: the order of memory would favour the top of the image.

    Args:
        maps: Shape ``(B, H, W)``.
        seed: Of the order among equals, which is the same for every image.

    Returns:
        Whole numbers, shape ``(B, H, W)``; 0 is the most relevant pixel.
    """
    flat = maps.flatten(1)
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(flat.device)
    order = shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).reshape(maps.shape)
