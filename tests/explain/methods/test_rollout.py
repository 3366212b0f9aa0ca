"""Rollout against a dense reference that builds every N x N matrix and multiplies them."""

import functools
import random

import pytest
import torch

import vitrail
from tests.explain.dense import hierarchy_settings, places
from vitrail.errors import ConfigError
from vitrail.explain import attention_rollout, capture_attention, explain, token_maps
from vitrail.explain.methods.relevance import fuse_heads, relevance_streams
from vitrail.models.registry import list_families


def _dense_rollout(model, x):
    """Follow forward_features by hand, keeping the full matrix from every current token to the input tokens."""
    learner = model.config.token_learner
    P = model.num_prefix
    tokens, grid, _ = model.tokenize(*model.embed(x))
    reach = torch.eye(tokens.shape[1]).expand(len(x), -1, -1)

    def attention(block, tokens):
        y = block.norm1(tokens)
        B, N, C = y.shape
        heads = block.attn.num_heads
        q, k, _ = block.attn.qkv(y).reshape(B, N, 3, heads, C // heads).permute(2, 0, 3, 1, 4)
        A = torch.softmax(q @ k.transpose(-1, -2) / (C // heads) ** 0.5, dim=-1).mean(1)
        return (A + torch.eye(N)) / 2

    def pool(index, tokens):
        w = model.token_learners[index].selection(tokens[:, P:].reshape(len(x), *grid, -1))
        w = w / w.sum(-1, keepdim=True)
        full = torch.zeros(len(x), P + w.shape[1], P + w.shape[2])
        full[:, :P, :P] = torch.eye(P)
        full[:, P:, P:] = w
        return full

    for i, block in enumerate(model.blocks):
        if learner and learner.fuse and i >= learner.layer:
            j = i - learner.layer
            M = pool(j, tokens)
            learned = model.learn(tokens, grid, j)
            M = attention(block, learned) @ M
            learned = block(learned, None, P)
            fuser = model.token_fusers[j]
            B_w = torch.sigmoid(fuser.masks(fuser.norm_original(tokens[:, P:]))) @ fuser.mix.weight.abs()
            B_w = B_w / B_w.sum(-1, keepdim=True)
            back = torch.zeros(len(x), tokens.shape[1], learned.shape[1])
            back[:, :P, :P] = torch.eye(P)
            back[:, P:, P:] = B_w / 2
            stay = torch.zeros(tokens.shape[1], tokens.shape[1])
            stay[P:, P:] = torch.eye(tokens.shape[1] - P) / 2
            reach = (back @ M + stay) @ reach
            spread = fuser(learned[:, P:], tokens[:, P:])
            tokens = torch.cat([learned[:, :P], tokens[:, P:] + spread], 1)
            continue
        if learner and not learner.fuse and i == learner.layer:
            reach = pool(0, tokens) @ reach
            tokens = model.learn(tokens, grid, 0)
        reach = attention(block, tokens) @ reach
        tokens = block(tokens, None, P)
    if learner and learner.layer == len(model.blocks):
        reach = pool(0, tokens) @ reach
        tokens = model.learn(tokens, grid, 0)
    assert torch.allclose(reach.sum(-1), torch.ones_like(reach.sum(-1)), atol=1e-5)
    row = reach[:, 0] if model.config.global_pool == "token" else reach[:, P:].mean(1)
    row = row[:, P:]
    return (row / row.sum(-1, keepdim=True)).reshape(len(x), *grid)


def _model(rng, learner):
    class_token = rng.random() < 0.6
    return vitrail.create_model(
        "vit", img_size=16, patch_size=4, embed_dim=16, depth=4, num_heads=rng.choice([1, 2, 4]), in_chans=2,
        class_token=class_token, global_pool=rng.choice(["token", "avg"]) if class_token else "avg",
        token_learner=learner,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["none", "1.0", "1.1", "1.0 fused", "1.1 fused"])
@pytest.mark.fast_cases("none-2", "1.0-0", "1.1-0", "1.0 fused-3")
def test_equals_the_dense_product(kind, seed):
    rng = random.Random(f"{kind}{seed}")
    torch.manual_seed(seed)
    learner = None
    if kind != "none":
        fuse = kind.endswith("fused")
        learner = {"num_tokens": rng.randint(1, 4), "layer": rng.randint(0, 3 if fuse else 4), "version": kind[:3],
                   "fuse": fuse}  # fmt: skip
    model = _model(rng, learner)
    for parameter in model.parameters():  # sharper attention than at initialisation
        parameter.data.mul_(1.5).add_(torch.randn_like(parameter), alpha=0.2)
    x = torch.randn(2, 2, rng.choice([13, 16, 22]), rng.choice([12, 19]))
    rollout = attention_rollout(model, x)
    with torch.no_grad():
        expected = _dense_rollout(model, x)
    assert torch.allclose(rollout.tokens, expected, atol=1e-5)
    assert torch.allclose(rollout.tokens.sum((1, 2)), torch.ones(2), atol=1e-5)
    assert rollout.map.shape == (2, *x.shape[2:])


def test_watching_changes_nothing():
    model = _model(random.Random(3), {"num_tokens": 2, "layer": 2})
    x = torch.randn(2, 2, 16, 16)
    with torch.no_grad():
        before = model(x)
        with capture_attention(model) as record:
            during = model(x)
        after = model(x)
    assert torch.allclose(before, during, atol=1e-5)
    assert torch.equal(before, after)
    assert [s.name for s in record.steps] == [
        "blocks.0.attn", "blocks.1.attn", "token_learners.0", "blocks.2.attn", "blocks.3.attn",
    ]  # fmt: skip


def test_taps_are_restored_after_an_exception():
    model = _model(random.Random(5), None)
    with pytest.raises(RuntimeError, match="on purpose"), capture_attention(model):
        raise RuntimeError("on purpose")
    with capture_attention(model, "blocks.1.attn") as record:
        model(torch.randn(1, 2, 16, 16))
    assert len(record.steps) == 1
    model(torch.randn(1, 2, 16, 16))
    assert len(record.steps) == 1


def test_gradients_reach_the_weights():
    model = _model(random.Random(7), None)
    with capture_attention(model) as record:
        logits = model(torch.randn(1, 2, 16, 16))
    gradients = torch.autograd.grad(logits[0, 0], [s.weights for s in record.steps])
    assert all(g.abs().sum() > 0 for g in gradients)


@pytest.mark.slow
def test_compiled_models_can_be_watched():
    model = _model(random.Random(9), None)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(1, 2, 16, 16)
    with torch.no_grad():
        before = compiled(x)
        with capture_attention(compiled) as record:
            during = compiled(x)
        after = compiled(x)
    assert len(record.steps) == 4
    assert torch.allclose(before, during, atol=1e-5)
    assert torch.equal(before, after)


def test_token_maps_sum_to_one():
    for version in ("1.0", "1.1"):
        model = _model(random.Random(11), {"num_tokens": 3, "layer": 1, "version": version})
        maps = token_maps(model, torch.randn(2, 2, 16, 24))
        assert maps.shape == (2, 3, 4, 6)
        assert torch.allclose(maps.sum((2, 3)), torch.ones(2, 3), atol=1e-5)
    with pytest.raises(ConfigError, match="learns no tokens"):
        token_maps(_model(random.Random(1), None), torch.randn(1, 2, 16, 16))


def test_unknown_layers_are_refused():
    with (
        pytest.raises(ConfigError, match=r"blocks\.0\.attn"),
        capture_attention(_model(random.Random(1), None), "blocks.0.att"),
    ):
        pass


def _dense(step):
    """The whole matrix of a layer, from every token it took to every token it gave."""
    layout, weights = step.layout, step.weights
    H, W = layout.query_grid
    if layout.kind == "cross":
        return weights.mean(1)
    if layout.kind == "global":
        return (weights.mean(1) + torch.eye(H * W)) / 2
    if layout.kind == "merge":
        h, w = layout.key_grid
        matrix = torch.zeros(len(weights), H * W, h * w)
        for row in range(H):
            for column in range(W):
                parents = [
                    (2 * row + i, 2 * column + j)
                    for i in (0, 1)
                    for j in (0, 1)
                    if 2 * row + i < h and 2 * column + j < w
                ]
                for i, j in parents:
                    matrix[:, row * W + column, i * w + j] = 1 / len(parents)
        return matrix
    groups = places(layout)
    weights = weights.mean(1).reshape(-1, len(groups), *weights.shape[-2:])
    matrix = torch.zeros(len(weights), H * W, H * W)
    for number, tokens in enumerate(groups):
        for q, (a, b) in enumerate(tokens):
            for k, (c, d) in enumerate(tokens):
                if a < H and b < W and c < H and d < W:
                    matrix[:, a * W + b, c * W + d] = weights[:, number, q, k]
    matrix = (matrix + torch.eye(H * W)) / 2
    return matrix / matrix.sum(-1, keepdim=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["swin", "maxvit", "hvt", "hvt two streams"])
@pytest.mark.fast_cases("swin-0", "hvt-1", "hvt two streams-0", "hvt two streams-2")
def test_through_a_hierarchy_equals_the_dense_product(family, seed):
    rng = random.Random(f"{family}{seed}")
    torch.manual_seed(seed)
    settings = hierarchy_settings(family, rng)
    model = vitrail.create_model(family.split()[0], **settings).eval()
    for parameter in model.parameters():
        parameter.data.mul_(1.5).add_(torch.randn_like(parameter), alpha=0.1)
    size = rng.randint(17, 40), rng.randint(17, 40)
    inputs = [torch.randn(2, 2, *size)]
    if settings.get("spectral_chans"):
        inputs.append(torch.randn(2, 3, rng.randint(17, 40), rng.randint(17, 40)))
    rollout = attention_rollout(model, *inputs)
    with torch.no_grad(), capture_attention(model) as record:
        model(*inputs)

    def product(steps):
        return functools.reduce(lambda reach, matrix: matrix @ reach, map(_dense, steps))

    own = [s for s in record.steps if not s.name.startswith(("spectral.", "fusion"))]
    image = product(own)
    image = image.mean(1)
    expected, share = image / image.sum(-1, keepdim=True), torch.ones(2)
    if len(inputs) == 2:
        (cross,) = (s for s in record.steps if s.name.startswith("fusion"))
        spectral = _dense(cross) @ product([s for s in record.steps if s.name.startswith("spectral.")])
        other = rollout.others["spectral"]
        assert torch.allclose(other.tokens.flatten(1), spectral.mean(1), atol=1e-5)
        assert torch.allclose(other.share, torch.full((2,), 0.5), atol=1e-5)
        assert other.map.shape == (2, *inputs[1].shape[2:])
        share = share / 2
    assert torch.allclose(rollout.tokens.flatten(1), expected, atol=1e-5)
    assert torch.allclose(rollout.share, share, atol=1e-5)
    assert rollout.map.shape == (2, *size)


@pytest.mark.parametrize("spectral_chans", [0, 3])
def test_streams_with_relevance_are_those_of_the_model(spectral_chans):
    settings = {**list_families()["hvt"].test_config, "spectral_chans": spectral_chans}
    model = vitrail.create_model("hvt", **settings).eval()
    maps = explain(model, tuple(torch.rand(1, *stream.shape) for stream in model.streams), "rollout")
    assert list(relevance_streams(model)) == list(maps) == [stream.name for stream in model.streams]


def test_a_missing_stream_leaves_its_half_unexplained():
    model = vitrail.create_model(
        "hvt", img_size=16, patch_size=4, embed_dim=8, depths=(1,), num_heads=(2,), num_classes=3, spectral_chans=2,
        missing_spectral="learned",
    ).eval()  # fmt: skip
    image = torch.randn(1, 3, 16, 16)
    for inputs in ((image,), (image, None)):
        rollout = attention_rollout(model, *inputs)
        assert not rollout.others
        assert torch.allclose(rollout.share, torch.tensor([0.5]))


def _vit_explain(attentions, head_fusion, discard_ratio):
    """The program vit-explain by its published steps, for one image: matrices ``(heads, N, N)``, first layer first."""
    N = attentions[0].shape[-1]
    result = torch.eye(N)
    for attention in attentions:
        fused = {"mean": attention.mean(0), "max": attention.max(0).values, "min": attention.min(0).values}[head_fusion]
        flat = fused.clone().flatten()
        dropped = flat.sort().indices[: int(len(flat) * discard_ratio)]
        flat[dropped[dropped != 0]] = 0
        matrix = (flat.view(N, N) + torch.eye(N)) / 2
        result = matrix / matrix.sum(1, keepdim=True) @ result
    return result[0, 1:]


@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard_ratio", [0.0, 0.35, 0.9])
@pytest.mark.fast_cases("0.0-mean", "0.35-max")
def test_discarding_from_the_whole_matrix(head_fusion, discard_ratio):
    """As vit-explain's steps, image by image; both settings change the map."""
    torch.manual_seed(3)
    model = vitrail.create_model("vit", img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=4,
                                 num_classes=3).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data.mul_(2).add_(torch.randn_like(parameter), alpha=0.2)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad(), capture_attention(model) as record:
        model(x)
    settings = {"head_fusion": head_fusion, "discard_ratio": discard_ratio}
    found = attention_rollout(model, x, **settings, discard_from="matrix")
    for image in range(3):
        expected = _vit_explain([step.weights[image] for step in record.steps], head_fusion, discard_ratio)
        assert torch.allclose(found.tokens[image].flatten(), expected / expected.sum(), atol=1e-6)
    if discard_ratio:
        assert not torch.allclose(found.tokens, attention_rollout(model, x, **settings).tokens, atol=1e-3)


def test_windows_of_an_image_are_one_matrix():
    """With half of the weights discarded, as many are left of the image, not of each window."""
    model = vitrail.create_model("swin", img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(2,),
                                 num_heads=(2,), num_classes=2).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad(), capture_attention(model, keep=lambda step: fuse_heads(
        step.weights, step.layout, "mean", 0.5, "matrix")) as record:  # fmt: skip
        model(x)
    left = (record[0].weights > 0).view(2, 4, -1).sum(-1)
    assert left.sum(1).tolist() == [512, 512]
    assert (left != 128).any()
    with pytest.raises(ConfigError, match="discard_from must be 'row' or 'matrix', got 'column'"):
        attention_rollout(model, x, discard_from="column")
