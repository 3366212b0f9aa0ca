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


@pytest.mark.fast_cases("1.0")
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


def test_learned_tokens_differ_from_the_start():
    """With the small initial weights of the other layers all maps would be one even spread."""
    torch.manual_seed(3)
    model = vitrail.create_model(
        "vit", img_size=32, patch_size=4, embed_dim=64, depth=2, num_heads=4, num_classes=3,
        token_learner={"num_tokens": 4, "layer": 1},
    )  # fmt: skip
    maps = model.token_learners[0].selection(torch.randn(8, 8, 8, 64))
    maps = maps / maps.sum(-1, keepdim=True)
    even = 1 / maps.shape[-1]
    assert (maps.std(-1) / even).mean() > 0.2
    assert (maps[:, 0] - maps[:, 1]).abs().mean() / even > 0.2


def test_blocks_keep_their_initialisation_beside_a_token_learner():
    torch.manual_seed(1)
    model = vitrail.create_model(
        "vit", img_size=8, patch_size=4, embed_dim=64, depth=2, num_heads=4, qkv_bias=False,
        token_learner={"num_tokens": 2, "layer": 1, "fuse": True},
    )  # fmt: skip
    assert model.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    xavier = (2 / (64 + 64)) ** 0.5
    assert model.token_learners[0].masks.fc1.weight.std().item() == pytest.approx(xavier, rel=0.1)
