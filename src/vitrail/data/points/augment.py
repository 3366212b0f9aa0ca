"""Random augmentation of batches of point clouds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitrail.config.data_groups import PointsConfig
from vitrail.data.points.rotations import random_rotations, rotate


class PointAugmentation(nn.Module):
    """Turn, zoom, shift, jitter and drop points, from torch's generator; attributes stay.

    Args:
        settings: Settings of the augmentation.
    """

    def __init__(self, settings: PointsConfig) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Augment the clouds ``(B, N, 3)`` of the stream "points"."""
        settings, x = self.settings, streams["points"]
        count = len(x)
        if settings.turn != "none":
            x = rotate(x, random_rotations(count, settings.turn))
        low, high = settings.zoom
        if (low, high) != (1.0, 1.0):
            x = x * x.new_empty(count, 1, 1).uniform_(low, high)
        if settings.shift:
            x = x + x.new_empty(count, 1, 3).uniform_(-settings.shift, settings.shift)
        if settings.jitter:
            x = x + settings.jitter * torch.randn_like(x).clamp(-3.0, 3.0)
        if settings.drop:
            rate = settings.drop * torch.rand(count, 1, device=x.device)
            dropped = torch.rand(x.shape[:2], device=x.device) < rate
            dropped[:, 0] = False  # a cloud keeps a point
            x = x.masked_fill(dropped[..., None], float("nan"))
        return {**streams, "points": x}


def build_point_augmentation(settings: PointsConfig) -> PointAugmentation | None:
    """Build the augmentation of the settings; None where nothing is changed."""
    still = (settings.turn, tuple(settings.zoom), settings.shift, settings.jitter, settings.drop)
    return None if still == ("none", (1.0, 1.0), 0.0, 0.0, 0.0) else PointAugmentation(settings)
