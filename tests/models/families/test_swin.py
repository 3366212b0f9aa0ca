"""Swin against the golden files and against what it promises."""

import random

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import vitrail
from tests.golden_files import read_golden, relative_error, run
from tests.tiers import fast_first
from vitrail.errors import ConfigError, WeightsError
from vitrail.layers import AttentionTap

TINY = {
    "img_size": 64, "patch_size": 4, "embed_dim": 8, "depths": (2, 2, 2), "num_heads": (1, 2, 4),
    "window_size": 4, "num_classes": 5,
}  # fmt: skip


@pytest.mark.slow_cases("swin_hf-huggingface-0", "swin_torchvision-torchvision-6")
@pytest.mark.parametrize(
    ("name", "source", "dropped"),
    [
        ("swin_timm", "timm", 0),
        ("swin_microsoft", "microsoft", 8),
        ("swin_torchvision", "torchvision", 6),
        ("swin_torchvision_any_size", "torchvision", 6),
        ("swin_hf", "huggingface", 0),
    ],
)
def test_equals_the_reference(name, source, dropped):
    golden = read_golden(name)
    golden.config.pop("stochastic_depth_prob", None)
    model = vitrail.create_model("swin", **golden.config, mask_padding="any_size" not in name)
    report = vitrail.load_weights(model, golden.state)
    assert report.source == source
    assert set(report.loaded) == set(model.state_dict())
    assert len(report.dropped) == dropped
    assert relative_error(run(model, golden), golden.outputs["logits"]) < 1e-5
    if "features" in golden.outputs:
        with torch.no_grad():
            features = model.forward_features(*golden.inputs.values())
        assert relative_error(features, golden.outputs["features"]) < 1e-5


def test_masked_padding_differs_from_the_reference_where_there_is_padding():
    golden = read_golden("swin_torchvision_any_size")
    golden.config.pop("stochastic_depth_prob", None)
    model = vitrail.create_model("swin", **golden.config)
    vitrail.load_weights(model, golden.state)
    assert relative_error(run(model, golden), golden.outputs["logits"]) > 1e-3


def _former_hugging_face_names(state):
    """The names before transformers 5."""
    names = {
        ".attention.q_proj.": ".attention.self.query.",
        ".attention.k_proj.": ".attention.self.key.",
        ".attention.v_proj.": ".attention.self.value.",
        ".attention.o_proj.": ".attention.output.dense.",
        ".attention.relative_position_bias.": ".attention.self.",
        ".mlp.fc1.": ".intermediate.dense.",
        ".mlp.fc2.": ".output.dense.",
    }
    out = {}
    for key, value in state.items():
        for new, old in names.items():
            key = key.replace(new, old)
        out[key] = value
        if key.endswith("relative_position_bias_table"):
            out[key.replace("bias_table", "index")] = torch.zeros(16, 16, dtype=torch.int64)
    return out


def test_former_names_of_hugging_face():
    golden = read_golden("swin_hf")
    model = vitrail.create_model("swin", **golden.config)
    state = _former_hugging_face_names(golden.state)
    assert state.keys().isdisjoint(k for k in golden.state if ".mlp." in k or "_proj." in k)
    report = vitrail.load_weights(model, state)
    assert report.source == "huggingface"
    assert len(report.dropped) == 4
    assert relative_error(run(model, golden), golden.outputs["logits"]) < 1e-5


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("swin_tiny_patch4_window7_224", 28_288_354),
        ("swin_small_patch4_window7_224", 49_606_258),
        ("swin_base_patch4_window7_224", 87_768_224),
        ("swin_large_patch4_window7_224", 196_532_476),
        ("swin_base_patch4_window12_384", 87_903_584),
        ("swin_large_patch4_window12_384", 196_735_516),
    ],
)
@pytest.mark.fast_cases("swin_base_patch4_window7_224-87768224", "swin_large_patch4_window12_384-196735516")
def test_parameter_counts(name, parameters):
    with torch.device("meta"):
        model = vitrail.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("seed", fast_first(range(12), 4))
def test_any_settings_any_size(seed):
    rng = random.Random(seed)
    patch, window = rng.choice([2, 4, 5]), (rng.randint(1, 7), rng.randint(1, 7))
    stages = rng.randint(1, 3)
    settings = {
        "img_size": (patch * rng.randint(1, 20), patch * rng.randint(1, 20)),
        "patch_size": patch,
        "in_chans": rng.randint(1, 6),
        "embed_dim": 12,
        "depths": tuple(rng.randint(1, 3) for _ in range(stages)),
        "num_heads": tuple(rng.choice([1, 2, 3]) for _ in range(stages)),
        "window_size": window,
        "num_classes": rng.randint(2, 7),
        "mask_padding": rng.random() < 0.5,
    }
    model = vitrail.create_model("swin", **settings).eval()
    for _ in range(3):
        H, W = rng.randint(patch, 20 * patch), rng.randint(patch, 20 * patch)
        x = torch.randn(2, settings["in_chans"], H, W)
        with torch.no_grad():
            logits = model(x)
            levels = model.forward_intermediates(x, intermediates_only=True)
        assert logits.shape == (2, settings["num_classes"])
        assert torch.isfinite(logits).all()
        assert len(levels) == stages
        for level, info in zip(levels, model.feature_info, strict=True):
            assert level.shape == (2, info.channels, -(-H // info.stride[0]), -(-W // info.stride[1]))
        with torch.no_grad():
            assert torch.allclose(model(x[:1]), logits[:1], atol=1e-5)


def test_padded_tokens_reach_nothing():
    """Far from the window that was filled up, and far from where later stages carry it, nothing changes."""
    settings = {**TINY, "depths": (1,), "num_heads": (1,)}
    model = vitrail.create_model("swin", **settings).eval()
    x = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        whole = model.forward_features(x)
        # 8 of the 10 x 10 tokens fill windows of their own; the other two rows and columns are a padded rest.
        rest = model.forward_features(x[:, :, 32:, 32:])
        inner = model.forward_features(x[:, :, :32, :32])
    assert torch.allclose(whole[:, :8, :8], inner, atol=1e-5)
    assert torch.allclose(whole[:, 8:, 8:], rest, atol=1e-5)


def test_every_second_block_shifts_unless_the_map_is_one_window():
    model = vitrail.create_model("swin", **TINY)
    shifts = {}
    for name, module in model.named_modules():
        tap = getattr(module, "tap", None)
        if isinstance(tap, AttentionTap):
            tap.consumer = lambda _weights, layout, name=name: shifts.update({name: layout.shift})
    model(torch.randn(1, 3, 64, 32))
    blocks = {name: shift for name, shift in shifts.items() if name.endswith("attn")}
    assert blocks == {
        "layers.0.blocks.0.attn": (0, 0), "layers.0.blocks.1.attn": (2, 2),
        "layers.1.blocks.0.attn": (0, 0), "layers.1.blocks.1.attn": (2, 0),
        "layers.2.blocks.0.attn": (0, 0), "layers.2.blocks.1.attn": (0, 0),
    }  # fmt: skip


def test_no_weight_decay_on_relative_positions():
    model = vitrail.create_model("swin", **TINY)
    assert len(model.no_weight_decay()) == 6
    assert all(name.endswith("relative_position_bias_table") for name in model.no_weight_decay())


def test_layer_groups_follow_the_depth():
    model = vitrail.create_model("swin", **TINY)
    groups = model.layer_groups()
    assert len(groups) == 1 + 6 + 1
    assert "layers.1.downsample.reduction.weight" in groups[3]
    assert "head.fc.weight" in groups[-1]


def test_another_window_resamples_the_tables():
    small, large = (vitrail.create_model("swin", **{**TINY, "img_size": 128, "window_size": w}) for w in (4, 8))
    state = small.state_dict()
    report = vitrail.load_weights(large, state)
    assert len(report.resampled) == 6
    assert report.resampled["layers.0.blocks.0.attn.relative_position_bias_table"] == (
        "relative positions from 4 x 4 to 8 x 8, bicubic"
    )
    key = "layers.1.blocks.1.attn.relative_position_bias_table"
    old, new = state[key].view(7, 7, 2), large.state_dict()[key].view(15, 15, 2)
    assert torch.allclose(new[7, 7], old[3, 3], atol=1e-6)
    # Growing keeps the corners near where they were.
    assert (new[0, 0] - old[0, 0]).abs().max() < 0.05


def test_tables_of_a_window_that_shrank_to_its_map_move_to_the_middle():
    """timm and the authors build the last stage of this model, a map of 4 x 4, with a window of 4, not 6."""
    model = vitrail.create_model("swin", **{**TINY, "window_size": 6}).eval()
    state = model.state_dict()
    for j in range(2):
        key = f"layers.2.blocks.{j}.attn.relative_position_bias_table"
        state[key] = state[key].view(11, 11, 4)[2:-2, 2:-2].reshape(49, 4)
    other = vitrail.create_model("swin", **{**TINY, "window_size": 6}).eval()
    report = vitrail.load_weights(other, state)
    assert set(report.resampled.values()) == {"relative positions of a 4 x 4 window put in the middle of ours"}
    assert len(report.resampled) == 2
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), other(x))


def test_tables_that_cannot_fit_are_refused():
    model = vitrail.create_model("swin", **TINY)
    state = model.state_dict()
    state["layers.0.blocks.0.attn.relative_position_bias_table"] = torch.zeros(50, 1)
    with pytest.raises(WeightsError, match=r"relative_position_bias_table has shape \(50, 1\)"):
        vitrail.load_weights(model, state)


def test_kept_bias_follows_the_weights():
    """What evaluation keeps must not survive a training step or other weights."""
    model = vitrail.create_model("swin", **TINY).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
    optimiser = torch.optim.SGD([p for n, p in model.named_parameters() if "relative" in n], lr=100.0)
    model(x).square().sum().backward()
    optimiser.step()
    fresh = vitrail.create_model("swin", **TINY).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        after = model(x)
        assert not torch.allclose(before, after)
        assert torch.equal(after, fresh(x))


@pytest.mark.slow
@pytest.mark.parametrize("mask_padding", [True, False])
def test_compiled_training_on_a_padded_map(mask_padding):
    torch.compiler.reset()
    settings = {**TINY, "depths": (2,), "num_heads": (2,), "mask_padding": mask_padding}
    model = vitrail.create_model("swin", **settings)
    x = torch.randn(2, 3, 40, 28)
    results = []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        logits = call(x)
        logits.square().sum().backward()
        results.append([logits.detach()] + [p.grad.clone() for p in model.parameters()])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(eager, compiled, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiled_by_inductor():
    torch.compiler.reset()
    model = vitrail.create_model("swin", **TINY).eval()
    compiled = torch.compile(model, fullgraph=True)
    for size in ((64, 64), (40, 72)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert torch.allclose(compiled(x), model(x), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 8}, "window_size'"),
        ({"window_size": 0}, "window_size must be a positive"),
        ({"depths": (2, 2)}, "one value a stage each, got 2 depths and 3 num_heads"),
        ({"depths": (2, 0, 2)}, "depths must be whole numbers of at least 1"),
        ({"depths": 2}, "depths must be a list"),
        ({"num_heads": (3, 2, 4)}, "num_heads must divide the width 8, got 3"),
        ({"img_size": 3}, "smaller than one patch"),
        ({"drop_path_rate": 1.0}, "below 1"),
        ({"mlp_ratio": 0}, "mlp_ratio must be above 0"),
        ({"in_chans": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        vitrail.create_model("swin", **{**TINY, **settings})


@pytest.mark.slow
def test_one_graph_serves_all_sizes():
    torch.compiler.reset()
    counter = CompileCounter()
    model = vitrail.create_model("swin", **{**TINY, "depths": (2, 2), "num_heads": (1, 2)}).eval()
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    # Sizes that need padding in no, some or all places; each map is larger than the window.
    for size in ((60, 64), (96, 72), (40, 72), (64, 64), (33, 47)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert torch.allclose(compiled(x), model(x), atol=1e-5)
    assert counter.frame_count == 1
