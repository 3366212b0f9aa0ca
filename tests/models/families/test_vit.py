"""ViT against the golden files and against what it promises."""

import random

import pytest
import torch

import vitrail
from tests.golden_files import read_golden, relative_error, run
from tests.tiers import fast_first
from vitrail.errors import ConfigError, ShapeError


@pytest.mark.parametrize("name", ["vit_timm_cls", "vit_timm_gap", "vit_timm_any_size", "vit_hf"])
def test_equals_the_reference(name):
    golden = read_golden(name)
    golden.config.pop("dynamic_img_size", None)
    model = vitrail.create_model("vit", **golden.config)
    report = vitrail.load_weights(model, golden.state)
    assert set(report.loaded) == set(model.state_dict())
    assert relative_error(run(model, golden), golden.outputs["logits"]) < 1e-5
    if "features" in golden.outputs:
        with torch.no_grad():
            features = model.forward_features(*golden.inputs.values())
        assert relative_error(features, golden.outputs["features"]) < 1e-5


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_small_patch16_224", 22_050_664),
        ("vit_small_patch32_224", 22_878_952),
        ("vit_base_patch32_224", 88_224_232),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_base_patch8_224", 86_576_872),
        ("vit_large_patch16_224", 304_326_632),
        ("vit_huge_patch14_224", 630_764_800),
    ],
)
@pytest.mark.fast_cases("vit_tiny_patch16_224-5717416", "vit_large_patch16_224-304326632")
def test_parameter_counts(name, parameters):
    with torch.device("meta"):
        model = vitrail.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


def _random_settings(rng):
    patch = rng.choice([4, 7, 8])
    heads = rng.choice([1, 2, 3])
    class_token = rng.random() < 0.5
    depth = rng.randint(1, 3)
    learner = None
    if rng.random() < 0.7:
        fuse = rng.random() < 0.5
        learner = {
            "num_tokens": rng.randint(1, 5),
            "layer": rng.randint(0, depth - 1 if fuse else depth),
            "version": rng.choice(["1.0", "1.1"]),
            "bottleneck_dim": 8,
            "fuse": fuse,
        }
    return {
        "img_size": (patch * rng.randint(1, 4), patch * rng.randint(1, 4)),
        "patch_size": patch,
        "in_chans": rng.randint(1, 6),
        "embed_dim": 8 * heads,
        "num_heads": heads,
        "depth": depth,
        "num_classes": rng.randint(2, 7),
        "class_token": class_token,
        "global_pool": rng.choice(["token", "avg"]) if class_token else "avg",
        "token_learner": learner,
    }


@pytest.mark.parametrize("seed", fast_first(range(12), 4))
def test_any_settings_any_size(seed):
    rng = random.Random(seed)
    settings = _random_settings(rng)
    model = vitrail.create_model("vit", **settings).eval()
    patch = settings["patch_size"]
    for _ in range(3):
        H, W = rng.randint(patch, 5 * patch), rng.randint(patch, 5 * patch)
        x = torch.randn(2, settings["in_chans"], H, W)
        with torch.no_grad():
            logits = model(x)
            levels = model.forward_intermediates(x, intermediates_only=True)
        assert logits.shape == (2, settings["num_classes"])
        assert torch.isfinite(logits).all()
        assert len(levels) == len(model.feature_info)
        for level, info in zip(levels, model.feature_info, strict=True):
            assert level.shape == (2, info.channels, -(-H // info.stride[0]), -(-W // info.stride[1]))
    # One sample's answer does not depend on the others in its batch.
    with torch.no_grad():
        assert torch.allclose(model(x[:1]), logits[:1], atol=1e-5)


def test_learned_tokens_replace_the_grid():
    model = vitrail.create_model(
        "vit", img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2,
        token_learner={"num_tokens": 3, "layer": 1},
    )  # fmt: skip
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape[1]))
    features = model.forward_features(torch.randn(1, 3, 32, 32))
    assert seen == [17, 4, 4, 4]
    assert features.shape == (1, 4, 16)
    assert len(model.feature_info) == 1


def test_fuser_returns_to_the_grid():
    model = vitrail.create_model(
        "vit", img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2,
        token_learner={"num_tokens": 2, "layer": 1, "fuse": True},
    )  # fmt: skip
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 17, 16)
    assert len(model.token_learners) == len(model.token_fusers) == 2
    assert len(model.feature_info) == 3


def test_layer_groups_hold_every_parameter_once():
    for name in ("vit_tiny_patch16_224", "vit_tiny_patch16_224_tokenlearner8_fuser"):
        with torch.device("meta"):
            model = vitrail.create_model(name)
        names = [n for group in model.layer_groups() for n in group]
        assert sorted(names) == sorted(n for n, _ in model.named_parameters())
        assert model.no_weight_decay() <= set(names)


@pytest.mark.parametrize("learner", [None, {"num_tokens": 2, "layer": 1, "fuse": True}])
def test_grad_checkpointing_gives_the_same_gradients(learner):
    model = vitrail.create_model("vit", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2,
                                 num_classes=3, token_learner=learner)  # fmt: skip
    x = torch.randn(2, 3, 16, 16)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embed_dims": 8}, "embed_dim'"),
        ({"num_heads": 5}, "num_heads must divide"),
        ({"img_size": 4, "patch_size": 8}, "smaller than one patch"),
        ({"global_pool": "token", "class_token": False}, "class_token=True"),
        ({"token_learner": {"tokens": 8}}, "num_tokens"),
        ({"token_learner": {"layer": 13}}, "0 to 12"),
        ({"token_learner": {"version": "2"}}, "'1.0' or '1.1'"),
        ({"drop_path_rate": 1.0}, "below 1"),
        ({"in_chans": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        vitrail.create_model("vit", **settings)


def test_unknown_name_gives_the_closest():
    with pytest.raises(ConfigError, match="vit_tiny_patch16_224"):
        vitrail.create_model("vit_tiny_patch16_24")


def test_wrong_images_are_refused():
    model = vitrail.create_model("vit", img_size=32, patch_size=8, embed_dim=8, depth=1, num_heads=1)
    with pytest.raises(ShapeError, match=r"\(B, 3, H, W\), got \(1, 4, 32, 32\)"):
        model(torch.randn(1, 4, 32, 32))
    with pytest.raises(ShapeError, match="smaller than one patch"):
        model(torch.randn(1, 3, 32, 7))


@pytest.mark.slow
@pytest.mark.parametrize(
    "learner",
    [
        pytest.param({"num_tokens": 3, "layer": 1, "version": "1.0"}, id="learner"),
        pytest.param({"num_tokens": 3, "layer": 0, "fuse": True}, id="fuser"),
    ],
)
def test_exports_for_any_batch_and_size(learner):
    model = vitrail.create_model(
        "vit", img_size=16, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3, token_learner=learner
    ).eval()  # fmt: skip
    dim = torch.export.Dim
    # Traced at the very size that the model was built for, which must not become the only one.
    shapes = ({0: dim("batch", min=1, max=64), 2: dim.AUTO, 3: dim.AUTO},)
    program = torch.export.export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=shapes).module()
    with torch.no_grad():
        for shape in ((5, 3, 16, 16), (1, 3, 23, 37)):
            x = torch.randn(shape)
            assert torch.allclose(program(x), model(x), atol=1e-5)
