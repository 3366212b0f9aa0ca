"""Fusion of two streams: against loops over tokens, for other widths and grids, and its gradients."""

import random

import pytest
import torch
import torch.nn.functional as F

from tests.tiers import fast_first
from vitrail.errors import ConfigError, ShapeError
from vitrail.layers.fusion import ConcatFusion, CrossAttention, CrossAttentionFusion


def _attend_by_hand(layer, x, context):
    """Cross-attention as a loop over samples, heads and tokens."""
    B, H, W, C = x.shape
    d = C // layer.num_heads
    q = F.linear(x.flatten(1, 2), layer.q.weight, layer.q.bias)
    k, v = F.linear(context.flatten(1, 2), layer.kv.weight, layer.kv.bias).split(C, dim=-1)
    out = torch.zeros(B, H * W, C)
    for b in range(B):
        for head in range(layer.num_heads):
            part = slice(head * d, (head + 1) * d)
            for n in range(H * W):
                scores = torch.stack([(q[b, n, part] * key).sum() / d**0.5 for key in k[b, :, part]])
                weights = scores.exp() / scores.exp().sum()
                out[b, n, part] = sum(w * value for w, value in zip(weights, v[b, :, part], strict=True))
    return layer.proj(out).unflatten(1, (H, W))


def _random_case(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    heads = rng.choice([1, 2, 4])
    dim, context_dim = heads * rng.randint(1, 4), rng.randint(1, 9)
    x = torch.randn(2, rng.randint(1, 4), rng.randint(1, 4), dim)
    context = torch.randn(2, rng.randint(1, 4), rng.randint(1, 4), context_dim)
    return dim, context_dim, heads, rng.random() < 0.5, x, context


@pytest.mark.parametrize("seed", fast_first(range(8), 3))
def test_cross_attention_by_hand(seed):
    dim, context_dim, heads, bias, x, context = _random_case(seed)
    layer = CrossAttention(dim, context_dim, heads, qkv_bias=bias)
    assert torch.allclose(layer(x, context), _attend_by_hand(layer, x, context), atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_cross_attention_fusion_by_hand(seed):
    dim, context_dim, heads, bias, x, context = _random_case(seed)
    layer = CrossAttentionFusion(dim, context_dim, heads, mlp_ratio=2.0, qkv_bias=bias)
    torch.nn.init.normal_(layer.prompt)
    for norm in (layer.norm1, layer.norm2):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    asked = x + _attend_by_hand(layer.attn, x, context + layer.prompt)
    normed = F.layer_norm(asked, (dim,), layer.norm1.weight, layer.norm1.bias)
    hidden = F.gelu(F.linear(normed, layer.mlp.fc1.weight, layer.mlp.fc1.bias))
    assert hidden.shape[-1] == 2 * dim
    added = normed + F.linear(hidden, layer.mlp.fc2.weight, layer.mlp.fc2.bias)
    expected = F.layer_norm(added, (dim,), layer.norm2.weight, layer.norm2.bias)
    assert torch.allclose(layer(x, context), expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_tap_shows_what_was_mixed(seed):
    dim, context_dim, heads, bias, x, context = _random_case(seed)
    layer = CrossAttention(dim, context_dim, heads, qkv_bias=bias)
    plain = layer(x, context)
    seen = []
    layer.tap.consumer = lambda weights, layout: seen.append((weights, layout))
    assert torch.allclose(layer(x, context), plain, atol=1e-5)
    ((weights, layout),) = seen
    H, W, h, w = *x.shape[1:3], *context.shape[1:3]
    assert (layout.kind, layout.query_grid, layout.key_grid) == ("cross", (H, W), (h, w))
    assert weights.shape == (2, heads, H * W, h * w)
    v = layer.kv(context).flatten(1, 2)[..., dim:].unflatten(-1, (heads, -1)).transpose(1, 2)
    by_hand = layer.proj((weights @ v).transpose(1, 2).reshape(x.shape))
    assert torch.allclose(by_hand, plain, atol=1e-5)


def test_one_key_answers_all_queries_alike():
    layer = CrossAttention(8, 5, 2)
    gathered = layer(torch.randn(1, 3, 4, 8), torch.randn(1, 1, 1, 5))
    assert torch.allclose(gathered, gathered[:, :1, :1].expand_as(gathered), atol=1e-6)


def test_order_of_spectral_tokens_does_not_matter_to_cross_attention():
    layer = CrossAttentionFusion(8, 6, 2)
    x, context = torch.randn(2, 2, 3, 8), torch.randn(2, 3, 3, 6)
    shuffled = context.flatten(1, 2)[:, torch.randperm(9)].unflatten(1, (3, 3))
    assert torch.allclose(layer(x, context), layer(x, shuffled), atol=1e-5)


def test_concat_by_hand():
    layer = ConcatFusion(5, 3)
    x, context = torch.randn(2, 3, 2, 5), torch.randn(2, 3, 2, 3)
    by_hand = torch.zeros(2, 3, 2, 5)
    for row in range(3):
        for column in range(2):
            side_by_side = torch.cat([x[:, row, column], context[:, row, column]], dim=-1)
            by_hand[:, row, column] = side_by_side @ layer.proj.weight.t() + layer.proj.bias
    assert torch.allclose(layer(x, context), by_hand, atol=1e-6)


@pytest.mark.parametrize(("grid", "other"), [((4, 4), (2, 2)), ((2, 3), (5, 4)), ((3, 3), (1, 1))])
def test_concat_resamples_another_grid(grid, other):
    layer = ConcatFusion(4, 2)
    x = torch.randn(1, *grid, 4)
    constant = torch.randn(1, 1, 1, 2)
    # What is the same everywhere stays so on any grid; a ramp along a side keeps its direction.
    assert torch.allclose(layer(x, constant.expand(1, *other, 2)), layer(x, constant.expand(1, *grid, 2)), atol=1e-5)
    torch.nn.init.zeros_(layer.proj.weight[:, :4])
    torch.nn.init.ones_(layer.proj.weight[:, 4:])
    ramp = torch.arange(float(other[0])).view(1, -1, 1, 1).expand(1, *other, 2)
    rows = layer(x, ramp)[0, :, 0, 0]
    if other[0] > 1:
        assert (rows.diff() > 0).all()


@pytest.mark.fast_cases("other0-<lambda>1", "other1-<lambda>1")
@pytest.mark.parametrize("build", [lambda: CrossAttentionFusion(4, 3, 2), lambda: ConcatFusion(4, 3)])
@pytest.mark.parametrize("other", [(2, 2), (1, 3)])
def test_gradients(build, other):
    layer = build().double()
    x = torch.randn(1, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    context = torch.randn(1, *other, 3, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x, context, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, context))

    assert torch.autograd.gradcheck(run, (x, context, *values))


@pytest.mark.parametrize("layer", [CrossAttentionFusion(4, 3, 2), ConcatFusion(4, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(layer, dtype):
    layer = layer.to(dtype)
    out = layer(torch.randn(2, 3, 3, 4, dtype=dtype), torch.randn(2, 2, 2, 3, dtype=dtype))
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    "shapes",
    [
        ((1, 2, 2, 4), (1, 2, 2, 4)),
        ((1, 2, 2, 3), (1, 2, 2, 3)),
        ((1, 4, 4), (1, 2, 2, 3)),
        ((2, 2, 2, 4), (1, 2, 2, 3)),
    ],
)
def test_wrong_shapes_are_refused(shapes):
    x, context = (torch.randn(shape) for shape in shapes)
    for layer in (CrossAttention(4, 3, 2), ConcatFusion(4, 3)):
        with pytest.raises(ShapeError, match=r"\(B, H, W, 4\) and \(B, h, w, 3\)"):
            layer(x, context)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="fusion_heads must divide the width 6"):
        CrossAttentionFusion(6, 4, 4)
