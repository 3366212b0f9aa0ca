"""Entropy and targets of heads, against every pair of tokens spread over the map one by one, and planted heads."""

import math

import pytest
import torch

import vitrail
from tests.explain.dense import places
from tests.explain.methods.test_layer_attention import FAMILIES, _case, _spread
from vitrail.errors import ConfigError
from vitrail.explain import attention_distances, attention_entropy, head_focus


def _queries(step):
    """Weights of each query without padding, ``(B, heads, queries, keys)``: all tokens, or the real ones of groups."""
    if step.layout.kind in ("global", "cross"):
        return step.weights
    H, W = step.layout.query_grid
    groups = places(step.layout)
    weights = step.weights.reshape(-1, len(groups), *step.weights.shape[1:])
    real = [(g, q) for g, tokens in enumerate(groups) for q, (a, b) in enumerate(tokens) if a < H and b < W]
    return torch.stack([weights[:, g, :, q] for g, q in real], dim=2)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.fast_cases("vit-0", "swin-0", "maxvit-0", "maxvit-1", "hvt-1", "hvt two streams-0", "hvt two streams-1")
def test_entropies_are_those_of_all_queries(family, seed):
    _, model, inputs, steps = _case(family, seed)
    measured = attention_entropy(model, *inputs)
    assert [m.layer for m in measured] == [s.name for s in steps]
    for entropy, step in zip(measured, steps, strict=True):
        rows = _queries(step)
        expected = torch.distributions.Categorical(probs=rows).entropy().mean(-1)
        assert torch.allclose(entropy.entropy, expected, atol=1e-4)
        keys = (rows[0, 0] > 0).sum(-1).float()
        assert entropy.uniform == pytest.approx(float(keys.log().mean()), abs=1e-5)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.fast_cases("vit-0", "swin-0", "hvt-1")
def test_targets_are_those_of_all_pairs(family, seed):
    _, model, inputs, steps = _case(family, seed)
    steps = [step for step in steps if step.layout.kind != "cross"]
    measured = head_focus(model, *inputs)
    assert [m.layer for m in measured] == [s.name for s in steps]
    for focus, step in zip(measured, steps, strict=True):
        matrix, _ = _spread(step)
        H, W = step.layout.query_grid
        prefix = step.layout.num_prefix
        expected = torch.zeros(*matrix.shape[:2], 4)
        if prefix:
            expected[..., 0] = step.weights[:, :, prefix:, :prefix].sum(-1).mean(-1)
        for q in range(H * W):
            for k in range(H * W):
                steps_apart = max(abs(q // W - k // W), abs(q % W - k % W))
                expected[..., 1 + min(steps_apart, 2)] += matrix[:, :, q, k] / (H * W)
        assert torch.allclose(focus.shares, expected, atol=1e-5)


def _uniform_vit(grid, **settings):
    model = vitrail.create_model("vit", img_size=4 * grid, patch_size=4, embed_dim=8, depth=1, num_heads=2,
                                 num_classes=2, **settings).eval()  # fmt: skip
    model.blocks[0].attn.qkv.weight.data[:16] = 0
    model.blocks[0].attn.qkv.bias.data[:16] = 0
    return model


@pytest.mark.parametrize("grid", [2, 5])
@pytest.mark.parametrize("token", [True, False])
def test_uniform_attention_has_its_closed_forms(grid, token):
    """Of queries of zero: distance, entropy and shares by counting, and the same as the reference beside them."""
    model = _uniform_vit(grid, **({} if token else {"class_token": False, "global_pool": "avg"}))
    x = torch.randn(2, 3, 4 * grid, 4 * grid)
    cells = [(a, b) for a in range(grid) for b in range(grid)]
    tokens = grid**2 + token
    (distance,) = attention_distances(model, x)
    mean = sum(4 * math.dist(p, q) for p in cells for q in cells) / grid**4
    assert torch.allclose(distance.distance, torch.full((2, 2), mean), rtol=1e-5)
    assert distance.uniform == pytest.approx(mean, rel=1e-5)
    (entropy,) = attention_entropy(model, x)
    assert torch.allclose(entropy.entropy, torch.full((2, 2), math.log(tokens)), atol=1e-5)
    assert entropy.uniform == pytest.approx(math.log(tokens), abs=1e-5)
    (focus,) = head_focus(model, x)
    near = (3 * grid - 2) ** 2 - grid**2  # pairs within one step, without those of a token with itself
    shares = torch.tensor([token * grid**2, grid**2, near, grid**4 - grid**2 - near]) / (grid**2 * tokens)
    assert torch.allclose(focus.shares, shares.expand(2, 2, 4), atol=1e-5)
    assert torch.allclose(focus.uniform, shares, atol=1e-5)
    assert focus.names() == ["everything"] * 2


def test_uniform_windows_have_their_closed_form():
    """In windows of 2 x 2: the mean over the pairs of a window, with the stride of the stage."""
    model = vitrail.create_model("swin", img_size=16, patch_size=2, window_size=2, embed_dim=8, depths=(1, 1),
                                 num_heads=(2, 2), num_classes=2).eval()  # fmt: skip
    for stage in model.layers:
        attn = stage.blocks[0].attn
        attn.qkv.weight.data.zero_(), attn.qkv.bias.data.zero_(), attn.relative_position_bias_table.data.zero_()
    found = attention_distances(model, torch.randn(1, 3, 16, 16))
    for distance, stride in zip(found, (2, 4), strict=True):
        assert torch.allclose(distance.distance, torch.full((1, 2), stride * (2 + math.sqrt(2)) / 4))
        assert distance.uniform == pytest.approx(stride * (2 + math.sqrt(2)) / 4)
        assert distance.kind == "window"


def test_planted_heads_are_named():
    """Positions that are one-hot let a head attend to the token itself, and another to the class token."""
    model = vitrail.create_model("vit", img_size=8, patch_size=4, embed_dim=10, depth=1, num_heads=2,
                                 num_classes=2).eval()  # fmt: skip
    model.patch_embed.proj.weight.data.zero_(), model.patch_embed.proj.bias.data.zero_()
    model.cls_token.data.zero_()
    model.pos_embed.data = 5 * torch.eye(5, 10)[None]
    qkv = model.blocks[0].attn.qkv
    qkv.weight.data.zero_(), qkv.bias.data.zero_()
    qkv.weight.data[:5, :5], qkv.weight.data[10:15, :5] = 9 * torch.eye(5), 9 * torch.eye(5)  # like to like
    qkv.bias.data[5] = 9.0  # every query of the second head the same: the key of the class token
    qkv.weight.data[15, 0] = 9.0
    (focus,) = head_focus(model, torch.randn(1, 3, 8, 8))
    assert focus.names() == ["itself", "class token"]


def test_learned_tokens_have_no_neighbours():
    model = vitrail.create_model("vit", img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=2,
                                 class_token=False, global_pool="avg",
                                 token_learner={"num_tokens": 2, "layer": 0}).eval()  # fmt: skip
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(ConfigError, match="learned tokens"):
        head_focus(model, x)
    assert [e.entropy.shape for e in attention_entropy(model, x)] == [(1, 2)] * 2
