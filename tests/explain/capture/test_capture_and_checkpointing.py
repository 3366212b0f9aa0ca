"""Watching a model that recomputes its blocks in the backward pass, in every family."""

import random

import pytest
import torch

import vitrail
from tests.tiers import spread
from vitrail.explain import capture_attention
from vitrail.models import list_families

CASES = {
    **{name: (name, {}) for name in list_families("image")},
    "vit with learned tokens": ("vit", {"token_learner": {"num_tokens": 3, "layer": 1}}),
    "hvt in windows": ("hvt", {"attention": 3}),
    "maxvit as torchvision": ("maxvit", {"flavour": "torchvision"}),
}


def pytest_generate_tests(metafunc):
    spread(metafunc, name=CASES)


@pytest.fixture
def case(name):
    """A model in training, two batches of a random size, and its gradients without recomputation."""
    family, settings = CASES[name]
    rng = random.Random(name)
    torch.manual_seed(rng.randrange(1000))
    model = vitrail.create_model(family, **{**list_families()[family].test_config, **settings}).train()
    batches = [_inputs(model, rng) for _ in range(2)]
    gradients = [_gradients(model, model(*batch)) for batch in batches]
    model.set_grad_checkpointing()
    return model, batches, gradients


def _inputs(model, rng):
    height, width = rng.randint(17, 40), rng.randint(17, 40)
    return [torch.randn(2, stream.chans, height, width) for stream in model.streams]


def _gradients(model, logits):
    model.zero_grad()
    logits.square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def _equal(gradients, expected):
    return all(torch.allclose(g, e, atol=2e-5, rtol=1e-3) for g, e in zip(gradients, expected, strict=True))


@pytest.mark.fast_cases("vit-False", "vit-True")
@pytest.mark.parametrize("inside", [False, True])
def test_the_backward_pass_may_come_inside_the_block_or_after_it(case, inside):
    model, batches, expected = case
    with capture_attention(model) as record:
        logits = model(*batches[0])
        names = [step.name for step in record.steps]
        if inside:
            gradients = _gradients(model, logits)
    if not inside:
        gradients = _gradients(model, logits)
    assert _equal(gradients, expected[0])
    assert [step.name for step in record.steps] == names
    assert len(set(names)) == len(names) > 1


@pytest.mark.fast_cases("vit with learned tokens")
def test_gradients_reach_the_weights_of_recomputed_blocks(case):
    model, batches, _ = case
    with capture_attention(model) as record:
        logits = model(*batches[0])
    weights = [step.weights for step in record.steps if step.weights.requires_grad]
    assert weights
    assert all(g is not None and g.isfinite().all() for g in torch.autograd.grad(logits.square().sum(), weights))


@pytest.mark.fast_cases("vit")
def test_what_ran_before_the_watch_is_not_recorded_when_it_runs_again(case):
    model, batches, expected = case
    earlier = model(*batches[0])
    with capture_attention(model) as record:
        later = model(*batches[1])
        names = [step.name for step in record.steps]
        assert _equal(_gradients(model, earlier), expected[0])
        assert [step.name for step in record.steps] == names
        assert _equal(_gradients(model, later), expected[1])
    assert [step.name for step in record.steps] == names


@pytest.mark.fast_cases("vit with learned tokens")
def test_blocks_that_nobody_watches_are_still_recomputed(case):
    model, batches, expected = case
    with capture_attention(model) as record:
        model(*batches[0])
    name = record.steps[-1].name
    ran = []
    for block_name, module in model.named_modules():
        if block_name.split(".")[-2:-1] == ["blocks"]:
            module.register_forward_pre_hook(lambda *_, name=block_name: ran.append(name))
    with capture_attention(model, name) as record:
        logits = model(*batches[0])
    forward = list(ran)
    assert _equal(_gradients(model, logits), expected[0])
    assert len(record.steps) == 1
    again = ran[len(forward) :]
    assert sorted(again) == sorted(block for block in forward if not name.startswith(block + "."))


@pytest.mark.fast_cases("vit")
def test_running_statistics_count_a_batch_once_watched_or_not(case):
    model, batches, _ = case
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [int(norm.num_batches_tracked) for norm in norms]
    with capture_attention(model):
        _gradients(model, model(*batches[0]))
    _gradients(model, model(*batches[1]))
    assert [int(norm.num_batches_tracked) for norm in norms] == [count + 2 for count in before]
