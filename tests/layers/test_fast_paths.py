"""Each fast path equals the plain code: outputs, gradients, hooks, over random sizes and layers."""

import copy
import random
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiers import fast_first, fast_paths_on
from vitrail.errors import ConfigError
from vitrail.layers.attention import fused_attention
from vitrail.layers.block import Block
from vitrail.layers.fast import attention, dispatch, mbconv, mlp
from vitrail.layers.fast.dispatch import fast_path_names, with_fast_path, without_fast_paths
from vitrail.layers.hierarchy import MapAttention
from vitrail.layers.mbconv import TENSORFLOW, TORCHVISION, MBConv, Stem
from vitrail.layers.mlp import Mlp
from vitrail.layers.partition_attention import PartitionAttention
from vitrail.layers.patches import PatchEmbed
from vitrail.layers.point_graphs import VNEdgeConv, fading_neighbors, nearest_points
from vitrail.layers.window_attention import ShiftedWindowAttention, WindowAttention

pytestmark = fast_paths_on

ROOT = Path(__file__).parents[2]


def _window(rng):
    window = (rng.randint(2, 5), rng.randint(2, 5))
    return window, (rng.randrange(window[0]), rng.randrange(1, window[1]))


def _map(rng, channels):
    return torch.randn(rng.randint(1, 3), rng.randint(1, 12), rng.randint(1, 12), channels)


def _windows(rng, kind=WindowAttention):
    settings = rng.choice([(True, False), (False, False), (False, True)])
    return kind(8, 2, *_window(rng), True, *settings), _map(rng, 8)


def _block(rng):
    settings = {
        "act_layer": rng.choice(["gelu", "gelu_tanh", "silu"]),
        "norm_layer": rng.choice(["layernorm", "rmsnorm"]),
        "mlp_layer": rng.choice(["mlp", "swiglu"]),
        "init_values": rng.choice([None, 0.1]),
    }
    return Block(8, WindowAttention(8, 2, *_window(rng), qk_norm=rng.random() < 0.5), **settings), _map(rng, 8)


def _mbconv(rng):
    stride, flavour = rng.choice([1, 2]), rng.choice([TENSORFLOW, TORCHVISION])
    return MBConv(8, 8, stride, flavour), torch.randn(rng.randint(2, 3), 8, rng.randint(1, 20), rng.randint(3, 20))


def _stem(rng):
    flavour = rng.choice([TENSORFLOW, TORCHVISION])
    return Stem(3, 8, flavour, rng.random() < 0.5), torch.randn(2, 3, rng.randint(2, 20), rng.randint(2, 20))


class _Edges(nn.Module):
    """A convolution along the edges of a random graph; some with a mask in training, or with weights."""

    def __init__(self, rng):
        super().__init__()
        self.masked, self.weighted = rng.random() < 0.5, rng.random() < 0.5
        self.conv = VNEdgeConv(4, 5, rng.choice(["mean", "max"]), rng.choice([0.0, 0.2]), cross=rng.random() < 0.5)

    def forward(self, x):
        mask = torch.arange(x.shape[1]).expand(len(x), -1) < 4 if self.masked else None
        if self.weighted:
            index, weights = fading_neighbors(x.flatten(2), 4, mask)
            return self.conv(x, index, mask, weights)
        return self.conv(x, nearest_points(x.flatten(2), 4, mask), mask)


def _edges(rng):
    return _Edges(rng), torch.randn(rng.randint(2, 3), rng.randint(4, 12), rng.choice([3, 5]), 4)


# A random layer and an input.
LAYERS = {
    "window attention": _windows,
    "window attention without positions": lambda rng: _windows(rng, ShiftedWindowAttention),
    "attention on maps": lambda rng: (MapAttention(8, 2, window=(3, 4), shifted=True), _map(rng, 8)),
    "windows of MaxViT": lambda rng: (PartitionAttention(8, 4, (3, 2), "window"), _map(rng, 8)),
    "grids of MaxViT": lambda rng: (PartitionAttention(8, 4, (3, 2), "grid"), _map(rng, 8)),
    "MLP": lambda rng: (Mlp(8, 16, act_layer=rng.choice(["gelu", "gelu_tanh", "silu"])), _map(rng, 8)),
    "MBConv": _mbconv,
    "stem": _stem,
    "patches": lambda rng: (PatchEmbed(3, 8, 4), torch.randn(2, 3, rng.randint(4, 20), rng.randint(4, 20))),
    "block": _block,
    "edges of vectors": _edges,
}


@pytest.fixture
def _small_limits(monkeypatch):
    """Every part of the fast paths runs in pieces, as on large images."""
    for name in ("_LARGE", "_PIECE", "_LARGE_TRAINING", "_PIECE_TRAINING"):
        monkeypatch.setattr(mlp, name, 64)
    monkeypatch.setattr(mbconv, "_WIDE_MAP", 400)
    monkeypatch.setattr(mbconv, "_WORKING_SET", 400)
    monkeypatch.setattr(attention, "_LARGE_BIAS", 1)


def _run(layer, x, gradients):
    layer, x = copy.deepcopy(layer), x.clone().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        out = layer(x)
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    found = (
        torch.autograd.grad((out * weight).sum(), [x, *(p for p in layer.parameters() if p.requires_grad)])
        if gradients
        else []
    )
    return [out, *found, *(buffer for buffer in layer.buffers() if buffer.is_floating_point())]


def _assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(1.0, b.abs().max().item() if b.numel() else 1.0))


@pytest.mark.slow_cases("block-1-True")
@pytest.mark.usefixtures("_small_limits")
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("seed", fast_first(range(20), 2))
@pytest.mark.parametrize("name", LAYERS)
def test_equal_outputs_and_gradients(name, seed, gradients):
    rng = random.Random(f"{name}{seed}")
    layer, x = LAYERS[name](rng)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    layer.train(gradients and rng.random() < 0.5)
    with without_fast_paths():
        expected = _run(layer, x, gradients)
    for _ in range(2):  # what is cached in between changes nothing
        _assert_equal(_run(layer, x, gradients), expected)
    # Each alone.
    for path in rng.sample(fast_path_names(), 3):
        with without_fast_paths(*(other for other in fast_path_names() if other != path)):
            _assert_equal(_run(layer, x, gradients), expected)


@pytest.mark.usefixtures("_small_limits")
@pytest.mark.parametrize("seed", fast_first(range(10), 3))
@pytest.mark.parametrize("name", LAYERS)
def test_a_hook_on_any_part_sees_the_plain_computation(name, seed):
    rng = random.Random(f"{name}{seed}")
    layer, x = LAYERS[name](rng)
    parts = [(path, part) for path, part in layer.named_modules() if path]
    path, part = rng.choice(parts)
    seen = []
    part.register_forward_hook(lambda _module, _args, out: seen.append(out.clone()))
    with torch.no_grad():
        layer.eval()
        for switch in (nullcontext(), without_fast_paths()):
            with switch:
                layer(x)
    assert len(seen) == 2, path
    _assert_equal(seen[:1], seen[1:])


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("trained", [True, False])
def test_attention_with_biases_of_groups(trained, groups, images, monkeypatch):
    monkeypatch.setattr(attention, "_LARGE_BIAS", 1)
    q, k, v = torch.randn(3, images, 4, 2, 6, 8)
    bias = torch.randn(groups, 2, 6, 6, requires_grad=trained)
    with without_fast_paths():
        expected = fused_attention(q, k, v, bias)
    torch.testing.assert_close(fused_attention(q, k, v, bias), expected, rtol=1e-4, atol=1e-5)


def test_every_fast_path_replaces_something():
    for name, paths in dispatch._PATHS.items():
        assert paths, name


def test_the_table_of_contributing_lists_every_fast_path_with_its_length():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (?:`(\w+\.py)`, (\d+)|the same) \|$", text, re.MULTILINE)
    assert sorted(name for name, *_ in rows) == sorted(fast_path_names())
    for _, file, lines in rows:
        if file:
            code = (ROOT / "src" / "vitrail" / "layers" / "fast" / file).read_text(encoding="utf-8")
            assert (file, len(code.splitlines())) == (file, int(lines))


def test_switching(monkeypatch):
    monkeypatch.setattr(dispatch, "_PATHS", {})
    answer = with_fast_path("answer")(lambda x: f"plain {x}")
    dispatch.fast_path("answer", when=lambda x: x > 1)(lambda x: f"fast {x}")
    assert (answer(1), answer(2)) == ("plain 1", "fast 2")
    with without_fast_paths():
        assert answer(2) == "plain 2"
        with without_fast_paths("answer"):
            assert answer(2) == "plain 2"
        assert answer(2) == "plain 2"
    assert answer(2) == "fast 2"
    with pytest.raises(ConfigError, match="unknown fast path 'anwser'; there are answer"), without_fast_paths("anwser"):
        pass


def test_the_environment_switches_all(monkeypatch):
    for value, expected in (("0", False), ("1", True)):
        monkeypatch.setenv("VITRAIL_FAST", value)
        assert dispatch._read_switch() is expected
    monkeypatch.setenv("VITRAIL_FAST", "no")
    with pytest.raises(ConfigError, match=r"VITRAIL_FAST must be 0 .* or 1, got 'no'"):
        dispatch._read_switch()


def test_plain_attention_of_a_window_is_softmax_of_its_tokens():
    """The plain code alone against attention that is written out, on a map of one window."""
    layer, x = WindowAttention(8, 2, (3, 4)), torch.randn(2, 3, 4, 8)
    with without_fast_paths():
        q, k, v = layer.qkv(x).view(2, 12, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / 2 + layer.position_bias((3, 4))
        expected = layer.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 3, 4, 8))
        torch.testing.assert_close(layer(x), expected)
