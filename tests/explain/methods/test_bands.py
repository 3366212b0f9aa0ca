"""Band importance against loops, captum, and a model that looks at one band alone."""

import pytest
import torch

from tests.explain.tiny_models import known_case, tiny_inputs, tiny_model
from vitrail.errors import ConfigError
from vitrail.explain import BandScores, band_importance
from vitrail.explain.methods.bands import _corrected_p

WAYS = ("zero", "mean", "noise", "permutation", "integrated_gradients")


@pytest.mark.parametrize("by", WAYS)
def test_the_band_that_the_model_sees_is_found(by):
    model, images, _ = known_case()
    images = images * torch.linspace(0.8, 1.2, len(images))[:, None, None, None]
    found = band_importance(model, images, 1, by, steps=8)["image"]
    assert found.scores.shape == (12, 3)
    assert torch.allclose(found.scores[:, 1:], torch.zeros(12, 2), atol=1e-5)
    assert torch.allclose(found.mean, found.scores.mean(0))
    if by == "permutation":  # another image is as bright in the mean
        assert found.scores[:, 0].abs().mean() > 0.3
        return
    assert found.low[0] > 5
    assert found.low[0] < found.mean[0] < found.high[0]


@pytest.mark.fast_cases("vit learner")
@pytest.mark.parametrize("name", ["vit token", "vit learner", "swin", "maxvit", "hvt two streams"])
def test_replacing_equals_captum(name):
    from captum.attr import FeatureAblation

    model, target = tiny_model(name), torch.tensor([1, 3, 0])
    inputs = tiny_inputs(model, 3)
    found = band_importance(model, inputs, target, "mean", batch_size=2)
    features, first = [], 0
    for x in inputs:
        features.append(torch.arange(first, first + x.shape[1])[None, :, None, None].expand_as(x[:1]))
        first += x.shape[1]
    means = tuple(x.mean((2, 3), keepdim=True).expand_as(x) for x in inputs)
    with torch.no_grad():
        expected = FeatureAblation(model).attribute(inputs, means, target, feature_mask=tuple(features))
    for stream, one in zip(model.streams, expected, strict=True):
        assert torch.allclose(found[stream.name].scores, one[:, :, 0, 0], atol=1e-4)


@pytest.mark.fast_cases("vit mean")
@pytest.mark.parametrize("name", ["vit mean", "hvt two streams"])
def test_integrated_gradients_of_all_bands_sum_to_the_difference(name):
    model, target = tiny_model(name).double(), torch.tensor([1, 3])
    inputs = [x.double() for x in tiny_inputs(model)]
    found = band_importance(model, inputs, target, "integrated_gradients", steps=80)
    with torch.no_grad():
        difference = (model(*inputs) - model(*[x * 0 for x in inputs])).gather(1, target[:, None])[:, 0]
    total = sum(one.scores.sum(1) for one in found.streams.values())
    assert torch.allclose(total, difference, atol=0.02 * float(difference.abs().max()))


def test_a_permutation_takes_the_bands_of_other_images():
    model = tiny_model("vit mean")
    (x,) = tiny_inputs(model, 2)
    found = band_importance(model, x, [0, 0], "permutation", repeats=3)["image"]
    for band in range(3):
        swapped = x.clone()
        swapped[:, band] = x.flip(0)[:, band]
        with torch.no_grad():
            expected = model(x)[:, 0] - model(swapped)[:, 0]
        assert torch.allclose(found.scores[:, band], expected, atol=1e-5)
    with pytest.raises(ConfigError, match="at least 2 images"):
        band_importance(model, x[:1], 0, "permutation")


@pytest.mark.fast_cases("noise")
@pytest.mark.parametrize("by", ["noise", "permutation"])
def test_draws_come_from_the_seed_alone(by):
    model = tiny_model("hvt two streams")
    inputs = tiny_inputs(model, 6)
    first = band_importance(model, inputs, 1, by, repeats=2)
    torch.rand(7)
    again, other = (band_importance(model, inputs, 1, by, repeats=2, seed=seed) for seed in (0, 5))
    assert torch.equal(first["spectral"].scores, again["spectral"].scores)
    assert not torch.equal(first["spectral"].scores, other["spectral"].scores)


def test_one_image_has_no_interval_and_bad_settings_are_refused():
    model = tiny_model("vit mean")
    (x,) = tiny_inputs(model, 1)
    found = band_importance(model, x)["image"]
    assert torch.isnan(found.low).all()
    assert torch.isfinite(found.mean).all()
    for settings, words in (
        ({"by": "blur"}, "permutation"),
        ({"by": "integrated_gradients", "score": "probability"}, "logit"),
        ({"by": "noise", "repeats": 0}, "repeats"),
        ({"confidence": 1.0}, "confidence"),
        ({"target": 9}, "from 0 to 3, got 9"),
    ):
        with pytest.raises(ConfigError, match=words):
            band_importance(model, x, **settings)
    with pytest.raises(ConfigError, match="thermal"):
        band_importance(model, x)["thermal"]


def test_verdicts_are_corrected_and_seldom_false():
    generator = torch.Generator().manual_seed(0)
    false = 0
    for _ in range(300):
        drops = {"image": torch.randn(8, 3, generator=generator), "spectral": torch.randn(8, 9, generator=generator)}
        p = torch.cat(list(_corrected_p(drops).values()))
        false += bool((p < 0.05).any())
    assert false / 300 < 0.08
    drops["spectral"][:, 4] += 6
    drops["image"][:, 1] -= 6
    p = _corrected_p(drops)
    made = {name: BandScores(x, x.mean(0), x.mean(0), x.mean(0), p[name]) for name, x in drops.items()}
    assert made["spectral"].verdicts()[4] == "needed"
    assert made["image"].verdicts()[1] == "against"
    one = BandScores(
        drops["image"], *[drops["image"].mean(0)] * 3, _corrected_p({"image": drops["image"][:1]})["image"]
    )
    assert one.verdicts() == ["not shown"] * 3


def test_the_band_that_the_model_sees_is_needed():
    model, images, _ = known_case()
    images = images * torch.linspace(0.8, 1.2, len(images))[:, None, None, None]
    assert band_importance(model, images, 1, "mean")["image"].verdicts() == ["needed", "not shown", "not shown"]
