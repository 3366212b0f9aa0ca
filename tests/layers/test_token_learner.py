"""TokenLearner and TokenFuser against the authors' code and the definition."""

import pytest
import torch

import vitrail
from tests.golden_files import read_golden, relative_error, run
from vitrail.errors import ShapeError
from vitrail.layers import TokenFuser, TokenLearner


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("token_learner_v1", lambda **config: TokenLearner(version="1.0", **config)),
        ("token_learner_v11", lambda **config: TokenLearner(version="1.1", **config)),
        ("token_fuser", TokenFuser),
    ],
)
def test_equals_scenic(name, build):
    golden = read_golden(name)
    layer = build(**golden.config)
    report = vitrail.load_weights(layer, golden.state)
    assert report.source == "scenic"
    assert relative_error(run(layer, golden), golden.outputs["tokens"]) < 1e-5


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (6, 2)])
def test_pools_positions_by_hand(version, grid):
    H, W = grid
    layer = TokenLearner(6, 3, version=version, bottleneck_dim=5)
    x = torch.randn(2, H, W, 6)
    weights = layer.selection(x)
    by_hand = torch.zeros(2, 3, 6)
    for s in range(3):
        for row in range(H):
            for column in range(W):
                by_hand[:, s] += weights[:, s, row * W + column, None] * x[:, row, column]
    assert torch.allclose(layer(x), by_hand, atol=1e-5)
    if version == "1.1":
        assert torch.allclose(weights.sum(-1), torch.ones(2, 3))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_gradients(version):
    layer = TokenLearner(4, 2, version=version, bottleneck_dim=3).double()
    fuser = TokenFuser(4, 2, bottleneck_dim=3).double()
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fuser(layer(x), x.flatten(1, 2)), (x,))


def test_wrong_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"\(B, H, W, 6\)"):
        TokenLearner(6, 2)(torch.randn(1, 9, 6))
    with pytest.raises(ShapeError, match=r"\(B, 2, 6\)"):
        TokenFuser(6, 2)(torch.randn(1, 3, 6), torch.randn(1, 9, 6))
