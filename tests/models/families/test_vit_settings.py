"""What students change in a ViT: patches, stem, tokens, positions, dropout, pooling, layers by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitrail
from vitrail.cli.main import main
from vitrail.data.normalization import NormalizeStreams
from vitrail.errors import ConfigError, ShapeError
from vitrail.explain import explain
from vitrail.layers.patches import LinearPatchEmbed, PatchDropout, PatchEmbed
from vitrail.layers.positions import resample_sequence, sincos_sequence
from vitrail.models.profile import count_multiply_adds, count_parameters, walk
from vitrail.models.recognise import recognise
from vitrail.tasks.mae import MAETask
from vitrail.tasks.simmim import SimMIMTask
from vitrail.weights.read import unwrap

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
LEARNER = {"num_tokens": 4, "layer": 1, "dropout_rate": 0.2}
SETTINGS = [
    {"patch_stride": 4},
    {"patch_stride": (4, 6), "patch_padding": 2, "patch_embed": "linear"},
    {"stem": "resnet", "stem_width": 16},
    {"stem": nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU()), "reg_tokens": 1},
    {"num_class_tokens": 3, "reg_tokens": 2},
    {"num_class_tokens": 0, "global_pool": "avg", "reg_tokens": 2},
    {"no_embed_class": True, "reg_tokens": 2},
    {"global_pool": "map"},
    {"global_pool": "map", "class_token": False, "pos_embed": "rope"},
    {"pos_embed": "learned1d", "pos_embed_init": "sincos"},
    {"pos_embed": "sincos1d"},
    {"pos_embed": "sincos2d", "num_class_tokens": 2},
    {"pos_embed": "rope", "reg_tokens": 2, "patch_drop_rate": 0.5},
    {"pos_embed": "none"},
    {"init_values": 0.1, "qk_norm": True, "norm_layer": "rmsnorm", "mlp_layer": "swiglu"},
    {"token_learner": LEARNER, "pos_embed": "rope", "reg_tokens": 1, "act_layer": "silu"},
    {"token_learner": {**LEARNER, "fuse": True}, "patch_stride": 4, "num_class_tokens": 2},
    {name: 0.2 for name in ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate")},
]


def build(**settings):
    torch.manual_seed(0)
    return vitrail.create_model("vit", **{**SMALL, **settings})


def name_of(settings):
    return ", ".join(f"{key}={'module' if isinstance(value, nn.Module) else value}" for key, value in settings.items())


@pytest.mark.fast_cases("pos_embed=rope, reg_tokens=2, patch_drop_rate=0.5")
@pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
def test_trains_on_any_size_and_is_explained(settings):
    model, x, other = build(**settings), torch.randn(2, 3, 32, 32), torch.randn(2, 3, 37, 51)
    model.set_grad_checkpointing(True)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        F.cross_entropy(model(x), torch.tensor([0, 1])).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert torch.equal(model(x), model(x))
    assert model(other).shape == (2, 5)
    assert model.forward_intermediates(other, intermediates_only=True)[0].shape[2:] == model.embed(other)[0].shape[1:3]
    for images, methods in ((x, ("gradient_rollout", "attention")), (other, ("rollout", "gradcam"))):
        for method in methods:
            found = explain(model, images, method=method).map
            assert found.shape == (2, *images.shape[2:]), method
            assert torch.isfinite(found).all(), method
    steps = walk(model, x[:1], repeats=0)
    assert sum(step.parameters for step in steps) == count_parameters(model)
    assert sum(step.multiply_adds for step in steps) == count_multiply_adds(model)
    assert sorted(name for group in model.layer_groups() for name in group) == sorted(dict(model.named_parameters()))


@pytest.mark.parametrize("name", ["drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"])
def test_rates_act_in_training_alone(name):
    model, x = build(**{name: 0.4}), torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    plain = build()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))


# -- patches -----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("patch", "stride", "padding"), [(8, None, 0), (7, 4, 3), ((6, 4), (3, 4), (0, 1)), (5, 5, 2), (3, 1, 0)]
)
def test_unfolding_and_a_linear_layer_equal_the_convolution(patch, stride, padding):
    conv, linear = (kind(3, 12, patch, stride=stride, padding=padding) for kind in (PatchEmbed, LinearPatchEmbed))
    linear.load_state_dict(conv.state_dict())
    for size in ((20, 33), (8, 8), (31, 12)):
        x = torch.randn(2, 3, *size)
        tokens = linear(x)
        torch.testing.assert_close(tokens, conv(x), rtol=1e-5, atol=1e-5)
        assert tokens.shape[1:3] == linear.grid_of(size)


@torch.no_grad()
def test_each_overlapping_patch_is_cut_at_its_stride():
    layer, x = PatchEmbed(3, 4, 6, stride=4, padding=1), torch.randn(1, 3, 15, 21)
    padded = F.pad(x, (1, 12, 1, 12))
    rows, columns = layer.grid_of((15, 21))
    # Every pixel is covered, and no patch lies beyond the image.
    assert (rows - 1) * 4 + 6 >= 16 > (rows - 2) * 4 + 6
    tokens = layer(x)
    assert tokens.shape == (1, rows, columns, 4)
    for row in range(rows):
        for column in range(columns):
            patch = padded[0, :, 4 * row : 4 * row + 6, 4 * column : 4 * column + 6]
            expected = (layer.proj.weight * patch).sum((1, 2, 3)) + layer.proj.bias
            torch.testing.assert_close(tokens[0, row, column], expected, rtol=1e-4, atol=1e-5)


def test_inspect_says_how_patches_are_embedded(capsys):
    options = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    assert main(["inspect", "vit", *options, "--no-time", "--set", "patch_embed=linear"]) == 0
    assert "equal to the convolution of its weights" in capsys.readouterr().out


def test_patch_dropout_keeps_the_prefix_and_a_subset():
    layer, tokens = PatchDropout(0.3, 2), torch.arange(12.0).view(1, 12, 1).repeat(3, 1, 1)
    kept, _ = layer(tokens)
    assert kept.shape == (3, 9, 1)
    for row in kept[..., 0]:
        assert row[:2].tolist() == [0.0, 1.0]
        assert len(set(row.tolist())) == 9
    assert not torch.equal(kept, layer(tokens)[0])
    assert layer.eval()(tokens)[0] is tokens


def test_attention_of_a_subset_is_that_of_its_rotary_positions():
    """A subset of patches, as MAE and patch dropout run it, in any order gives the same class token."""
    model, x = build(pos_embed="rope", reg_tokens=1).eval(), torch.randn(1, 3, 32, 32)
    (patches,) = model.embed(x)
    keep = torch.tensor([[3, 7, 1, 14]])
    first = model.forward_visible(patches, keep)[:, :2]
    torch.testing.assert_close(model.forward_visible(patches, keep.flip(1))[:, :2], first)
    assert not torch.allclose(model.forward_visible(patches, keep + 1)[:, :2], first)
    everything = model.forward_visible(patches, torch.arange(16)[None])
    torch.testing.assert_close(everything, model.forward_features(x))


# -- stems --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        (nn.Flatten(), r"stem must give a feature map \(B, C, h, w\), and Flatten gives \(1, 3072\)"),
        (nn.Conv2d(5, 8, 3), r"stem Conv2d cannot run on images of shape \(1, 3, 32, 32\): Given groups=1"),
        (nn.MaxPool2d(16), r"patch_size 8 x 8 is not a multiple of the stem's stride 16 x 16"),
        ("resnt", r"stem must be one of resnet; got 'resnt'; did you mean 'resnet'"),
    ],
)
def test_stems_that_do_not_fit(stem, message):
    with pytest.raises(ConfigError, match=message):
        build(stem=stem)


def test_a_stem_keeps_the_grid_and_checks_its_images(tmp_path):
    model = build(stem="resnet")
    assert model.grid == build().grid
    assert model(torch.randn(1, 3, 33, 50)).shape == (1, 5)
    assert model.default_cfg["first_conv"] == "stem.conv1"
    with pytest.raises(ShapeError, match=r"expected images of shape \(B, 3, H, W\)"):
        model(torch.randn(1, 4, 32, 32))
    with pytest.raises(ShapeError, match="smaller than one patch of 8 x 8"):
        model(torch.randn(1, 3, 7, 32))
    vitrail.save_pretrained(model, tmp_path / "named")
    assert torch.equal(vitrail.from_pretrained(tmp_path / "named").stem.conv1.weight, model.stem.conv1.weight)
    with pytest.raises(ConfigError, match=r"the setting stem is a module \(MaxPool2d\)"):
        vitrail.save_pretrained(build(stem=nn.MaxPool2d(2)), tmp_path / "own")


# -- tokens, positions, pooling ------------------------------------------------------------------------------


@torch.no_grad()
def test_several_class_tokens_are_averaged():
    model, x = build(num_class_tokens=3, reg_tokens=1).eval(), torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 4 + 16, 16)
    torch.testing.assert_close(model(x), model.head(features[:, :3].mean(1)))


@torch.no_grad()
def test_the_attention_of_the_pooling_by_hand():
    model, x = build(global_pool="map").eval(), torch.randn(2, 3, 32, 32)
    pool, tokens = model.attn_pool, model.forward_features(x)[:, 1:]
    keys, values = pool.kv(tokens).view(2, 16, 2, 2, 8).unbind(2)
    query = pool.q(pool.latent).view(2, 8)
    weights = torch.einsum("hd,bnhd->bhn", query, keys).div(8**0.5).softmax(-1)
    pooled = pool.proj(torch.einsum("bhn,bnhd->bhd", weights, values).flatten(1))
    torch.testing.assert_close(model(x), model.head(pooled + pool.mlp(pool.norm(pooled))))
    torch.testing.assert_close(model.pooling_weights(model.forward_features(x))[:, 1:], weights.mean(1))


def test_changing_the_pooling_afterwards():
    model, x = build(), torch.randn(2, 3, 32, 32)
    model.reset_classifier(7, "map")
    assert model(x).shape == (2, 7)
    model.reset_classifier(3, "avg")
    assert model.attn_pool is None
    assert model(x).shape == (2, 3)


def test_fixed_positions_are_the_formulas_and_no_parameters():
    model = build(pos_embed="sincos1d")
    place, channel = 5, 6
    assert "pos_embed" not in dict(model.named_parameters())
    expected = torch.tensor(place / 10000 ** (channel / 16)).sin()
    torch.testing.assert_close(model.pos_embed[0, 1 + place, channel], expected)
    assert torch.equal(model.pos_embed[:, :1], torch.zeros(1, 1, 16))


def test_positions_of_a_sequence_are_interpolated_along_it():
    table = torch.cat([torch.full((1, 1, 2), 9.0), torch.linspace(0, 1, 12).view(1, 12, 1).expand(1, 12, 2)], dim=1)
    found = resample_sequence(table, (3, 4), (4, 6), 1)
    expected = F.interpolate(table[:, 1:].transpose(1, 2), size=24, mode="linear").transpose(1, 2)
    torch.testing.assert_close(found[:, 1:], expected)
    assert torch.equal(found[:, :1], table[:, :1])
    assert resample_sequence(table, (3, 4), (3, 4), 1) is table
    assert sincos_sequence(7, 8).shape == (1, 7, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pos_embed": "sincos"}, "pos_embed must be 'learned' or 'learned1d'"),
        ({"num_class_tokens": 2, "class_token": False}, "num_class_tokens 2 contradicts class_token=False"),
        ({"num_class_tokens": 0}, "global_pool='token' needs class_token=True"),
        ({"patch_stride": 9}, r"patch_stride \(9, 9\) exceeds patch_size \(8, 8\)"),
        ({"patch_padding": 8}, r"patch_padding \(8, 8\) must be smaller than the patch"),
        ({"pos_embed": "rope", "num_heads": 8}, "pos_embed='rope' needs heads whose width is a multiple of 4, got 2"),
        ({"patch_drop_rate": 0.2, "token_learner": LEARNER}, "token_learner needs the whole grid of patches"),
        ({"token_learner": {**LEARNER, "dropout_rate": 1.5}}, "dropout_rate must be at least 0 and below 1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


# -- masks and checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"reg_tokens": 2, "num_class_tokens": 2},
        {"pos_embed": "rope", "patch_drop_rate": 0.5},
        {"pos_embed": "sincos1d"},
        {"stem": "resnet"},
        {"patch_embed": "linear", "no_embed_class": True},
    ],
    ids=name_of,
)
def test_masked_pretraining(settings):
    normalize = NormalizeStreams({"image": ([0.5] * 3, [0.5] * 3)})
    batch = {"image": torch.rand(2, 3, 32, 32)}
    for make in (MAETask, lambda *parts: SimMIMTask(*parts, mask_ratios={"image": 0.5})):
        task = make(build(**settings), normalize)
        loss = task(batch)["loss"]
        loss.backward()
        assert torch.isfinite(loss)


def test_overlapping_patches_are_refused_by_masks():
    normalize = NormalizeStreams({"image": ([0.5] * 3, [0.5] * 3)})
    for make in (MAETask, lambda *parts: SimMIMTask(*parts, mask_ratios={"image": 0.5})):
        with pytest.raises(ConfigError, match="overlapping or padded patches do not tile the image"):
            make(build(patch_stride=4), normalize)


@pytest.mark.fast_cases("num_class_tokens=2")
@pytest.mark.parametrize(
    "settings",
    [
        {"reg_tokens": 4, "init_values": 1e-5},
        {"qk_norm": True, "global_pool": "map"},
        {"mlp_layer": "swiglu", "mlp_ratio": 2.0},
        {"num_class_tokens": 2},
        {"no_embed_class": True, "reg_tokens": 4},
    ],
    ids=name_of,
)
def test_checkpoints_show_their_settings(settings):
    with torch.device("meta"):
        model = vitrail.create_model("vit_tiny_patch16_224", **settings, depth=12)
    state = {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}
    facts = recognise(unwrap(state, "it"), "it")
    assert facts.family == "vit"
    assert facts.fits, facts.problem
    assert {key: facts.fits[0].settings.get(key) for key in settings} == settings


@torch.no_grad()
def test_positions_of_another_size_keep_those_of_the_prefix():
    small, large = build(reg_tokens=2), build(reg_tokens=2, img_size=48)
    vitrail.load_weights(large, small.state_dict())
    assert torch.equal(large.pos_embed[:, :3], small.pos_embed[:, :3])
    assert torch.equal(large.reg_token, small.reg_token)


def test_names_of_dinov2_are_read():
    model = build(mlp_layer="swiglu", init_values=1e-5, reg_tokens=4, no_embed_class=True)
    state = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    foreign = {
        key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3").replace("reg_token", "register_tokens"): value
        for key, value in state.items()
    }
    vitrail.load_weights(model, foreign)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
