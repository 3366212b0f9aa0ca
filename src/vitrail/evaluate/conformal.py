"""Conformal prediction sets: sets of classes with guaranteed coverage, for any model.

The guarantee is marginal: it holds on average over calibration and test images that are exchangeable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from scipy.stats import betabinom

from vitrail.bootstrap import Doubles
from vitrail.errors import ConfigError, plural
from vitrail.evaluate.metrics import Floats, Ints, accuracy_interval, check_logits

METHODS = ("lac", "aps")


def prediction_sets(
    logits: Floats, held_out: tuple[Floats, Ints], alpha: float, method: str, seed: int = 0
) -> tuple[npt.NDArray[np.bool_], float]:
    """Compute prediction sets by split conformal prediction.

    "lac" includes classes whose probability exceeds a threshold: the smallest sets on average. "aps" accumulates
    classes in order of probability up to a threshold, with randomised inclusion of the last one: larger sets, with
    similar coverage of easy and hard images.

    Args:
        logits: Shape ``(N, K)``.
        held_out: Logits ``(n, K)`` and classes ``(n,)`` of the calibration images.
        alpha: Miscoverage rate.
        method: "lac" or "aps".
        seed: Seed of the randomisation of "aps".

    Returns:
        Membership of each class, shape ``(N, K)``; and the threshold, infinite (all classes in every set) for fewer
        than ``1 / alpha - 1`` calibration images.

    Raises:
        ConfigError: Alpha out of range, or an unknown method.
        DataError: No images, or logits that are not finite.

    Source: Sadinle et al. 2019, J. Am. Stat. Assoc. 114, 223-234 (LAC); Romano et al. 2020, arXiv:2006.02544 (APS).
    """
    held, scores = _both_scores(logits, held_out, method, seed)
    threshold = _threshold(held, alpha)
    sets: npt.NDArray[np.bool_] = scores <= threshold
    return sets, threshold


def _both_scores(logits: Floats, held_out: tuple[Floats, Ints], method: str, seed: int = 0) -> tuple[Doubles, Doubles]:
    """Compute nonconformity scores: of the held-out images' true classes ``(n,)``, of all classes ``(N, K)``."""
    if method not in METHODS:
        raise ConfigError(f"the method of prediction sets must be {' or '.join(METHODS)}, got {method!r}")
    calibration, targets = held_out
    for x in (logits, calibration):
        check_logits(x)
    rng = np.random.default_rng(seed)
    own = _scores(calibration, method, rng)[np.arange(len(targets)), targets]
    return own, _scores(logits, method, rng)


def _threshold(scores: Doubles, alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must be between 0 and 1, got {alpha}")
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)  # floating point: 0.9 * 10 may exceed 9
    return math.inf if rank > len(scores) else float(np.partition(scores, rank - 1)[rank - 1])


def _scores(logits: Floats, method: str, rng: np.random.Generator) -> Doubles:
    """Compute the nonconformity score of each class, shape ``(N, K)``."""
    p = softmax(logits.astype(np.float64), axis=1)
    if method == "lac":
        complement: Doubles = 1 - p
        return complement
    order = np.argsort(-p, axis=1, kind="stable")
    sorted_p = np.take_along_axis(p, order, axis=1)
    before = np.cumsum(sorted_p, axis=1) - sorted_p
    scores: Doubles = np.empty_like(p)
    np.put_along_axis(scores, order, before + rng.random((len(p), 1)) * sorted_p, axis=1)
    return scores


def conformal_report(
    logits: Floats,
    targets: Ints,
    classes: Sequence[str],
    held_out: tuple[Floats, Ints],
    source: str,
    alphas: Sequence[float] = (0.1, 0.05),
    groups: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Measure coverage and size of prediction sets, and test the coverage.

    Args:
        logits: Logits of the evaluated images, shape ``(N, K)``.
        targets: Their classes, shape ``(N,)``.
        classes: Names.
        held_out: Logits and classes of the calibration images.
        source: Name of the calibration images.
        alphas: Miscoverage rates.
        groups: Number of groups of the calibration and of the evaluated images, if they have groups.

    Returns:
        ``calibrated_on``, ``images``, ``unreliable`` (the likely cause where a coverage is significantly
        too low, else None), and a list ``sets``, for each method and alpha: ``method``, ``alpha``,
        ``wanted`` (1 - alpha), ``threshold`` (None: too few calibration images, every set has all classes),
        ``coverage`` with its 95 % Wilson interval ``coverage_low`` and ``coverage_high``, ``mean_size``, ``sizes``
        (how many images have a set of 0, 1, 2, ... classes), ``empty`` (share of images with an empty set),
        ``unreliable`` (:func:`is_unreliable`), and ``per_class`` (``class``, ``images``, ``coverage``, ``mean_size``).
    """
    found = []
    for method in METHODS:
        scores = _both_scores(logits, held_out, method)
        for alpha in alphas:
            threshold = _threshold(scores[0], alpha)
            sets = scores[1] <= threshold
            covered = sets[np.arange(len(targets)), targets]
            size = sets.sum(axis=1)
            low, high = accuracy_interval(int(covered.sum()), len(covered))
            per_class = [
                {
                    "class": name,
                    "images": int(own.sum()),
                    "coverage": float(covered[own].mean()),
                    "mean_size": float(size[own].mean()),
                }
                for k, name in enumerate(classes)
                if (own := targets == k).any()
            ]
            found.append(
                {
                    "method": method,
                    "alpha": alpha,
                    "wanted": 1 - alpha,
                    "threshold": None if math.isinf(threshold) else threshold,
                    "coverage": float(covered.mean()),
                    "coverage_low": low,
                    "coverage_high": high,
                    "mean_size": float(size.mean()),
                    "sizes": np.bincount(size).tolist(),
                    "empty": float((size == 0).mean()),
                    "unreliable": is_unreliable(int(covered.sum()), len(covered), len(held_out[0]), alpha),
                    "per_class": per_class,
                }
            )
    failed = [row for row in found if row["unreliable"]]
    why = _cause(failed[0], source, groups) if failed else None
    return {"calibrated_on": source, "images": len(held_out[0]), "unreliable": why, "sets": found}


def is_unreliable(covered: int, total: int, held_out: int, alpha: float) -> bool:
    """Test whether the coverage is too low for exchangeable images.

    For exchangeable images the number of covered ones follows a beta-binomial distribution, which accounts for the
    numbers of calibration and evaluated images.

    Args:
        covered: Number of covered images.
        total: Number of evaluated images.
        held_out: Number of calibration images.
        alpha: Miscoverage rate.

    Returns:
        Whether the number is below the distribution's 0.5 % quantile.

    Source: Vovk 2012, ACML, section 3; Angelopoulos & Bates 2023, Found. Trends Mach. Learn. 16, section 3.2.
    """
    rank = math.ceil((held_out + 1) * (1 - alpha) - 1e-9)
    if rank > held_out:
        return False  # sets of all classes
    return bool(betabinom.cdf(covered, total, rank, held_out + 1 - rank) < 0.005)


def _cause(row: Mapping[str, Any], source: str, groups: tuple[int, int] | None) -> str:
    """Explain a coverage that is too low."""
    found = f"the coverage is {row['coverage']:.0%}, not {row['wanted']:.0%}"
    if groups is not None:
        return (
            f"{found}: the images of {source} ({plural(groups[0], 'group')}) and those evaluated "
            f"({plural(groups[1], 'group')}) belong to different groups, so that they are not exchangeable; calibrate "
            "on more groups"
        )
    return (
        f"{found}: the images of {source} and those evaluated are not exchangeable (another site, time, camera or "
        "split by groups); calibrate on images like those to predict"
    )
