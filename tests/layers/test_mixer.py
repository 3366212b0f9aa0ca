"""Modules in place of a block's attention: those that take the tokens alone, and those that cannot be called."""

import pytest
import torch
from torch import nn

from tests.weights.models import FAMILIES, build
from vitrail.errors import ConfigError
from vitrail.explain import explain


class _Whole(nn.Module):
    """A mixer of the whole contract; without defaults."""

    def forward(self, x, grid, num_prefix):
        assert grid[0] * grid[1] + num_prefix == x.shape[1]
        return torch.zeros_like(x)


class _Pair(nn.Module):
    def forward(self, x):
        return x, None


def _inputs(model):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, stream.chans, *stream.size, generator=generator) for stream in model.streams)


def _replace(model, mixer, index=0):
    model.set_submodule(model.mixers()[index], mixer)
    return model.eval()


@pytest.mark.fast_cases("vit-Identity")
@pytest.mark.parametrize(
    ("family", "mixer"),
    [*((name, nn.Identity) for name in FAMILIES), (FAMILIES[0], lambda: nn.Sequential(nn.Identity(), nn.Dropout(0.5)))],
)
def test_a_mixer_that_takes_the_tokens_alone(family, mixer):
    model = _replace(build(family, 1), mixer())
    inputs = _inputs(model)
    out = model(*inputs)
    assert not torch.equal(out, build(family, 1)(*inputs))
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(*inputs), out)
    assert torch.isfinite(explain(model, inputs, "gradcam").map).all()
    with pytest.raises(ConfigError, match="does not report how it mixes tokens"):
        explain(model, inputs, "rollout")


# Compiling takes seconds; all families call their mixers by the same function.
@pytest.mark.slow
@pytest.mark.parametrize(("family", "mixer"), [*((name, nn.Identity) for name in FAMILIES), ("vit", _Whole)])
def test_a_mixer_breaks_no_graph(family, mixer):
    model = _replace(build(family, 1), mixer())
    inputs = _inputs(model)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(*inputs), model(*inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_adds_the_normalised_tokens(family):
    """The residual connection then adds what the norm gave; a mixer of zeros adds nothing."""
    model = _replace(build(family, 1), nn.Identity())
    name = model.mixers()[0]
    seen = {}
    model.get_submodule(name).register_forward_hook(lambda module, args, out: seen.update(same=out is args[0]))
    model(*_inputs(model))
    assert seen["same"]


def test_a_mixer_gets_the_layout_where_it_takes_it():
    model = _replace(build("vit", 1), _Whole())
    model(*_inputs(model))
    block = model.blocks[0]
    x = torch.randn(2, 5, block.norm1.normalized_shape[0])
    torch.testing.assert_close(block(x, (2, 2), 1), x + block.mlp(block.norm2(x)))


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_of_torch_needs_a_wrapper(family):
    model = _replace(build(family, 1), nn.MultiheadAttention(8, 2))
    with pytest.raises(ConfigError, match=r"MultiheadAttention in .* has forward\(query, key.*docs/extend"):
        model(*_inputs(model))
    model = _replace(model, _Pair())
    with pytest.raises(ConfigError, match="_Pair in place of attention returns a tuple; a mixer returns the"):
        model(*_inputs(model))


@pytest.mark.fast_cases("swin", "vit")
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_in_a_sequence_is_still_captured(family):
    model, plain = build(family, 1), build(family, 1)
    for name in model.mixers():
        model.set_submodule(name, nn.Sequential(model.get_submodule(name), nn.Dropout(0.5)))
    model.eval()
    inputs = _inputs(model)
    torch.testing.assert_close(model(*inputs), plain(*inputs))
    found, expected = (explain(one, inputs, "rollout") for one in (model, plain))
    for stream in expected:
        torch.testing.assert_close(found[stream].map, expected[stream].map)
