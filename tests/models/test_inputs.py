"""What models make of inputs that are unusual or wrong, in every family."""

import random

import pytest
import torch

import vitrail
from tests.tiers import fast_first, spread
from vitrail.errors import ShapeError
from vitrail.explain import capture_attention
from vitrail.models import list_families

CASES = {
    **{name: (name, {}) for name in list_families("image")},
    **{
        f"vit with TokenLearner {version}{' and fuser' if fuse else ''}": (
            "vit",
            {"token_learner": {"num_tokens": 3, "layer": 1, "version": version, "fuse": fuse}},
        )
        for version in ("1.0", "1.1")
        for fuse in (False, True)
    },
    "maxvit as torchvision": ("maxvit", {"flavour": "torchvision"}),
    "hvt in windows": ("hvt", {"attention": 3}),
    "hvt, streams side by side": ("hvt", {"fusion": "concat"}),
    "hvt of one stream": ("hvt", {"spectral_chans": 0, "spectral_embed_dim": None}),
}


def pytest_generate_tests(metafunc):
    spread(metafunc, case=CASES)


@pytest.fixture
def model(case):
    name, settings = CASES[case]
    return vitrail.create_model(name, **{**list_families()[name].test_config, **settings}).eval()


def _inputs(model, batch, seed=0):
    rng = random.Random(seed)
    size = rng.randint(17, 40), rng.randint(17, 40)
    return [torch.randn(batch, stream.chans, *size) for stream in model.streams]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("seed", fast_first(range(3), 1))
@pytest.mark.fast_cases(
    "hvt-0-False",
    "maxvit-0-False",
    "maxvit-0-True",
    "swin-0-False",
    "swin-0-True",
    "vit-0-False",
    "vit with TokenLearner 1.1 and fuser-0-True",
)
def test_a_batch_of_none_gives_logits_of_none(model, seed, gradients):
    inputs, full = _inputs(model, 0, seed), _inputs(model, 2, seed)
    with torch.set_grad_enabled(gradients):
        logits = model(*inputs)
        with capture_attention(model):
            watched = model(*inputs)
        levels, expected = (
            model.forward_intermediates(*inputs, intermediates_only=True),
            model.forward_intermediates(*full, intermediates_only=True),
        )
    assert logits.shape == watched.shape == (0, model.num_classes)
    assert [level.shape[1:] for level in levels] == [level.shape[1:] for level in expected]
    if gradients:
        logits.sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.slow_cases("swin-forward_features")
@pytest.mark.parametrize("method", ["forward", "forward_features", "forward_intermediates"])
def test_the_right_number_of_tensors_or_a_reason(model, method):
    call, inputs = getattr(model, method), _inputs(model, 2)
    image, *others = inputs
    wrong = {
        "None": [None, *others],
        "ndarray": [image.numpy(), *others],
        "list": [*inputs[:-1], [1.0, 2.0]],
    }
    for given, values in wrong.items():
        with pytest.raises(ShapeError, match="image") as caught:
            call(*values)
        assert given in str(caught.value)
    # A missing argument, or one too many, is Python's error, as of any module.
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        call()
    with pytest.raises(TypeError, match="positional argument"):
        call(*inputs, *[None] * 8)


OTHER_TYPES = [torch.uint8, torch.int64, torch.bool, torch.float16, torch.float64, torch.complex64]


@pytest.mark.parametrize("gradients", fast_first([False, True], 1))
@pytest.mark.parametrize("dtype", OTHER_TYPES, ids=str)
@pytest.mark.fast_cases(
    "maxvit-torch.uint8-False",
    "swin-torch.int64-False",
    "vit with TokenLearner 1.0 and fuser-torch.complex64-False",
    "hvt, streams side by side-torch.int64-False",
)
def test_images_of_another_type_are_refused(model, dtype, gradients):
    inputs = _inputs(model, 2)
    for number in range(len(inputs)):
        wrong = [x.to(dtype) if i == number else x for i, x in enumerate(inputs)]
        with torch.set_grad_enabled(gradients), pytest.raises(ShapeError) as caught:
            model(*wrong)
        assert f"got {dtype};" in str(caught.value)
        assert "expected images of torch.float32" in str(caught.value)
    with pytest.raises(ShapeError, match=r"of torch.float64, as the model's weights, got torch.float32"):
        model.double()(*inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.fast_cases(
    "swin-dtype2", "vit with TokenLearner 1.1-dtype2", "maxvit as torchvision-dtype1", "hvt of one stream-dtype0"
)
def test_autocast_takes_any_type_that_it_converts(model, dtype):
    inputs = _inputs(model, 2)
    with torch.no_grad():
        expected = model(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(*(x.to(dtype) for x in inputs))
            for wrong in (torch.uint8, torch.float64):
                with pytest.raises(ShapeError, match=r"expected images of torch\.float32"):
                    model(*(x.to(wrong) for x in inputs))
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("family", list_families("image"))
@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        (lambda c, size: (c, *size), r"x\[None\]"),
        (lambda c, size: (*size, c), r"x\.permute\(2, 0, 1\)\[None\]"),
        (lambda c, size: (2, *size, c), r"x\.permute\(0, 3, 1, 2\)"),
        (lambda c, size: (2, c + 1, *size), "in_chans"),
    ],
    ids=["no batch", "no batch, bands last", "bands last", "bands"],
)
@pytest.mark.fast_cases("no batch-vit", "no batch, bands last-swin", "bands last-hvt", "bands-maxvit")
def test_the_error_of_a_wrong_shape_names_its_remedy(family, shape, remedy):
    settings = {**list_families()[family].test_config, "in_chans": 5}
    settings |= {"spectral_chans": 0} if "spectral_chans" in settings else {}
    model = vitrail.create_model(family, **settings).eval()
    first = model.streams[0]
    with pytest.raises(ShapeError, match=remedy):
        model(torch.rand(shape(first.chans, first.size)))
