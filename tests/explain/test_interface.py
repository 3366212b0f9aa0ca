"""Asking for an explanation: targets, settings, streams, errors; the model afterwards as before."""

import pytest
import torch

import vitrail
from vitrail.errors import ConfigError, ShapeError
from vitrail.explain import explain, list_methods
from vitrail.explain.interface import METHODS, Method, StreamMap

TINY = {"embed_dim": 16, "num_classes": 3}


def _vit(**settings):
    return vitrail.create_model("vit", img_size=16, patch_size=4, depth=2, num_heads=2, **TINY, **settings)


def test_rollout_through_the_interface():
    model = _vit()
    result = explain(model, torch.randn(2, 3, 16, 20), "rollout", discard_ratio=0.2)
    assert result.map.shape == (2, 16, 20)
    assert result["image"].tokens.shape == (2, 4, 5)
    assert torch.allclose(result.tokens.sum((1, 2)), torch.ones(2), atol=1e-5)
    assert result.target is None
    assert result.settings == {"head_fusion": "mean", "discard_ratio": 0.2}
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
        (("rollout",), {"discard": 0.1}, ConfigError, "did you mean 'discard_ratio'"),
        (("probe", 3), {}, ConfigError, "no class 3: the model has 3"),
        (("probe", [0, 1, 2]), {}, ConfigError, "each of the 2 images"),
        (("probe", 0.5), {}, ConfigError, "number of a class"),
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
