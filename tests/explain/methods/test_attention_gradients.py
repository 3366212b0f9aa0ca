"""Gradient rollout and attribution against a dense reference with every N x N matrix and its gradient."""

import gc
import random
import weakref

import pytest
import torch

import vitrail
from tests.explain.dense import hierarchy_settings, places
from vitrail.explain import attribution, capture_attention, explain, gradient_rollout

METHODS = {"gradient_rollout": gradient_rollout, "attribution": attribution}


def _positive(weights, gradient):
    graded = (weights * gradient).clamp_min(0)
    return (graded.mean(1) if graded.ndim == 4 else graded).detach()


def _rows_to_one(matrix):
    total = matrix.sum(-1, keepdim=True)
    return torch.where(total > 0, matrix / total, torch.zeros(()))


def _with_residual(matrix, method):
    """The matrices of the residual connection and of the branch."""
    identity = torch.eye(matrix.shape[-2])
    if method == "attribution":
        return identity.double().expand(len(matrix), -1, -1), matrix.double()
    matrix = _rows_to_one(matrix)
    both = 1 + matrix.sum(-1, keepdim=True)
    return identity / both, matrix / both


def _read(features, gradient, method):
    """The row of a model that averages its last tokens, from tokens and gradients ``(B, N, C)``."""
    if method == "attribution":
        return torch.full(features.shape[:2], 1 / features.shape[1], dtype=torch.float64)
    return _rows_to_one((features * gradient).sum(-1).clamp_min(0).detach())


def _vit_by_hand(model, x, target, method):
    """Follow the model by hand, keeping each block's matrices; then the gradients of all of them; then the product."""
    learner, P = model.config.token_learner, model.num_prefix
    tokens, grid, _ = model.tokenize(*model.embed(x))
    steps = []

    def attend(block, tokens):
        y = block.norm1(tokens)
        B, N, C = y.shape
        heads = block.attn.num_heads
        q, k, v = block.attn.qkv(y).reshape(B, N, 3, heads, C // heads).permute(2, 0, 3, 1, 4)
        A = torch.softmax(q @ k.transpose(-1, -2) / (C // heads) ** 0.5, dim=-1)
        steps.append(("attention", A))
        tokens = tokens + block.attn.proj((A @ v).transpose(1, 2).reshape(B, N, C))
        return tokens + block.mlp(block.norm2(tokens))

    def learn(index, tokens):
        w = model.token_learners[index].selection(tokens[:, P:].reshape(len(x), *grid, -1))
        steps.append(("pool", w))
        return torch.cat([tokens[:, :P], w @ tokens[:, P:]], 1)

    for i, block in enumerate(model.blocks):
        if learner and learner.fuse and i >= learner.layer:
            fuser = model.token_fusers[i - learner.layer]
            learned = attend(block, learn(i - learner.layer, tokens))
            values = fuser.norm_in(learned[:, P:])
            values = fuser.norm_mixed((fuser.mix.weight @ values) + fuser.mix.bias[:, None])
            B_w = torch.sigmoid(fuser.masks(fuser.norm_original(tokens[:, P:])))
            steps.append(("fuse", B_w, fuser.mix.weight.detach().abs()))
            tokens = torch.cat([learned[:, :P], tokens[:, P:] + B_w @ values], 1)
            continue
        if learner and not learner.fuse and i == learner.layer:
            tokens = learn(0, tokens)
        tokens = attend(block, tokens)
    if learner and learner.layer == len(model.blocks):
        tokens = learn(0, tokens)
    features = model.norm(tokens)
    logits = model.forward_head(features)
    score = sum(logits[b, c] for b, c in enumerate(target))
    gradients = torch.autograd.grad(score, [features, *(step[1] for step in steps)])
    graded = [_positive(step[1], g) for step, g in zip(steps, gradients[1:], strict=True)]

    dtype = torch.float64 if method == "attribution" else torch.float32
    reach = torch.eye(P + grid[0] * grid[1], dtype=dtype).expand(len(x), -1, -1)
    alone, before = reach, None
    for step, matrix in zip(steps, graded, strict=True):
        if step[0] == "attention":
            stay, take = _with_residual(matrix, method)
            reach = (stay + take) @ reach
        elif step[0] == "pool":
            full = torch.zeros(len(x), P + matrix.shape[1], P + matrix.shape[2], dtype=dtype)
            full[:, :P, :P] = torch.eye(P)
            if not learner.fuse:
                alone = full @ alone
                alone[:, P:] = 0
            full[:, P:, P:] = _rows_to_one(matrix)
            before, reach = reach, full @ reach
        else:
            spread = matrix @ _rows_to_one(step[2])
            if method == "gradient_rollout":
                spread = _rows_to_one(spread)
                half = 1 + spread.sum(-1, keepdim=True)
            else:
                half, spread = torch.ones(len(x), spread.shape[1], 1), spread.double()
            fused = spread / half @ reach[:, P:] + before[:, P:] / half
            reach = torch.cat([reach[:, :P], fused], 1)
    if method == "attribution":
        reach = reach - alone
    if model.config.global_pool == "token":
        row = reach[:, 0]
    else:
        read = _read(features[:, P:], gradients[0][:, P:], method)
        row = (read[:, None] @ reach[:, P:])[:, 0]
    return _rows_to_one(row[:, P:]).float().reshape(len(x), *grid)


def _roughen(model, spread):
    for parameter in model.parameters():
        parameter.data.mul_(1.5).add_(torch.randn_like(parameter), alpha=spread)


def _frozen(model):
    model.requires_grad_(False)
    return model


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["none", "1.0", "1.1", "1.0 fused", "1.1 fused"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.fast_cases(
    "gradient_rollout-none-1",
    "gradient_rollout-1.1-0",
    "gradient_rollout-1.1-2",
    "attribution-1.0-1",
    "attribution-1.0 fused-2",
)
def test_equals_the_dense_product(method, kind, seed):
    rng = random.Random(f"{kind}{seed}")
    torch.manual_seed(seed)
    learner = None
    if kind != "none":
        fuse = kind.endswith("fused")
        learner = {"num_tokens": rng.randint(2, 4), "layer": rng.randint(0, 3 if fuse else 4), "version": kind[:3],
                   "fuse": fuse}  # fmt: skip
    class_token = rng.random() < 0.6
    model = vitrail.create_model(
        "vit", img_size=16, patch_size=4, embed_dim=16, depth=4, num_heads=rng.choice([1, 2, 4]), in_chans=2,
        class_token=class_token, global_pool=rng.choice(["token", "avg"]) if class_token else "avg", num_classes=5,
        token_learner=learner,
    ).eval()  # fmt: skip
    _roughen(model, 0.2)
    x, target = torch.randn(2, 2, rng.choice([13, 16, 22]), rng.choice([12, 19])), torch.tensor([1, 4])
    expected = _vit_by_hand(model, x, target, method)
    result = METHODS[method](_frozen(model), x, target=target)
    assert torch.allclose(result.tokens, expected, atol=1e-5)
    assert torch.allclose(result.tokens.sum((1, 2)), torch.ones(2), atol=1e-5)
    assert result.map.shape == (2, *x.shape[2:])


def _dense(step, graded, method):
    """The whole matrix of a layer, residual connection and branch apart where it has them."""
    layout = step.layout
    H, W = layout.query_grid
    if layout.kind == "global":
        return _with_residual(graded, method)
    if layout.kind == "merge":
        h, w = layout.key_grid
        dtype = torch.float64 if method == "attribution" else torch.float32
        matrix = torch.zeros(len(step.weights), H * W, h * w, dtype=dtype)
        for row in range(H):
            for column in range(W):
                parents = [(2 * row + i, 2 * column + j) for i in (0, 1) for j in (0, 1)]
                parents = [(i, j) for i, j in parents if i < h and j < w]
                for i, j in parents:
                    matrix[:, row * W + column, i * w + j] = 1 / len(parents)
        return matrix, torch.zeros(1)
    groups = places(layout)
    graded = graded.reshape(-1, len(groups), *graded.shape[-2:])
    matrix = torch.zeros(len(graded), H * W, H * W)
    for number, tokens in enumerate(groups):
        for q, (a, b) in enumerate(tokens):
            for k, (c, d) in enumerate(tokens):
                if a < H and b < W and c < H and d < W:
                    matrix[:, a * W + b, c * W + d] = graded[:, number, q, k]
    return _with_residual(matrix, method)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["swin", "maxvit", "hvt", "hvt two streams"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.fast_cases("gradient_rollout-swin-0", "gradient_rollout-hvt-1", "attribution-swin-1")
def test_through_a_hierarchy_equals_the_dense_product(method, family, seed):
    rng = random.Random(f"{family}{seed}")
    torch.manual_seed(seed)
    settings = hierarchy_settings(family, rng)
    model = vitrail.create_model(family.split()[0], **settings).eval()
    _roughen(model, 0.1)
    inputs = [torch.randn(2, 2, rng.randint(17, 30), rng.randint(17, 30))]
    if settings.get("spectral_chans"):
        inputs.append(torch.randn(2, 3, rng.randint(17, 30), rng.randint(17, 30)))
    target = torch.tensor([2, 0])

    with capture_attention(model) as record:
        if settings.get("fusion") == "concat":
            # Its weights are not the result of anything: they are asked for a gradient before they are used.
            model.fusion.tap.consumer = _asking(model.fusion.tap.consumer)
        features = model.forward_features(*inputs)
        logits = model.forward_head(features)
    steps = [step for step in record.steps if step.layout.kind != "merge"]
    score = sum(logits[b, c] for b, c in enumerate(target))
    gradients = torch.autograd.grad(score, [features, *(step.weights for step in steps)])
    graded = {id(s): _positive(s.weights, g) for s, g in zip(steps, gradients[1:], strict=True)}

    def product(steps):
        reach, alone = None, None
        for step in steps:
            stay, take = _dense(step, graded.get(id(step)), method)
            reach = stay + take if reach is None else (stay + take) @ reach
            alone = stay if alone is None else stay @ alone
        # The second stream has no tokens of its own in the result.
        first = not steps[0].name.startswith("spectral.")
        return reach - alone if method == "attribution" and first else reach

    last, gradient = (
        x.flatten(2).transpose(1, 2) if family == "maxvit" else x.reshape(2, -1, x.shape[-1])
        for x in (features, gradients[0])
    )
    row = _read(last, gradient, method)[:, None]
    own = product([s for s in record.steps if not s.name.startswith(("spectral.", "fusion"))])
    image = (row @ own)[:, 0]
    result = METHODS[method](_frozen(model), *inputs, target=target)
    if len(inputs) == 2:
        (cross,) = (s for s in record.steps if s.name.startswith("fusion"))
        matrix = graded[id(cross)]
        share = torch.ones(2, matrix.shape[1], 1)
        matrix = matrix.double() if method == "attribution" else matrix
        if method == "gradient_rollout":
            matrix = _rows_to_one(matrix)
            share = 1 + matrix.sum(-1, keepdim=True)
        image = (row / share.transpose(1, 2) @ own)[:, 0]
        spectral = product([s for s in record.steps if s.name.startswith("spectral.")])
        spectral = (row @ (matrix / share) @ spectral)[:, 0]
        total = image.sum(1) + spectral.sum(1)
        other = result.others["spectral"]
        assert torch.allclose(other.tokens.flatten(1), _rows_to_one(spectral).float(), atol=1e-5)
        assert torch.allclose(other.share, (spectral.sum(1) / total).float(), atol=1e-5)
        assert torch.allclose(result.share, (image.sum(1) / total).float(), atol=1e-5)
    assert torch.allclose(result.tokens.flatten(1), _rows_to_one(image).float(), atol=1e-5)
    assert result.map.shape == (2, *inputs[0].shape[2:])


def _asking(consumer):
    def report(weights, layout):
        consumer(weights.requires_grad_(), layout)

    return report


@pytest.mark.fast_cases("attribution")
@pytest.mark.parametrize("method", METHODS)
def test_one_class_for_each_image_and_nothing_left_behind(method):
    torch.manual_seed(0)
    model = vitrail.create_model("vit", img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    _roughen(model, 0.2)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    x = torch.randn(2, 3, 16, 16)
    both = explain(model, x, method, [2, 1])
    for number, target in enumerate((2, 1)):
        alone = explain(model, x[number : number + 1], method, target)
        assert torch.allclose(both.map[number], alone.map[0], atol=1e-6)
    other = explain(model, x, method, [0, 0])
    assert not torch.allclose(both.map, other.map, atol=1e-4)
    assert not x.requires_grad
    assert not both.map.requires_grad
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != "head.weight")


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_stream_keeps_its_share(method):
    torch.manual_seed(1)
    model = vitrail.create_model("hvt", img_size=16, patch_size=4, embed_dim=8, depths=(1,), num_heads=(2,),
                                 num_classes=3, spectral_chans=2, missing_spectral="learned").eval()  # fmt: skip
    _roughen(model, 0.2)
    result = explain(model, [torch.randn(1, 3, 16, 16), None], method, 1)
    assert list(result) == ["image"]
    assert torch.allclose(result.tokens.sum(), torch.ones(()))
    assert 0 < result["image"].share < 1


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_speaks_for_the_class_the_map_is_zero(method):
    model = vitrail.create_model("swin", img_size=16, patch_size=4, window_size=2, embed_dim=8, depths=(1,),
                                 num_heads=(2,), num_classes=2).eval()  # fmt: skip
    torch.nn.init.zeros_(model.head.fc.weight)
    result = explain(model, torch.randn(2, 3, 16, 16), method, 1)
    assert torch.equal(result.tokens, torch.zeros(2, 4, 4))
    assert torch.equal(result["image"].share, torch.zeros(2))


def test_no_memory_is_held_by_what_was_watched():
    model = vitrail.create_model("vit", img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    seen = []

    def note(module, args, output):
        seen.append(weakref.ref(output))

    with_hook = model.blocks[0].attn.qkv.register_forward_hook(note)
    gc.disable()
    try:
        explain(model, torch.randn(1, 3, 16, 16), "attribution", 1)
        assert len(seen) == 1
        assert seen[0]() is None
    finally:
        gc.enable()
        with_hook.remove()
