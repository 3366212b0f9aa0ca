"""Attention of any layer as maps and as distances, against every pair of tokens spread over the map one by one."""

import math
import random

import pytest
import torch

import vitrail
from tests.explain.dense import hierarchy_settings, places
from vitrail.errors import ConfigError
from vitrail.explain import attention_distances, attention_maps, capture_attention, explain, token_maps

FAMILIES = ["vit", "vit without class token", "swin", "maxvit", "hvt", "hvt two streams"]


def _case(family, seed):
    rng = random.Random(f"{family}{seed}")
    torch.manual_seed(seed)
    if family.startswith("vit"):
        settings = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "in_chans": 2,
                    "num_classes": 3}  # fmt: skip
        if family != "vit":
            settings |= {"class_token": False, "global_pool": "avg"}
    else:
        settings = hierarchy_settings(family, rng)
    model = vitrail.create_model(family.split()[0], **settings).eval()
    for parameter in model.parameters():
        parameter.data.mul_(1.5).add_(torch.randn_like(parameter), alpha=0.1)
    inputs = [
        torch.randn(2, stream.chans, rng.randint(17, 36), rng.randint(17, 36)) for stream in model.streams
    ]  # fmt: skip
    with torch.no_grad(), capture_attention(model) as record:
        model(*inputs)
    steps = [s for s in record.steps if (s.weights.ndim == 4 and "fusion" not in s.name) or s.name == "fusion.attn"]
    return rng, model, inputs, steps


def _spread(step):
    """Attention between all places, ``(B, heads, queries, keys)``, and from the class token ``(B, heads, keys)``."""
    layout, weights = step.layout, step.weights
    if layout.kind in ("global", "cross"):
        P = layout.num_prefix
        return weights[:, :, P:, P:], weights[:, :, 0, P:]
    H, W = layout.query_grid
    groups = places(layout)
    weights = weights.reshape(-1, len(groups), *weights.shape[1:])
    matrix = torch.zeros(len(weights), weights.shape[2], H * W, H * W)
    for number, tokens in enumerate(groups):
        for q, (a, b) in enumerate(tokens):
            for k, (c, d) in enumerate(tokens):
                if a < H and b < W and c < H and d < W:
                    matrix[:, :, a * W + b, c * W + d] = weights[:, number, :, q, k]
    return matrix, None


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.fast_cases("vit-0", "swin-0", "swin-1", "hvt-1", "hvt two streams-1")
def test_maps_are_rows_of_the_whole_matrix(family, seed):
    rng, model, inputs, steps = _case(family, seed)
    for number, step in enumerate(steps):
        matrix, first = _spread(step)
        grid, asking = step.layout.key_grid, step.layout.query_grid
        mean = attention_maps(model, *inputs, layer=number, query="mean")
        assert (mean.layer, mean.layout) == (step.name, step.layout)
        assert mean.stream == ("spectral" if step.name.startswith(("spectral", "fusion")) else "image")
        assert torch.allclose(mean.maps.flatten(2), matrix.mean(2), atol=1e-6)
        image = inputs[1] if step.name.startswith("spectral") else inputs[0]
        row, column = rng.randrange(image.shape[2]), rng.randrange(image.shape[3])
        # The stride is how often the patch was doubled on the way to this grid.
        ph, pw = (getattr(model.config, "patch_size", None) or (2, 2)) if image is inputs[0] else (
            model.config.spectral_patch_size or model.config.patch_size
        )  # fmt: skip
        doublings = next(i for i in range(9) if -(-image.shape[2] // (ph << i)) == asking[0]
                         and -(-image.shape[3] // (pw << i)) == asking[1])  # fmt: skip
        place = row // (ph << doublings) * asking[1] + column // (pw << doublings)
        one = attention_maps(model, *inputs, layer=step.name, query=(row, column))
        assert one.maps.shape == (2, step.weights.shape[1], *grid)
        assert torch.allclose(one.maps.flatten(2), matrix[:, :, place], atol=1e-6)
        if step.layout.num_prefix:
            asked = attention_maps(model, *inputs, layer=number - len(steps))
            assert asked.query == "class"
            assert torch.allclose(asked.maps.flatten(2), first, atol=1e-6)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.fast_cases("vit-0", "swin-0", "maxvit-0", "hvt-1", "hvt two streams-0", "hvt two streams-1")
def test_distances_are_those_of_all_pairs(family, seed):
    _, model, inputs, steps = _case(family, seed)
    steps = [step for step in steps if step.layout.kind != "cross"]
    measured = attention_distances(model, *inputs)
    assert [d.layer for d in measured] == [s.name for s in steps]
    for distance, step in zip(measured, steps, strict=True):
        matrix, _ = _spread(step)
        H, W = step.layout.query_grid
        sh, sw = distance.stride
        apart = torch.tensor([
            [math.dist((q // W * sh, q % W * sw), (k // W * sh, k % W * sw)) for k in range(H * W)]
            for q in range(H * W)
        ])  # fmt: skip
        expected = ((matrix * apart).sum(-1) / matrix.sum(-1)).mean(-1)
        assert torch.allclose(distance.distance, expected, rtol=1e-4, atol=1e-4)


def test_attention_as_a_method():
    _, model, inputs, steps = _case("swin", 5)
    result = explain(model, inputs[0], "attention", layer=1)
    assert result.map.shape == (2, *inputs[0].shape[2:])
    assert torch.allclose(result["image"].parts.mean(1), result.tokens)
    one = explain(model, inputs[0], "attention", layer=1, head=1)
    assert torch.equal(one.tokens, result["image"].parts[:, 1])
    assert one["image"].parts is None
    _, model, inputs, steps = _case("hvt two streams", 1)
    last = [s for s in steps if s.name.startswith("rgb")][-1]
    assert torch.allclose(
        explain(model, inputs, "attention").tokens.flatten(1), _spread(last)[0].mean((1, 2)), atol=1e-6
    )


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("vit", {"layer": "blocks.1.atn"}, r"did you mean 'blocks\.1\.attn'"),
        ("vit", {"layer": 2}, "layer must be from -2 to 1, got 2"),
        ("vit", {"head": 2}, "head must be from 0 to 1 in .*, got 2"),
        ("vit", {"query": (40, 0)}, "not a position"),
        ("vit", {"query": "cls"}, "must be a pair of whole numbers or 'class' or 'mean'"),
        ("swin", {"query": "class"}, "no class token"),
    ],
)
def test_what_is_not_there(family, settings, words):
    _, model, inputs, _ = _case(family, 0)
    with pytest.raises(ConfigError, match=words):
        explain(model, inputs[0], "attention", **settings)


def test_learned_tokens_have_no_places():
    model = vitrail.create_model("vit", img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=2,
                                 token_learner={"num_tokens": 2, "layer": 1})  # fmt: skip
    x = torch.randn(1, 3, 16, 16)
    assert attention_maps(model, x).layer == "blocks.0.attn"
    assert len(attention_distances(model, x)) == 1
    with pytest.raises(ConfigError, match=r"blocks\.2\.attn attends among learned or merged tokens"):
        attention_maps(model, x, layer=-1)


@pytest.mark.parametrize("fuse", [False, True])
def test_tokens_one_by_one(fuse):
    model = vitrail.create_model("vit", img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=2,
                                 token_learner={"num_tokens": 3, "layer": 1, "fuse": fuse}).eval()  # fmt: skip
    x = torch.randn(2, 3, 16, 24)
    maps = token_maps(model, x, learner=int(fuse))
    result = explain(model, x, "tokens", learner=int(fuse))
    assert torch.equal(result["image"].parts, maps)
    assert torch.allclose(result.tokens, maps.mean(1))
    assert torch.allclose(result.tokens.sum((1, 2)), torch.ones(2))
    one = explain(model, x, "tokens", learner=int(fuse), token=2)
    assert torch.equal(one.tokens, maps[:, 2])
    assert one.map.shape == (2, 16, 24)
    with pytest.raises(ConfigError, match="token must be from 0 to 2, got 3"):
        explain(model, x, "tokens", token=3)
    with pytest.raises(ConfigError, match=r"learner must be from 0 to .*, got 2"):
        explain(model, x, "tokens", learner=2)


def test_a_model_that_learns_no_tokens_is_told_what_it_can_have():
    for family in ("swin", "vit"):
        _, model, inputs, _ = _case(family, 0)
        with pytest.raises(ConfigError, match=r"learns no tokens.*; methods that can: attention, .*rollout"):
            explain(model, inputs[0], "tokens")
