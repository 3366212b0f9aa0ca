"""Graphs for dynamic sizes take the indices of tokens in groups from operators opaque to the compiler."""

import random

import pytest
import torch

import vitrail
from tests.tiers import fast_first, fast_paths_on
from vitrail.layers import modes
from vitrail.layers.fast import positions, window_attention
from vitrail.layers.fast.positions import resampling_weights
from vitrail.layers.fast.relative_position import index_in_table
from vitrail.layers.fast.window_attention import window_indices
from vitrail.layers.partition_attention import PartitionAttention
from vitrail.layers.positions import resample_positions
from vitrail.layers.window_attention import WindowAttention

pytestmark = fast_paths_on


def _layer(kind, rng):
    window = (rng.randint(1, 5), rng.randint(1, 5))
    if kind in ("window", "grid"):
        return PartitionAttention(8, 4, window, kind).double()
    shift = (rng.randrange(window[0]), rng.randrange(window[1]))
    settings = {"masked": (True, False), "as they are": (False, False), "after": (False, True)}[kind]
    return WindowAttention(8, 2, window, shift, True, *settings).double()


@pytest.mark.parametrize("seed", fast_first(range(12), 3))
@pytest.mark.parametrize("kind", ["masked", "as they are", "after", "window", "grid"])
@pytest.mark.fast_cases("masked-0", "after-1", "grid-1")
def test_the_same_comes_out_with_the_same_gradients(kind, seed, monkeypatch):
    rng = random.Random(f"{kind}{seed}")
    torch.manual_seed(seed)
    layer = _layer(kind, rng)
    x = torch.randn(2, rng.randint(1, 11), rng.randint(1, 11), 8, dtype=torch.float64, requires_grad=True)
    results = []
    for dynamic in (False, True):
        monkeypatch.setattr(window_attention, "in_compiler", lambda answer=dynamic: answer)
        monkeypatch.setattr(window_attention, "is_dynamic", lambda _, answer=dynamic: answer)
        out = layer(x)
        weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
        results.append([out, *torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()])])
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("seed", fast_first(range(12), 4))
def test_resampled_positions_are_torchs_with_their_gradients(seed, monkeypatch):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    old, new = ((rng.randint(1, 9), rng.randint(1, 9)) for _ in range(2))
    prefix = rng.randrange(3)
    table = torch.randn(1, prefix + old[0] * old[1], 5, dtype=torch.float64, requires_grad=True)
    results = []
    for answer in (False, True):
        monkeypatch.setattr(positions, "is_dynamic", lambda _, answer=answer: answer)
        out = resample_positions(table, old, new, prefix)
        weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
        results.append([out, *torch.autograd.grad((out * weight).sum(), [table])])
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    fast_first(
        [(window_indices, ([3, 4], [1, 2], "window", True, False)), (resampling_weights, (5, 3)),
         (index_in_table, ([2, 3], [4, 3])), (window_indices, ([2, 2], [0, 0], "window", False, False)),
         (window_indices, ([3, 4], [0, 0], "grid", True, False))], 3),
)  # fmt: skip
def test_the_operators_are_as_they_are_declared(operator, arguments):
    torch.library.opcheck(operator, (torch.randn(1, 7, 6, 2), *arguments))


@pytest.mark.slow
@pytest.mark.parametrize("knows", [True, False])  # False: as with torch 2.11
@pytest.mark.parametrize("name", fast_first(["swin of one stage", "swin", "maxvit"], 1))
def test_compiled_graphs_call_the_operators_and_exported_ones_do_not(name, knows, monkeypatch):
    monkeypatch.setattr(modes, "_KNOWS_EXPORT", knows)
    torch.compiler.reset()
    torch.manual_seed(0)
    model = vitrail.create_model(name.split()[0], img_size=60, num_classes=5, **MODELS[name]).eval()
    x, called = torch.randn(1, 3, 60, 60), set()

    def backend(graph, inputs):
        called.update(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend, fullgraph=True)(x), model(x))
    assert {name for name in called if "vitrail" in name} == {
        "vitrail.window_indices.default",
        "vitrail.index_in_table.default",
    }
    program = torch.export.export(model, (x,))
    assert not [node for node in program.graph.nodes if "vitrail" in str(node.target)]


HIERARCHY = {"patch_size": 4, "embed_dim": 8, "num_heads": (1, 2)}
MODELS = {
    "vit": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "swin": {**HIERARCHY, "depths": (2, 2), "window_size": 4},
    "swin of one stage": {**HIERARCHY, "depths": (2,), "num_heads": (1,), "window_size": 4},
    "maxvit": {"stem_width": 8, "embed_dim": (8, 16), "depths": (1, 1), "dim_head": 4, "window_size": 4},
    "hvt": {**HIERARCHY, "depths": (2, 1)},
    "hvt in windows": {**HIERARCHY, "depths": (2, 1), "attention": 4},
}
# Not MaxViT's training: of its convolutions' gradients torch 2.13 cannot compare the strides.
TRAINED = [name for name in MODELS if name != "maxvit"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "training"), [*((name, False) for name in MODELS), *((name, True) for name in TRAINED)]
)
def test_inductor_compiles_once_for_all_sizes(name, training):
    torch.compiler.reset()
    torch.manual_seed(0)
    model = vitrail.create_model(name.split()[0], img_size=64, num_classes=5, **MODELS[name]).train(training)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for number, size in enumerate([(60, 64), (40, 72), (33, 47), (64, 64)]):
        x = torch.randn(2, 3, *size)
        results = []
        with torch.set_grad_enabled(training), torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            for call in (model, compiled):
                model.zero_grad()
                logits = call(x)
                if training:
                    logits.square().sum().backward()
                results.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if training)])
        for eager, made in zip(*results, strict=True):
            torch.testing.assert_close(made, eager, rtol=1e-3, atol=1e-4)
