"""Asking for an explanation: targets, settings, streams, errors; the model afterwards as before."""

import re
import warnings
from types import SimpleNamespace

import pytest
import torch

import vitrail
from tests.explain.tiny_models import SETTINGS, tiny_inputs, tiny_model
from tests.tiers import fast_first, spread
from vitrail.data.normalization import NormalizeStreams
from vitrail.errors import ConfigError, DataWarning, ShapeError
from vitrail.explain import (
    attention_rollout,
    attribution,
    band_importance,
    deletion,
    explain,
    gradient_rollout,
    infidelity,
    insertion,
    list_methods,
    randomisation_check,
    road,
    sensitivity,
)
from vitrail.explain.methods.maps import StreamMap
from vitrail.explain.methods.registry import METHODS, Method

TINY = {"embed_dim": 16, "num_classes": 3}


def pytest_generate_tests(metafunc):
    spread(metafunc, name=SETTINGS)


def _vit(**settings):
    return vitrail.create_model("vit", img_size=16, patch_size=4, depth=2, num_heads=2, **TINY, **settings)


def test_rollout_through_the_interface():
    model = _vit()
    result = explain(model, torch.randn(2, 3, 16, 20), "rollout", discard_ratio=0.2)
    assert result.map.shape == (2, 16, 20)
    assert result["image"].tokens.shape == (2, 4, 5)
    assert torch.allclose(result.tokens.sum((1, 2)), torch.ones(2), atol=1e-5)
    assert result.target is None
    assert result.settings == {"head_fusion": "mean", "discard_ratio": 0.2, "discard_from": "row"}
    assert list(result) == ["image"]


def test_streams_by_name_and_in_order():
    settings = {"img_size": 16, "patch_size": 4, "depths": (1, 1), "num_heads": (2, 2), "spectral_chans": 4,
                "spectral_embed_dim": 8, "fusion_heads": 2, **TINY}  # fmt: skip
    model = vitrail.create_model("hvt", **settings)
    rgb, spectral = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 16, 16)
    one, two = explain(model, [rgb, spectral]), explain(model, {"spectral": spectral, "image": rgb})
    assert torch.equal(one["spectral"].map, two["spectral"].map)
    assert torch.allclose(one["image"].share + one["spectral"].share, torch.ones(1))
    with pytest.raises(ConfigError, match="no stream 'thermal'"):
        explain(model, {"image": rgb, "thermal": spectral})


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "words"),
    [
        (("rolout",), {}, ConfigError, "did you mean 'rollout'"),
        (("rollout",), {"discard_rato": 0.1}, ConfigError, "did you mean 'discard_ratio'"),
        (("probe", 3), {}, ConfigError, "from 0 to 2, got 3"),
        (("probe", [0, 1, 2]), {}, ConfigError, "each of 2 images"),
        (("probe", 0.5), {}, ConfigError, "index of a class"),
    ],
)
def test_what_is_not_there(monkeypatch, arguments, settings, error, words):
    monkeypatch.setitem(METHODS, "probe", Method("probe", _probe, True, False, ""))
    with pytest.raises(error, match=words):
        explain(_vit(), torch.randn(2, 3, 16, 16), *arguments, **settings)


def _probe(model, inputs, target, fail=False):
    assert not model.training
    model(inputs[0].requires_grad_()).sum().backward()
    if fail:
        raise RuntimeError("in the middle")
    return {"image": StreamMap(inputs[0][:, 0].detach(), inputs[0][:, 0].detach())}


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_model_is_left_as_it_was(monkeypatch, fail, compiled):
    monkeypatch.setitem(METHODS, "probe", Method("probe", _probe, True, False, ""))
    model = _vit().train()
    model.blocks[1].eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    images = torch.randn(2, 3, 16, 16)
    before = [module.training for module in model.modules()]
    try:
        result = explain(torch.compile(model) if compiled else model, images, "probe", fail=fail)
        assert torch.equal(result.target, model.eval()(images).argmax(1))
        model.train()
        model.blocks[1].eval()
    except RuntimeError:
        assert fail
    assert [module.training for module in model.modules()] == before
    assert not images.requires_grad
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.patch_embed.proj.weight.grad is None


def test_strange_images_and_models():
    with pytest.raises(ShapeError, match="shape"):
        explain(_vit(), torch.randn(3, 16, 16))
    with pytest.raises(ConfigError, match="Linear"):
        explain(torch.nn.Linear(1, 1), torch.randn(1, 3, 16, 16))


def test_a_model_without_classes_has_none_to_explain(monkeypatch):
    monkeypatch.setitem(METHODS, "probe", Method("probe", _probe, True, False, ""))
    model = _vit()
    model.reset_classifier(0)
    with pytest.raises(ConfigError, match="num_classes=0"):
        explain(model, torch.randn(1, 3, 16, 16), "probe")


def test_every_method_says_what_it_shows():
    assert "rollout" in list_methods()
    assert all(method.summary for method in METHODS.values())


def test_inference_mode_around_it_does_no_harm():
    model = _vit()
    with torch.inference_mode():
        images = torch.randn(2, 3, 16, 16)
        inside = explain(model, images, "gradcam", 1, layer=0)
    assert torch.equal(inside.map, explain(model, images.clone(), "gradcam", 1, layer=0).map)


@pytest.mark.parametrize(
    ("method", "setting", "words"),
    [
        ("rollout", {"discard_ratio": "half"}, "discard_ratio must be a finite number, got 'half'"),
        ("rollout", {"discard_ratio": True}, "must be a finite number"),
        ("rollout", {"head_fusion": "sum"}, "'mean' or 'max' or 'min', got 'sum'"),
        ("smoothgrad", {"noise": None}, "noise must be a finite number"),
        ("smoothgrad", {"noise": float("nan")}, "noise must be a finite number"),
        ("smoothgrad", {"batch_size": 0}, "at least 1"),
        ("attention", {"head": True}, "head must be a whole number or none"),
        ("attention", {"layer": 1.5}, "layer must be text or a whole number or none"),
        ("attention", {"query": (1, 2, 3)}, "query must be"),
        ("occlusion", {"window": (2, "x")}, "window must be"),
        ("random", {"seed": "today"}, "seed must be a whole number"),
    ],
)
def test_settings_of_another_kind_are_refused(method, setting, words):
    with pytest.raises(ConfigError, match=words):
        explain(_vit(), torch.randn(1, 3, 16, 16), method, **setting)


def test_settings_of_the_right_kind_are_taken():
    model, images = _vit(), torch.randn(1, 3, 16, 16)
    explain(model, images, "rollout", discard_ratio=0, head_fusion="max")
    explain(model, images, "attention", layer="blocks.0.attn", query=(3, 5), head=1)
    explain(model, images, "occlusion", window=(4, 8), stride=4)


@pytest.mark.parametrize("method", ["rollout", "gradcam", "centre", "random"])
@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (None, ShapeError, "got None"),
        ("leaf.png", ShapeError, "got str"),
        (torch.full((1, 3, 16, 16), torch.nan), ConfigError, "'image' has values that are not finite"),
        (torch.zeros(1, 4, 16, 16), ShapeError, r"\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), ShapeError, "uint8"),
        ([torch.zeros(1, 3, 16, 16)] * 2, ShapeError, "expected one input"),
    ],
    ids=["none", "name", "nan", "bands", "uint8", "two"],
)
@pytest.mark.fast_cases(
    "none-centre", "nan-gradcam", "bands-rollout", "bands-centre", "uint8-gradcam", "uint8-random", "two-gradcam"
)
def test_images_that_the_model_does_not_take_are_refused_by_every_method(method, images, error, words):
    with pytest.raises(error, match=words):
        explain(_vit(), images, method)


@pytest.mark.parametrize("target", [{1}, [0, None]])
def test_targets_that_are_no_numbers(target):
    with pytest.raises(ConfigError, match="index of a class"):
        explain(_vit(), torch.randn(2, 3, 16, 16), "gradcam", target)


@pytest.mark.parametrize("method", [3, ["rollout"]])
def test_methods_that_are_no_names(method):
    with pytest.raises(ConfigError, match="a method is a name"):
        explain(_vit(), torch.randn(2, 3, 16, 16), method)


@pytest.mark.parametrize("settings", [{"depth": 1}, {"depth": 2, "token_learner": {"num_tokens": 3, "layer": 0}}])
def test_methods_that_are_listed_for_a_model_can_explain_it(settings):
    model = vitrail.create_model("vit", img_size=16, patch_size=4, num_heads=2, **TINY, **settings)
    for name in ("gradcam", "eigencam", "attention", "rollout", "tokens"):
        if name in list_methods(model):
            explain(model, torch.randn(1, 3, 16, 16), name)
        else:
            with pytest.raises(ConfigError, match="methods that can: "):
                explain(model, torch.randn(1, 3, 16, 16), name)


@pytest.mark.parametrize("measured", [deletion, insertion, road, infidelity])
def test_without_classes_no_score_is_made_up(measured):
    """Features are not logits, although they can be softmaxed."""
    model, images = _vit(), torch.randn(2, 3, 16, 16)
    model.reset_classifier(0)
    found = explain(model, images)
    with pytest.raises(ConfigError, match="num_classes=0"):
        measured(model, images, found)
    with pytest.raises(ConfigError, match="num_classes=0"):
        band_importance(model, images)
    assert randomisation_check(model, images, "rollout", parts=1).rank.shape == (1, 2)


@pytest.mark.parametrize("name", ["vit token", "vit learner", "swin", "maxvit", "hvt two streams"])
@pytest.mark.parametrize("method", ["rollout", "gradient_rollout", "attribution", "attention", "tokens"])
@pytest.mark.fast_cases(
    "rollout-vit token",
    "rollout-swin",
    "gradient_rollout-hvt two streams",
    "attribution-vit learner",
    "attribution-swin",
    "attribution-maxvit",
    "attention-vit learner",
    "attention-swin",
    "attention-hvt two streams",
    "tokens-vit learner",
)
def test_maps_of_odd_images_are_those_of_the_image_with_its_padding(name, method):
    """The last tokens reach beyond an odd image: its map is the part of theirs that it covers, and not stretched."""
    model = tiny_model(name)
    if method not in list_methods(model):
        pytest.skip("not a method of this model")
    inputs = tiny_inputs(model)
    for stream, found in explain(model, inputs, method).items():
        image = inputs[[s.name for s in model.streams].index(stream)]
        info = [i for i in model.feature_info if i.name.startswith(model.stream_prefixes.get(stream, ""))]
        strides = {found.tokens.shape[1:]: None} | {
            tuple(-(-side // step) for side, step in zip(image.shape[2:], level.stride, strict=True)): level.stride
            for level in reversed(info)
        }  # fmt: skip
        stride = strides[found.tokens.shape[1:]]
        assert stride is not None
        full = [count * step for count, step in zip(found.tokens.shape[1:], stride, strict=True)]
        whole = torch.nn.functional.interpolate(found.tokens[:, None], full, mode="bilinear")[:, 0]
        assert torch.equal(found.map, whole[:, : image.shape[2], : image.shape[3]])


BY_FIXED_ROW = {"rollout", "attribution"}


@pytest.mark.parametrize(
    ("name", "pool"),
    fast_first(
        [("vit token", "max"), ("hvt two streams", ""), ("vit fuser", "max"), ("swin", ""), ("maxvit", "avgmax"),
         ("vit mean", "avgmax"), ("swin", "max"), ("hvt", "max"), ("vit mean", "")], 2),
)  # fmt: skip
def test_methods_that_read_a_mean_refuse_other_pooling(name, pool):
    model = tiny_model(name)
    available = set(list_methods(model))
    model.reset_classifier(4, pool)
    inputs = tiny_inputs(model)
    refused = available - set(list_methods(model))
    assert refused == (BY_FIXED_ROW if pool else {"rollout", *(m for m in available if METHODS[m].by_class)})
    for method in refused:
        with pytest.raises(ConfigError, match=rf"{re.escape(method)} cannot .*: global_pool='{pool}' .*'avg'"):
            explain(model, inputs, method, target=1)
    for method in available - refused:
        assert torch.isfinite(explain(model, inputs, method, METHODS[method].target(torch.tensor([1, 1]))).map).all()


@pytest.mark.parametrize("name", ["vit token", "swin", "maxvit", "hvt two streams"])
def test_functions_refuse_as_the_interface_does(name):
    model = tiny_model(name)
    inputs, target = tiny_inputs(model), torch.tensor([1, 2])
    model.reset_classifier(4, "max")
    with pytest.raises(ConfigError, match="global_pool='max'"):
        attention_rollout(model, *inputs)
    with pytest.raises(ConfigError, match="global_pool='max'"):
        attribution(model, *inputs, target=target)
    assert explain(model, inputs).method == "gradcam"  # the default is one that the model has
    model.reset_classifier(4, "")
    with pytest.raises(ConfigError, match="logits for each token"):
        gradient_rollout(model, *inputs, target=target)


@pytest.mark.parametrize("name", ["vit mean", "swin", "maxvit", "hvt"])
def test_gradient_rollout_starts_at_the_tokens_that_a_maximum_reads(name):
    """The last tokens that are the maximum of no channel have no part in the class."""
    model = tiny_model(name)
    model.reset_classifier(4, "max")
    inputs = tiny_inputs(model, 1)
    features = model.forward_features(*inputs).detach().requires_grad_()
    score = model.forward_head(features)[0, 2]
    (gradient,) = torch.autograd.grad(score, features)
    read = gradient.abs().sum(1 if model.channels_first else -1).flatten() > 0
    assert 0 < int(read.sum()) <= read.numel()
    result = gradient_rollout(model, *inputs, target=torch.tensor([2]))
    assert torch.isfinite(result.tokens).all()
    assert float(result.tokens.sum()) == pytest.approx(1, abs=1e-4)


class _Trained:
    """As load_trained returns it."""

    def __init__(self, model, classes):
        self.model, self.card = model, SimpleNamespace(classes=classes)
        self.normalize = NormalizeStreams(
            {stream.name: ((0.4,) * stream.chans, (0.2,) * stream.chans) for stream in model.streams}
        )


@pytest.mark.fast_cases("swin", "vit learner")
def test_a_trained_model_normalises_and_knows_its_classes(name):
    model = tiny_model(name)
    names = ("ants", "bees", "wasps", "flies")
    trained = _Trained(model, names)
    images = tuple(torch.rand(2, stream.chans, 24, 20) for stream in model.streams)
    inputs = tuple((x - 0.4) / 0.2 for x in images)
    for target, index in (("bees", 1), (["flies", "ants"], torch.tensor([3, 0])), (2, 2), (None, None)):
        found = explain(trained, images, "saliency", target)
        expected = explain(model, inputs, "saliency", index)
        assert torch.equal(found.target, expected.target)
        torch.testing.assert_close(found.map, expected.map)
    named = {stream.name: x for stream, x in zip(model.streams, images, strict=True)}
    for given in (images, named, {**named, "target": torch.tensor([1, 2]), "index": torch.tensor([5, 9])}):
        torch.testing.assert_close(deletion(trained, given, expected, "bees", steps=3).scores,
                                   deletion(model, inputs, expected, 1, steps=3).scores)  # fmt: skip
    with pytest.raises(ConfigError, match=r"no class 'bee'; did you mean 'bees'\?; classes: ants, .* .or by index"):
        explain(trained, images, "saliency", "bee")
    with pytest.raises(ConfigError, match=r"the model has no class names .* give the index .* load_trained"):
        explain(model, inputs, "saliency", "bees")


@pytest.mark.slow_cases("maxvit", "swin", "vit learner last", "hvt two streams concat")
def test_a_method_that_explains_no_class_refuses_one(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    for method in list_methods(model):
        if METHODS[method].by_class:
            continue
        with pytest.raises(ConfigError, match=rf"^{method} explains no class, and target is 1; leave it out.*saliency"):
            explain(model, inputs, method, target=1)
        assert explain(model, inputs, method).target is None
        assert torch.isfinite(sensitivity(model, inputs, method, 1, samples=2)).all()


@pytest.mark.parametrize("scale", [60, 255, 65535])
@pytest.mark.parametrize("name", ["vit token", "swin", "maxvit"])
@pytest.mark.fast_cases("vit token-60", "swin-65535", "maxvit-60")
def test_images_that_were_not_normalised_are_warned_of(name, scale):
    model = tiny_model(name)
    raw = tuple(torch.rand(1, stream.chans, 20, 20) * scale for stream in model.streams)
    with pytest.warns(DataWarning, match=r"'image' has values from .* to .*takes normalised images"):
        explain(model, raw, "saliency")
    with pytest.warns(DataWarning, match="takes images in 0..1"):
        explain(_Trained(model, "abcd"), raw, "saliency")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(model, tuple(x - scale / 2 for x in raw), "saliency")
        explain(model, tuple(x / scale for x in raw), "saliency")


def test_an_unknown_level_lists_the_levels_once():
    model = tiny_model("vit token")
    with pytest.raises(ConfigError, match=r"^no level 'foo'; levels: blocks.0, blocks.1, blocks.2$"):
        explain(model, tiny_inputs(model), "gradcam", layer="foo")
    with pytest.raises(ConfigError, match=r"^no level 'block.1'; did you mean 'blocks.1'\?; levels: blocks.0"):
        explain(model, tiny_inputs(model), "gradcam", layer="block.1")
