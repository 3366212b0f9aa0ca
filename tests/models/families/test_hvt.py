"""HVT against the golden files and against what it promises."""

import random

import pytest
import torch

import vitrail
from tests.golden_files import read_golden, relative_error, run
from vitrail.errors import ConfigError, ShapeError, WeightsError
from vitrail.layers.hierarchy import MapAttention

# The research code's names of settings, and ours.
NAMES = {
    "embed_dim_rgb": "embed_dim",
    "embed_dim_spectral": "spectral_embed_dim",
    "spectral_channels": "spectral_chans",
    "dfca_num_heads": "fusion_heads",
}
TINY = {
    "img_size": 24, "patch_size": 4, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "num_classes": 3,
    "fusion_heads": 2,
}  # fmt: skip
DUAL = {
    **TINY, "num_heads": (2, 2), "spectral_chans": 5, "spectral_embed_dim": 6, "spectral_img_size": 9,
    "spectral_patch_size": 3,
}  # fmt: skip
FUSIONS = ["cross_attention", "concat"]
EVERY_KIND = [
    {},
    {"attention": 2},
    {**DUAL, "fusion": "cross_attention"},
    {**DUAL, "fusion": "concat", "attention": (2, 3)},
    {**DUAL, "missing_spectral": "learned"},
]


def _golden_model(golden):
    settings = dict(golden.config)
    fusion = "cross_attention" if settings.pop("use_dfca", True) else "concat"
    settings = {NAMES.get(name, name): value for name, value in settings.items()}
    return vitrail.create_model("hvt", fusion=fusion, **settings)


def _tiny(**settings):
    return vitrail.create_model("hvt", **{**TINY, **settings})


def _inputs(model, batch=2, dtype=torch.float32):
    return [torch.randn(batch, *stream.shape, dtype=dtype) for stream in model.streams]


@pytest.mark.parametrize("source", ["auto", "hvit"])
@pytest.mark.parametrize("name", ["hvt_rgb", "hvt_dual_dfca", "hvt_dual_concat"])
@pytest.mark.fast_cases("hvt_rgb-hvit", "hvt_dual_dfca-auto", "hvt_dual_concat-hvit")
def test_equals_the_reference(name, source):
    golden = read_golden(name)
    model = _golden_model(golden)
    report = vitrail.load_weights(model, golden.state, source=source)
    assert report.source == "hvit"
    assert set(report.loaded) == set(model.state_dict())
    assert relative_error(run(model, golden), golden.outputs["logits"]) < 1e-5
    with torch.no_grad():
        tokens = model.encode(*golden.inputs.values())
        features = model.forward_features(*golden.inputs.values())
    for mine, stream in zip(tokens, ("rgb", "spectral"), strict=True):
        if mine is not None:
            assert relative_error(mine.flatten(1, 2), golden.outputs[f"{stream}_features"]) < 1e-5
    assert ("spectral_features" in golden.outputs) == (tokens[1] is not None)
    if tokens[1] is None:
        assert torch.equal(features, tokens[0].flatten(1, 2))


def test_goldens_with_windows_that_hold_the_whole_grid():
    golden = read_golden("hvt_dual_dfca")
    golden.config["attention"] = 8
    model = _golden_model(golden)
    vitrail.load_weights(model, golden.state)
    assert relative_error(run(model, golden), golden.outputs["logits"]) < 1e-5


@pytest.mark.fast_cases("hvt_small-256-16-96-depths0-heads0-12")
@pytest.mark.parametrize(
    ("name", "img_size", "patch", "dim", "depths", "heads", "fusion_heads"),
    [
        ("hvt_small", 256, 16, 96, (2, 2, 6, 2), (3, 6, 12, 24), 12),
        ("hvt_xlarge", 448, 14, 192, (3, 6, 24, 3), (6, 12, 24, 48), 32),
    ],
)
def test_variants(name, img_size, patch, dim, depths, heads, fusion_heads):
    bands = 50
    with torch.device("meta"):
        image_only = vitrail.create_model(name)
        dual = vitrail.create_model(name, spectral_chans=bands)
    tokens = (img_size // patch) ** 2

    def stream(chans):
        count = dim * chans * patch**2 + dim + 2 * dim + tokens * dim
        for i, depth in enumerate(depths):
            C = dim * 2**i
            count += depth * (4 * C * C + 8 * C * C + 4 * C + 5 * C + 4 * C)
            count += (4 * C + 2 * C * C) if i else 0
        return count + 2 * C

    C = dim * 8
    head = 2 * C + 1000 * C + 1000
    fusion = C + 12 * C * C + 4 * C + 5 * C + 4 * C
    assert sum(p.numel() for p in image_only.parameters()) == stream(3) + head
    assert sum(p.numel() for p in dual.parameters()) == stream(3) + stream(bands) + fusion + head
    assert [stage.blocks[0].attn.num_heads for stage in dual.rgb.stages] == list(heads)
    assert dual.fusion.attn.num_heads == fusion_heads
    assert [s.size for s in dual.streams] == [(img_size, img_size)] * 2


def _random_settings(rng):
    depths = tuple(rng.randint(1, 2) for _ in range(rng.randint(1, 3)))
    heads = tuple(rng.choice([1, 2]) for _ in depths)
    patch = rng.choice([3, 4])
    settings = {
        "img_size": (patch * rng.randint(1, 6), patch * rng.randint(1, 6)),
        "patch_size": patch,
        "in_chans": rng.randint(1, 4),
        "embed_dim": 2 * rng.randint(1, 4),
        "depths": depths,
        "num_heads": heads,
        "num_classes": rng.randint(2, 5),
        "qkv_bias": rng.random() < 0.5,
        "attention": rng.choice(["global", rng.randint(1, 4), (rng.randint(1, 4), rng.randint(1, 4))]),
    }
    if rng.random() < 0.7:
        settings |= {
            "spectral_chans": rng.randint(1, 6),
            "spectral_embed_dim": 2 * rng.randint(1, 3),
            "spectral_patch_size": rng.choice([1, 2, 3]),
            "spectral_img_size": (rng.randint(3, 9), rng.randint(3, 9)),
            "fusion": rng.choice(FUSIONS),
            "fusion_heads": rng.choice([1, 2]),
        }
    return settings


@pytest.mark.fast_cases("1", "2", "3")
@pytest.mark.parametrize("seed", range(16))
def test_any_settings_any_size(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    settings = _random_settings(rng)
    model = vitrail.create_model("hvt", **settings)
    strides = [settings["patch_size"], settings.get("spectral_patch_size", 0)]
    for _ in range(3):
        sizes = [(rng.randint(p, 5 * p + 2), rng.randint(p, 5 * p + 2)) for p in strides]
        inputs = [torch.randn(2, s.chans, *size) for s, size in zip(model.streams, sizes, strict=False)]
        model.train()
        model(*inputs).square().sum().backward()
        model.eval()
        with torch.no_grad():
            logits = model(*inputs)
            levels = model.forward_intermediates(*inputs, intermediates_only=True)
        assert logits.shape == (2, settings["num_classes"])
        assert torch.isfinite(logits).all()
        assert len(levels) == len(model.feature_info) == len(settings["depths"]) * len(inputs)
        for level, info in zip(levels, model.feature_info, strict=True):
            H, W = sizes[info.name.startswith("spectral")]
            assert level.shape == (2, info.channels, -(-H // info.stride[0]), -(-W // info.stride[1]))
        with torch.no_grad():
            alone = model(*(x[:1] for x in inputs))
        assert torch.allclose(alone, logits[:1], atol=1e-5)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def _windows_by_hand(layer, x, window, shift):
    """Windowed attention as global attention in which only the tokens of one window see each other."""
    _, H, W, _ = x.shape
    labels = []
    for row in range(H):
        for column in range(W):
            # Cut lines lie at multiples of the window, moved by the shift.
            labels.append(((row - shift[0]) // window[0], (column - shift[1]) // window[1]))
    see = torch.tensor([[a == b for b in labels] for a in labels])
    q, k, v = layer.qkv(x.flatten(1, 2)).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).masked_fill(~see, float("-inf"))
    return layer.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)).view_as(x)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("grid", "window"),
    [((4, 6), (2, 3)), ((5, 7), (2, 3)), ((4, 9), (5, 4)), ((3, 3), (4, 3)), ((7, 7), (4, 4))],
)
@pytest.mark.fast_cases("grid0-window0-False", "grid0-window0-True", "grid2-window2-False", "grid3-window3-True")
def test_windows_by_hand(grid, window, shifted):
    layer = MapAttention(6, 2, window=window, shifted=shifted)
    x = torch.randn(2, *grid, 6)
    clamped = tuple(min(w, g) for w, g in zip(window, grid, strict=True))
    shift = [w // 2 if shifted and g > w else 0 for w, g in zip(clamped, grid, strict=True)]
    seen = []
    out = layer(x)
    assert torch.allclose(out, _windows_by_hand(layer, x, clamped, shift), atol=1e-5)
    layer.tap.consumer = lambda weights, layout: seen.append((weights, layout))
    assert torch.allclose(layer(x), out, atol=1e-5)
    ((weights, layout),) = seen
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]))
    if clamped == grid:
        assert layout.kind == "global"
    else:
        assert (layout.kind, layout.window, list(layout.shift)) == ("window", clamped, shift)
        padded = [g + p for g, p in zip(grid, layout.padding, strict=True)]
        count = (padded[0] // clamped[0]) * (padded[1] // clamped[1])
        assert weights.shape == (2 * count, 2, clamped[0] * clamped[1], clamped[0] * clamped[1])


@pytest.mark.parametrize("settings", EVERY_KIND)
def test_every_layer_that_mixes_tokens_has_a_tap(settings):
    model = _tiny(**settings).eval()
    inputs = _inputs(model)
    kinds = {}
    with torch.no_grad():
        plain = model(*inputs)
        for name, module in model.named_modules():
            if hasattr(module, "tap"):
                module.tap.consumer = lambda w, layout, name=name: kinds.setdefault(name, (w.shape, layout))
        assert torch.allclose(model(*inputs), plain, atol=1e-5)
    streams = ["rgb", "spectral"][: len(inputs)]
    wanted = {f"{s}.stages.{i}.blocks.{j}.attn" for s in streams for i, j in ((0, 0), (1, 0), (1, 1))}
    wanted |= {f"{s}.stages.1.downsample" for s in streams}
    crosses = len(streams) == 2 and model.config.fusion == "cross_attention"
    if len(streams) == 2:
        wanted.add("fusion.attn" if crosses else "fusion")
    assert set(kinds) == wanted
    assert kinds["rgb.stages.0.blocks.0.attn"][1].query_grid == (6, 6)
    assert kinds["rgb.stages.0.blocks.0.attn"][1].kind == ("window" if "attention" in settings else "global")
    assert kinds["rgb.stages.1.downsample"][1].kind == "merge"
    if crosses:
        shape, layout = kinds["fusion.attn"]
        assert (layout.kind, layout.query_grid, layout.key_grid) == ("cross", (3, 3), (2, 2))
        assert shape == (2, 2, 9, 4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_both_streams_matter(fusion):
    model = _tiny(**DUAL, **{"fusion": fusion}).eval()
    rgb, spectral = _inputs(model)
    with torch.no_grad():
        plain = model(rgb, spectral)
        assert not torch.allclose(model(rgb + 1, spectral), plain)
        assert not torch.allclose(model(rgb, torch.randn_like(spectral)), plain)


def test_a_missing_stream_is_an_error():
    model = _tiny(**DUAL)
    rgb, spectral = _inputs(model)
    for inputs in ((rgb,), (rgb, None)):
        for method in (model, model.forward_features, model.forward_intermediates):
            with pytest.raises(ShapeError, match="missing_spectral='learned'"):
                method(*inputs)
    with pytest.raises(ShapeError, match="expected an image and at most one spectral input"):
        model(None, spectral)
    for inputs in ((), (rgb, spectral, spectral)):
        with pytest.raises(TypeError, match="positional argument"):
            model(*inputs)
    with pytest.raises(ShapeError, match="one batch"):
        model(rgb, spectral[:1])
    with pytest.raises(ShapeError, match=r"\(B, 5, H, W\), got \(2, 4, 9, 9\)"):
        model(rgb, spectral[:, :4])


def test_a_stream_too_many_is_an_error():
    model = _tiny()
    (rgb,) = _inputs(model)
    with pytest.raises(ShapeError, match="no spectral stream"):
        model(rgb, torch.randn(2, 5, 9, 9))
    assert torch.equal(model.eval()(rgb, None), model(rgb))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_learned_stand_in(fusion):
    model = _tiny(**DUAL, **{"fusion": fusion, "missing_spectral": "learned"})
    rgb, spectral = _inputs(model)
    model.eval()
    with torch.no_grad():
        alone = model(rgb)
        assert torch.equal(model(rgb, None), alone)
        assert not torch.allclose(model(rgb, spectral), alone)
    model(rgb).sum().backward()
    assert model.spectral_token.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.spectral.parameters())
    own, both = (
        model.forward_intermediates(rgb, indices=[0, 1], intermediates_only=True),
        model.forward_intermediates(rgb, spectral, intermediates_only=True),
    )
    for given in ((rgb,), (rgb, None)):
        levels = model.forward_intermediates(*given, intermediates_only=True)
        assert len(levels) == 2
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(levels, own, both[:2], strict=True))
        for indices in ([2], [0, -1], 1, range(4)):
            with pytest.raises(ShapeError, match="ask for indices from 0 to 1"):
                model.forward_intermediates(*given, indices=indices, intermediates_only=True)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.fast_cases("0-concat", "1-cross_attention")
def test_the_stand_in_waits_without_weight_while_its_stream_is_there(fusion, seed):
    torch.manual_seed(seed)
    model = _tiny(**DUAL, **{"fusion": fusion, "missing_spectral": "learned"}).train()
    inputs = _inputs(model)
    model(*inputs).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not model.spectral_token.grad.any()
    before = model(*inputs)
    torch.nn.init.normal_(model.spectral_token)
    assert torch.equal(model(*inputs), before)
    assert torch.equal(model.eval()(*inputs), before)


def test_levels_by_stream():
    model = _tiny(**DUAL).eval()
    rgb, spectral = _inputs(model)
    assert [info.name for info in model.feature_info] == [
        "rgb.stages.0", "rgb.stages.1", "spectral.stages.0", "spectral.stages.1",
    ]  # fmt: skip
    seen = {}
    for info in model.feature_info:
        module = model.get_submodule(info.name)
        module.register_forward_hook(lambda _m, _a, out, name=info.name: seen.update({name: out}))
    levels = model.forward_intermediates(rgb, spectral, intermediates_only=True)
    for level, info in zip(levels, model.feature_info, strict=True):
        assert torch.equal(level, seen[info.name].permute(0, 3, 1, 2))
    for indices in ([3], [0, -1], 1, [2, 0]):
        wanted = model.level_indices(indices)
        some = model.forward_intermediates(rgb, spectral, indices=indices, intermediates_only=True)
        assert all(torch.equal(a, levels[i]) for a, i in zip(some, sorted(wanted), strict=True))


@pytest.mark.slow
def test_compile_and_export():
    # Of windows, padding, two grids and concatenation; the family's test config covers cross-attention.
    torch.compiler.reset()
    model = _tiny(**{**DUAL, "depths": (2,), "num_heads": (2,)}, fusion="concat", attention=(2, 4)).eval()
    inputs = _inputs(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for call in (model, compiled):
        model.zero_grad()
        out = call(*inputs)
        out.square().sum().backward()
        gradients.append([out.detach()] + [p.grad.clone() for p in model.parameters() if p.grad is not None])
    for eager, graph in zip(*gradients, strict=True):
        assert torch.allclose(eager, graph, atol=1e-5)
    program = torch.export.export(model, tuple(inputs))
    assert torch.allclose(program.module()(*inputs), gradients[0][0], atol=1e-5)


def test_compile_without_the_spectral_stream():
    torch.compiler.reset()
    model = _tiny(**{**DUAL, "depths": (1,), "num_heads": (2,)}, missing_spectral="learned").eval()
    rgb = _inputs(model)[0]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(rgb), model(rgb), atol=1e-5)


@pytest.mark.slow_cases("settings3", "settings4")
@pytest.mark.parametrize("settings", EVERY_KIND)
def test_low_precision(settings):
    model = _tiny(**settings)
    inputs = [torch.randn(2, chans, 4 * size[0] - 1, size[1]) for _, chans, size, _ in model.streams]
    with torch.no_grad():
        exact = model.eval()(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(*inputs)
    assert (mixed - exact).abs().max() < 0.05
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train()(*inputs).float().square().sum()
    loss.backward()
    model.bfloat16()
    out = model(*(x.bfloat16() for x in inputs))
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


def test_positions_are_resampled_on_loading():
    small = _tiny(**DUAL)
    state = small.state_dict()
    large = _tiny(**{**DUAL, "img_size": (32, 40), "spectral_img_size": 15})
    report = vitrail.load_weights(large, state)
    assert set(report.resampled) == {"rgb.pos_embed", "spectral.pos_embed"}
    assert report.resampled["rgb.pos_embed"] == "positions from 6 x 6 to 8 x 10, bicubic"
    # The small model on a large image and the large model use the same positions, hence agree.
    inputs = _inputs(large)
    with torch.no_grad():
        assert torch.allclose(small.eval()(*inputs), large.eval()(*inputs), atol=1e-5)


def test_image_weights_start_a_two_stream_model():
    image_only = _tiny()
    dual = _tiny(**{**DUAL, "num_heads": TINY["num_heads"], "missing_spectral": "learned"})
    with pytest.raises(WeightsError, match="missing"):
        vitrail.load_weights(dual, image_only.state_dict())
    allowed = ["spectral.*", "fusion.*", "spectral_token"]
    report = vitrail.load_weights(dual, image_only.state_dict(), allow_missing=allowed)
    assert set(report.loaded) == set(image_only.state_dict())
    x = _inputs(image_only)[0]
    assert torch.equal(dual.eval().encode(x)[0], image_only.eval().encode(x)[0])


def test_layer_groups_walk_from_input_to_head():
    model = _tiny(**DUAL, missing_spectral="learned")
    groups = model.layer_groups()
    assert len(groups) == 1 + 3 + 1
    assert "rgb.pos_embed" in groups[0]
    assert "spectral.patch_embed.proj.weight" in groups[0]
    assert "spectral.stages.1.downsample.reduction.weight" in groups[2]
    assert "rgb.stages.1.blocks.1.attn.qkv.weight" in groups[3]
    assert {"spectral_token", "fusion.prompt", "head.weight", "rgb.norm.weight"} <= set(groups[-1])
    assert model.no_weight_decay() == {
        "rgb.pos_embed",
        "spectral.pos_embed",
        "fusion.prompt",
        "spectral_token",
    }


def test_drop_path_only_in_training():
    model = _tiny(**DUAL, drop_path_rate=0.5)
    inputs = _inputs(model)
    assert not torch.equal(model(*inputs), model(*inputs))
    model.eval()
    assert torch.equal(model(*inputs), model(*inputs))
    assert [b.drop_path1.rate for s in model.spectral.stages for b in s.blocks] == [0.0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spectral_channels": 4}, "spectral_chans'"),
        ({"depths": (1, 2), "num_heads": (1,)}, "one value a stage"),
        ({"depths": ()}, "at least 1, one per stage"),
        ({"depths": (1, 0)}, "at least 1, one per stage"),
        ({"num_heads": (3, 2)}, "num_heads must divide the width 8"),
        ({"img_size": 3}, "smaller than one patch"),
        ({"attention": "windowed"}, "attention must be 'global' or "),
        ({"attention": 0}, "attention must be a positive"),
        ({"fusion": "sum"}, "'cross_attention' or 'concat'"),
        ({"spectral_chans": 2, "fusion_heads": 5}, "fusion_heads must divide the width 16"),
        ({"spectral_chans": -1}, "at least 0"),
        ({"spectral_chans": 2, "spectral_embed_dim": 0}, "at least 1"),
        ({"missing_spectral": "zeros"}, "'error' or 'learned'"),
        ({"missing_spectral": "learned"}, "give spectral_chans"),
        ({"spectral_patch_size": 4}, "give spectral_chans"),
        ({"drop_path_rate": -0.1}, "at least 0"),
        ({"mlp_ratio": 0}, "above 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        _tiny(**settings)


def test_positions_of_double_precision_are_resampled_in_it():
    model = _tiny(**DUAL).double().eval()
    inputs = [torch.randn(1, s.chans, 20, 17, dtype=torch.float64) for s in model.streams]
    names, values = zip(*((n, p) for n, p in model.named_parameters() if n.endswith("pos_embed")), strict=True)

    def run(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), tuple(inputs))

    assert torch.autograd.gradcheck(run, values, fast_mode=True)
