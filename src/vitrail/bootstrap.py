"""Bootstrap confidence intervals over images or groups of images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr
from scipy.stats import t as student

from vitrail.errors import ConfigError, DataError, plural

Doubles = npt.NDArray[np.float64]
Interval = tuple[float, float]

# Verdict on a difference that is not significant, in tables and figures.
NOT_SHOWN = "not shown"
# Elements of a chunk of weights; bounds the memory.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the bootstrap.

    Attributes:
        images: Number of images.
        groups: Group of each image (plant, patient, scene), for resampling of whole groups; None resamples images.
        resamples: Number of resamples.
        seed: Seed of the resampling.
        confidence: Confidence level.

    Raises:
        ConfigError: A setting is out of range.
        DataError: ``groups`` has another length than images, or holds a single group.
    """

    images: int
    groups: Sequence[str] | None = None
    resamples: int = 2000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Check."""
        if self.resamples < 100:
            raise ConfigError(f"intervals need at least 100 resamples, got {self.resamples}")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence must be between 0 and 1, got {self.confidence}")
        if self.groups is not None and len(self.groups) != self.images:
            raise DataError(
                f"{plural(len(self.groups), 'group')} for {plural(self.images, 'image')}; give one for each"
            )
        if self.units < 2:
            what = "image" if self.groups is None else "group"
            raise DataError(f"an interval needs at least 2 {what}s, there is {self.units}; leave the intervals out")

    @property
    def units(self) -> int:
        """Number of resampled units: images or groups."""
        return self.images if self.groups is None else len(set(self.groups))

    def weights(self, resamples: int | None = None, at_a_time: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
        """Sample the weight of each image in each resample.

        Args:
            resamples: Number of resamples; all by default.
            at_a_time: Resamples in a chunk; by default bounded by memory.

        Yields:
            Chunks of shape ``(N, r)``.
        """
        rng = np.random.default_rng(self.seed)
        left = self.resamples if resamples is None else min(resamples, self.resamples)
        members = None if self.groups is None else np.unique(np.asarray(self.groups), return_inverse=True)[1]
        units = self.units
        while left > 0:
            count = min(left, at_a_time or max(1, _CHUNK // max(self.images, units)))
            drawn = rng.integers(0, units, (count, units)) + units * np.arange(count)[:, None]
            times = np.bincount(drawn.ravel(), minlength=units * count).reshape(count, units)
            weights = np.ascontiguousarray(times.T, dtype=np.float32)
            yield weights if members is None else weights[members]
            left -= count

    def interval(self, values: npt.ArrayLike) -> Interval | None:
        """Compute the expanded percentile interval of a measure.

        The tails are widened from normal to Student quantiles and by ``sqrt(n / (n - 1))``, because the plain
        percentile interval is too narrow for few units.

        Args:
            values: Measure of each resample; values that are not finite (an absent class) are ignored.

        Returns:
            Low and high; None where they are equal, or where fewer than half of the values are finite.

        Source: Efron 1979, Ann. Stat. 7, 1-26; Hesterberg 2015, Am. Stat. 69, 371-386, section 4.3 ("expanded").
        """
        values = np.asarray(values, dtype=np.float64)
        finite = values[np.isfinite(values)]
        if 2 * len(finite) < len(values) or len(finite) == 0:
            return None
        tail = (1 - self.confidence) / 2
        n = self.units
        tail = float(ndtr(math.sqrt(n / (n - 1)) * student.ppf(tail, n - 1)))
        low, high = np.quantile(finite, [tail, 1 - tail])
        return None if low == high else (float(low), float(high))

    def mean(self, values: npt.ArrayLike) -> Interval | None:
        """Compute the interval of a mean over images.

        Args:
            values: Value of each image, shape ``(N,)``.
        """
        values = np.asarray(values, dtype=np.float64)
        means = [(values @ weights) / weights.sum(axis=0) for weights in self.weights()]
        return self.interval(np.concatenate(means))

    def describe(self) -> dict[str, object]:
        """Describe the method, for a JSON file."""
        return {
            "method": "expanded percentile bootstrap",
            "confidence": self.confidence,
            "resamples": self.resamples,
            "seed": self.seed,
            "unit": "image" if self.groups is None else "group",
            "units": self.units,
        }


class MeanInterval(NamedTuple):
    """A mean over images and its interval, scalars or arrays.

    Attributes:
        mean: The mean.
        low: Lower bound; NaN for fewer than two images.
        high: Upper bound.
    """

    mean: Doubles
    low: Doubles
    high: Doubles


def bootstrap_mean(values: Doubles, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> MeanInterval:
    """Compute the mean over images and its expanded percentile interval, see :meth:`Bootstrap.interval`.

    Args:
        values: One value or array for each image, shape ``(N,)`` or ``(N, ...)``.
        confidence: Confidence level.
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        Arrays of shape ``values.shape[1:]``; low and high equal the mean where all images have the same value.

    Raises:
        ConfigError: ``confidence`` or ``resamples`` is out of range.
    """
    count, shape = len(values), values.shape[1:]
    mean = np.asarray(values.mean(axis=0) if count else np.full(shape, np.nan))
    # Checks the settings for a single image, too, which has no interval.
    bootstrap = Bootstrap(max(count, 2), None, resamples, seed, confidence)
    if count < 2:
        return MeanInterval(mean, np.full(shape, np.nan), np.full(shape, np.nan))
    columns = values.reshape(count, -1)
    resampled = np.concatenate([columns.T @ weights for weights in bootstrap.weights()], axis=1) / count
    ends = [bootstrap.interval(row) or (own, own) for row, own in zip(resampled, mean.ravel(), strict=True)]
    low, high = np.array(ends).reshape(-1, 2).T
    return MeanInterval(mean, low.reshape(shape), high.reshape(shape))
