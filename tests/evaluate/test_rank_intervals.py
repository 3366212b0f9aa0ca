"""Intervals of ROC-AUC and average precision of few images: closed forms, and coverage by simulation."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from vitrail.bootstrap import Bootstrap
from vitrail.evaluate.metrics import classification_intervals, log_odds, one_hot, rank_intervals, rank_measures
from vitrail.evaluate.rank_intervals import area_interval, average_precision_interval, rank_class


def _binormal(spread):
    def draw(rng, m, n, area):
        mu = norm.ppf(area) * math.hypot(1, spread)
        return mu + spread * rng.normal(size=m), rng.normal(size=n)

    return draw


def _mixture(rng, m, n, area):
    """A share of the positives is above everything, the rest is as the others are."""
    found = rng.random(m) < 2 * area - 1
    return np.where(found, 10, 0) + rng.random(m), rng.random(n)


KINDS = {"equal": _binormal(1.0), "wide": _binormal(2.0), "narrow": _binormal(0.5), "mixture": _mixture}


def _estimates(draw, rng, m, n, area, repeats):
    positive = np.arange(m + n) < m
    for _ in range(repeats):
        yield positive, np.concatenate(draw(rng, m, n, area))


def _with_areas(*cases):
    """Each kind at each area."""
    return pytest.mark.parametrize(
        ("kind", "m", "area"), [(*case, area) for case in cases for area in (0.6, 0.8, 0.95)]
    )


@pytest.mark.fast_cases("mixture-5-0.8")
@_with_areas(("equal", 1), ("equal", 20), ("wide", 2), ("narrow", 3), ("mixture", 5), ("mixture", 1))
def test_an_area_of_few_images_is_covered(kind, m, area):
    rng = np.random.default_rng(m)
    held = []
    for positive, scores in _estimates(KINDS[kind], rng, m, 100 - m, area, 200):
        ranks = rank_class(positive, scores)
        low, high = area_interval(ranks.area, m, 100 - m, ranks.variance)
        held.append(low <= area <= high)
    assert np.mean(held) >= 0.9


@pytest.mark.fast_cases("equal-2-0.6")
@_with_areas(("equal", 2), ("wide", 5), ("narrow", 20), ("mixture", 3))
def test_an_average_precision_of_few_images_is_covered(kind, m, area):
    rng = np.random.default_rng(m)
    (many,) = _estimates(KINDS[kind], rng, 200 * m, 200 * (100 - m), area, 1)
    truth = average_precision_score(*many)
    values = [average_precision_score(*pair) for pair in _estimates(KINDS[kind], rng, m, 100 - m, area, 200)]
    pairs = [average_precision_interval(value, m) for value in values]
    assert np.mean([low <= truth <= high for low, high in pairs]) >= 0.9
    mean = np.mean(values)  # of test splits with as many images
    assert np.mean([low <= mean <= high for low, high in pairs]) >= 0.9


def test_placements_are_the_area_and_delongs_variance():
    rng = np.random.default_rng(0)
    positive = np.arange(60) < 17
    scores = np.round(rng.normal(size=60) + positive, 1)  # with ties
    ranks = rank_class(positive, scores)
    assert ranks.area == pytest.approx(roc_auc_score(positive, scores))
    kernel = np.sign(scores[positive][:, None] - scores[~positive][None]) / 2 + 0.5
    expected = kernel.mean(1).var(ddof=1) / 17 + kernel.mean(0).var(ddof=1) / 43
    assert ranks.variance == pytest.approx(expected)
    assert (ranks.influence**2).sum() == pytest.approx(kernel.mean(1).var() / 17 + kernel.mean(0).var() / 43)


def test_many_images_have_the_interval_of_the_normal_distribution():
    rng = np.random.default_rng(1)
    positive = np.arange(4000) < 2000
    ranks = rank_class(positive, rng.normal(size=4000) + positive)
    low, high = area_interval(ranks.area, 2000, 2000, ranks.variance)
    half = 1.96 * math.sqrt(ranks.variance)
    assert low == pytest.approx(ranks.area - half, abs=0.1 * half)
    assert high == pytest.approx(ranks.area + half, abs=0.1 * half)


def test_a_perfect_order_has_an_interval_and_one_image_no_average_precision():
    low, high = area_interval(1.0, 5, 50)
    assert 0.3 < low < 0.9
    assert high == 1
    assert average_precision_interval(1.0, 1) is None
    low, high = average_precision_interval(1.0, 5)
    assert 0.3 < low < 0.7
    assert high == 1


@pytest.mark.fast_cases("2-5")
@pytest.mark.parametrize(("classes", "images"), [(2, 5), (5, 3), (10, 5)])
def test_macro_averages_of_few_images_are_covered(classes, images):
    rng = np.random.default_rng(classes * images)
    targets = np.repeat(np.arange(classes), images)

    def draw(times):
        t = np.repeat(np.arange(classes), images * times)
        x = rng.normal(size=(len(t), classes)).astype(np.float32)
        x[np.arange(len(t)), t] += 1.8
        return one_hot(t, classes), log_odds(x)

    area = rank_measures(*draw(100))[0].mean()
    estimates = [draw(1) for _ in range(100)]
    precision = np.mean([np.mean(rank_measures(*pair)[1]) for pair in estimates])
    held = {"roc_auc_macro": 0, "average_precision_macro": 0}
    for pair in estimates:
        found = rank_intervals(*pair, Bootstrap(len(targets)))[0]
        for name, truth in (("roc_auc_macro", area), ("average_precision_macro", precision)):
            low, high = found[name]
            held[name] += low <= truth <= high
    assert min(held.values()) >= 0.88 * 100


def test_a_precision_of_one_over_groups_has_no_interval_down_to_zero():
    """Resamples without a prediction of a class say nothing of its precision."""
    rng = np.random.default_rng(3)
    targets = np.repeat([0, 1, 2], 40)
    groups = [str(i // 8) for i in range(120)]
    logits = rng.normal(0, 0.1, (120, 3)).astype(np.float32)
    logits[np.arange(120), np.where(targets == 2, 0, targets)] += 3
    logits[112:, 2] += 6  # a single group is predicted as the third class, all correct
    each = classification_intervals(logits, targets, "abc", Bootstrap(120, groups, 300, 0))[1]
    low, high = each["precision"][2]
    assert low > 0.05
    assert high == 1
    low, high = each["recall"][2]
    assert 0 <= low < 0.2 < high < 1


def test_areas_over_groups_are_no_surer_than_as_many_images():
    rng = np.random.default_rng(4)
    groups = [str(i) for i in np.repeat(np.arange(12), 10)]
    true = np.repeat(np.arange(12) < 4, 10)
    scores = rng.normal(size=120) + true
    grouped = rank_intervals(true[:, None], scores[:, None], Bootstrap(120, groups, 200, 0))[1]["roc_auc"][0]
    alone = rank_intervals(true[:, None], scores[:, None], Bootstrap(120, None, 200, 0))[1]["roc_auc"][0]
    assert grouped[0] < alone[0]
    assert grouped[1] >= alone[1] - 0.02
