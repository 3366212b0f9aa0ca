"""Swin for clips: torchvision's outputs and sizes, windows against a dense mask, any length and size."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import vitrail
from tests.golden_files import read_golden, relative_error
from vitrail.errors import ConfigError
from vitrail.explain import explain
from vitrail.explain.capture.record import capture_attention
from vitrail.layers.window_attention_3d import WindowAttention3d
from vitrail.models.profile import count_parameters

SIZES = {
    "num_frames": 8,
    "img_size": 32,
    "tubelet_size": (2, 4, 4),
    "embed_dim": 24,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": (2, 4, 4),
    "num_classes": 5,
}


def _build(**settings):
    torch.manual_seed(0)
    return vitrail.create_model("swin3d", **{**SIZES, **settings}).eval()


@pytest.mark.parametrize("name", ["swin3d_torchvision", "swin3d_torchvision_any_size"])
def test_outputs_of_torchvision(name):
    golden = read_golden(name)
    model = _build(mask_padding=False)
    report = vitrail.load_weights(model, golden.state)
    assert report.source == "torchvision"
    with torch.no_grad():
        assert relative_error(model(golden.inputs["video"]), golden.outputs["logits"]) < 1e-5
        assert relative_error(model.forward_features(golden.inputs["video"]), golden.outputs["features"]) < 1e-5


@pytest.mark.fast_cases("tiny-28158070")
@pytest.mark.parametrize(("size", "count"), [("tiny", 28_158_070), ("small", 49_816_678), ("base", 88_048_984)])
def test_parameters_of_the_variants(size, count):
    with torch.device("meta"):
        assert count_parameters(vitrail.create_model(f"swin3d_{size}_patch4x2_window7x8_224")) == count


@pytest.mark.fast_cases("shift0-grid2", "shift0-grid3", "shift1-grid2", "shift1-grid3")
@pytest.mark.parametrize("grid", [(4, 6, 8), (5, 7, 6), (2, 9, 3), (1, 4, 5)])
@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 2, 1)])
def test_windows_by_a_dense_mask(grid, shift):
    """Tokens attend to those of their window that lie beside them in the clip; padding is not a key."""
    torch.manual_seed(0)
    window = (2, 4, 3)
    attn = WindowAttention3d(8, 2, window, shift).double()
    x = torch.randn(2, *grid, 8, dtype=torch.float64)
    at = list(itertools.product(*map(range, grid)))
    bias = torch.full((2, len(at), len(at)), float("-inf"), dtype=torch.float64)
    table = attn.relative_position_bias_table.view(3, 7, 5, 2)
    for i, j in itertools.product(range(len(at)), repeat=2):
        together, offset = True, []
        for a, b, length, size, step in zip(at[i], at[j], grid, window, shift, strict=True):
            offset.append(a - b + size - 1)
            if length <= size:
                continue
            together &= _window(a, length, size, step) == _window(b, length, size, step)
        if together:
            bias[:, i, j] = table[tuple(offset)].detach()
    q, k, v = attn.qkv(x.flatten(1, 3)).view(2, len(at), 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = attn.proj(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))
    assert torch.allclose(attn(x).flatten(1, 3), expected, atol=1e-10)


def _window(index, length, size, shift):
    """Window of a position after padding and shift, and whether it was rolled from the start to the end."""
    padded = -(-length // size) * size
    return (index - shift) % padded // size, index < shift


@pytest.mark.parametrize("size", [(8, 32, 32), (7, 37, 44), (2, 16, 24), (17, 33, 20)], ids=str)
def test_any_length_and_size(size):
    model = _build().train()
    clips = torch.randn(2, 3, *size)
    model(clips).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.fast_cases("(8, 32, 32)")
@pytest.mark.parametrize("size", [(8, 32, 32), (7, 37, 44)], ids=str)
def test_observed_attention_and_explanations(size):
    model = _build().double()
    clips = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad(), capture_attention(model) as record:
        assert torch.allclose(model(clips), model(clips), atol=1e-9)
    assert set(model.mixers()) <= {step.name for step in record.steps}
    found = explain(model, clips, "rollout")
    assert found.map.shape == (2, *size)
    assert torch.allclose(found.tokens.sum(dim=(1, 2, 3)), torch.ones(2), atol=1e-4)
    assert explain(model, clips, "gradcam").map.shape == (2, *size)


@pytest.mark.slow
def test_compiles_and_exports():
    torch.compiler.reset()
    model, clips = _build(), torch.randn(2, 3, 7, 37, 32)
    with torch.no_grad():
        expected = model(clips)
        assert torch.allclose(torch.compile(model, fullgraph=True, backend="eager")(clips), expected, atol=1e-5)
    program = torch.export.export(model, (clips,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=16)},))
    with torch.no_grad():
        assert torch.allclose(program.module()(clips[:1]), expected[:1], atol=1e-5)


def test_class_tokens_are_refused_with_the_reason():
    with pytest.raises(ConfigError, match="windows hold tubelets alone"):
        _build(class_token=True)
