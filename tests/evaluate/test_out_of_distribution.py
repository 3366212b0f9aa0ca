"""Out-of-distribution scores on Gaussians whose separation is known."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from vitrail.errors import DataError
from vitrail.evaluate.out_of_distribution import (
    ModelOutputs,
    check_outputs,
    in_distribution_scores,
    num_neighbours,
    ood_report,
    separation,
)


def _gaussians(rng, n, shift=0.0, dim=4):
    """Two classes far apart along the first axis; ``shift`` moves images along the last, which is narrow."""
    targets = rng.integers(0, 2, n)
    scale = np.r_[np.full(dim - 1, 2.0), 0.5]
    x = rng.normal(size=(n, dim)) * scale
    x[:, 0] += np.where(targets == 0, -10, 10)
    x[:, -1] += shift
    logits = np.stack([-x[:, 0], x[:, 0]], 1)
    return ModelOutputs(logits.astype(np.float32), x.astype(np.float32)), targets


def test_mahalanobis_is_the_distance_by_the_true_covariance():
    rng = np.random.default_rng(0)
    train, targets = _gaussians(rng, 20_000)
    seen, own = _gaussians(rng, 50)
    scores = in_distribution_scores(seen, train, targets)["mahalanobis"]
    away = seen.embeddings.astype(float).copy()
    away[:, 0] -= np.where(own == 0, -10, 10)
    exact = -((away / [2, 2, 2, 0.5]) ** 2).sum(1)
    assert np.allclose(scores, exact, rtol=0.06, atol=0.1)


def test_what_lies_off_is_noticed_by_distances_and_not_by_logits():
    rng = np.random.default_rng(1)
    train, targets = _gaussians(rng, 2000)
    known, _ = _gaussians(rng, 300)
    other, _ = _gaussians(rng, 200, shift=4.0)  # eight deviations along an axis that the logits do not see
    report = ood_report(known, other, train, targets, resamples=300)
    scores = report["scores"]
    assert scores["mahalanobis"]["auroc"] > 0.999
    assert scores["mahalanobis"]["fpr_at_95_tpr"] < 0.01
    for name in ("msp", "energy", "max_logit"):
        assert 0.42 < scores[name]["auroc"] < 0.58
        assert scores[name]["auroc_low"] < 0.5 < scores[name]["auroc_high"]
    assert scores["knn"]["auroc"] > 0.6
    assert report["neighbours"] == 50
    assert (report["images_known"], report["images_other"], report["images_train"]) == (300, 200, 2000)


def test_scores_of_logits_by_hand():
    logits = np.array([[1.0, 2.0, 0.5], [-1, 0, 3]], np.float32)
    seen = ModelOutputs(logits, np.eye(2, 3, dtype=np.float32))
    train = ModelOutputs(
        np.zeros((30, 3), np.float32), np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    )
    scores = in_distribution_scores(seen, train, np.arange(30) % 3)
    e = np.exp(logits.astype(float))
    assert scores["energy"] == pytest.approx(np.log(e.sum(1)))
    assert scores["msp"] == pytest.approx((e / e.sum(1, keepdims=True)).max(1))
    assert scores["max_logit"].tolist() == [2, 3]
    several = in_distribution_scores(seen, train, np.ones((30, 3), np.int64))
    assert several["energy"] == pytest.approx(np.log(1 + e).sum(1))
    unit = train.embeddings / np.linalg.norm(train.embeddings, axis=1, keepdims=True)
    by_hand = -np.sort(np.linalg.norm(unit[None] - seen.embeddings[:, None], axis=2), axis=1)[:, 2]
    assert num_neighbours(30) == 3
    assert scores["knn"] == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.fast_cases("2.0")
@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_separation_equals_what_gaussians_give(shift):
    rng = np.random.default_rng(3)
    known, other = rng.normal(size=4000) + shift, rng.normal(size=3000)
    result = separation(known, other, resamples=200)
    assert result["auroc"] == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=0.02)
    assert result["auroc_low"] < norm.cdf(shift / np.sqrt(2)) < result["auroc_high"]
    assert result["fpr_at_95_tpr"] == pytest.approx(norm.sf(norm.ppf(0.05) + shift), abs=0.03)
    assert result["auroc"] == roc_auc_score(np.r_[np.ones(4000), np.zeros(3000)], np.r_[known, other])


def test_at_least_95_percent_pass_and_one_more_would_be_too_many():
    known, other = np.arange(20.0), np.array([-1.0, 0.5, 1.0, 30.0])
    # Of 20 the highest 19 pass: the bar is 1.
    assert separation(known, other, 100)["fpr_at_95_tpr"] == 0.5
    assert separation(np.array([1.0]), np.array([0.0]))["auroc_low"] is None


def test_damaged_embeddings_are_refused():
    logits, embeddings = np.zeros((3, 2), np.float32), np.zeros((2, 4), np.float32)
    with pytest.raises(DataError, match="2 embeddings for 3 predictions"):
        check_outputs(logits, embeddings, "test")
    with pytest.raises(DataError, match="infinite or NaN"):
        check_outputs(logits[:2], embeddings * np.nan, "test")
    train = ModelOutputs(logits[:2], np.zeros((2, 5), np.float32))
    with pytest.raises(DataError, match="4 and 5 dimensions"):
        in_distribution_scores(ModelOutputs(logits[:2], embeddings), train, np.array([0, 1]))
