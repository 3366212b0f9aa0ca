"""Explanations over space and time, against dense matrices that are computed from queries and keys."""

import pytest
import torch

import vitrail
from vitrail.errors import ConfigError
from vitrail.explain import explain, list_methods, token_maps

GAP = {"class_token": False, "global_pool": "avg"}
KINDS = {
    "joint": {},
    "joint_gap": GAP,
    "encoder": {"attention": "factorised_encoder", "temporal_depth": 2},
    "encoder_gap": {**GAP, "attention": "factorised_encoder", "temporal_depth": 1},
    "slices": {"attention": "factorised_encoder", "temporal_depth": 0},
    "self_attention": {**GAP, "attention": "factorised_self_attention"},
    "divided": {"attention": "factorised_self_attention", "pos_embed": "space_time"},
    "dot_product": {**GAP, "attention": "factorised_dot_product"},
}
LEARNED = {
    "joint": {"token_learner": {"num_tokens": 2, "layer": 1}},
    "joint_fused": {"token_learner": {"num_tokens": 2, "layer": 1, "fuse": True}},
    "encoder": {"attention": "factorised_encoder", "temporal_depth": 1, "token_learner": {"num_tokens": 2, "layer": 1}},
    "encoder_fused": {
        **GAP,
        "attention": "factorised_encoder",
        "temporal_depth": 1,
        "token_learner": {"num_tokens": 2, "layer": 0, "fuse": True},
    },
}
T, H, W = GRID = (3, 2, 4)


def _build(**settings):
    torch.manual_seed(0)
    model = vitrail.create_model(
        "vivit",
        **{
            "num_frames": 6,
            "img_size": (16, 32),
            "tubelet_size": (2, 8, 8),
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 4,
            "num_classes": 5,
            **settings,
        },
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval().double()


def _clips():
    return torch.randn(2, 3, 6, 16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _inputs_of(model, clips, names):
    """Inputs of modules in one forward pass."""
    seen = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda module, x, name=name: seen.__setitem__(name, x[0]))
        for name in names
    ]
    with torch.no_grad():
        model(clips)
    for handle in handles:
        handle.remove()
    return seen


def _attention(attn, x, mask=None):
    """Mean over the heads of softmax(q k) of tokens ``(B, N, C)``; a mask for all heads or for each."""
    B, N, C = x.shape
    with torch.no_grad():
        q, k, _ = attn.qkv(x).view(B, N, 3, 4, C // 4).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) / (C // 4) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).mean(1)


def _masks():
    at = torch.cartesian_prod(*(torch.arange(length) for length in GRID))
    same_time = at[:, None, 0] == at[:, 0]
    return same_time, (at[:, None, 1:] == at[:, 1:]).all(-1)


def _residual(attention):
    return (attention + torch.eye(attention.shape[-1], dtype=attention.dtype)) / 2


def _block_diagonal(parts):
    """Matrices ``(B * T, n, m)`` of slices as one for each clip."""
    return torch.stack([torch.block_diag(*clip) for clip in parts.view(2, T, *parts.shape[1:])])


def _dense_rollout(model, clips):
    """Multiply the matrices of all layers, each over all tokens."""
    seen = _inputs_of(model, clips, model.mixers())
    same_time, same_place = _masks()
    kind, P = model.config.attention, model.block_prefix
    product = None
    for index in range(len(model.blocks)):
        name, block = f"blocks.{index}", model.blocks[index]
        if kind == "factorised_self_attention":
            matrices = _divided(block, seen, name, same_time, same_place, P)
        elif kind == "factorised_dot_product":
            mask = torch.stack([same_place, same_place, same_time, same_time])
            matrices = [_attention(block.attn, seen[f"{name}.attn"], mask)]
        elif kind == "factorised_encoder":
            matrices = [_block_diagonal(_attention(block.attn, seen[f"{name}.attn"]))]
        else:
            matrices = [_attention(block.attn, seen[f"{name}.attn"])]
        for matrix in matrices:
            product = _residual(matrix) if product is None else _residual(matrix) @ product
    if kind == "factorised_encoder":
        summary = torch.full((1, P + H * W), 1.0 / (H * W), dtype=torch.float64)
        if P:
            summary.zero_()[0, 0] = 1
        product = torch.block_diag(*[summary] * T) @ product
        if model.temporal is not None:
            product = torch.cat([product.new_zeros(2, model.num_prefix, product.shape[-1]), product], dim=1)
            for index, block in enumerate(model.temporal.blocks):
                product = _residual(_attention(block.attn, seen[f"temporal.blocks.{index}.attn"])) @ product
    row = product[:, 0] if model.reads_class_token else product[:, model.num_prefix :].mean(1)
    if kind == "factorised_encoder":
        return row.view(2, T, P + H * W)[:, :, P:].reshape(2, *GRID)
    return row[:, P:].reshape(2, *GRID)


def _divided(block, seen, name, same_time, same_place, P):
    """Attention over time, in which a class token sees itself alone, then over space, in which it is a mean."""
    x = seen[f"{name}.attn_time"]
    time = torch.eye(P + T * H * W, dtype=torch.float64).repeat(2, 1, 1)
    time[:, P:, P:] = _attention(block.attn_time, x[:, P:], same_place)
    x = seen[f"{name}.attn"]
    if not P:
        return [time, _attention(block.attn, x, same_time)]
    space = torch.zeros_like(time)
    for frame in range(T):
        own = torch.cat([torch.zeros(P).long(), P + frame * H * W + torch.arange(H * W)])
        here = _attention(block.attn, x[:, own])
        space[:, own[P:, None], own] = here[:, P:]
        space[:, :P, own] += here[:, :P] / T
    return [time, space]


@pytest.mark.slow_cases("self_attention")
@pytest.mark.parametrize("kind", KINDS)
def test_rollout(kind):
    model, clips = _build(**KINDS[kind]), _clips()
    found = explain(model, clips, "rollout")
    expected = _dense_rollout(model, clips)
    expected = expected / expected.sum(dim=(1, 2, 3), keepdim=True)
    assert found.tokens.shape == (2, *GRID)
    assert found.map.shape == (2, 6, 16, 32)
    assert torch.allclose(found.tokens.double(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("method", ["rollout", "gradient_rollout", "attribution", "tokens"])
@pytest.mark.fast_cases(
    "rollout-joint",
    "gradient_rollout-encoder",
    "gradient_rollout-encoder_fused",
    "attribution-joint",
    "attribution-encoder_fused",
    "tokens-encoder",
)
def test_learned_tokens(kind, method):
    model, clips = _build(**LEARNED[kind]), _clips()
    found = explain(model, clips, method)
    assert found.tokens.shape == (2, *GRID)
    assert torch.isfinite(found.tokens).all()
    assert torch.allclose(found.tokens.sum(dim=(1, 2, 3)), torch.ones(2), atol=1e-4) or method == "attribution"


@pytest.mark.parametrize("kind", LEARNED)
def test_the_maps_of_a_token_are_those_of_each_slice(kind):
    """A TokenLearner that is called on the tokens of one slice selects with the same weights."""
    model, clips = _build(**LEARNED[kind]), _clips()
    learner = model.token_learners[0]
    (inputs,) = _inputs_of(model, clips, ["token_learners.0"]).values()
    with torch.no_grad():
        expected = learner.selection(inputs.flatten(0, 1)).view(2, T, -1, H, W).transpose(1, 2)
    found = token_maps(model, clips)
    assert found.shape == (2, 2, *GRID)
    assert torch.allclose(found.sum(dim=(2, 3, 4)), torch.ones(2, 2), atol=1e-5)
    expected = expected / expected.sum(dim=(3, 4), keepdim=True) / T
    assert torch.allclose(found.double(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["gradient_rollout", "attribution"])
@pytest.mark.fast_cases(
    "gradient_rollout-encoder",
    "gradient_rollout-slices",
    "gradient_rollout-self_attention",
    "gradient_rollout-divided",
    "gradient_rollout-dot_product",
    "attribution-encoder_gap",
)
def test_weights_of_a_class(kind, method):
    model, clips = _build(**KINDS[kind]), _clips()
    found = explain(model, clips, method)
    assert found.map.shape == (2, 6, 16, 32)
    assert torch.isfinite(found.tokens).all()
    assert (found.tokens >= 0).all()
    sums = found.tokens.sum(dim=(1, 2, 3))
    # Where no attention has a positive gradient there is none; not so for both clips.
    assert ((sums - 1).abs().lt(1e-4) | sums.eq(0)).all()
    assert sums.any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradcam(kind):
    model, clips = _build(**KINDS[kind]), _clips()
    found = explain(model, clips, "gradcam", target=2)
    level = 1 if model.reads_level(1) else 0
    kept = []
    handle = model.blocks[level].register_forward_hook(lambda module, x, out: kept.append(out.requires_grad_()))
    score = model(clips)[:, 2].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept)
    P = model.block_prefix
    values, gradient = (x[:, P:].reshape(2, T * H * W, 32) for x in (kept[0].detach(), gradient))
    expected = (values * gradient.mean(dim=1, keepdim=True)).sum(-1).relu().view(2, *GRID)
    assert torch.allclose(found.tokens.double(), expected, atol=1e-6 * expected.max())
    assert found.map.shape == (2, 6, 16, 32)


def test_a_map_follows_the_frames():
    """Interpolation along time has the ends of the tubelets as an image has those of its patches."""
    model, clips = _build(), _clips()
    found = explain(model, clips, "rollout")
    tokens = found.tokens[:, None]
    expected = torch.nn.functional.interpolate(tokens, size=(6, 16, 32), mode="trilinear", align_corners=False)
    assert torch.allclose(found.map, expected[:, 0], atol=1e-6)


def test_methods_for_images_are_refused_with_the_reason():
    model = _build()
    methods = list_methods(model)
    assert {"rollout", "gradcam", "gradcam++", "layercam", "eigencam", "gradient_rollout", "attribution"} <= set(
        methods
    )
    for method in set(list_methods()) - set(methods) - {"tokens", "part_rollout"}:
        with pytest.raises(ConfigError, match=r"explains (images|point clouds), and this model takes clips"):
            explain(model, _clips(), method)
    with pytest.raises(ConfigError, match="follows a part, and this model labels whole inputs"):
        explain(model, _clips(), "part_rollout")


def test_clips_of_another_shape_are_refused():
    with pytest.raises(vitrail.errors.ShapeError, match=r"clips of shape \(B, C, T, H, W\)"):
        explain(_build(), _clips()[:, :, 0], "rollout")
