"""Exact confidence bounds of an export's agreement with the original model and of its drop in accuracy.

Bounds are one-sided and hold for images that are independent of each other and of the export: neither trained on nor
used for calibration.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincinv
from scipy.stats import binom

from vitrail.bootstrap import Doubles
from vitrail.errors import ConfigError, plural

LEVEL = 0.95
# Numbers of images that the power is printed for, after the actual one.
_LARGER_SETS = (2000, 5000, 20000, 100000)
# Points of the nuisance parameter's range, and probability outside of the summed discordant counts.
_GRID, _NEGLIGIBLE = 64, 1e-12
# Width of the interval in which the bound of a drop is found.
_PRECISION = 1e-7
# Discordant images added in the order of outcomes, for the discordance rate's uncertainty. With 2 a bound below 1 % is
# at least as probable as by Clopper-Pearson's bound of the losses (300 and 700 images); with 0, 3 and 5 not everywhere.
_ADDED = 2


def agreement_bound(n: int, misses: int, level: float = LEVEL) -> float:
    """Compute the one-sided lower Clopper-Pearson bound of the agreement.

    Args:
        n: Number of images; 0 shows nothing (bound 0).
        misses: Images with another decision than the original's.
        level: Confidence level.

    Raises:
        ConfigError: More misses than images, or a level out of range.

    Source: Clopper & Pearson 1934, Biometrika 26, 404-413.
    """
    _check(n, misses, level)
    return 0.0 if misses == n else float(betaincinv(n - misses, misses + 1, 1 - level))


def agreement_limit(n: int, misses: int, level: float = LEVEL) -> float:
    """Compute the one-sided upper Clopper-Pearson bound of the agreement; see :func:`agreement_bound`."""
    return 1 - agreement_bound(n, n - misses, level)


def images_needed(agreement: float, misses: int = 0, level: float = LEVEL) -> int:
    """Compute the smallest number of images that shows an agreement in spite of misses.

    Args:
        agreement: Agreement to show, between 0 and 1.
        misses: Images with another decision.
        level: Confidence level.

    Raises:
        ConfigError: An agreement or level out of range; no number of images shows an agreement of 1.
    """
    _check_share(agreement)
    low, high = misses, 2 * misses + 1
    while agreement_bound(high, misses, level) < agreement:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if agreement_bound(middle, misses, level) >= agreement else (middle, high)
    return high


def misses_allowed(n: int, agreement: float, level: float = LEVEL) -> int | None:
    """Compute the largest number of misses with which n images show an agreement; None where n is too small."""
    _check_share(agreement)
    if agreement_bound(n, 0, level) < agreement:
        return None
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if agreement_bound(n, middle, level) >= agreement else (low, middle)
    return low


def power(true: float, n: int, agreement: float, level: float = LEVEL) -> float:
    """Compute the probability that an export passes.

    Args:
        true: Its true agreement.
        n: Number of images.
        agreement: Agreement to show.
        level: Confidence level.
    """
    allowed = misses_allowed(n, agreement, level)
    return 0.0 if allowed is None else float(binom.cdf(allowed, n, 1 - true))


def power_text(n: int, agreement: float, true: float | None = None) -> str:
    """Describe the power in words: "a true 99.5 % passes in 22 % at 299 images, 79 % at 2,000".

    Args:
        n: Number of gate images.
        agreement: Agreement to show.
        true: Assumed true agreement; by default halfway between the agreement and 1.
    """
    true = (1 + agreement) / 2 if true is None else true
    more = next((larger for larger in _LARGER_SETS if larger > n), None)
    shares = [f"{power(true, n, agreement):.0%} at {plural(n, 'image')}".replace("%", " %")]
    if more is not None:
        shares.append(f"{power(true, more, agreement):.0%} at {more:,}".replace("%", " %"))
    return f"a true {true:.4%}".rstrip("0%").rstrip(".") + f" % passes in {', '.join(shares)}"


def drop_bound(n: int, losses: int, gains: int, level: float = LEVEL) -> float:
    """Compute the one-sided upper bound of the drop in accuracy, from paired decisions on the same images.

    Outcomes are ordered by an approximate bound: that of the exact conditional binomial of McNemar's test, with a
    discordance rate slightly above the observed one. The result is the largest drop for which outcomes up to the
    observed one have a probability above ``1 - level`` at some discordance rate (Buehler's bound), so that its coverage
    is at least the level for every n and every discordance rate. Without discordant images it equals Clopper-Pearson's.

    Args:
        n: Number of labelled images; 0 shows nothing (bound 1).
        losses: Images that only the original classifies correctly.
        gains: Images that only the export classifies correctly.
        level: Confidence level.

    Returns:
        Bound in 0..1; 0 where the export is shown to be no worse.

    Raises:
        ConfigError: More discordant images than images, or a level out of range.

    Source: McNemar 1947, Psychometrika 12, 153-157; Buehler 1957, J. Am. Stat. Assoc. 52, 482-493; ordered by an
    approximate bound: Kabaila & Lloyd 2003, Biometrika 90, 1-13.
    """
    _check(n, losses + gains, level)
    if n == 0:
        return 1.0
    largest = _most_losses(n, losses, gains, level)

    def excess(drop: float) -> float:
        return _largest_probability(n, drop, largest) - (1 - level)

    if excess(0.0) <= 0:
        return 0.0
    # The bound of the changed decisions is above, except by the order of a few outcomes.
    high = next((x for x in (1 - agreement_bound(n, losses + gains, level), 1.0) if excess(x) < 0), None)
    if high is None:
        return 1.0
    return min(1.0, float(brentq(excess, 0.0, high, xtol=_PRECISION)) + _PRECISION)


def shows_drop(n: int, losses: int, gains: int, drop: float, level: float = LEVEL) -> bool:
    """Test whether :func:`drop_bound` is at most a drop, without the search for the bound."""
    _check(n, losses + gains, level)
    return n > 0 and _largest_probability(n, drop, _most_losses(n, losses, gains, level)) <= 1 - level


def _most_losses(n: int, losses: int, gains: int, level: float) -> Doubles:
    """Find the largest losses, -1 for none, of the outcomes up to the observed one, by number of discordant images."""
    discordant = losses + gains
    share = 1.0 if gains == 0 else 1 - float(betaincinv(gains, losses + 1, 1 - level))
    observed = (discordant + _ADDED) * (2 * share - 1)
    observed += 1e-9 * max(1.0, abs(observed))  # floating point: the observed outcome itself belongs to them
    counts = np.arange(n + 1)
    border = 0.5 + observed / (2 * (counts + _ADDED))
    inner = np.clip(border, 1e-300, 1 - 1e-16)
    found = binom.ppf(1 - level, counts, inner)
    found = np.where(binom.cdf(found, counts, inner) > 1 - level, found - 1, found)
    most: Doubles = np.where(border >= 1, counts, np.where(border <= 0, -1, found))
    return most


def _largest_probability(n: int, drop: float, most: Doubles) -> float:
    """Maximise over discordance rates the probability of the outcomes of :func:`_most_losses`."""
    drop = max(drop, 1e-9)
    rates = np.unique(np.r_[np.geomspace(drop, 1, _GRID), drop, 1.0].clip(drop, 1))
    # The counts that are not negligible, of one rate after the other.
    first = binom.ppf(_NEGLIGIBLE, n, rates).clip(0).astype(np.int64)
    lengths = binom.isf(_NEGLIGIBLE, n, rates).astype(np.int64) - first + 1
    starts = np.cumsum(lengths) - lengths
    counts, rate = np.arange(lengths.sum()) - np.repeat(starts - first, lengths), np.repeat(rates, lengths)
    inside = binom.cdf(most[counts], counts, np.minimum((1 + drop / rate) / 2, 1))
    return float(np.add.reduceat(binom.pmf(counts, n, rate) * inside, starts).max())


def _check(n: int, misses: int, level: float) -> None:
    if not 0 <= misses <= n:
        raise ConfigError(f"misses must be between 0 and the number of images ({n}), got {misses}")
    if not 0.5 <= level < 1:
        raise ConfigError(f"the confidence level must be in 0.5..1, got {level}")


def _check_share(agreement: float) -> None:
    if not (0 < agreement < 1 and math.isfinite(agreement)):
        raise ConfigError(f"the agreement to show must be between 0 and 1, got {agreement}; use 0.99")
