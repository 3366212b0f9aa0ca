"""Vectorised measures of resamples against scikit-learn on the repeated images; intervals against what they promise."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)

from vitrail.bootstrap import Bootstrap, bootstrap_mean
from vitrail.errors import ConfigError, DataError
from vitrail.evaluate.bootstrap_measures import Counter, Ranker, agreement_measures, averaged_measures, class_measures
from vitrail.evaluate.metrics import accuracy_interval, classification_intervals, one_hot, rank_intervals


def _drawn(weights):
    """For each resample, the rows as often as they were drawn."""
    return [np.repeat(np.arange(len(weights)), column.astype(int)) for column in weights.T]


@pytest.mark.fast_cases("2")
@pytest.mark.parametrize("seed", range(5))
def test_measures_of_resamples_equal_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(15, 60)), int(rng.integers(2, 7))
    targets, predicted = rng.integers(0, k, n), rng.integers(0, k, n)
    targets[targets == 1] = 0  # a class that never occurs
    predicted = np.where(rng.random(n) < 0.6, targets, predicted)
    groups = None if seed % 2 else [f"g{i}" for i in rng.integers(0, 9, n)]
    (weights,) = Bootstrap(n, groups, 100, seed).weights(8)
    counts = Counter(one_hot(targets, k), one_hot(predicted, k))(weights)
    overall = {**agreement_measures(counts), **averaged_measures(counts)}
    each = class_measures(counts)
    for r, rows in enumerate(_drawn(weights)):
        true, said = targets[rows], predicted[rows]
        assert overall["accuracy"][r] == pytest.approx(accuracy_score(true, said))
        if set(said) <= set(true):
            assert overall["balanced_accuracy"][r] == pytest.approx(balanced_accuracy_score(true, said))
        assert overall["cohen_kappa"][r] == pytest.approx(cohen_kappa_score(true, said))
        assert overall["mcc"][r] == pytest.approx(matthews_corrcoef(true, said))
        for average in ("macro", "micro", "weighted"):
            wanted = precision_recall_fscore_support(true, said, average=average, zero_division=0)[:3]
            for name, value in zip(("precision", "recall", "f1"), wanted, strict=True):
                assert overall[f"{name}_{average}"][r] == pytest.approx(value), (name, average)
        wanted = precision_recall_fscore_support(true, said, labels=range(k), zero_division=0)[:3]
        for name, values in zip(("precision", "recall", "f1"), wanted, strict=True):
            assert np.allclose(each[name][:, r], values)


@pytest.mark.fast_cases("4")
@pytest.mark.parametrize("seed", range(6))
def test_ranks_of_resamples_equal_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(8, 80))
    positive = rng.random(n) < rng.choice([0.1, 0.5, 0.9])
    positive[:2] = True, False
    # From no ties to hardly anything else.
    scores = np.round(rng.normal(size=n) + positive, int(rng.integers(0, 4)))
    (weights,) = Bootstrap(n, None, 100, seed).weights(20)
    areas, precisions = Ranker(positive, scores)(weights)
    for rows, area, precision in zip(_drawn(weights), areas, precisions, strict=True):
        if positive[rows].any():
            assert precision == pytest.approx(average_precision_score(positive[rows], scores[rows]))
        if len(set(positive[rows])) == 2:
            assert area == pytest.approx(roc_auc_score(positive[rows], scores[rows]))
        else:
            assert np.isnan(area)


def test_images_are_drawn_as_often_as_they_should():
    whole = np.concatenate(list(Bootstrap(7, None, 4000, 3).weights(at_a_time=999)), axis=1)
    assert whole.shape == (7, 4000)
    assert (whole.sum(0) == 7).all()
    assert np.abs(whole.mean(1) - 1).max() < 0.06
    assert np.abs(whole.var(1) - 6 / 7).max() < 0.1  # of a binomial count
    assert np.array_equal(whole, np.concatenate(list(Bootstrap(7, None, 4000, 3).weights()), axis=1))
    assert not np.array_equal(whole, np.concatenate(list(Bootstrap(7, None, 4000, 4).weights()), axis=1))
    groups = ["a", "b", "a", "c", "b", "a"]
    (weights,) = Bootstrap(6, groups, 500, 0).weights()
    assert (weights[0] == weights[2]).all()
    assert (weights[1] == weights[4]).all()
    assert (weights[[0, 1, 3]].sum(0) == 3).all()


@pytest.mark.fast_cases("60-0.7")
@pytest.mark.parametrize(("n", "share"), [(60, 0.7), (300, 0.9)])
def test_a_95_percent_interval_covers(n, share):
    rng = np.random.default_rng(n)
    experiments = 1000
    right = rng.random((n, experiments)) < share
    bootstrap = Bootstrap(n, None, 600, 1)
    means = np.concatenate([right.T.astype(np.float32) @ w / n for w in bootstrap.weights()], axis=1)
    pairs = [bootstrap.interval(row) for row in means]
    covered = np.mean([low <= share <= high for low, high in pairs])
    assert 0.93 <= covered <= 0.97
    assert bootstrap.interval(means[0]) == pytest.approx(bootstrap.mean(right[:, 0]), abs=1e-6)


def test_an_interval_of_macro_f1_covers():
    rng = np.random.default_rng(5)
    n, k, experiments = 200, 3, 600
    confusion = np.array([[0.35, 0.05, 0.05], [0.05, 0.2, 0.05], [0.05, 0.05, 0.15]])
    truth = (2 * confusion.diagonal() / (confusion.sum(0) + confusion.sum(1))).mean()
    bootstrap = Bootstrap(n, None, 400, 1)
    (weights,) = bootstrap.weights()
    covered = 0
    for _ in range(experiments):
        cells = rng.choice(k * k, n, p=confusion.ravel())
        count = Counter(one_hot(cells // k, k), one_hot(cells % k, k))
        low, high = bootstrap.interval(averaged_measures(count(weights))["f1_macro"])
        covered += low <= truth <= high
    assert 0.93 <= covered / experiments <= 0.97


def test_groups_widen_the_interval_and_cover_where_images_alone_do_not():
    rng = np.random.default_rng(2)
    groups, size, experiments = 15, 20, 400
    names = [str(i) for i in np.repeat(np.arange(groups), size)]
    level = rng.beta(2, 1, (experiments, groups))  # mean 2/3; images of a group are alike
    right = rng.random((experiments, groups, size)) < level[..., None]
    covered = {}
    for kind, bootstrap in {"images": Bootstrap(300, None, 400, 0), "groups": Bootstrap(300, names, 400, 0)}.items():
        w = np.concatenate(list(bootstrap.weights()), axis=1)
        means = right.reshape(experiments, -1).astype(np.float32) @ w / w.sum(0)
        pairs = [bootstrap.interval(row) for row in means]
        covered[kind] = np.mean([low <= 2 / 3 <= high for low, high in pairs])
    assert covered["images"] < 0.7
    assert 0.91 <= covered["groups"] <= 0.98


def test_what_does_not_vary_has_no_interval():
    bootstrap = Bootstrap(10, None, 200, 0)
    assert bootstrap.interval(np.ones(200)) is None
    assert bootstrap.interval(np.full(200, np.nan)) is None
    assert bootstrap.interval(np.r_[np.full(90, np.nan), np.linspace(0, 1, 110)]) is not None


def test_single_classes_have_wilsons_interval():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 3)).astype(np.float32)
    targets = np.r_[np.zeros(20, int), np.ones(20, int)]  # none of the third
    overall, each = classification_intervals(logits, targets, "abc", Bootstrap(40, None, 200, 0))
    predicted = logits.argmax(1)
    both = ((targets == 0) & (predicted == 0)).sum()
    assert each["recall"][0] == pytest.approx(accuracy_interval(int(both), 20))
    low, high = accuracy_interval(int(both), int(((targets == 0) | (predicted == 0)).sum()))
    assert each["f1"][0] == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))
    assert each["recall"][2] is None
    assert each["roc_auc"][2] is None
    assert overall["accuracy"][0] < (predicted == targets).mean() < overall["accuracy"][1]
    grouped = classification_intervals(logits, targets, "abc", Bootstrap(40, [str(i // 4) for i in range(40)], 200, 0))
    assert grouped[1]["recall"][0] != each["recall"][0]


def test_resampled_groups_cost_is_bounded(monkeypatch):
    from vitrail.evaluate import metrics

    true = one_hot(np.arange(30) % 2, 2)
    scores = np.random.default_rng(0).normal(size=(30, 2))
    grouped = Bootstrap(30, [str(i // 3) for i in range(30)])
    whole = rank_intervals(true, scores, grouped)[1]["roc_auc"][0]
    monkeypatch.setattr(metrics, "_RANK_WORK", 30 * 2 * 150)  # too few resamples: the score interval alone
    alone = rank_intervals(true, scores, grouped)[1]["roc_auc"][0]
    assert whole[0] <= alone[0] < alone[1] <= whole[1]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(DataError, match="at least 2 groups"):
        Bootstrap(3, ["a", "a", "a"])
    with pytest.raises(DataError, match="2 groups for 3 images"):
        Bootstrap(3, ["a", "b"])
    with pytest.raises(ConfigError, match="100 resamples"):
        Bootstrap(3, None, 10)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Bootstrap(3, None, 100, 0, 95)


def test_the_mean_of_columns_is_that_of_each_column():
    values = np.random.default_rng(0).normal(size=(9, 2, 3))
    values[:, 0, 0] = 4.0
    found = bootstrap_mean(values, 0.9, 300, 5)
    assert found.mean.shape == found.low.shape == found.high.shape == (2, 3)
    assert found.low[0, 0] == found.high[0, 0] == 4.0
    low, high = Bootstrap(9, None, 300, 5, 0.9).mean(values[:, 1, 2])
    assert (found.low[1, 2], found.high[1, 2]) == pytest.approx((low, high))
    one = bootstrap_mean(values[:1])
    assert np.array_equal(one.mean, values[0])
    assert np.isnan([one.low, one.high]).all()


def test_the_mean_of_eight_images_is_covered_as_often_as_stated():
    draws = np.random.default_rng(2).normal(size=(8, 400))
    found = bootstrap_mean(draws, 0.9, 300)
    assert 0.86 < np.mean((found.low <= 0) & (found.high >= 0)) < 0.94
