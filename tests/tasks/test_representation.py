"""Measures of what was learned, on closed cases and against loops."""

import math

import numpy as np
import pytest
import torch

from vitrail.tasks import representation as r


@pytest.mark.parametrize(("number", "dims"), [(50, 1), (50, 3), (8, 8), (40, 16)])
def test_rank_me_counts_dimensions(number, dims):
    """Orthogonal columns of one length are as many dimensions as there are; the others are empty."""
    columns = torch.linalg.qr(torch.randn(number, dims, dtype=torch.float64))[0]
    features = torch.cat([columns * 3, torch.zeros(number, 5)], dim=1)
    assert r.rank_me(features) == pytest.approx(dims, rel=1e-4)


def test_rank_me_is_the_published_formula():
    features = torch.randn(30, 7)
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = [v / sum(values) + 1e-7 for v in values]
    assert r.rank_me(features) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-6)
    assert r.rank_me(torch.zeros(5, 4)) == pytest.approx(1.0, abs=1e-4)


def test_alignment_and_uniformity_are_loops():
    first, second = torch.randn(2, 9, 5, dtype=torch.float64)
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (first, second))
    assert r.alignment(first, second) == pytest.approx(
        sum(float((a[i] - b[i]).square().sum()) for i in range(9)) / 9, rel=1e-9
    )
    pairs = [math.exp(-2 * float((a[i] - a[j]).square().sum())) for i in range(9) for j in range(i)]
    assert r.uniformity(first) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-9)


def test_alignment_and_uniformity_of_closed_cases():
    axes = torch.eye(6)
    assert r.alignment(axes, 5 * axes) == 0
    assert r.alignment(axes, -axes) == pytest.approx(4)
    assert r.alignment(axes, axes.roll(1, 0)) == pytest.approx(2)
    assert r.uniformity(axes) == pytest.approx(-4)  # all at the squared distance 2
    assert r.uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dims", [4, 64, 300])
def test_collapse_is_seen_and_nothing_else(dims):
    torch.manual_seed(dims)
    features = torch.randn(200, dims)
    assert r.spread(features) == pytest.approx(1, abs=0.15)
    assert r.collapse(features, 1.0) is None
    mean = torch.randn(1, dims) * 50
    begun = r.spread(mean + features)  # features of random networks have a large mean
    assert begun < 0.1
    assert r.collapse(mean + features, begun) is None
    assert "nearly the same features" in r.collapse(mean + 0.01 * features, begun)
    assert "one line" in r.collapse(mean + features[:, :1] * torch.randn(1, dims), begun)
    assert r.collapse(torch.ones(15, dims), begun) is None  # too few to tell


def test_guesses_by_neighbours_and_probe():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 12))
    labels = rng.integers(0, 3, 90)
    features = (centres[labels] + 0.3 * rng.normal(size=(90, 12))).astype(np.float32)
    for guess in (r.knn_predict, r.probe_predict):
        assert (guess(features[:60], labels[:60], features[60:]) == labels[60:]).mean() > 0.9
    # Fewer images than neighbours; the vote by weight is a loop over equation 11 of the source.
    few, test = features[:7], features[60:]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (few, test)]
    votes = np.zeros((30, 3))
    for i in range(30):
        for j in range(7):
            votes[i, labels[j]] += math.exp(float(unit[1][i] @ unit[0][j]) / 0.07)
    assert (r.knn_predict(few, labels[:7], test) == votes.argmax(1)).all()
