"""Gradients by the pixels: completeness, brute force, captum called by hand; streams, seeds, pieces."""

import numpy as np
import pytest
import torch

from tests.explain.tiny_models import SETTINGS, tiny_inputs, tiny_model
from tests.tiers import spread
from vitrail.errors import ConfigError
from vitrail.explain import explain
from vitrail.explain.methods.baselines import make_baseline
from vitrail.explain.methods.input_gradients import integrated_gradients

pytestmark = pytest.mark.filterwarnings("error::UserWarning")
ALL = ("saliency", "input_x_gradient", "integrated_gradients", "smoothgrad", "occlusion")


def pytest_generate_tests(metafunc):
    spread(metafunc, name=SETTINGS)


def _logit(model, inputs, target):
    with torch.no_grad():
        return model(*inputs).gather(1, target[:, None])[:, 0]


def _gradients(model, inputs, target):
    inputs = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(model(*inputs).gather(1, target[:, None]).sum(), inputs)


def test_against_gradients_by_hand(name):
    model, target = tiny_model(name), torch.tensor([3, 1])
    inputs = tiny_inputs(model)
    gradients = _gradients(model, inputs, target)
    saliency, product = (explain(model, inputs, method, target) for method in ("saliency", "input_x_gradient"))
    for stream, x, g in zip(model.streams, inputs, gradients, strict=True):
        scale = float(g.abs().max())
        assert torch.allclose(saliency[stream.name].map, g.abs().amax(1), atol=1e-4 * scale)
        assert torch.allclose(product[stream.name].map, (g * x).sum(1), atol=1e-3 * scale)
        assert (product[stream.name].map < 0).any()


@pytest.mark.fast_cases("vit fuser-mean", "hvt two streams-blur")
@pytest.mark.parametrize(
    ("name", "baseline"),
    [("vit token", "zero"), ("vit fuser", "mean"), ("swin", "blur"), ("maxvit", "zero"), ("hvt two streams", "blur")],
)
def test_integrated_gradients_sum_to_the_difference_of_the_logits(name, baseline):
    model, target = tiny_model(name).double(), torch.tensor([0, 2])
    inputs = [x.double() for x in tiny_inputs(model)]
    start = [make_baseline(x, baseline) for x in inputs]
    difference = _logit(model, inputs, target) - _logit(model, start, target)
    errors = []
    for steps in (3, 80):
        result = explain(model, inputs, "integrated_gradients", target, steps=steps, baseline=baseline, batch_size=50)
        total = sum(one.map.sum((1, 2)) for one in result.values())
        errors.append(float((total - difference).abs().max()))
    assert errors[1] < 0.02 * float(difference.abs().max()) + 1e-4
    assert errors[1] <= errors[0]


def test_integrated_gradients_equal_the_integral_by_hand():
    model, target = tiny_model("hvt two streams").double(), torch.tensor([0, 2, 1])
    inputs = [x.double() for x in tiny_inputs(model, 3)]
    sums = [torch.zeros_like(x) for x in inputs]
    points, weights = np.polynomial.legendre.leggauss(8)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        for total, g in zip(sums, _gradients(model, [point * x for x in inputs], target), strict=True):
            total += weight * g
    for batch_size in (2, 64):
        found = integrated_gradients(model, inputs, target, steps=8, batch_size=batch_size)
        for x, total, one in zip(inputs, sums, found.values(), strict=True):
            assert torch.allclose(one, x * total, atol=1e-6 * float((x * total).abs().max()))


def test_smoothgrad_is_the_mean_over_noisy_copies():
    model = tiny_model("hvt two streams")
    inputs = [x[:1] for x in tiny_inputs(model)]
    target = torch.tensor([2])
    result = explain(model, inputs, "smoothgrad", target, samples=6, noise=0.1, seed=5)
    torch.manual_seed(5)
    noisy = [
        x.repeat(6, 1, 1, 1) + torch.normal(0, torch.full((6, *x.shape[1:]), 0.1 * float(x.max() - x.min())))
        for x in inputs
    ]
    for stream, g in zip(model.streams, _gradients(model, noisy, target.expand(6)), strict=True):
        expected = g.mean(0, keepdim=True).abs().amax(1)
        assert torch.allclose(result[stream.name].map, expected, atol=1e-4 * float(expected.max()))


def test_smoothgrad_draws_from_its_own_seed_alone():
    model = tiny_model("vit mean")
    (x,) = tiny_inputs(model, 3)
    torch.manual_seed(1)
    first = explain(model, x, "smoothgrad", [0, 1, 2], samples=3)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(explain(model, x, "smoothgrad", [0, 1, 2], samples=3).map, first.map)
    assert torch.allclose(explain(model, x[2:], "smoothgrad", 2, samples=3).map[0], first.map[2], atol=1e-6)
    assert not torch.equal(explain(model, x, "smoothgrad", [0, 1, 2], samples=3, seed=1).map, first.map)


@pytest.mark.fast_cases("swin-7")
@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("name", ["swin", "hvt two streams"])
def test_occlusion_is_what_covering_costs(name, batch_size):
    model, target = tiny_model(name), torch.tensor([1, 3])
    inputs = [x[:, :, :9, :10].contiguous() for x in tiny_inputs(model)]
    result = explain(
        model, inputs, "occlusion", target, window=(4, 5), stride=(2, 3), baseline="mean", batch_size=batch_size
    )
    whole = _logit(model, inputs, target)
    for number, stream in enumerate(model.streams):
        total, times = torch.zeros(2, 9, 10), torch.zeros(9, 10)
        # The last windows are cut at the edge, as captum has them.
        for top in range(0, 9 - 4 + 2, 2):
            for left in range(0, 10 - 5 + 3, 3):
                covered = [x.clone() for x in inputs]
                covered[number][:, :, top : top + 4, left : left + 5] = inputs[number].mean((2, 3), keepdim=True)
                total[:, top : top + 4, left : left + 5] += (whole - _logit(model, covered, target))[:, None, None]
                times[top : top + 4, left : left + 5] += 1
        expected = total / times
        assert torch.allclose(result[stream.name].map, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.fast_cases(
    "input_x_gradient-vit learner last",
    "integrated_gradients-vit learner last",
    "saliency-vit learner last",
    "smoothgrad-vit learner last",
)
@pytest.mark.parametrize("name", ["vit learner last", "maxvit", "hvt two streams concat"])
@pytest.mark.parametrize("method", ALL)
def test_pieces_change_nothing(name, method):
    model = tiny_model(name)
    inputs = [x[:, :, :8, :9].contiguous() for x in tiny_inputs(model, 3)]
    quick = {"samples": 3} if method == "smoothgrad" else {"steps": 4} if method.startswith("integrated") else {}
    if method == "occlusion":
        quick = {"window": 4, "stride": 4}
    one, all_at_once = (explain(model, inputs, method, [0, 1, 2], batch_size=n, **quick) for n in (3, 100))
    alone = explain(model, [x[2:] for x in inputs], method, 2, **quick)
    for stream, x in zip(one, inputs, strict=True):
        assert one[stream].map.shape == (3, *x.shape[2:])
        scale = float(all_at_once[stream].map.abs().max())
        assert torch.allclose(one[stream].map, all_at_once[stream].map, atol=1e-3 * scale)
        assert torch.allclose(alone[stream].map[0], one[stream].map[2], atol=1e-3 * scale)
        assert not one[stream].map.requires_grad


def test_a_stream_left_out():
    settings = {**SETTINGS["hvt two streams"][1], "missing_spectral": "learned"}
    import vitrail

    model, image = vitrail.create_model("hvt", **settings), torch.randn(2, 3, 12, 12)
    for method in ALL:
        small = {"window": 6, "stride": 6} if method == "occlusion" else {}
        result = explain(model, [image, None], method, 1, **small)
        assert list(result) == ["image"]
        assert torch.allclose(explain(model, image, method, 1, **small).map, result.map)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("integrated_gradients", {"baseline": "black"}, "zero, mean, blur"),
        ("saliency", {"smooth": -0.1}, "share of the longer side"),
        ("smoothgrad", {"smooth": 3, "samples": 1}, "share of the longer side"),
        ("integrated_gradients", {"steps": 0}, "steps"),
        ("saliency", {"batch_size": 0}, "batch_size"),
        ("smoothgrad", {"noise": 0.0}, "noise"),
        ("smoothgrad", {"samples": 0.5}, "samples"),
        ("occlusion", {"window": 22}, "1 to 21 pixels"),
        ("occlusion", {"window": 4, "stride": 5}, "leave gaps"),
    ],
)
def test_settings_that_make_no_sense(method, settings, words):
    model = tiny_model("vit mean")
    with pytest.raises(ConfigError, match=words):
        explain(model, tiny_inputs(model), method, 0, **settings)


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient", "integrated_gradients", "smoothgrad"])
@pytest.mark.parametrize(("name", "smooth"), [("swin", 0.05), ("hvt two streams", 0.11)])
@pytest.mark.fast_cases(
    "swin-0.05-saliency",
    "swin-0.05-input_x_gradient",
    "swin-0.05-smoothgrad",
    "hvt two streams-0.11-integrated_gradients",
)
def test_smoothing_is_a_gaussian_over_the_finished_map(method, name, smooth):
    from scipy.ndimage import gaussian_filter

    model, target = tiny_model(name), torch.tensor([0, 2])
    inputs = tiny_inputs(model)
    more = {"steps": 2} if method == "integrated_gradients" else {"samples": 2} if method == "smoothgrad" else {}
    plain, smoothed = (explain(model, inputs, method, target, smooth=s, **more) for s in (0.0, smooth))
    for stream in plain:
        rough = plain[stream].map.numpy()
        sigma = smooth * max(rough.shape[1:])
        reach = int(np.ceil(3 * sigma))
        assert reach < min(rough.shape[1:])
        wanted = [gaussian_filter(one, sigma, mode="mirror", truncate=reach / sigma) for one in rough]
        assert np.allclose(smoothed[stream].map, wanted, atol=1e-5 * np.abs(rough).max())


def test_a_blurred_image_keeps_its_mean_and_loses_its_detail():
    x = torch.randn(1, 2, 64, 48)
    blurred = make_baseline(x, "blur")
    assert blurred.std() < 0.2 * x.std()
    assert torch.allclose(blurred.mean((2, 3)), x.mean((2, 3)), atol=0.05)
    assert make_baseline(torch.randn(1, 1, 1, 1), "blur").shape == (1, 1, 1, 1)


@pytest.mark.parametrize("method", ["saliency", "smoothgrad", "integrated_gradients"])
def test_models_of_half_precision(method):
    model = tiny_model("vit token").to(torch.bfloat16)
    (images,) = tiny_inputs(model)
    settings = {"saliency": {}, "smoothgrad": {"samples": 2}, "integrated_gradients": {"steps": 2}}[method]
    found = explain(model, images.to(torch.bfloat16), method, 1, **settings).map
    plain = explain(model.float(), images.to(torch.bfloat16).float(), method, 1, **settings).map
    assert found.dtype == torch.float32
    # bfloat16 has three digits, and all the model's values are rounded to them.
    assert torch.corrcoef(torch.stack([found.flatten(), plain.flatten()]))[0, 1] > 0.95
