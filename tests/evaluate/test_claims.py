"""Rates of false claims from few seeds and few images, by simulation; whole tables: benchmarks/results/claims.md."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom

from vitrail.evaluate import statistics as own
from vitrail.evaluate.robustness import paired_drops


def _differences(rng, repeats, seeds, images, accuracy, seed_sd=0.0, difficulty=0.0, peculiarity=0.0, gap=0.0):
    """Correct or not, of one model minus the other, shape (repeats, seeds, images), of models of one mean accuracy.

    ``seed_sd`` is the standard deviation of the accuracy between seeds; images differ in difficulty for both models
    (which correlates them) and for each model alike over its seeds.
    """
    spread = np.random.default_rng(0).normal(size=20_000) * math.hypot(difficulty, peculiarity)
    low, high = -15.0, 15.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(middle + spread).mean() < accuracy else (low, middle)
    slope = (expit(low + spread) * (1 - expit(low + spread))).mean()
    logit = low + difficulty * rng.normal(size=(repeats, 1, 1, images))
    logit = logit + peculiarity * rng.normal(size=(repeats, 2, 1, images))
    logit = logit + seed_sd / slope * rng.normal(size=(repeats, 2, seeds, 1))
    logit[:, 0] += gap
    correct = (rng.random((repeats, 2, seeds, images)) < expit(logit)).astype(np.float64)
    return correct[:, 0] - correct[:, 1]


_ACCURACIES, _SEED_SDS, _KINDS = (0.5, 0.8, 0.95, 0.99), (0.0, 0.05), ((0, 0), (2, 0), (1, 1.5), (2, 4))


def _claims(found):
    """Where the interval excludes 0, which is where p is below 0.05, in a fiftieth of the time."""
    low, high = found.interval()
    return (low > 0) | (high < 0)


def _false_claims(rng, seeds, images, repeats):
    """The highest rate of false claims over accuracies, spreads between seeds and correlations."""
    rates = []
    for accuracy, sd, (difficulty, peculiarity) in itertools.product(_ACCURACIES, _SEED_SDS, _KINDS):
        d = _differences(rng, repeats, seeds, images, accuracy, sd, difficulty, peculiarity)
        rates.append(_claims(own.runs_and_images(d)).mean())
    return max(rates)


@pytest.mark.fast_cases("5-5")
@pytest.mark.parametrize(("seeds", "images"), [(2, 5), (2, 60), (3, 20), (5, 5)])
def test_few_seeds_and_few_images_make_few_false_claims(seeds, images):
    assert _false_claims(np.random.default_rng(seeds * images), seeds, images, 500) <= 0.055


@pytest.mark.slow
@pytest.mark.parametrize("images", [5, 8, 12, 20, 50, 100])
@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_few_seeds_and_few_images_make_few_false_claims_at_length(seeds, images):
    assert _false_claims(np.random.default_rng(seeds * images), seeds, images, 3000) <= 0.045


@pytest.mark.slow_cases("100", "50")
@pytest.mark.parametrize("images", [2, 3, 5, 7, 10, 20, 50, 100])
def test_models_that_differ_alike_with_each_seed_have_the_exact_test(images):
    """Images alone decide: the rate of false claims, from the binomial distribution, is near McNemar's exact test's."""
    for share in (0.1, 0.5, 1.0):
        rate = 0.0
        for differing in range(images + 1):
            wins = np.arange(differing + 1)
            d = np.where(np.arange(images) < wins[:, None], 1.0, -1.0) * (np.arange(images) < differing)
            claimed = _claims(own.runs_and_images(np.repeat(d[:, None], 2, axis=1), largest=1.0))
            rate += binom.pmf(differing, images, share) * binom.pmf(wins, differing, 0.5)[claimed].sum()
        assert rate <= 0.06, share


@pytest.mark.fast_cases("10-2")
@pytest.mark.parametrize(("total", "folds"), [(10, 2), (20, 4), (100, 5)])
def test_few_folds_make_few_false_claims(total, folds):
    rng = np.random.default_rng(total)
    rates = []
    for accuracy, sd, (difficulty, peculiarity) in itertools.product(_ACCURACIES, _SEED_SDS, _KINDS):
        d = _differences(rng, 500 * folds, 1, total // folds, accuracy, sd, difficulty, peculiarity)
        found = own.over_folds(d.mean((1, 2)).reshape(500, folds), 1 / (folds - 1), 1.0)
        rates.append(_claims(found).mean())
        low, high = found.interval()
        assert not (low == high).any()
        assert np.nanmin(low) >= -1
        assert np.nanmax(high) <= 1
    assert max(rates) <= 0.055


def test_a_large_difference_is_still_shown():
    rng = np.random.default_rng(4)
    for seeds, images, least in ((3, 50, 0.65), (3, 100, 0.85), (5, 20, 0.55), (5, 50, 0.95)):
        d = _differences(rng, 500, seeds, images, 0.6, 0.01, 1, 1, gap=1.9)  # 27 points
        assert (own.runs_and_images(d).p_value() < 0.05).mean() > least


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_counts_have_an_error_and_an_interval(seeds):
    rng = np.random.default_rng(seeds)
    d = _differences(rng, 500, seeds, 6, 0.9)
    found = own.runs_and_images(d)
    low, high = found.interval()
    assert (found.error > 0).all()
    assert (low < high).all()
    assert low.min() >= -1
    assert high.max() <= 1
    assert ((low <= found.value) & (found.value <= high)).all()
    claimed = found.p_value() < 0.05
    assert (claimed == ((low > 0) | (high < 0))).all()


def test_one_model_has_all_images_correct_and_the_other_none():
    found = own.runs_and_images(np.ones((2, 20)))
    low, high = found.interval()
    assert 1e-12 < found.p_value() < 0.001
    assert 0.5 < low < high == 1
    few = own.runs_and_images(np.ones((2, 4)))
    assert few.p_value() > 0.05


def test_models_that_agree_everywhere_are_equal_as_far_as_the_images_say():
    few, many = (own.runs_and_images(np.zeros((3, n)), largest=1.0) for n in (20, 500))
    for found in (few, many):
        low, high = found.interval()
        assert low < 0 < high
        assert found.p_value() == 1
    assert few.equivalence_p(0.02) > 0.05
    assert many.equivalence_p(0.02) < 0.05
    # Scores without a limit have no scale to judge by.
    assert own.runs_and_images(np.zeros((3, 500))).equivalence_p(0.02) == 1


def test_folds_that_agree_show_nothing():
    found = own.over_folds([0.05] * 5, 0.25)
    assert found.p_value() == 1
    assert np.isnan(found.interval()).all()
    assert found.equivalence_p(0.2) == 1


def test_runs_without_spread_have_no_interval():
    mean, low, high = own.mean_interval([0.95, 0.95, 0.95], least=0, most=1)
    assert mean == pytest.approx(0.95)
    assert math.isnan(low)
    assert math.isnan(high)


def test_equivalence_is_the_interval_within_the_margin():
    rng = np.random.default_rng(8)
    found = own.runs_and_images(rng.normal(0.01, 0.1, (300, 3, 200)))
    low, high = found.interval(0.9)
    inside = (low > -0.03) & (high < 0.03)
    assert ((found.equivalence_p(0.03) < 0.05) == inside).all()
    assert 0 < inside.mean() < 1


@pytest.mark.fast_cases("3")
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_difference_as_large_as_the_margin_is_seldom_called_equal(seeds):
    rng = np.random.default_rng(seeds)
    for sd, (difficulty, peculiarity) in itertools.product((0.0, 0.02), ((0, 0), (2, 1))):
        d = _differences(rng, 500, seeds, 100, 0.85, sd, difficulty, peculiarity, gap=0.4)
        margin = abs(_differences(rng, 1000, seeds, 200, 0.85, sd, difficulty, peculiarity, gap=0.4).mean())
        assert (own.runs_and_images(d).equivalence_p(margin) < 0.05).mean() <= 0.06


@pytest.mark.parametrize("repeats", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_missing_band_has_a_paired_drop_and_a_verdict(repeats):
    rng = np.random.default_rng(2)
    whole = rng.random(200) < 0.9
    without = whole & (rng.random(200) < 0.7)
    table = paired_drops([whole, without, whole.copy(), whole | (rng.random(200) < 0.9)], None)
    assert table["verdict"].tolist() == ["", "needed", "not shown", "disturbs"]
    assert table["drop"][1] == pytest.approx(whole.mean() - without.mean())
    assert table["drop_low"][1] > 0.1
    assert table["drop_low"][2] < 0 < table["drop_high"][2]
    groups = [str(i // 50) for i in range(200)]  # four groups show little
    assert paired_drops([whole, without], groups)["p_drop"][1] > table["p_drop"][1]
    false = 0
    for _ in range(repeats):
        easy = rng.random(40)
        cases = [rng.random(40) < easy for _ in range(6)]
        false += (paired_drops(cases, None)["verdict"].iloc[1:] != "not shown").any()
    assert false / repeats < 0.09
