"""Stored form of a run's point clouds; the pipeline's rotation, centring and scaling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.config.data import DataConfig
from vitrail.data.dataset import ImageData
from vitrail.data.points.sampling import ROLLS
from vitrail.deploy.export.pixels import Prepare
from vitrail.deploy.export.stored import Stored
from vitrail.errors import plural
from vitrail.layers.masked import masked_max, masked_mean
from vitrail.runs.trained import ModelCard

_RULE = {
    "farthest": "each point the farthest from those before, the first at random",
    "random": "points chosen at random",
}
# Scale and shift that turn a prepared cloud into a stored one.
_LENGTH, _SHIFT = 3.0, 2.0


@dataclass(frozen=True)
class StoredPoints(Stored):
    """Attributes of the points of a cloud, which no preparation changes.

    Attributes:
        num_points: Points of a cloud.
    """

    num_points: int

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of a batch; None where free."""
        return (None, self.num_points, len(self.bands))

    def invert(self, prepared: Tensor, enlarge: tuple[int, int]) -> Tensor:
        """Return stored values that become these."""
        return prepared

    def describe(self) -> dict[str, Any]:
        """Describe the preparation, for export.json."""
        return {"points": self.num_points}


@dataclass(frozen=True)
class StoredCoordinates(StoredPoints):
    """Coordinates of the points of a cloud, in units of the file.

    Attributes:
        up: Axis that points up, which the graph rotates to z.
        scale: Divisor of the centred coordinates, as ``data.points.scale``.
        subsample: Method that chooses points from larger clouds, as ``data.points.subsample``.
    """

    up: str
    scale: str | float
    subsample: str

    def invert(self, prepared: Tensor, enlarge: tuple[int, int]) -> Tensor:
        """Return coordinates that become these: shifted, and larger where the scale allows it."""
        length = self.scale if isinstance(self.scale, int | float) else 1.0 if self.scale == "none" else _LENGTH
        return torch.roll(prepared * length + _SHIFT, -ROLLS[self.up], dims=-1)

    def describe(self) -> dict[str, Any]:
        """Describe the preparation, for export.json."""
        return {
            **super().describe(),
            "sampling": f"{plural(self.num_points, 'different point')}: {_RULE[self.subsample]}; NaN where there are "
            "fewer",
            "subsample": self.subsample,
            "up": self.up,
            "centre": "centroid of the points",
            "scale": self.scale,
        }


def stored_clouds(card: ModelCard, data: DataConfig, clouds: ImageData) -> tuple[dict[str, Stored], str]:
    """Describe the stored points of a run of clouds, whatever its source."""
    settings, found = data.points, dict[str, Stored]()
    for name, stream in card.streams.items():
        values = (stream.bands, torch.float32, (), (), stream.img_size[0])
        found[name] = (
            StoredCoordinates(*values, data.up, settings.scale, settings.subsample)
            if name == card.modality.name
            else StoredPoints(*values)
        )
    return found, ""


class PlacePoints(nn.Module):
    """Turn, centre and scale clouds, as :class:`vitrail.data.points.source.PointSource` does.

    Args:
        stored: Stored form of the coordinates.
    """

    def __init__(self, stored: StoredCoordinates) -> None:
        super().__init__()
        self.roll, self.scale = ROLLS[stored.up], stored.scale

    def forward(self, x: Tensor) -> Tensor:
        """Place clouds ``(B, N, 3)``; points that are not finite become NaN and count for neither centre nor scale."""
        real = x.isfinite().all(dim=-1)
        points = x.masked_fill(~real[..., None], 0.0).roll(self.roll, dims=-1)
        points = points - masked_mean(points, real)[:, None]
        if self.scale in ("sphere", "rms"):
            squares = points.square().sum(dim=-1)
            length = (masked_max(squares, real) if self.scale == "sphere" else masked_mean(squares, real)).sqrt()
            points = points / torch.where(length > 0, length, 1.0)[:, None, None]
        elif self.scale != "none":
            points = points / float(self.scale)
        return points.masked_fill(~real[..., None], float("nan"))


class PrepareClouds(Prepare):
    """Prepare the model's inputs from clouds in units of the file and from placed ones.

    Args:
        card: Model card of the run.
        stored: Stored form of the points of each stream.
    """

    def __init__(self, card: ModelCard, stored: Mapping[str, Stored]) -> None:
        modules = {
            name: PlacePoints(own) if isinstance(own, StoredCoordinates) else nn.Identity()
            for name, own in stored.items()
        }
        super().__init__(card, modules)
