"""The bound of the drop of the mean average precision: simulated gates, and its closed form."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vitrail.bootstrap import Bootstrap
from vitrail.deploy.export.mean_precision import bound_precision_drop, mean_precisions

GATES = 50


def _draw(rng, kind, n, labels, share):
    """Targets, and scores of both: with noise, or with a fiftieth of the positives ranked last."""
    targets = rng.random((n, labels)) < share
    original = 2.5 * targets + rng.normal(size=targets.shape)
    if kind == "noise":
        return targets, original, original + 0.3 * rng.normal(size=targets.shape)
    return targets, original, np.where(targets & (rng.random(targets.shape) < 0.02), -20.0, original)


@pytest.mark.parametrize("kind", ["noise", "lost"])
@pytest.mark.parametrize(("n", "labels", "share"), [(200, 1, 0.015), (300, 5, 0.01), (300, 1, 0.2), (300, 4, 0.1)])
@pytest.mark.fast_cases("200-1-0.015-noise", "300-4-0.1-lost")
def test_the_true_drop_is_rarely_above_the_bound(kind, n, labels, share):
    rng = np.random.default_rng(0)
    targets, *scores = _draw(rng, kind, 50_000, 1, share)
    first, second = (average_precision_score(targets, x) for x in scores)
    above = tested = plain = 0
    for seed in range(GATES):
        drawn = _draw(rng, kind, n, labels, share)
        found = bound_precision_drop(*drawn, resamples=150, seed=seed)
        if found is not None:
            tested, above = tested + 1, above + (first - second > found.high)
            plain += first - second > found.value
    assert above <= 0.05 * tested + 2 * np.sqrt(0.05 * 0.95 * tested)
    assert plain > 0.3 * tested  # the simulation finds a bound that fails


@pytest.mark.parametrize(
    ("positives", "labels", "level"), [(1, 1, 0.95), (20, 1, 0.95), (300, 1, 0.95), (3, 4, 0.975), (73, 4, 0.95)]
)
@pytest.mark.fast_cases("20-1-0.95", "73-4-0.95")
def test_equal_rankings_have_the_bound_of_clopper_and_pearson(positives, labels, level):
    targets = np.ones((positives + 10, labels), bool)
    targets[positives:, 0] = False
    scores = np.random.default_rng(0).normal(size=targets.shape)
    found = bound_precision_drop(targets, scores, scores, level, resamples=3000)
    exact = (1 - (1 - level) ** (1 / positives)) / labels
    assert (found.value, found.labels, found.rarest, found.positives) == (0, labels, 0, positives)
    assert found.high == pytest.approx(exact, rel=0.1)
    shown = [m for m in range(1, 400) if (1 - (1 - level) ** (1 / m)) / labels <= 0.01]
    assert found.missing(0.01, level) == max(0, shown[0] - positives)


def test_resamples_without_the_positives_of_a_label_are_none():
    targets = np.zeros((40, 2), bool)
    targets[:20, 0] = targets[:2, 1] = True
    scores = np.random.default_rng(0).normal(size=targets.shape)
    bootstrap = Bootstrap(40)
    values, resampled = mean_precisions(targets, [scores], bootstrap)
    absent = np.concatenate([weights[:2].sum(axis=0) == 0 for weights in bootstrap.weights()])
    assert (np.isnan(resampled[0]) == absent).all()
    assert absent.any()
    assert values[0] == pytest.approx(np.mean([average_precision_score(targets[:, k], scores[:, k]) for k in range(2)]))
    assert mean_precisions(targets & False, [scores], bootstrap) is None
    assert bound_precision_drop(targets & False, scores, scores) is None
