"""What models make of inputs that are unusual or wrong, in every family."""

import random

import pytest
import torch

import vitrail
from vitrail.explain import capture_attention
from vitrail.models import families

CASES = {
    **{name: (name, {}) for name in families()},
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


@pytest.fixture(params=CASES)
def model(request):
    name, settings = CASES[request.param]
    return vitrail.create_model(name, **{**families()[name].test_config, **settings}).eval()


def _inputs(model, batch, seed=0):
    rng = random.Random(seed)
    size = rng.randint(17, 40), rng.randint(17, 40)
    return [torch.randn(batch, stream.chans, *size) for stream in model.streams]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_of_none_gives_logits_of_none(model, seed, gradients):
    inputs, full = _inputs(model, 0, seed), _inputs(model, 2, seed)
    with torch.set_grad_enabled(gradients):
        logits = model(*inputs)
        with capture_attention(model):
            watched = model(*inputs)
        levels, expected = model.forward_intermediates(*inputs), model.forward_intermediates(*full)
    assert logits.shape == watched.shape == (0, model.num_classes)
    assert [level.shape[1:] for level in levels] == [level.shape[1:] for level in expected]
    if gradients:
        logits.sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
