"""torch.func in every family: gradients, per-sample gradients, ensembles and forward mode, against plain loops."""

import random

import pytest
import torch
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap

import vitrail
from tests.tiers import fast_first, spread
from vitrail.models import list_families

CASES = {
    **{name: (name, {}) for name in list_families("image")},
    **{
        f"vit with TokenLearner {version}{' and fuser' if fuse else ''}": (
            "vit",
            {"token_learner": {"num_tokens": 3, "layer": 1, "version": version, "fuse": fuse}},
        )
        for version, fuse in (("1.0", False), ("1.1", False), ("1.1", True))
    },
    "maxvit as torchvision": ("maxvit", {"flavour": "torchvision"}),
    "swin that attends to padding": ("swin", {"mask_padding": False}),
    "hvt in windows": ("hvt", {"attention": 3}),
    "hvt, streams side by side": ("hvt", {"fusion": "concat"}),
}


def pytest_generate_tests(metafunc):
    spread(metafunc, case=CASES)


@pytest.fixture
def build(case):
    name, settings = CASES[case]
    return lambda: vitrail.create_model(name, **{**list_families()[name].test_config, **settings}).eval()


@pytest.fixture
def model(build):
    return build()


@pytest.fixture(params=[0, pytest.param(1, marks=pytest.mark.slow)])
def inputs(request, model):
    # A padded size and one that needs no padding.
    rng = random.Random(request.param)
    size = (32, 32) if request.param else (rng.randint(17, 40), rng.randint(17, 40))
    return [torch.randn(3, stream.chans, *size) for stream in model.streams]


def _close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * max(1.0, expected.abs().max().item()))


def _one(x):
    return [image[None] for image in x]


@pytest.mark.slow_cases("maxvit-0")
def test_gradients_of_the_image(model, inputs):
    image, *others = inputs
    seen = image.clone().requires_grad_()
    model(seen, *others).square().sum().backward()
    _close(grad(lambda x: model(x, *others).square().sum())(image), seen.grad)


@pytest.mark.fast_cases("vit with TokenLearner 1.0-0")
def test_gradients_of_each_sample(model, inputs):
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, *sample):
        return functional_call(model, weights, tuple(_one(sample))).square().sum()

    each = vmap(grad(loss), in_dims=(None,) + (0,) * len(inputs))(weights, *inputs)
    for number in range(len(inputs[0])):
        model.zero_grad()
        model(*(x[number : number + 1] for x in inputs)).square().sum().backward()
        for name, parameter in model.named_parameters():
            _close(each[name][number], parameter.grad)


@pytest.mark.fast_cases("vit with TokenLearner 1.1-0-True")
@pytest.mark.parametrize("gradients", [True, False])
def test_an_ensemble_at_once(build, inputs, gradients):
    models = [build() for _ in range(3)]
    with torch.set_grad_enabled(gradients):
        weights, buffers = stack_module_state(models)
        logits = vmap(lambda w, b: functional_call(models[0], (w, b), tuple(inputs)))(weights, buffers)
        _close(logits, torch.stack([m(*inputs) for m in models]))


@pytest.mark.parametrize("gradients", fast_first([True, False], 1))
def test_images_one_by_one(model, inputs, gradients):
    with torch.set_grad_enabled(gradients):
        _close(vmap(lambda *sample: model(*_one(sample))[0])(*inputs), model(*inputs))


@pytest.mark.fast_cases("vit-0-True")
@pytest.mark.parametrize("gradients", [True, False])
def test_forward_mode(model, inputs, gradients):
    model, inputs = model.double(), [x.double() for x in inputs]
    directions = tuple(torch.randn_like(x) for x in inputs)
    with torch.set_grad_enabled(gradients):
        logits, change = jvp(model, tuple(inputs), directions)
        step = 1e-5
        ahead = model(*(x + step * d for x, d in zip(inputs, directions, strict=True)))
        behind = model(*(x - step * d for x, d in zip(inputs, directions, strict=True)))
        _close(logits, model(*inputs))
        torch.testing.assert_close(change, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-5)
        with torch.autograd.forward_ad.dual_level():
            dual = model(*map(torch.autograd.forward_ad.make_dual, inputs, directions))
            _close(torch.autograd.forward_ad.unpack_dual(dual).tangent, change)


@pytest.mark.fast_cases("vit with TokenLearner 1.0-0")
def test_second_derivatives(model, inputs):
    model, inputs = model.double(), [x[:1].double() for x in inputs]
    directions = [torch.randn_like(x) for x in inputs]

    def loss(step):
        return model(*(x + step * d for x, d in zip(inputs, directions, strict=True))).square().sum()

    at = torch.zeros((), dtype=torch.float64)
    step = 1e-4
    with torch.no_grad():
        expected = (loss(at + step) - 2 * loss(at) + loss(at - step)) / step**2
    torch.testing.assert_close(hessian(loss)(at), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.fast_cases("vit with TokenLearner 1.1-0")
def test_nothing_is_kept_from_inside_a_transform(build, inputs):
    model, untouched = build(), build()
    untouched.load_state_dict(model.state_dict())
    with torch.no_grad():
        grad(lambda x: model(x, *inputs[1:]).sum())(inputs[0])
        vmap(lambda *sample: model(*_one(sample))[0])(*inputs)
        jvp(model, tuple(inputs), tuple(inputs))
        assert torch.equal(model(*inputs), untouched(*inputs))
    model(*inputs).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
