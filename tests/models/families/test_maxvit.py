"""MaxViT against the golden files and against what it promises."""

import copy
import random

import pytest
import torch

import vitrail
from tests.golden_files import read_golden, relative_error, run
from tests.tiers import fast_first
from vitrail.errors import ConfigError, ShapeError, WeightsError
from vitrail.layers.partition_attention import PartitionAttention

TINY = {
    "img_size": 64, "stem_width": 8, "embed_dim": (16, 32), "depths": (1, 2), "dim_head": 8, "window_size": 4,
    "num_classes": 10,
}  # fmt: skip


def tiny(randomised=True, **settings):
    model = vitrail.create_model("maxvit", **{**TINY, **settings})
    if randomised:
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor), alpha=0.2)
    return model


def load_golden(name, **settings):
    golden = read_golden(name)
    flavour = "torchvision" if "torchvision" in name else "tf"
    model = vitrail.create_model("maxvit", **{**TINY, "flavour": flavour, **settings})
    return golden, model, vitrail.load_weights(model, golden.state)


@pytest.mark.fast_cases("maxvit_timm_tf")
@pytest.mark.parametrize("name", ["maxvit_timm_tf", "maxvit_torchvision"])
def test_equals_the_reference(name):
    golden, model, report = load_golden(name)
    counters = {key for key in model.state_dict() if key.endswith("num_batches_tracked")}
    assert set(report.loaded) >= set(model.state_dict()) - counters
    assert not report.resampled
    assert relative_error(run(model, golden), golden.outputs["logits"]) < 1e-5
    with_gradients = model(*golden.inputs.values())
    assert relative_error(with_gradients, golden.outputs["logits"]) < 1e-5
    if "features" in golden.outputs:
        with torch.no_grad():
            features = model.forward_features(*golden.inputs.values())
        assert relative_error(features, golden.outputs["features"]) < 1e-5


@pytest.mark.fast_cases("maxvit_timm_tf")
@pytest.mark.parametrize("name", ["maxvit_timm_tf", "maxvit_torchvision"])
def test_own_weights_load_again(name):
    golden, model, _ = load_golden(name)
    other = tiny(flavour=model.config.flavour)
    report = vitrail.load_weights(other, model.state_dict())
    assert not report.resampled
    assert torch.equal(run(other, golden), run(model, golden))


def test_tables_fit_another_window():
    golden, model, report = load_golden("maxvit_timm_tf", window_size=6)
    assert len(report.resampled) == 6
    assert all("from 4 x 4 to 6 x 6" in how for how in report.resampled.values())
    key = "stages.1.blocks.1.attn_grid.attn.rel_pos.relative_position_bias_table"
    # Flipped: timm's tables are by key minus query. The middle, offset 0, stays the middle.
    reference = golden.state[key].flip(1, 2)
    ours = model.state_dict()[key].t().view(4, 11, 11)
    torch.testing.assert_close(ours[:, 5, 5], reference[:, 3, 3], rtol=0, atol=1e-5)
    with pytest.raises(WeightsError, match="relative_position_bias_table"):
        vitrail.load_weights(tiny(), {**model.state_dict(), key: torch.zeros(50, 4)})


@pytest.mark.fast_cases("maxvit_tiny_tf_224-30916528")
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("maxvit_tiny_tf_224", 30_916_528),
        ("maxvit_small_tf_224", 68_927_956),
        ("maxvit_base_tf_224", 119_467_708),
        ("maxvit_large_tf_224", 211_785_560),
        ("maxvit_xlarge_tf_224", 506_987_643),
        ("maxvit_tiny_tf_384", 30_977_008),
        ("maxvit_tiny_tf_512", 31_049_584),
    ],
)
def test_parameter_counts(name, parameters):
    with torch.device("meta"):
        model = vitrail.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_published_numbers_belong_to_variants():
    family = vitrail.models.registry.find_family("maxvit")[0]
    assert set(family.published) < set(family.variants)
    assert family.published["maxvit_large_tf_512"] == 86.70
    assert len(family.variants) == 15


def attend_slowly(attention, x):
    """Each token looks for its group among the real tokens, with loops over places instead of a layout."""
    B, H, W, C = x.shape
    wh, ww = attention.window
    rows, columns = -(-H // wh), -(-W // ww)

    def place(row, column):
        if attention.kind == "window":
            return (row // wh, column // ww), (row % wh, column % ww)
        return (row % rows, column % columns), (row // rows, column // columns)

    heads = attention.num_heads
    q, k, v = (t.view(B, H, W, heads, C // heads) for t in attention.qkv(x).chunk(3, dim=-1))
    table = attention.rel_pos.relative_position_bias_table
    scale = C**-0.5 if attention.score_scale != 1.0 else (C // heads) ** -0.5
    out = torch.empty_like(q)
    tokens = [(i, j) for i in range(H) for j in range(W)]
    for i, j in tokens:
        group, (qi, qj) = place(i, j)
        friends = [t for t in tokens if place(*t)[0] == group]
        inside = [place(*t)[1] for t in friends]
        bias = torch.stack([table[(qi - ki + wh - 1) * (2 * ww - 1) + qj - kj + ww - 1] for ki, kj in inside])
        keys = torch.stack([k[:, a, b] for a, b in friends], 1)
        values = torch.stack([v[:, a, b] for a, b in friends], 1)
        scores = (q[:, i, j, None] * keys).sum(-1) * scale + bias
        out[:, i, j] = (scores.softmax(1)[..., None] * values).sum(1)
    return attention.proj(out.flatten(3))


@pytest.mark.parametrize("seed", fast_first(range(8), 3))
@pytest.mark.parametrize("kind", ["window", "grid"])
def test_attention_in_groups_is_its_definition(kind, seed):
    rng = random.Random(seed)
    window = (rng.randint(1, 4), rng.randint(1, 4))
    attention = PartitionAttention(8, 4, window, kind, scale_by_width=rng.random() < 0.5)
    torch.nn.init.normal_(attention.rel_pos.relative_position_bias_table)
    x = torch.randn(2, rng.randint(1, 9), rng.randint(1, 9), 8)
    expected = attend_slowly(attention, x)
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)
    seen = []
    attention.tap.consumer = lambda weights, layout: seen.append((weights, layout))
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)
    ((weights, layout),) = seen
    n = window[0] * window[1]
    H, W = (size + pad for size, pad in zip(x.shape[1:3], layout.padding, strict=True))
    assert (layout.kind, layout.query_grid, layout.key_grid) == (kind, x.shape[1:3], x.shape[1:3])
    assert layout.window == window
    assert weights.shape == (2 * (H // window[0]) * (W // window[1]), 2, n, n)
    assert torch.isfinite(weights).all()


@pytest.mark.parametrize("kind", ["window", "grid"])
def test_attention_gradients(kind):
    attention = PartitionAttention(4, 2, (2, 3), kind).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, (x,), fast_mode=True)

    def run(table):
        name = "rel_pos.relative_position_bias_table"
        return torch.func.functional_call(attention, {name: table}, (x.detach(),))

    table = attention.rel_pos.relative_position_bias_table.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (table,), fast_mode=True)


@pytest.mark.fast_cases("1-torchvision")
@pytest.mark.parametrize("flavour", ["tf", "torchvision"])
@pytest.mark.parametrize("seed", range(6))
def test_any_settings_any_size(seed, flavour):
    rng = random.Random(seed)
    stages = rng.randint(1, 3)
    settings = {
        "img_size": (rng.randint(16, 80), rng.randint(16, 80)),
        "in_chans": rng.randint(1, 6),
        "stem_width": 4 * rng.randint(1, 3),
        "embed_dim": tuple(8 * rng.randint(1, 3) for _ in range(stages)),
        "depths": tuple(rng.randint(1, 2) for _ in range(stages)),
        "dim_head": rng.choice([4, 8]),
        "window_size": rng.choice([None, 2, 3, (2, 4)]),
        "head_hidden_size": rng.choice([None, 0, 12]),
        "num_classes": rng.randint(2, 7),
        "qkv_bias": rng.random() < 0.5,
        "mlp_ratio": rng.choice([1.0, 2.5, 4.0]),
        "flavour": flavour,
    }
    model = tiny(**settings).eval()
    for _ in range(3):
        H, W = rng.randint(1, 90), rng.randint(1, 90)
        x = torch.randn(2, settings["in_chans"], H, W)
        plain = model(x).detach()
        with torch.no_grad():
            logits = model(x)
            levels = model.forward_intermediates(x, intermediates_only=True)
            features = model.forward_features(x)
        assert logits.shape == (2, settings["num_classes"])
        torch.testing.assert_close(logits, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())
        assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
        assert len(levels) == stages + 1
        for level, info in zip(levels, model.feature_info, strict=True):
            assert level.shape == (2, info.channels, -(-H // info.stride[0]), -(-W // info.stride[1]))
        with torch.no_grad():
            alone = model(x[1:])
        torch.testing.assert_close(alone, logits[1:], rtol=1e-3, atol=1e-4 * plain.abs().max().item())


def test_trains_on_changing_sizes():
    model = tiny(randomised=False, drop_path_rate=0.2).train()
    for H, W in ((32, 48), (37, 61), (64, 64)):
        model.zero_grad()
        model(torch.randn(3, 3, H, W)).square().sum().backward()
        gradients = [p.grad for p in model.parameters()]
        assert all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_forward_changes_no_state_but_running_statistics():
    model = tiny(randomised=False)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 40, 56)
    model.train()(x)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    running = {key for key in before if key.rsplit(".", 1)[-1] in ("running_mean", "running_var")}
    assert changed == running | {key for key in before if key.endswith("num_batches_tracked")}
    before = copy.deepcopy(model.state_dict())
    model.eval()(x)
    with torch.no_grad():
        first = model(x)
        model(torch.randn(1, 3, 64, 64))
        assert torch.equal(model(x), first)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_norms_adapt_to_new_data_without_gradients():
    model = tiny().eval()
    norms = [m.train() for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    means = [norm.running_mean.clone() for norm in norms]
    with torch.no_grad():
        for size in ((32, 32), (41, 28)):
            model(3 * torch.randn(4, 3, *size) + 1)
    assert {int(norm.num_batches_tracked) for norm in norms} == {2}
    assert not any(torch.allclose(norm.running_mean, mean) for norm, mean in zip(norms, means, strict=True))


def test_inference_follows_the_optimiser_and_loading():
    model = tiny().eval()
    x = torch.randn(1, 3, 64, 64)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)

    def infer():
        with torch.no_grad():
            return model(x)

    before = infer()
    table = model.stages[0].blocks[0].attn_block.attn.rel_pos.relative_position_bias_table
    model(x).square().sum().backward()
    assert table.grad.abs().max() > 0
    optimiser.step()
    after = infer()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model(x).detach(), rtol=1e-4, atol=1e-4 * after.abs().max().item())
    other = tiny().eval()
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(infer(), other(x))
    model.double().float()
    with torch.no_grad():
        torch.testing.assert_close(infer(), other(x))


def test_moving_between_convolution_and_attention_copies_nothing():
    model = tiny().eval()
    seen = []

    def looks_in(_module, args, _out):
        seen.append(args[0].is_contiguous())

    def looks_out(_module, args, _out):
        seen.append(args[0].is_contiguous(memory_format=torch.channels_last))

    for stage in model.stages:
        for block in stage.blocks:
            block.attn_block.register_forward_hook(looks_in)
            block.attn_grid.register_forward_hook(looks_in)
            block.conv.register_forward_hook(looks_out)
    for x in (torch.randn(2, 3, 64, 64), torch.randn(2, 3, 50, 70)):
        model(x)
        with torch.no_grad():
            model(x)
    assert len(seen) == 36
    assert all(seen)


@pytest.mark.slow
@pytest.mark.parametrize(("flavour", "size"), [("tf", (25, 38)), ("torchvision", (32, 32))])
def test_compiles_whole_forward_and_backward(flavour, size):
    torch._dynamo.reset()
    model = tiny(flavour=flavour, embed_dim=(16,), depths=(1,)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, *size)
    expected = model(x)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled(x).square().sum().backward()
    for plain, fast in zip(gradients, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4 * max(1.0, plain.abs().max().item()))


@pytest.mark.slow
def test_one_dynamic_graph_serves_many_sizes():
    torch._dynamo.reset()
    model = tiny(embed_dim=(16,), depths=(1,)).eval()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for H, W in ((32, 48), (35, 26), (64, 17), (23, 50)):
            x = torch.randn(2, 3, H, W)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    # Sizes that differ in how they round to pairs and to windows share the one graph.
    assert len(graphs) == 1


@pytest.mark.slow
def test_exports():
    model = tiny(embed_dim=(16,), depths=(1,)).eval()
    for x in (torch.randn(2, 3, 32, 32), torch.randn(1, 3, 25, 21)):
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)


def test_layer_groups_hold_every_parameter_once():
    with torch.device("meta"):
        model = vitrail.create_model("maxvit_tiny_tf_224")
    groups = model.layer_groups()
    names = [n for group in groups for n in group]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    assert len(groups) == 1 + 11 + 1
    assert len(model.no_weight_decay()) == 22
    assert model.no_weight_decay() <= set(names)


@pytest.mark.fast_cases("0.0")
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.3])
def test_grad_checkpointing_gives_the_same_gradients_and_statistics(drop_path_rate):
    start = tiny(drop_path_rate=drop_path_rate).train()
    x = torch.randn(3, 3, 40, 40)
    results = []
    for enable in (False, True):
        model = copy.deepcopy(start)
        model.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        model(x).square().sum().backward()
        results.append(([p.grad for p in model.parameters()], list(model.buffers())))
    for plain, recomputed in zip(*(gradients + buffers for gradients, buffers in results), strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-3, atol=1e-4 * max(1.0, plain.abs().max().item()))


def test_reset_classifier():
    for flavour in ("tf", "torchvision"):
        model = tiny(flavour=flavour).eval()
        x = torch.randn(2, 3, 32, 32)
        before = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(4)
        assert model(x).shape == (2, 4)
        assert (model.head.fc.bias is None) == (flavour == "torchvision")
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), before)
        assert model.config.num_classes == model.num_classes == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 7}, "window_size'"),
        ({"dim_head": 5}, "dim_head must divide"),
        ({"depths": (1,)}, "one value a stage"),
        ({"embed_dim": (16, 0)}, "embed_dim must be whole numbers of at least 1"),
        ({"embed_dim": 16}, "embed_dim must be a list of whole numbers"),
        ({"window_size": 0}, "window_size must be"),
        ({"flavour": "jax"}, "'tf' or 'torchvision'"),
        ({"drop_path_rate": 1.0}, "below 1"),
        ({"mlp_ratio": 0}, "above 0"),
        ({"in_chans": 0}, "at least 1"),
        ({"head_hidden_size": -1}, "at least 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        vitrail.create_model("maxvit", **{**TINY, **settings})


def test_wrong_images_are_refused():
    model = tiny()
    with pytest.raises(ShapeError, match=r"\(B, 3, H, W\), got \(1, 4, 32, 32\)"):
        model(torch.randn(1, 4, 32, 32))
    with pytest.raises(ShapeError, match="no pixels"):
        model(torch.randn(1, 3, 0, 32))


def test_norms_of_several_gpus_count_a_checkpointed_batch_once():
    states = []
    x = torch.randn(3, 3, 40, 32)
    for checkpointing in (False, True):
        torch.manual_seed(0)
        # Alone in its process it computes what BatchNorm2d does, on a CPU too.
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(tiny(drop_path_rate=0.0)).train()
        model.set_grad_checkpointing(checkpointing)
        model(x).square().sum().backward()
        states.append({k: v.clone() for k, v in model.state_dict().items() if "running" in k or "tracked" in k})
    assert states[0]
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-6) for name in states[0])
