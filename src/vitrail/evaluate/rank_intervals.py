"""Score intervals of ROC-AUC and average precision, with correct coverage for classes with few images.

Bootstrap intervals of a class with five images have coverages of 60 to 90 %. Score intervals invert a test, as
Wilson's does for a proportion. Simulated coverages: ``benchmarks/results/claims.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from scipy.stats import t as student

from vitrail.bootstrap import Doubles, Interval

# Bisection steps on [0, 1]: precision 1e-9.
_HALVINGS = 30
# Maximum of images x classes for correlations.
_MOST_NUMBERS = 20_000_000


@dataclass(frozen=True)
class ClassRanks:
    """ROC-AUC of one class against the rest.

    Attributes:
        area: ROC-AUC.
        variance: DeLong's variance; NaN for a single positive or negative image.
        influence: Influence of each image on the area, shape ``(N,)``.
    """

    area: float
    variance: float
    influence: Doubles


def rank_class(positive: npt.NDArray[np.bool_], scores: Doubles) -> ClassRanks:
    """Compute ROC-AUC, DeLong's variance and influences from placement values.

    Args:
        positive: Binary targets, shape ``(N,)``, with positives and negatives.
        scores: Scores of the class, shape ``(N,)``; equal scores are ties.

    Source: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44, 837-845.
    """
    own, other = np.sort(scores[positive]), np.sort(scores[~positive])
    m, n = len(own), len(other)
    influence = np.empty(len(scores))
    influence[positive] = _share_below(other, scores[positive])
    influence[~positive] = 1 - _share_below(own, scores[~positive])
    area = float(influence[positive].mean())
    variance = np.nan
    if m > 1 and n > 1:
        variance = influence[positive].var(ddof=1) / m + influence[~positive].var(ddof=1) / n
    influence -= area
    influence[positive] /= m
    influence[~positive] /= n
    return ClassRanks(area, float(variance), influence)


def _share_below(reference: Doubles, values: Doubles) -> Doubles:
    left, right = (np.searchsorted(reference, values, side=side) for side in ("left", "right"))
    share: Doubles = (left + right) / 2 / len(reference)
    return share


def area_interval(
    area: float, images: int, others: int, variance: float = np.nan, confidence: float = 0.95
) -> Interval:
    """Compute the score interval of a ROC-AUC.

    The variance at a value is the larger of Hanley and McNeil's two (exponential scores), scaled by DeLong's over it at
    the estimate where this ratio exceeds 1, and averaged with the largest possible variance with weight 1 / m.

    Args:
        area: Estimated ROC-AUC.
        images: Number of positives, at least 1.
        others: Number of negatives, at least 1.
        variance: DeLong's variance; NaN if unknown.
        confidence: Confidence level.

    Source: Newcombe 2006, Stat. Med. 25, 559-573 (score intervals of the area); Hanley & McNeil 1982, Radiology 143,
    29-36; largest variance: Birnbaum & Klose 1957, Ann. Math. Stat. 28, 933-945.
    """
    fewest = min(images, others)
    at_estimate = _exponential_variance(area, images, others)
    ratio = 1.0
    if np.isfinite(variance) and at_estimate > 1e-12:
        ratio = max(1.0, variance / at_estimate)

    def spread(value: float) -> float:
        largest = value * (1 - value) / fewest
        usual = min(_exponential_variance(value, images, others) * ratio, largest)
        return math.sqrt(usual + (largest - usual) / fewest)

    return _solve(area, spread, float(norm.isf((1 - confidence) / 2)))


def _exponential_variance(area: float, m: int, n: int) -> float:
    one, two = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    sides = (area * (1 - area) + (m - 1) * a + (n - 1) * b for a, b in ((one, two), (two, one)))
    return max(sides) / (m * n)


def _solve(estimate: float, spread: Callable[[float], float], limit: float) -> Interval:
    """Find the values within ``limit`` of their own standard errors of the estimate, by bisection."""
    ends = []
    for end in (0.0, 1.0):
        outside, inside = end, estimate
        for _ in range(_HALVINGS):
            middle = (outside + inside) / 2
            if abs(middle - estimate) > limit * spread(middle):
                outside = middle
            else:
                inside = middle
        ends.append(inside)
    return ends[0], ends[1]


def average_precision_interval(value: float, images: int, confidence: float = 0.95) -> Interval | None:
    """Compute the interval of an average precision, as a proportion of the class's images.

    Wilson's interval with Student's quantile of ``images + 2`` degrees of freedom. Average precision is biased upwards
    for few images; the interval is about test splits with equally many positives.

    Args:
        value: Estimated average precision.
        images: Number of positives.
        confidence: Confidence level.

    Returns:
        Low and high; None for fewer than 2 images.

    Source: Boyd, Eng & Page 2013, ECML PKDD, 451-466 (intervals as of a proportion of the positives).
    """
    if images < 2:
        return None
    square = float(student.isf((1 - confidence) / 2, images + 2)) ** 2
    middle = (value * images + square / 2) / (images + square)
    half = np.sqrt(square * (images * value * (1 - value) + square / 4)) / (images + square)
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def macro_interval(
    values: Doubles, intervals: Sequence[Interval | None], influences: Sequence[Doubles]
) -> Interval | None:
    """Compute the interval of a macro average from the intervals of the classes (MOVER).

    Distances to the bounds are combined as standard errors, with the correlations of the classes' areas. An unknown
    correlation (a class without errors, or too many values) is taken as 1 / (K - 1): two classes mirror each other.

    Args:
        values: Value of each class, shape ``(K,)``.
        intervals: Interval of each class, length K.
        influences: Influence of the images on each class's area, K of shape ``(N,)``; or empty.

    Returns:
        Low and high; None where a class has no interval.

    Source: Zou & Donner 2008, Stat. Med. 27, 1693-1702.
    """
    if len(values) == 0 or any(pair is None for pair in intervals):
        return None
    ends = np.array([pair for pair in intervals if pair is not None])
    count = len(values)
    correlation = np.full((count, count), 1 / max(count - 1, 1))
    if influences and count * len(influences[0]) <= _MOST_NUMBERS:
        stacked = np.stack(influences)
        length = np.sqrt((stacked**2).sum(axis=1))
        known = np.flatnonzero(length > 0)
        unit = stacked[known] / length[known, None]
        correlation[np.ix_(known, known)] = np.clip(unit @ unit.T, 0, 1)
    np.fill_diagonal(correlation, 1)
    mean = float(values.mean())
    low, high = (np.abs(values - ends[:, i]) for i in range(2))
    spans = [float(np.sqrt(side @ correlation @ side)) / count for side in (low, high)]
    return max(mean - spans[0], 0.0), min(mean + spans[1], 1.0)
