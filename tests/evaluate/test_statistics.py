"""Paired statistics against scipy, closed forms and brute force; their promises by simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vitrail.errors import ConfigError, DataError
from vitrail.evaluate import statistics as own
from vitrail.evaluate.image_scores import SCORES, image_scores
from vitrail.evaluate.metrics import classification_metrics


def _trained(rng, repeats, models, runs, images, seeds=0.3, difficulty=2.0, peculiarity=0.7, gap=()):
    """Whether each image is right: (repeats, models, runs, images). All models are the same recipe but for ``gap``."""
    logit = rng.normal(1.2, difficulty, (repeats, 1, 1, images)) + rng.normal(0, seeds, (repeats, models, runs, 1))
    logit = logit + rng.normal(0, peculiarity, (repeats, models, 1, images))
    logit += np.array([*gap, *[0.0] * (models - len(gap))]).reshape(1, models, 1, 1)
    return (rng.random(logit[:, :, :].shape) < 1 / (1 + np.exp(-logit))).astype(np.float32)


@pytest.mark.parametrize(("runs", "seeds", "peculiarity"), [(2, 0.3, 0.7), (3, 0.5, 0.0), (3, 0.1, 1.5), (5, 0.3, 0.7)])
def test_a_model_seldom_beats_itself(runs, seeds, peculiarity):
    rng = np.random.default_rng(runs)
    right = _trained(rng, 2000, 2, runs, 120, seeds=seeds, peculiarity=peculiarity)
    p = own.runs_and_images(right[:, 0] - right[:, 1]).p_value()
    assert (p < 0.05).mean() < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)
    assert (p < 0.05).mean() > 0.01  # it is a test, not a refusal


@pytest.mark.slow_cases("10-200-0.1")
@pytest.mark.parametrize(("runs", "images", "seeds"), [(5, 150, 0.3), (8, 80, 0.5), (10, 200, 0.1)])
def test_intervals_cover_as_often_as_they_say(runs, images, seeds):
    rng = np.random.default_rng(images)
    gap, repeats = 0.6, 2000
    right = _trained(rng, repeats, 2, runs, images, seeds=seeds, gap=(gap,))
    # The truth by plain integration over everything that was drawn.
    far = np.random.default_rng(1).normal(1.2, math.sqrt(2.0**2 + seeds**2 + 0.7**2), 500_000)
    truth = (1 / (1 + np.exp(-far - gap)) - 1 / (1 + np.exp(-far))).mean()
    low, high = own.runs_and_images(right[:, 0] - right[:, 1]).interval()
    assert 0.93 <= ((low <= truth) & (truth <= high)).mean() <= 0.97


def test_among_several_variants_a_false_claim_is_as_rare():
    rng = np.random.default_rng(5)
    right = _trained(rng, 800, 4, 3, 80)
    pairs = list(itertools.combinations(range(4), 2))
    p = np.stack([own.runs_and_images(right[:, a] - right[:, b]).p_value() for a, b in pairs], 1)
    claims = np.array([(own.holm(row) < 0.05).any() for row in p])
    assert claims.mean() < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 800)
    assert (p < 0.05).any(1).mean() > claims.mean()  # without the correction it is not


def test_folds_that_share_training_images_make_no_false_claims():
    """A fold's difference has a part that all folds share, since their training images overlap."""
    rng = np.random.default_rng(6)
    repeats, folds = 4000, 5
    # Correlation n_test / (n_test + n_train), for which the correction was derived.
    shared = rng.normal(0, math.sqrt(0.2), (repeats, 1)) + rng.normal(0, math.sqrt(0.8), (repeats, folds))
    p = own.over_folds(shared, test_share=0.25).p_value()
    assert 0.04 < (p < 0.05).mean() < 0.06
    naive = stats.ttest_1samp(shared, 0, axis=1).pvalue
    assert (naive < 0.05).mean() > 0.1


def test_without_image_variance_it_is_the_t_test_over_runs():
    rng = np.random.default_rng(7)
    means = rng.normal(0.3, 1, 6)
    noise = rng.normal(0, 1, (6, 40))
    noise -= noise.mean(0)  # images differ in nothing but the rest
    noise -= noise.mean(1, keepdims=True)
    found = own.runs_and_images(means[:, None] + noise)
    expected = stats.ttest_1samp(means, 0)
    assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval()))


def test_one_run_each_is_the_t_test_over_images():
    d = np.random.default_rng(8).normal(0.1, 1, (1, 57))
    found = own.runs_and_images(d)
    expected = stats.ttest_1samp(d[0], 0)
    assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-6)
    assert "these two models" in found.what
    with pytest.raises(DataError, match="another seed"):
        own.runs_needed(found)


def test_variance_of_the_mean_is_what_simulation_finds():
    rng = np.random.default_rng(9)
    S, N, repeats = 4, 30, 20000
    run, image = rng.normal(0, 0.3, (repeats, S, 1)), rng.normal(0, 0.8, (repeats, 1, N))
    found = own.runs_and_images(run + image + rng.normal(0, 1.5, (repeats, S, N)))
    assert found.runs.mean() == pytest.approx(0.3**2 / S + 1.5**2 / (S * N), rel=0.05)
    assert found.images.mean() == pytest.approx(0.8**2 / N, rel=0.1)  # the cut at 0 lifts it a little
    assert found.value.var() == pytest.approx(0.3**2 / S + 0.8**2 / N + 1.5**2 / (S * N), rel=0.05)


def test_equal_models_differ_in_nothing():
    found = own.runs_and_images(np.zeros((3, 20)))
    assert (found.value, found.error, found.p_value()) == (0, 0, 1)
    assert own.sign_flip(np.zeros(5)) == 1
    assert own.runs_needed(found) is None


def test_mean_interval_is_scipys():
    x = np.random.default_rng(10).normal(size=7)
    expected = stats.t.interval(0.9, 6, x.mean(), stats.sem(x))
    assert own.mean_interval(x, 0.9) == pytest.approx((x.mean(), *expected))
    assert math.isnan(own.mean_interval([0.5])[1])
    mean, low, high = own.mean_interval([0.1, 0.9, 0.98])
    assert low < 0 < 1 < high
    assert own.mean_interval([0.1, 0.9, 0.98], least=0, most=1) == (mean, 0, 1)
    assert own.mean_interval([0.4, 0.6, 0.5], least=0, most=1) == own.mean_interval([0.4, 0.6, 0.5])
    with pytest.raises(DataError, match="at least one run"):
        own.mean_interval([])


def test_sign_flip_equals_brute_force():
    x = np.random.default_rng(11).normal(0.4, 1, 9)
    sums = np.array([np.dot(signs, x) for signs in itertools.product((-1, 1), repeat=9)])
    assert own.sign_flip(x) == pytest.approx((np.abs(sums) >= abs(x.sum()) - 1e-12).mean())
    # Differences of 0 take no part, and a single one cannot say anything.
    assert own.sign_flip([*x, 0, 0]) == own.sign_flip(x)
    assert own.sign_flip([3.0]) == 1


def test_sign_flip_of_many_is_near_the_t_test():
    x = np.random.default_rng(12).normal(0.1, 1, 100)
    assert own.sign_flip(x) == pytest.approx(stats.ttest_1samp(x, 0).pvalue, abs=0.015)


def test_mcnemar_is_the_binomial_test():
    rng = np.random.default_rng(13)
    a, b = rng.random((2, 3, 200)) < np.array([0.8, 0.7])[:, None, None]
    alone, other = (a & ~b).sum(1), (~a & b).sum(1)
    one = own.mcnemar(a[:1], b[:1])
    n = int(alone[0] + other[0])
    k = int(min(alone[0], other[0]))
    assert one.p == pytest.approx(min(1, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n))
    assert one.odds_ratio == pytest.approx(alone[0] / other[0])
    several = own.mcnemar(a, b)
    values = [stats.binomtest(int(x), int(x + y)).pvalue for x, y in zip(alone, other, strict=True)]
    assert several.p == pytest.approx(min(1, 2 * sorted(values)[1]))
    assert (several.first, several.second) == (alone.sum(), other.sum())
    same = own.mcnemar(a, a)
    assert same.p == 1
    assert math.isnan(same.odds_ratio)
    assert own.mcnemar([[1, 1]], [[0, 1]]).odds_ratio == math.inf


def test_holm_is_the_closed_test_of_bonferroni():
    """A hypothesis is rejected when every group of hypotheses that holds it is, each by Bonferroni."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        p = rng.random(5) ** rng.integers(1, 5)
        groups = [g for k in range(1, 6) for g in itertools.combinations(range(5), k)]
        expected = [max(min(1, len(g) * p[list(g)].min()) for g in groups if i in g) for i in range(5)]
        assert own.holm(p) == pytest.approx(expected)


def test_power_is_the_textbooks():
    # Cohen 1988 / G*Power, matched pairs, two-sided 5 %: d = 0.5 needs 34 pairs for 80 %, d = 0.8 needs 15.
    for d, pairs in ((0.5, 34), (0.8, 15), (1.0, 10)):
        found = own.PairedDifference(np.array(d), np.array(1 / 5), np.array(0.0), 4, 99, 5, "")
        assert own.runs_needed(found) == pairs
    # And what it says happens.
    x = np.random.default_rng(14).normal(0.8, 1, (20000, 12))
    happened = (stats.ttest_1samp(x, 0, axis=1).pvalue < 0.05).mean()
    assert own.power(0.8, 1.0, 0.0, 12) == pytest.approx(happened, abs=0.01)


def test_more_seeds_do_not_replace_test_images():
    found = own.PairedDifference(np.array(0.01), np.array(0.0001), np.array(0.0001), 4, 99, 5, "")
    assert own.runs_needed(found) is None
    sure = own.PairedDifference(np.array(0.1), np.array(0.0001), np.array(0.0001), 4, 99, 5, "")
    assert own.runs_needed(sure) <= 5


def test_groups_are_joined_without_moving_the_mean():
    rng = np.random.default_rng(15)
    x = rng.normal(size=(3, 40))
    groups = rng.choice(list("abcdefg"), 40)
    joined = own.join_groups(x, groups)
    assert joined.shape == (3, 7)
    assert joined.mean(1) == pytest.approx(x.mean(1))
    expected = x[:, groups == "c"].sum(1) * 7 / 40
    assert joined[:, 2] == pytest.approx(expected)


def test_groups_make_the_interval_honest():
    """Ten copies of each image say no more than one."""
    rng = np.random.default_rng(16)
    d = rng.normal(0, 1, (1500, 1, 25)) + rng.normal(0, 0.2, (1500, 3, 25))
    copies = np.repeat(d, 10, axis=-1)
    groups = np.repeat(np.arange(25), 10)
    careless = own.runs_and_images(copies).p_value()
    careful = own.runs_and_images(own.join_groups(copies, groups)).p_value()
    assert (careless < 0.05).mean() > 0.15
    assert (careful < 0.05).mean() < 0.065


def test_bootstraps():
    rng = np.random.default_rng(17)
    d = rng.normal(0.2, 1, (5, 300)) + rng.normal(0, 0.2, (5, 1))
    low, high = own.bootstrap_images(d)
    mean, error = d.mean(), d.mean(0).std(ddof=1) / math.sqrt(300)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.01)
    wide = own.bootstrap_runs_and_images(d)
    assert wide[0] < low < high < wide[1]
    assert own.bootstrap_images(d) == (low, high)  # the same each time
    with pytest.raises(DataError, match="1 run"):
        own.bootstrap_runs_and_images(d[:1])


def test_the_bootstrap_over_runs_and_images_covers():
    rng = np.random.default_rng(18)
    d = rng.normal(0, 0.4, (120, 5, 1)) + rng.normal(0, 1, (120, 1, 60)) + rng.normal(0, 1, (120, 5, 60))
    inside = [low <= 0 <= high for low, high in (own.bootstrap_runs_and_images(x, repeats=399) for x in d)]
    assert np.mean(inside) >= 0.92


def test_effect_size():
    assert own.cohens_dz([1, 2, 3]) == pytest.approx(2)
    assert math.isnan(own.cohens_dz([1]))
    assert math.isnan(own.cohens_dz([1, 1]))


@pytest.mark.fast_cases("3-balanced_accuracy", "3-f1_macro")
@pytest.mark.parametrize("measure", list(SCORES))
@pytest.mark.parametrize("classes", [3, 4])
def test_scores_have_the_measure_for_mean(measure, classes):
    rng = np.random.default_rng(classes)
    count = 12 * (classes - 2)
    logits = rng.normal(size=(count, 4)).astype(np.float32)
    targets = rng.integers(0, classes, count)
    scores = image_scores(measure, logits, targets)
    expected = classification_metrics(logits, targets, list("abcd"))[measure]
    assert scores.mean() == pytest.approx(expected)
    # The jackknife by leaving each image out in turn.
    rest = [np.delete(np.arange(count), i) for i in range(count)]
    without = np.array([classification_metrics(logits[r], targets[r], list("abcd"))[measure] for r in rest])
    pseudo = count * expected - (count - 1) * without
    assert scores - scores.mean() == pytest.approx(pseudo - pseudo.mean(), abs=1e-6)


def test_scores_of_several_labels():
    logits = np.array([[2.0, -1.0], [0.5, 0.5]], dtype=np.float32)
    targets = np.array([[1, 0], [1, 0]])
    assert image_scores("accuracy", logits, targets).tolist() == [1, 0]
    expected = np.logaddexp(0, logits) - targets * logits
    assert image_scores("nll", logits, targets) == pytest.approx(expected.mean(1))
    with pytest.raises(ConfigError, match="single-label"):
        image_scores("f1_macro", logits, targets)
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        image_scores("acuracy", logits, targets)
