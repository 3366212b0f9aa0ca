"""The MLP gives the same in pieces as at once."""

import pytest
import torch

from vitrail.layers.fast import mlp as module
from vitrail.layers.mlp import Mlp


@pytest.fixture
def _small_pieces(monkeypatch):
    for name, value in {"_LARGE": 64, "_PIECE": 32, "_LARGE_TRAINING": 64, "_PIECE_TRAINING": 48}.items():
        monkeypatch.setattr(module, name, value)


def _by_hand(layer, x):
    hidden = torch.nn.functional.gelu(x @ layer.fc1.weight.t() + layer.fc1.bias)
    return hidden @ layer.fc2.weight.t() + layer.fc2.bias


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (3, 11, 4), (7, 4), (1, 4), (0, 4)])
def test_pieces_by_hand(shape):
    layer = Mlp(4, 8, out_dim=6).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = _by_hand(layer, x)
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-12)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), [x, *layer.parameters()])
    found = torch.autograd.grad((layer(x) * weight).sum(), [x, *layer.parameters()])
    for actual, gradient in zip(found, wanted, strict=True):
        assert torch.allclose(actual, gradient, atol=1e-12)


@pytest.mark.usefixtures("_small_pieces")
def test_a_watched_layer_sees_all_tokens_at_once():
    layer = Mlp(4, 8)
    x = torch.randn(2, 20, 4)
    assert module._rows_of_a_piece(layer, x) == 6
    with torch.no_grad():
        assert module._rows_of_a_piece(layer, x) == 4
    assert module._rows_of_a_piece(layer, x[:, :2]) is None
    seen = []
    handle = layer.fc1.register_forward_hook(lambda _module, _args, out: seen.append(out.shape))
    layer(x)
    assert seen == [(2, 20, 8)]
    handle.remove()
    assert module._rows_of_a_piece(layer, x) == 6


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (7, 4), (2, 4), (0, 4), (0, 3, 4)])
@pytest.mark.fast_cases("shape0-tanh", "shape2-none")
def test_inference_overwrites_nothing_that_anyone_holds(shape, approximate):
    layer = Mlp(4, 8, out_dim=6, act_layer={"none": "gelu", "tanh": "gelu_tanh"}[approximate])
    x = torch.randn(shape)
    before = x.clone()
    expected = layer.fc2(torch.nn.functional.gelu(layer.fc1(x), approximate=approximate))
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-6)
        assert torch.equal(x, before)
        kept = []
        handle = layer.fc1.register_forward_hook(lambda _module, _args, out: kept.append(out))
        assert torch.allclose(layer(x), expected, atol=1e-6)
        handle.remove()
        assert torch.allclose(torch.cat([part.reshape(-1, 8) for part in kept]), layer.fc1(x).reshape(-1, 8), atol=1e-6)


def test_other_parts_are_called_in_inference_too():
    layer = Mlp(4, 8)
    layer.act = torch.nn.ReLU()
    x = torch.randn(5, 4)
    with torch.no_grad():
        assert torch.allclose(layer(x), layer.fc2(layer.fc1(x).relu()))


def test_multiply_adds_are_counted_in_inference():
    from torch.utils.flop_counter import FlopCounterMode

    layer = Mlp(4, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(torch.randn(5, 4))
    assert counter.get_total_flops() == 2 * 5 * (4 * 8 + 8 * 4)
