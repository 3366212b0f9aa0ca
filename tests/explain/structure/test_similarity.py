"""Linear CKA against HSIC with centring matrices, its invariances, and the features that it compares."""

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

import vitrail
from vitrail.errors import ShapeError
from vitrail.explain import all_features, cka_matrix, linear_cka, position_similarities
from vitrail.explain.structure.features import layer_features, layers_of


def _hsic(k, m):
    n = len(k)
    centring = np.eye(n) - np.ones((n, n)) / n
    return np.trace(k @ centring @ m @ centring) / (n - 1) ** 2


@pytest.mark.parametrize(("n", "p", "q"), [(5, 3, 7), (40, 6, 6), (12, 30, 2)])
def test_cka_is_the_ratio_of_hsic(n, p, q):
    rng = np.random.default_rng(n)
    x = rng.normal(3, 2, (n, p))
    y = x[:, :1] * rng.normal(size=q) + rng.normal(size=(n, q))
    k, m = x @ x.T, y @ y.T
    expected = _hsic(k, m) / np.sqrt(_hsic(k, k) * _hsic(m, m))
    assert linear_cka(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_rotation_scale_and_shift_change_nothing(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20, 8))
    rotated = 3.7 * x @ ortho_group.rvs(8, random_state=seed) + rng.normal(size=8)
    assert linear_cka(torch.tensor(x), torch.tensor(rotated)) == pytest.approx(1, abs=1e-9)
    assert linear_cka(torch.tensor(x), torch.tensor(rng.normal(size=(20, 8)))) < 0.9


def test_uncorrelated_features_have_none():
    x = torch.tensor([[1.0], [1], [-1], [-1]])
    y = torch.tensor([[1.0], [-1], [1], [-1]])
    assert linear_cka(x, y) == pytest.approx(0, abs=1e-12)


def test_unfit_features_are_refused():
    for x, y in (((4, 2), (5, 2)), ((2, 2), (2, 2)), ((4,), (4, 2))):
        with pytest.raises(ShapeError, match="linear_cka takes"):
            linear_cka(torch.zeros(x), torch.zeros(y))
    with pytest.raises(ShapeError, match="same images"):
        cka_matrix({"a": torch.zeros(4, 2)}, {"b": torch.zeros(5, 2)})


def test_all_features_are_those_of_each_layer():
    model = vitrail.create_model("swin", img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(1, 1),
                                 num_heads=(2, 2), num_classes=2).eval()  # fmt: skip
    x = torch.randn(6, 3, 16, 16)
    found = all_features(model, [x])
    assert list(found) == layers_of(model)
    for layer, values in found.items():
        assert torch.allclose(values, layer_features(model, [x], layer), atol=1e-6)
    matrix = cka_matrix(found, found)
    assert torch.allclose(matrix.diagonal(), torch.ones(len(found)))
    assert torch.allclose(matrix, matrix.t())


def test_sine_positions_have_the_similarity_of_their_angles():
    """Each axis has sines and cosines of its position: the similarity is the mean cosine of the angle between two."""
    model = vitrail.create_model("vit", img_size=(12, 20), patch_size=4, embed_dim=16, depth=1, num_heads=2,
                                 num_classes=2, class_token=False, global_pool="avg", pos_embed="sincos2d")  # fmt: skip
    (found,) = position_similarities(model)
    assert found.grid == (3, 5)
    rates = 1 / 10000 ** (torch.arange(4) / 3)
    for y, x, a, b in ((0, 0, 2, 4), (1, 3, 1, 0), (2, 2, 2, 2)):
        angles = torch.cat([(y - a) * rates, (x - b) * rates])
        assert float(found.similarity[y, x, a, b]) == pytest.approx(float(angles.cos().mean()), abs=1e-5)
