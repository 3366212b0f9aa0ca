"""Bounds of agreement and of the drop in accuracy, against brute force and the binomial's definition."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, multinomial

from tests.tiers import fast_first
from vitrail.deploy.export.bounds import (
    agreement_bound,
    agreement_limit,
    drop_bound,
    images_needed,
    misses_allowed,
    power,
    power_text,
    shows_drop,
)
from vitrail.errors import ConfigError


@pytest.mark.parametrize(("n", "misses"), [(1, 0), (179, 0), (299, 0), (300, 7), (50, 49), (1000, 500)])
@pytest.mark.parametrize("level", [0.95, 0.9])
@pytest.mark.fast_cases("0.95-1-0", "0.9-1000-500")
def test_agreement_bound_is_the_exact_interval_of_scipy(n, misses, level):
    exact = binomtest(n - misses, n, alternative="greater").proportion_ci(level, method="exact")
    assert agreement_bound(n, misses, level) == pytest.approx(exact.low, abs=1e-9)
    exact = binomtest(n - misses, n, alternative="less").proportion_ci(level, method="exact")
    assert agreement_limit(n, misses, level) == pytest.approx(exact.high, abs=1e-9)


def test_no_image_shows_nothing():
    assert agreement_bound(0, 0) == agreement_bound(20, 20) == 0
    assert drop_bound(0, 0, 0) == drop_bound(20, 20, 0) == 1


@pytest.mark.parametrize(
    ("agreement", "needed"),
    [
        (0.98, [149, 236, 313, 386, 523, 845, 1449]),
        (0.99, [299, 473, 628, 773, 1049, 1693, 2902]),
        (0.995, [598, 947, 1258, 1549, 2100, 3389, 5808]),
    ],
)
def test_images_needed_is_the_smallest_number(agreement, needed):
    for misses, n in zip((0, 1, 2, 3, 5, 10, 20), needed, strict=True):
        assert images_needed(agreement, misses) == n
        # By the definition: at the border, so few misses have a probability of at most 5 %.
        assert binom.cdf(misses, n, 1 - agreement) <= 0.05 < binom.cdf(misses, n - 1, 1 - agreement)
        assert misses_allowed(n, agreement) == misses
        assert misses_allowed(n - 1, agreement) == (misses - 1 if misses else None)


def test_power_against_simulation_and_in_words():
    rng = np.random.default_rng(0)
    misses = rng.binomial(628, 0.005, 4000)
    passed = np.array([agreement_bound(628, int(m)) >= 0.99 for m in misses]).mean()
    assert power(0.995, 628, 0.99) == pytest.approx(passed, abs=4 * math.sqrt(0.24 / 4000))
    assert power(0.999, 100, 0.99) == 0
    assert power_text(299, 0.99) == "a true 99.5 % passes in 22 % at 299 images, 79 % at 2,000"
    assert power_text(2500, 0.98, true=0.999) == "a true 99.9 % passes in 100 % at 2,500 images, 100 % at 5,000"


@pytest.mark.parametrize("wrong", [(10, 11, 0.95), (10, -1, 0.95), (10, 1, 1.0), (10, 1, 0.2)])
def test_counts_and_levels_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="must be"):
        agreement_bound(*wrong)


@pytest.mark.parametrize("agreement", [0.0, 1.0, 1.5, float("nan")])
def test_an_agreement_that_no_number_shows_is_refused(agreement):
    for function in (images_needed, lambda a: misses_allowed(100, a)):
        with pytest.raises(ConfigError, match="agreement to show"):
            function(agreement)


@pytest.mark.parametrize(("n", "level"), fast_first([(6, 0.95), (8, 0.8), (11, 0.8), (15, 0.95), (15, 0.8)], 2))
def test_drop_bound_covers_at_every_rate_by_brute_force(n, level):
    outcomes = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    bounds = np.array([drop_bound(n, b, c, level) for b, c in outcomes])
    table = np.array([(b, c, n - b - c) for b, c in outcomes])
    worst = 1.0
    for losses in np.r_[0.001, 0.01, np.linspace(0.03, 0.97, 20)]:
        for gains in np.r_[0, 0.001, 0.01, np.linspace(0.03, 0.97, 20)]:
            if losses + gains <= 1 and losses > gains:
                chance = multinomial.pmf(table, n, [losses, gains, 1 - losses - gains])
                worst = min(worst, chance[bounds >= losses - gains].sum())
    assert level - 1e-9 <= worst < level + 0.05  # covers, without waste at the worst rate


@pytest.mark.parametrize("rates", fast_first([((0.03, 0.02),), ((0.0101, 0.0),), ((0.012, 0.002),), ((0.11, 0.1),)], 1))
def test_a_drop_above_the_limit_passes_in_at_most_5_percent(rates):
    n, rng = 500, np.random.default_rng(1)
    counts = rng.multinomial(n, [*rates, 1 - sum(rates)], 1500)[:, :2]
    seen, times = np.unique(counts, axis=0, return_counts=True)
    passed = [t for (b, c), t in zip(seen.tolist(), times, strict=True) if b - c <= 5 and shows_drop(n, b, c, 0.01)]
    assert sum(passed) / 1500 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.parametrize(("n", "losses"), [(299, 0), (473, 1), (60, 4)])
def test_without_gains_the_drop_bound_is_that_of_the_losses(n, losses):
    assert drop_bound(n, losses, 0) == pytest.approx(1 - agreement_bound(n, losses), abs=1e-5)


def test_drop_bound_orders_and_stays_under_the_changed_decisions():
    rng = np.random.default_rng(2)
    for _ in range(4):
        n = int(rng.integers(20, 300))
        b, c = (int(x) for x in rng.integers(0, 8, 2))
        bound = drop_bound(n, b, c)
        assert (b - c) / n <= bound <= 1 - agreement_bound(n, b + c) + 1e-6
        assert bound <= drop_bound(n, b + 1, c) + 1e-9
        assert shows_drop(n, b, c, bound + 1e-6)
        assert bound == 0 or not shows_drop(n, b, c, bound - 1e-6)
        assert drop_bound(2 * n, b, c) <= bound + 1e-9
    assert drop_bound(600, 0, 12) == 0  # shown to be better
