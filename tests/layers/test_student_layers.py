"""Norms, activations, gated MLPs, layer scale, dropout and rotary positions against plain torch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitrail.errors import ConfigError
from vitrail.layers import Attention, Block, Mlp, TokenLearner
from vitrail.layers.activations import ACTIVATIONS, make_activation
from vitrail.layers.fast.dispatch import without_fast_paths
from vitrail.layers.mlp import SwiGlu, make_mlp
from vitrail.layers.norms import NORMS, make_norm
from vitrail.layers.positions import rotary_positions, rotate
from vitrail.layers.window_attention import WindowAttention

CLOSED_FORMS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu": lambda x: (x + x.abs()) / 2,
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "mish": lambda x: x * torch.tanh(torch.log1p(x.exp())),
    "hard_swish": lambda x: x * ((x + 3) / 6).clamp(0, 1),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
}


def test_activations_by_their_formulas():
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    assert set(CLOSED_FORMS) == set(ACTIVATIONS)
    for name, formula in CLOSED_FORMS.items():
        torch.testing.assert_close(make_activation(name)(x), formula(x), msg=name)


def test_norms_by_their_formulas():
    x = torch.randn(3, 5, 8, dtype=torch.float64) + 2
    centred = x - x.mean(-1, keepdim=True)
    expected = {
        "layernorm": centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt(),
        "rmsnorm": x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt(),
        "simplenorm": x / (centred.square().sum(-1, keepdim=True) / 7 + 1e-3).sqrt(),
    }
    assert set(expected) == set(NORMS)
    for name, wanted in expected.items():
        torch.testing.assert_close(make_norm(name, 8, 1e-3).double()(x), wanted, msg=name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_activation("glu"), "act_layer must be one of gelu, .* got 'glu'"),
        (lambda: make_norm("rmsnrm", 8, 1e-5), "norm_layer must be one of .* got 'rmsnrm'; did you mean 'rmsnorm'"),
        (lambda: make_mlp("moe", 8, 16), "mlp_layer must be one of mlp, swiglu; got 'moe'"),
        (lambda: TokenLearner(8, 2, dropout_rate=1.0), "token_learner dropout_rate must be at least 0 and below 1"),
        (lambda: TokenLearner(8, 2, "1.0", dropout_rate=0.1), r"dropout_rate 0.1 acts in the MLP of version '1.1'"),
    ],
)
def test_unknown_names_and_rates(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_gated_mlp_by_hand():
    layer = SwiGlu(6, 10, 4)
    x = torch.randn(2, 3, 6)
    gate, value = layer.fc1.weight[:10], layer.fc1.weight[10:]
    hidden = F.silu(x @ gate.t() + layer.fc1.bias[:10]) * (x @ value.t() + layer.fc1.bias[10:])
    torch.testing.assert_close(layer(x), hidden @ layer.fc2.weight.t() + layer.fc2.bias)


def test_layer_scale_scales_both_branches():
    torch.manual_seed(0)
    plain, scaled = Block(8, Attention(8, 2)), Block(8, Attention(8, 2), init_values=0.25)
    scaled.load_state_dict({**plain.state_dict(), "ls1.gamma": torch.zeros(8), "ls2.gamma": torch.full((8,), 0.5)})
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(scaled(x), x + 0.5 * plain.mlp(plain.norm2(x)))
    assert not any(key.startswith("ls") for key in plain.state_dict())


def test_normalised_queries_and_keys_by_hand():
    layer = Attention(8, 2, qk_norm=True, norm_layer="rmsnorm", norm_eps=1e-6)
    nn.init.normal_(layer.q_norm.weight)
    x = torch.randn(2, 5, 8)
    q, k, v = layer.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    q, k = (F.rms_norm(part, (4,), norm.weight, 1e-6) for part, norm in ((q, layer.q_norm), (k, layer.k_norm)))
    mixed = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
    torch.testing.assert_close(layer(x), layer.proj(mixed.transpose(1, 2).reshape(2, 5, 8)))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Mlp(16, 64, drop=0.5),
        lambda: SwiGlu(16, 64, drop=0.5),
        lambda: Attention(16, 2, attn_drop=0.5),
        lambda: Attention(16, 2, proj_drop=0.5),
    ],
)
def test_dropout_acts_in_training_only_and_keeps_the_mean(make, fast):
    torch.manual_seed(0)
    layer, x = make(), torch.randn(1, 6, 16)
    with torch.no_grad():
        expected = layer.eval()(x)
        layer.train()
        paths = () if fast else ("mlp", "attention")
        with without_fast_paths(*paths) if paths else torch.no_grad():
            mean = layer(x.expand(4000, -1, -1)).mean(0, keepdim=True)
            assert not torch.equal(layer(x), layer(x))
    assert (mean - expected).abs().max() < 0.06
    assert torch.equal(layer.eval()(x), expected)


def test_dropout_of_windows_acts_beside_their_biases():
    layer, x = (
        WindowAttention(8, 2, (3, 3), (1, 1), attn_drop=0.5, proj_drop=0.2, qk_norm=True),
        torch.randn(2, 7, 5, 8),
    )
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    layer(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert torch.equal(layer.eval()(x), layer(x))


def test_reported_weights_are_those_without_dropout():
    layer, x, seen = Attention(8, 2, attn_drop=0.5), torch.randn(2, 5, 8), []
    layer.train()
    layer.tap.consumer = lambda weights, layout: seen.append(weights)
    assert not torch.equal(layer(x), layer(x))
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(2, 2, 5))
    assert torch.equal(*seen)


def test_rotary_positions_depend_on_offsets_alone():
    """The product of a turned query and a turned key is that of the offset between their positions."""
    grid, dim = (5, 7), 16
    q, k = torch.randn(2, dim, dtype=torch.float64)
    turned = rotate(torch.stack([q, k])[:, None, None].expand(2, 1, 35, dim), rotary_positions(grid, dim, q))
    products = torch.einsum("qd,kd->qk", turned[0, 0], turned[1, 0]).view(*grid, *grid)
    for down, right in ((0, 0), (1, 0), (2, 3), (0, 6)):
        same = torch.stack([products[r, c, r + down, c + right] for r in range(5 - down) for c in range(7 - right)])
        torch.testing.assert_close(same, same[:1].expand_as(same))
    assert torch.equal(
        rotate(torch.ones(1, 1, 37, dim), rotary_positions(grid, dim, q), 2)[:, :, :2], torch.ones(1, 1, 2, dim)
    )


def test_rotary_positions_turn_pairs_of_channels_by_complex_numbers():
    grid, dim = (2, 3), 8
    x = torch.randn(1, 1, 6, dim, dtype=torch.float64)
    found = rotate(x, rotary_positions(grid, dim, x))
    for token in range(6):
        row, column = (token // 3 + 0.5) / 2 * 2 - 1, (token % 3 + 0.5) / 3 * 2 - 1
        for pair in range(4):
            angle = 2 * math.pi * (row if pair < 2 else column) / 100 ** (pair % 2 / 2)
            before = complex(x[0, 0, token, pair], x[0, 0, token, pair + 4])
            after = complex(found[0, 0, token, pair], found[0, 0, token, pair + 4])
            assert abs(before * complex(math.cos(angle), math.sin(angle)) - after) < 1e-12
