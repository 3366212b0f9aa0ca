"""How sure a mean over images is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vitrail.errors import ConfigError

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A mean over images and its interval, one value or an array of them.

    Attributes:
        mean: The mean.
        low: Lower end; not a number where there are fewer than two images.
        high: Upper end.
    """

    mean: Floats
    low: Floats
    high: Floats


def mean_interval(values: Floats, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap of a mean over images.

    Args:
        values: One value an image, shape ``(n,)`` or ``(n, ...)``.
        confidence: Of the interval.
        resamples: Times that images are drawn again, with replacement.
        seed: Of the draws.

    Raises:
        ConfigError: A confidence that is no share, or fewer than one resample.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ConfigError(f"confidence lies between 0 and 1, resamples from 1, got {confidence} and {resamples}")
    mean = np.asarray(values.mean(axis=0) if len(values) else np.full(values.shape[1:], np.nan))
    if len(values) < 2:
        return Interval(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    from scipy.stats import bootstrap

    interval = bootstrap(
        (values,), np.mean, axis=0, confidence_level=confidence, n_resamples=resamples, method="percentile",
        rng=np.random.default_rng(seed), batch=max(1, 2**24 // values.size),
    ).confidence_interval  # fmt: skip
    return Interval(mean, np.asarray(interval.low), np.asarray(interval.high))
