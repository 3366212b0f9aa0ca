"""Intervals of one run's measures by the bootstrap: images drawn anew, or whole groups of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr
from scipy.stats import t as student

from vitrail.errors import ConfigError, DataError

Doubles = npt.NDArray[np.float64]
Interval = tuple[float, float]

# Numbers held at a time, so that many images and resamples need no more memory than few.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Bootstrap:
    """How images are drawn anew.

    Attributes:
        images: How many there are.
        groups: The group of each image where images belong together (of one plant, one patient, one scene): groups
            are then drawn whole. Each image is a group of its own when not given.
        resamples: How often.
        seed: Of the drawing.
        confidence: Coverage wanted.

    Raises:
        ConfigError: Settings out of range.
        DataError: Another number of groups than images, or a single group.
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
            raise DataError(f"{len(self.groups)} groups for {self.images} images; give one for each")
        if self.units < 2:
            what = "image" if self.groups is None else "group"
            raise DataError(f"an interval needs at least 2 {what}s, there is {self.units}; leave the intervals out")

    @property
    def units(self) -> int:
        """How many things are drawn: images, or groups."""
        return self.images if self.groups is None else len(set(self.groups))

    def weights(self, resamples: int | None = None, at_a_time: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
        """How often each image is drawn.

        Args:
            resamples: How many of the resamples; all when not given.
            at_a_time: How many to give at once; as many as memory holds easily when not given.

        Yields:
            Shape ``(N, r)``, a column a resample, until all are there.
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
        """Where a measure lies, from its values over the resamples.

        The percentile interval, its tails moved outwards as far as Student's t lies outside the normal distribution
        and a variance over n instead of n - 1 is too small; with few units the plain one is too narrow.

        Args:
            values: One a resample; those that are no numbers (a class that was not drawn) do not count.

        Returns:
            Lowest and highest; None where they are the same, because nothing that could vary was seen, or where less
            than half of the resamples give a number.

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
        """Interval of the mean of one number an image.

        Args:
            values: Shape ``(N,)``.
        """
        values = np.asarray(values, dtype=np.float64)
        means = [(values @ weights) / weights.sum(axis=0) for weights in self.weights()]
        return self.interval(np.concatenate(means))

    def describe(self) -> dict[str, object]:
        """What a reader of the intervals must know."""
        return {
            "method": "expanded percentile bootstrap",
            "confidence": self.confidence,
            "resamples": self.resamples,
            "seed": self.seed,
            "unit": "image" if self.groups is None else "group",
            "units": self.units,
        }
