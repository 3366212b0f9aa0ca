"""ViViT: the outputs of three reference codes, exact sizes, any length and size, and starts from an image model."""

import pytest
import torch
import torch.nn.functional as F

import vitrail
from tests.golden_files import read_golden, relative_error
from tests.tiers import fast_first, in_turn
from vitrail.errors import ConfigError, ShapeError
from vitrail.explain.capture.record import capture_attention
from vitrail.layers.positions import resample_space_time
from vitrail.models.profile import count_parameters, example_inputs, walk

SIZES = {
    "num_frames": 8,
    "img_size": 32,
    "tubelet_size": (2, 8, 8),
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "num_classes": 5,
}
GAP = {"class_token": False, "global_pool": "avg"}
VIDEOMAE = {**GAP, "pos_embed": "sincos1d", "fc_norm": True, "norm_eps": 1e-12, "act_layer": "gelu"}
TIMESFORMER = {"tubelet_size": (1, 8, 8), "act_layer": "gelu"}
GOLDEN = {
    "vivit_hf": {},
    "vivit_hf_v5_names": {},
    "videomae_hf": VIDEOMAE,
    "videomae_hf_v5_names": VIDEOMAE,
    "timesformer_hf_divided_space_time": {
        **TIMESFORMER,
        "attention": "factorised_self_attention",
        "pos_embed": "space_time",
    },
    "timesformer_hf_joint_space_time": {**TIMESFORMER, "pos_embed": "space_time"},
    "timesformer_hf_space_only": {**TIMESFORMER, "attention": "factorised_encoder", "temporal_depth": 0},
    "vivit_scenic_m1_joint_token": {},
    "vivit_scenic_m1_joint_gap": GAP,
    "vivit_scenic_m2_factorised_encoder_token": {"attention": "factorised_encoder", "temporal_depth": 2},
    "vivit_scenic_m2_factorised_encoder_gap": {**GAP, "attention": "factorised_encoder", "temporal_depth": 2},
    "vivit_scenic_m3_factorised_self_attention_gap": {**GAP, "attention": "factorised_self_attention"},
    "vivit_scenic_m4_factorised_dot_product_gap": {**GAP, "attention": "factorised_dot_product"},
    **{
        f"vivit_scenic_token_learner_v{version.replace('.', '')}{'_fuser' * fuse}": {
            **GAP,
            "depth": 3,
            "token_learner": {"num_tokens": 3, "layer": 1, "version": version, "fuse": fuse},
        }
        for version in ("1.0", "1.1")
        for fuse in (False, True)
    },
}
# Every kind of attention, with and without class token, a temporal encoder and learned tokens.
KINDS = {
    "joint": {},
    "joint_gap": GAP,
    "encoder": {"attention": "factorised_encoder", "temporal_depth": 1},
    "encoder_gap": {**GAP, "attention": "factorised_encoder", "temporal_depth": 1},
    "slices": {"attention": "factorised_encoder", "temporal_depth": 0},
    "self_attention": {**GAP, "attention": "factorised_self_attention"},
    "divided": {"attention": "factorised_self_attention", "pos_embed": "space_time"},
    "dot_product": {**GAP, "attention": "factorised_dot_product"},
    "learned": {"token_learner": {"num_tokens": 3, "layer": 1}},
    "learned_fused": {"token_learner": {"num_tokens": 3, "layer": 0, "fuse": True, "version": "1.0"}},
    "encoder_learned": {"attention": "factorised_encoder", "temporal_depth": 1, "token_learner": {"num_tokens": 3}},
    "encoder_fused": {
        "attention": "factorised_encoder",
        "temporal_depth": 1,
        "token_learner": {"num_tokens": 3, "layer": 1, "fuse": True},
    },
    "uniform": {"embedding": "uniform_frames"},
    "videomae": VIDEOMAE,
}


def _build(seed=0, **settings):
    torch.manual_seed(seed)
    return vitrail.create_model("vivit", **{**SIZES, **settings}).eval()


def _random(model):
    """Draw all parameters at random, those that start at zero too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def _clip(golden, name):
    clip = golden.inputs["video"]
    return (clip.permute(0, 4, 1, 2, 3) if "scenic" in name else clip.transpose(1, 2)).contiguous()


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.fast_cases(
    "videomae_hf_v5_names",
    "timesformer_hf_divided_space_time",
    "timesformer_hf_space_only",
    "vivit_scenic_m2_factorised_encoder_token",
    "vivit_scenic_m2_factorised_encoder_gap",
    "vivit_scenic_m3_factorised_self_attention_gap",
    "vivit_scenic_m4_factorised_dot_product_gap",
    "vivit_scenic_token_learner_v10_fuser",
    "vivit_scenic_token_learner_v11",
)
def test_outputs_of_the_reference_code(name):
    golden = read_golden(name)
    model = _build(**GOLDEN[name])
    report = vitrail.load_weights(model, golden.state)
    assert report.source == ("scenic" if "scenic" in name else "huggingface")
    assert not report.missing + report.unexpected
    with torch.no_grad():
        logits = model(_clip(golden, name))
    expected = golden.outputs["logits"]
    if "space_only" in name:
        # transformers gives the logits of each frame, the authors' code their mean.
        expected = expected.view(2, -1, 5).mean(dim=1)
    assert relative_error(logits, expected) < 1e-5


@pytest.mark.parametrize("name", ["vivit_hf", "videomae_hf"])
def test_tokens_after_the_last_layer(name):
    golden = read_golden(name)
    model = _build(**GOLDEN[name])
    vitrail.load_weights(model, golden.state)
    with torch.no_grad():
        levels = model.forward_intermediates(_clip(golden, name), output_fmt="NLC", intermediates_only=True)
    # The file has the tokens after the last block.
    expected = golden.outputs[f"hidden.{len(levels)}"][:, model.num_prefix :]
    assert relative_error(levels[-1], expected) < 1e-5


# arXiv:2103.15691: clips of 32 x 224 x 224, Kinetics-400; counts of the reference implementations.
COUNTS = {
    ("base", ""): 88_954_000,
    ("base", "_factorised_encoder"): 115_062_928,
    ("base", "_factorised_self_attention"): 117_319_312,
    ("base", "_factorised_dot_product"): 88_952_464,
    ("large", ""): 307_508_624,
    ("large", "_factorised_encoder"): 354_903_440,
}


@pytest.mark.parametrize(("size", "model"), COUNTS)
@pytest.mark.fast_cases("base-_factorised_self_attention", "large-_factorised_encoder")
def test_parameters_of_the_variants(size, model):
    with torch.device("meta"):
        built = vitrail.create_model(f"vivit_{size}_patch16x2_224{model}")
    assert count_parameters(built) == COUNTS[size, model]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("base", {"num_classes": 2}, 88_647_938),
        ("large_factorised_encoder", {"temporal_depth": 24}, 606_827_920),
    ],
)
def test_parameters_of_changed_variants(name, settings, expected):
    size, _, model = name.partition("_")
    with torch.device("meta"):
        built = vitrail.create_model(f"vivit_{size}_patch16x2_224{model and '_' + model}", **settings)
    assert count_parameters(built) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"embed_dim": 384, "num_heads": 6}, 22_033_936),
        ({}, 86_534_800),
        ({"embed_dim": 1024, "depth": 24, "num_heads": 16}, 304_270_736),
    ],
)
def test_parameters_of_videomae(settings, expected):
    with torch.device("meta"):
        model = vitrail.create_model("vivit_base_patch16x2_224", num_frames=16, **{**VIDEOMAE, **settings})
    # Its keys have no bias; here they are zeros, which change nothing.
    assert count_parameters(model) - model.config.depth * model.config.embed_dim == expected


@pytest.mark.parametrize(
    ("settings", "dense", "expected"),
    [
        ({"attention": "factorised_self_attention", "pos_embed": "space_time"}, True, 121_566_352),
        ({"pos_embed": "space_time"}, False, 86_112_400),
        ({"attention": "factorised_encoder", "temporal_depth": 0}, False, 86_106_256),
    ],
)
def test_parameters_of_timesformer(settings, dense, expected):
    with torch.device("meta"):
        model = vitrail.create_model(
            "vivit_base_patch16x2_224", num_frames=8, **{**TIMESFORMER, "tubelet_size": (1, 16, 16), **settings}
        )
    # The linear layer after its attention over time is folded into the one before it.
    dim = model.config.embed_dim
    assert count_parameters(model) + dense * model.config.depth * (dim * dim + dim) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "attention", ["", "_factorised_encoder", "_factorised_self_attention", "_factorised_dot_product"]
)
def test_multiply_adds(attention):
    expected = {
        "": 451.5,
        "_factorised_encoder": 283.3,
        "_factorised_self_attention": 371.1,
        "_factorised_dot_product": 276.2,
    }
    with torch.device("meta"):
        model = vitrail.create_model(f"vivit_base_patch16x2_224{attention}")
    total = sum(step.multiply_adds for step in walk(model, example_inputs(model), depth="blocks"))
    assert total / 1e9 == pytest.approx(expected[attention], rel=5e-3)


def _closed_form(dim, depth, tubelet, places, times, classes, ratio, model, token, later):
    """Count of parameters by its terms."""
    norm, attention = 2 * dim, 4 * dim * dim + 4 * dim
    block = 2 * norm + attention + 2 * dim * int(dim * ratio) + int(dim * ratio) + dim
    t, h, w = tubelet
    embedding = 3 * t * h * w * dim + dim
    head = dim * classes + classes + norm
    tokens = places if model == "factorised_encoder" else places * times
    total = embedding + head + (tokens + 2 * token) * dim + depth * block
    if model == "factorised_self_attention":
        total += depth * (norm + attention)
    if model == "factorised_encoder" and later:
        total += later * block + norm + (times + 2 * token) * dim
    return total


@pytest.mark.parametrize(
    "model", ["joint", "factorised_encoder", "factorised_self_attention", "factorised_dot_product"]
)
@pytest.mark.parametrize(
    ("dim", "depth", "tubelet", "later", "token"), [(16, 1, (2, 8, 8), 1, 0), (24, 3, (4, 8, 16), 2, 1)]
)
def test_parameters_by_a_closed_form(model, dim, depth, tubelet, later, token):
    token = 0 if model == "factorised_dot_product" else token
    pool = {"class_token": bool(token), "global_pool": "token" if token else "avg"}
    built = _build(embed_dim=dim, depth=depth, tubelet_size=tubelet, temporal_depth=later, attention=model, **pool)
    places, times = (32 // tubelet[1]) * (32 // tubelet[2]), 8 // tubelet[0]
    assert count_parameters(built) == _closed_form(dim, depth, tubelet, places, times, 5, 2.0, model, token, later)


@pytest.mark.parametrize(
    ("kind", "size"), in_turn(KINDS, [(8, 32, 32), (4, 32, 48), (11, 35, 26), (16, 24, 64)]), ids=str
)
@pytest.mark.fast_cases(
    "encoder_gap-(16, 24, 64)",
    "divided-(11, 35, 26)",
    "dot_product-(16, 24, 64)",
    "learned_fused-(4, 32, 48)",
    "uniform-(8, 32, 32)",
)
def test_any_length_and_size(kind, size):
    model = _random(_build(**KINDS[kind])).train()
    clips = torch.randn(2, 3, *size)
    model(clips).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        logits = model(clips)
        alone = model(clips[1:])
    assert torch.allclose(logits[1:], alone, atol=1e-4)


@pytest.mark.fast_cases("joint", "encoder_gap", "self_attention", "dot_product", "learned", "encoder_fused", "videomae")
@pytest.mark.parametrize("kind", KINDS)
def test_observed_attention_gives_the_same_logits_and_gradients(kind):
    model = _random(_build(**KINDS[kind])).double()
    clips = torch.randn(2, 3, 6, 24, 40, dtype=torch.float64, requires_grad=True)
    plain = model(clips)
    gradient = torch.autograd.grad(plain.square().sum(), clips)[0]
    with capture_attention(model) as record:
        observed = model(clips)
        assert torch.allclose(observed, plain, atol=1e-9)
        assert torch.allclose(torch.autograd.grad(observed.square().sum(), clips)[0], gradient, atol=1e-9)
    assert set(model.mixers()) <= {step.name for step in record.steps}


# A compiler takes seconds: a temporal encoder after learned and fused tokens, and attention of heads of both kinds.
@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", fast_first(sorted(KINDS, key=lambda kind: kind not in ("encoder_fused", "dot_product")), 2)
)
def test_compiles_and_exports(kind):
    torch.compiler.reset()
    model = _random(_build(**KINDS[kind]))
    clips = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        expected = model(clips)
        assert torch.allclose(torch.compile(model, fullgraph=True, backend="eager")(clips), expected, atol=1e-4)
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(model, (clips,), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        other = torch.randn(3, 3, 8, 32, 32)
        assert torch.allclose(program.module()(other), model(other), atol=1e-4)


def test_attention_along_an_axis_by_a_dense_mask():
    """Models 3 and 4 by joint attention with a mask of pairs of other places or times."""
    for name, kinds in (("factorised_self_attention", ("time", "space")), ("factorised_dot_product", ("split",))):
        model = _random(_build(**GAP, attention=name, depth=1)).double()
        block, grid = model.blocks[0], (3, 2, 4)
        tokens = torch.randn(2, 24, 32, dtype=torch.float64)
        at = torch.cartesian_prod(*(torch.arange(length) for length in grid))
        same_time = at[:, None, 0] == at[:, 0]
        same_place = (at[:, None, 1:] == at[:, 1:]).all(-1)
        for kind in kinds:
            attn = block.attn_time if kind == "time" else block.attn
            half = torch.stack([same_place, same_place, same_time, same_time])
            mask = {"time": same_place, "space": same_time, "split": half}[kind]
            q, k, v = attn.qkv(tokens).view(2, 24, 3, 4, 8).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            expected = attn.proj(mixed.transpose(1, 2).flatten(2))
            assert torch.allclose(attn(tokens, grid), expected, atol=1e-10), kind


@pytest.mark.parametrize("rule", ["central_frame", "inflation"])
@pytest.mark.parametrize("kind", ["joint", "joint_gap", "encoder", "self_attention", "divided", "dot_product"])
@pytest.mark.fast_cases(
    "joint-central_frame", "encoder-inflation", "self_attention-central_frame", "divided-central_frame"
)
def test_starts_from_an_image_model(kind, rule):
    image = vitrail.create_model(
        "vit", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2.0, num_classes=7
    )
    _random(image)
    model = _build(**KINDS[kind], inflation=rule)
    report = vitrail.load_weights(model, image.state_dict(), new_head=True)
    kernel, own = image.patch_embed.proj.weight, model.patch_embed.proj.weight
    expected = torch.zeros_like(own)
    expected[:, :, 1] = kernel
    assert torch.equal(own, expected if rule == "central_frame" else (kernel / 2)[:, :, None].expand_as(own))
    positions = image.pos_embed[:, 1:]
    table = model.pos_embed[:, model.block_prefix :]
    repeats = table.shape[1] // 16
    assert repeats == (1 if kind in ("encoder", "divided") else 4)
    assert torch.equal(table, positions.repeat(1, repeats, 1))
    assert torch.equal(model.blocks[1].attn.qkv.weight, image.blocks[1].attn.qkv.weight)
    if kind in ("self_attention", "divided"):
        assert torch.equal(model.blocks[1].attn_time.qkv.weight, image.blocks[1].attn.qkv.weight)
        assert not model.blocks[1].attn_time.proj.weight.any()
        assert "output at zero" in " ".join(report.notes)


@pytest.mark.parametrize("rule", ["central_frame", "inflation"])
def test_a_still_clip_is_the_image_at_the_start(rule):
    """Slices of a clip that stands still have the class token that the image model computes."""
    image = _random(
        vitrail.create_model(
            "vit", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2.0, act_layer="gelu_tanh"
        )
    ).eval()
    model = _build(attention="factorised_encoder", temporal_depth=0, inflation=rule)
    vitrail.load_weights(model, image.state_dict(), new_head=True)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model.forward_features(pictures[:, :, None].expand(-1, -1, 8, -1, -1))
        expected = image.forward_features(pictures)[:, 0]
    assert torch.allclose(tokens, expected[:, None].expand_as(tokens), atol=1e-5)


def test_start_with_copied_attention_over_time():
    image = _random(
        vitrail.create_model("vit", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2.0)
    )
    model = _build(**KINDS["self_attention"], temporal_init="copy")
    vitrail.load_weights(model, image.state_dict(), new_head=True)
    assert torch.equal(model.blocks[0].attn_time.proj.weight, image.blocks[0].attn.proj.weight)


@pytest.mark.parametrize("kind", ["joint", "joint_gap", "encoder", "divided"])
@pytest.mark.parametrize("size", [(16, 32, 32), (8, 48, 48), (12, 48, 48)], ids=str)
@pytest.mark.fast_cases("(16, 32, 32)-joint_gap", "(16, 32, 32)-divided", "(12, 48, 48)-encoder")
def test_weights_of_another_length_and_size(kind, size):
    frames, side, _ = size
    first = _random(_build(**KINDS[kind]))
    other = _build(**KINDS[kind], num_frames=frames, img_size=side)
    vitrail.load_weights(other, first.state_dict(), settings={**SIZES})
    clips = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert torch.allclose(other(clips), first(clips), atol=1e-4)


def test_space_and_time_are_resampled_apart():
    """A table that is a product of a series and an image becomes the product of both, resampled."""
    series, image = torch.rand(5, 1), torch.rand(1, 12)
    table = (series * image).reshape(1, 60, 1).expand(-1, -1, 3)
    found = resample_space_time(torch.cat([torch.ones(1, 1, 3), table], dim=1), (5, 3, 4), (8, 6, 2), 1)
    times = F.interpolate(series.T[None], size=8, mode="linear")[0, 0]
    places = F.interpolate(image.view(1, 1, 3, 4), size=(6, 2), mode="bicubic", antialias=True).flatten()
    assert torch.allclose(found[0, 1:, 0], torch.outer(times, places).flatten(), atol=1e-5)
    assert torch.equal(found[:, :1], torch.ones(1, 1, 3))


def test_uniform_frames_see_one_frame_of_each_tubelet():
    model = _random(_build(embedding="uniform_frames", tubelet_size=(4, 8, 8), num_frames=12))
    clips = torch.randn(1, 3, 12, 32, 32)
    changed = clips.clone()
    changed[:, :, [0, 1, 3, 4, 5, 7, 8, 9, 11]] = 0
    with torch.no_grad():
        assert torch.equal(model(clips), model(changed))
        changed[:, :, 6] = 0
        assert not torch.equal(model(clips), model(changed))
        assert model(clips[:, :, :7]).shape == (1, 5)


def test_order_of_frames_matters_except_to_a_mean_of_slices():
    clips = torch.randn(2, 3, 8, 32, 32)
    # Whole tubelets change their places, so that no tubelet changes.
    order = torch.tensor([4, 5, 0, 1, 6, 7, 2, 3])
    for kind in KINDS:
        model = _random(_build(**KINDS[kind]))
        with torch.no_grad():
            same = torch.allclose(model(clips), model(clips[:, :, order]), atol=1e-4)
        assert same == (kind == "slices"), kind


def test_visible_tubelets_run_as_if_there_were_no_others():
    model = _random(_build())
    clips = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        (tubelets,) = model.embed(clips)
        everything = torch.arange(64).expand(2, -1)
        assert torch.allclose(model.forward_visible(tubelets, everything), model.forward_features(clips), atol=1e-5)
        assert model.forward_visible(tubelets, everything[:, :10]).shape == (2, 11, 32)
    with pytest.raises(ConfigError, match="whole slices of time"):
        _build(**KINDS["encoder"]).forward_visible(tubelets, everything)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "factorised_dot_product"}, "no class token; set class_token false"),
        ({**GAP, "attention": "factorised_dot_product", "num_heads": 1}, "even num_heads, got 1"),
        ({"class_token": False}, "needs class_token=True"),
        ({"tubelet_size": (2, 8)}, "must be 3 whole numbers"),
        ({"num_frames": 1}, "num_frames 1 is smaller than one tubelet"),
        (
            {**GAP, "attention": "factorised_self_attention", "token_learner": {"num_tokens": 2}},
            "needs attention 'joint'",
        ),
        ({"attention": "factorised_encoder", "fc_norm": True}, "leave fc_norm false"),
        ({"attention": "both"}, "attention must be 'joint' or"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        _build(**settings)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 8, 3, 32, 32), r"x\.transpose\(1, 2\)"),
        ((2, 8, 32, 32, 3), r"x\.permute\(0, 4, 1, 2, 3\)"),
        ((3, 8, 32, 32), r"x\[None\]"),
        ((2, 3, 32, 32), "in_chans"),
        ((1, 3, 1, 32, 32), "smaller than one tubelet of 2 x 8 x 8"),
    ],
)
def test_clips_of_another_shape(shape, message):
    with pytest.raises(ShapeError, match=message):
        _build()(torch.randn(shape))
