"""Sets of classes that hold the true one as often as was asked for, whatever the model is like.

The promise holds for images drawn like those that the sets were calibrated on, on the mean over all such draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from scipy.stats import betabinom

from vitrail.errors import ConfigError
from vitrail.evaluate.bootstrap import Doubles
from vitrail.evaluate.metrics import Floats, Ints, accuracy_interval, check_logits

METHODS = ("lac", "aps")


def prediction_sets(
    logits: Floats, held_out: tuple[Floats, Ints], alpha: float, method: str, seed: int = 0
) -> tuple[npt.NDArray[np.bool_], float]:
    """Which classes belong to each image's set.

    "lac" takes the classes whose probability is high enough: the smallest sets on the mean. "aps" takes classes from
    the most likely on until enough probability is together, the last one by chance as its share says: larger sets
    that cover hard images about as well as easy ones.

    Args:
        logits: Shape ``(N, K)``.
        held_out: Logits ``(n, K)`` and classes ``(n,)`` of images that the model was not trained on.
        alpha: Share of images whose set may lack the true class.
        method: "lac" or "aps".
        seed: Of the chance in "aps".

    Returns:
        Whether each class is in the set, shape ``(N, K)``; and the threshold, which is infinite (all classes in every
        set) where fewer than ``1 / alpha - 1`` images were held out.

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
    """Scores of the true classes of the held-out images ``(n,)``, and of all classes of the others ``(N, K)``."""
    if method not in METHODS:
        raise ConfigError(f"prediction sets are made by {' or '.join(METHODS)}, not by {method!r}")
    calibration, targets = held_out
    for x in (logits, calibration):
        check_logits(x)
    rng = np.random.default_rng(seed)
    own = _scores(calibration, method, rng)[np.arange(len(targets)), targets]
    return own, _scores(logits, method, rng)


def _threshold(scores: Doubles, alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must be between 0 and 1, got {alpha}")
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)  # 0.9 x 10 must not become 10
    return math.inf if rank > len(scores) else float(np.partition(scores, rank - 1)[rank - 1])


def _scores(logits: Floats, method: str, rng: np.random.Generator) -> Doubles:
    """How strange each class would be, shape ``(N, K)``."""
    p = softmax(logits.astype(np.float64), axis=1)
    if method == "lac":
        strange: Doubles = 1 - p
        return strange
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
    """Compute coverage and size of prediction sets, and whether the coverage is as promised.

    Args:
        logits: Of the images that are judged, shape ``(N, K)``.
        targets: Their classes, shape ``(N,)``.
        classes: Names.
        held_out: Logits and classes of the images that sets are calibrated on.
        source: What those are called.
        alphas: Shares of images whose set may lack the true class.
        groups: Number of groups of the held-out and of the evaluated images, where images belong to groups.

    Returns:
        ``calibrated_on``, ``images``, ``unreliable`` (a sentence with the likely cause where a coverage is below its
        promise, else None), and a list ``sets``, for each method and alpha: ``method``, ``alpha``,
        ``wanted`` (1 - alpha), ``threshold`` (None: too few images were held out, every set has all classes),
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
    """Test whether fewer sets hold the true class than images drawn alike would ever give.

    Of images drawn alike the number of covered ones follows a beta-binomial distribution, in which few held-out images
    count as well as few evaluated ones.

    Args:
        covered: Images whose set holds the true class.
        total: Images.
        held_out: Images that the sets were calibrated on.
        alpha: Share of images whose set may lack the true class.

    Returns:
        Whether the number is below the distribution's 0.5 % quantile.

    Source: Vovk 2012, ACML, section 3; Angelopoulos & Bates 2023, Found. Trends Mach. Learn. 16, section 3.2.
    """
    rank = math.ceil((held_out + 1) * (1 - alpha) - 1e-9)
    if rank > held_out:
        return False  # sets of all classes
    return bool(betabinom.cdf(covered, total, rank, held_out + 1 - rank) < 0.005)


def _cause(row: Mapping[str, Any], source: str, groups: tuple[int, int] | None) -> str:
    """Explain a coverage below the promise."""
    found = f"{row['coverage']:.0%} of the sets hold the true class, not {row['wanted']:.0%}"
    if groups is not None:
        return (
            f"{found}: the images of {source} ({groups[0]} groups) and those evaluated ({groups[1]} groups) are of "
            "different groups, and the promise needs images drawn alike; calibrate on more groups"
        )
    return (
        f"{found}: the images of {source} and those evaluated are not drawn alike (another place, time, camera or "
        "split by groups); calibrate on images like those that are predicted"
    )
