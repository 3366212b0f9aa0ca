"""Band statistics over many images, accumulated in batches, with a file format that training reads."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.data.stored_values import Tally
from vitrail.errors import DataError
from vitrail.files import write_json

# Steps of the histogram over 0..1: values of 8 bits get one each (multiples of 1 / 255), those of 16 bits share 16.
_STEPS = 4080
_PERCENTILES = (1, 5, 50, 95, 99)
# A share of pixels at an end of the range above which the end is probably the sensor's and not the scene's.
MANY_SATURATED = 0.01
# More of the images than this with blue brighter than red are unusual in nature: see `swapped_red_and_blue`.
_MOSTLY_BLUE = 2 / 3
# Resizing rounds: a band of one value varies by less than this share of it, and a step of 16 bits by at least 1.5e-5.
_ROUNDING = 4e-6


@dataclass(frozen=True)
class BandStatistics:
    """Statistics of one band, in units of 0..1.

    Attributes:
        name: The band's.
        wavelength: Wavelength in nm, where it is known.
        mean: Mean over all pixels.
        std: Likewise; 1 for a constant band.
        mean_inside: Mean over the pixels that are neither 0 nor 1.
        std_inside: Likewise.
        at_zero: Share of the pixels that are 0.
        at_one: Share that are 1 (or were above, and cut off).
        percentiles: Values below which 1, 5, 50, 95 and 99 % of the pixels lie, to 1 / 4080.
        no_data: Share of the stored pixels without data; all else is of the others.
        cut_low: Share of the stored pixels below the range, which became 0.
        cut_high: Share above the range, which became 1.
        constant: Whether all pixels have one value.
    """

    name: str
    wavelength: float | None
    mean: float
    std: float
    mean_inside: float
    std_inside: float
    at_zero: float
    at_one: float
    percentiles: dict[str, float]
    no_data: float = 0.0
    cut_low: float = 0.0
    cut_high: float = 0.0
    constant: bool = False


class StreamStatistics:
    """Accumulator of the band statistics of one stream.

    Args:
        bands: Names of the bands.
        wavelengths: Wavelengths in nm, where they are known.
    """

    def __init__(self, bands: Sequence[str], wavelengths: Sequence[float] | None = None) -> None:
        self.bands, self.wavelengths = tuple(bands), wavelengths
        number = len(bands)
        # Sum, sum of squares and number of the pixels: all of them, and those inside 0..1.
        self._sums = torch.zeros(2, 3, number, dtype=torch.float64)
        self._ends = torch.zeros(2, number, dtype=torch.float64)
        self._histogram = np.zeros((number, _STEPS + 1), dtype=np.int64)
        self._means: list[Tensor] = []
        self._extent = torch.stack([torch.full((number,), math.inf), torch.full((number,), -math.inf)])

    def add(self, images: Tensor) -> None:
        """Add a batch.

        Args:
            images: Shape ``(B, C, H, W)``, or clips ``(B, C, T, H, W)``, float32 in 0..1; NaN where there is no data.
        """
        values = images.transpose(0, 1).flatten(1)
        valid = ~values.isnan()
        whole = bool(valid.all())
        zero, one = values <= 0, values >= 1
        exact = values.double() if whole else values.double().nan_to_num_(0.0)
        inside = valid & ~(zero | one)
        for row, chosen in enumerate((None if whole else valid, inside)):
            kept = exact if chosen is None else exact * chosen
            count = torch.full((len(kept),), kept.shape[1]) if chosen is None else chosen.sum(1)
            self._sums[row] += torch.stack([kept.sum(1), kept.square().sum(1), count])
        self._ends += torch.stack([zero.sum(1), one.sum(1)])
        low = values if whole else torch.where(valid, values, math.inf)
        high = values if whole else torch.where(valid, values, -math.inf)
        self._extent = torch.stack(
            [torch.minimum(self._extent[0], low.amin(1)), torch.maximum(self._extent[1], high.amax(1))]
        )
        steps = (exact * _STEPS).round_().long().clamp_(0, _STEPS) if not whole else None
        if steps is None:
            steps = (values * _STEPS).round_().long().clamp_(0, _STEPS)
        for band, row in enumerate(steps):
            own = row if whole else row[valid[band]]
            self._histogram[band] += np.bincount(own.numpy(), minlength=_STEPS + 1)
        pixels = images.flatten(2)
        self._means.append(pixels.mean(2) if whole else pixels.nanmean(2))

    def result(self, tally: Tally | None = None) -> list[BandStatistics]:
        """Return the statistics of each band.

        Args:
            tally: The stored pixels of the same images; None where none is without data or cut off.
        """
        (mean, std), (mean_inside, std_inside) = (_moments(*parts) for parts in self._sums)
        shares = (self._ends / self._sums[0, 2].clamp_min(1)).tolist()
        below = self._histogram.cumsum(1) / np.maximum(self._histogram.sum(1, keepdims=True), 1)
        quantiles = [(below >= p / 100).argmax(1) / _STEPS for p in _PERCENTILES]
        none = np.zeros(len(self.bands))
        cut = (none, none) if tally is None else tally.cut_shares()
        lost = none if tally is None else tally.no_data_shares()
        low, high = self._extent
        same = (high - low <= _ROUNDING * high).tolist()
        return [
            BandStatistics(
                name=name,
                wavelength=None if self.wavelengths is None else self.wavelengths[i],
                mean=mean[i],
                std=std[i],
                mean_inside=mean_inside[i],
                std_inside=std_inside[i],
                at_zero=round(shares[0][i], 6),
                at_one=round(shares[1][i], 6),
                percentiles={str(p): round(float(at[i]), 5) for p, at in zip(_PERCENTILES, quantiles, strict=True)},
                no_data=round(float(lost[i]), 6),
                cut_low=round(float(cut[0][i]), 6),
                cut_high=round(float(cut[1][i]), 6),
                constant=same[i],
            )
            for i, name in enumerate(self.bands)
        ]

    def swapped_red_and_blue(self) -> str | None:
        """Return a warning if red and blue seem to be swapped; see :func:`seem_swapped`."""
        if not {"red", "blue"} <= set(self.bands):
            return None
        means = torch.cat(self._means)
        return seem_swapped(means[:, self.bands.index("red")], means[:, self.bands.index("blue")])


def _moments(total: Tensor, squares: Tensor, count: Tensor) -> tuple[list[float], list[float]]:
    mean = total / count.clamp_min(1)
    std = (squares / count.clamp_min(1) - mean.square()).clamp_min(0).sqrt()
    std[std < 1e-6] = 1.0
    return [round(v, 6) for v in mean.tolist()], [round(v, 6) for v in std.tolist()]


def seem_swapped(red: Tensor, blue: Tensor) -> str | None:
    """Check whether the red and blue bands of images seem to be swapped.

    Leaves, soil, wood, skin and most of what people make reflect more red than blue; sky and water do the opposite.
    Blue is the brighter one in 6 % of the photos of ants and bees (hymenoptera), in 21 % of apple leaves (PlantVillage)
    and in 28 % of CIFAR-10, whose ships alone reach 75 %: so more than two in three are suspicious. It is a rule of
    thumb, and only warns.

    Args:
        red: Mean of the red band of each image, shape ``(N,)``.
        blue: Mean of the blue band, likewise.

    Returns:
        The warning; None where nothing is suspicious, or there are fewer than 20 images that are not gray.
    """
    colored = (red - blue).abs() > 0.01
    if int(colored.sum()) < 20:
        return None
    share = float((blue > red)[colored].float().mean())
    if share < _MOSTLY_BLUE:
        return None
    return (
        f"blue is brighter than red in {share:.0%} of the images, which is rare but for sky and water; if the bands "
        "are stored as blue, green, red, name them so (data.bands.names)"
    )


@dataclass(frozen=True)
class Statistics:
    """Result of ``vitrail data stats``.

    Attributes:
        streams: Statistics of the bands of each stream.
        images: Number of measured images.
        fingerprint: Hash of the data and its split; see ``ImageData.fingerprint``.
        robust: Whether images are to be normalised by the pixels inside 0..1.
        warnings: Suspicious values.
        notes: Facts about the values: range, pixels without data.
    """

    streams: dict[str, list[BandStatistics]]
    images: int
    fingerprint: str
    robust: bool
    warnings: list[str]
    notes: list[str] = field(default_factory=list)

    def refuse_constant(self, allowed: Collection[str]) -> None:
        """Raise an error for constant bands.

        Args:
            allowed: Names of bands that may.

        Raises:
            DataError: It names the bands.
        """
        found = [band.name for bands in self.streams.values() for band in bands if band.constant]
        unasked = [name for name in found if name not in allowed]
        if unasked:
            raise DataError(
                f"the training images have one value throughout in {', '.join(unasked)} (or no data); leave out such "
                f"bands (data.bands.use), or allow them: --data.bands.allow_constant '[{', '.join(unasked)}]'"
            )

    def normalization(self) -> dict[str, tuple[list[float], list[float]]]:
        """Return means and standard deviations for each stream."""
        return {
            name: (
                [band.mean_inside if self.robust else band.mean for band in bands],
                [band.std_inside if self.robust else band.std for band in bands],
            )
            for name, bands in self.streams.items()
        }


def write_statistics(path: str | Path, statistics: Statistics) -> None:
    """Write a file for ``data.values.statistics``."""
    write_json(path, {"kind": "vitrail statistics", **asdict(statistics)})


def read_statistics(path: str | Path, bands: Mapping[str, Sequence[str]]) -> Statistics:
    """Read a file of :func:`write_statistics`.

    Args:
        path: The file.
        bands: The bands of each stream that it must have, in any order and among others; the result has these alone.

    Raises:
        DataError: No such file, another kind of file, or one that lacks a band.
    """
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        if content.pop("kind") != "vitrail statistics":
            raise ValueError("it is of another kind")
        known = {name: [BandStatistics(**band) for band in own] for name, own in content.pop("streams").items()}
        result = Statistics(streams=known, **content)
    except OSError as error:
        raise DataError(f"cannot read data.values.statistics {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"data.values.statistics {path} is not what `vitrail data stats --out` writes ({type(error).__name__}: "
            f"{error})"
        ) from error
    chosen: dict[str, list[BandStatistics]] = {}
    for stream, names in bands.items():
        own = {band.name: band for band in known.get(stream, [])}
        lacking = [name for name in names if name not in own]
        if lacking:
            raise DataError(
                f"data.values.statistics {path} has no band {', '.join(lacking)} in the {stream} stream; measure these "
                "images with `vitrail data stats`"
            )
        chosen[stream] = [own[name] for name in names]
    return dataclasses.replace(result, streams=chosen)
