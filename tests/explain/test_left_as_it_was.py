"""Explaining changes nothing, by any method, in any family: not the outputs, not the model, not after an error."""

import copy
import threading

import pytest
import torch

import vitrail
from tests.tiers import spread
from vitrail.errors import ConfigError
from vitrail.explain import capture_attention, explain
from vitrail.explain.capture.record import tapped_layers
from vitrail.models import list_families

CASES = {
    **{name: (name, {}) for name in list_families("image")},
    "vit with learned tokens": ("vit", {"token_learner": {"num_tokens": 3, "layer": 1}}),
    "vit with fused tokens": ("vit", {"token_learner": {"num_tokens": 3, "layer": 1, "fuse": True}}),
    "hvt concatenated": ("hvt", {"fusion": "concat", "attention": 3}),
}
METHODS = ["rollout", "gradient_rollout", "attribution", "attention"]


def pytest_generate_tests(metafunc):
    spread(metafunc, name=CASES)


def _case(name):
    family, settings = CASES[name]
    torch.manual_seed(3)
    model = vitrail.create_model(family, **{**list_families()[family].test_config, **settings}).eval()
    return model, [torch.randn(2, stream.chans, 30, 25) for stream in model.streams]


@pytest.mark.fast_cases("vit")
def test_outputs_before_during_and_after(name):
    model, inputs = _case(name)
    state = copy.deepcopy(model.state_dict())
    first = next(model.parameters()).requires_grad_(False)
    with torch.no_grad():
        before = model(*inputs)
    # Whatever is watched comes out the same, with the graph that gradients need and without.
    during = []
    hook = model.register_forward_hook(lambda module, args, output: during.append(output.detach()))
    kinds = [explain(model, inputs, method) for method in METHODS]
    with capture_attention(model), torch.no_grad():
        model(*inputs)
    hook.remove()
    with torch.no_grad():
        after = model(*inputs)
    assert torch.equal(before, after)
    assert all(torch.allclose(before, output, atol=1e-5) for output in during)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(tap.armed for tap in tapped_layers(model).values())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad == (parameter is not first) for parameter in model.parameters())
    for kind in kinds:
        for stream in kind.values():
            assert stream.map.isfinite().all()
            assert not stream.map.requires_grad


@pytest.mark.slow_cases("attribution")
@pytest.mark.parametrize("method", METHODS)
def test_an_error_in_the_middle_leaves_no_tap_armed(method, monkeypatch):
    model, inputs = _case("swin")
    before = model(*inputs)
    last = [module for module in model.modules() if type(module).__name__ == "Mlp"][-1]
    monkeypatch.setattr(last, "forward", _fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        explain(model, inputs, method, 1 if method in ("gradient_rollout", "attribution") else None)
    monkeypatch.undo()
    assert not any(tap.armed for tap in tapped_layers(model).values())
    assert torch.equal(model(*inputs), before)


def _fail(x):
    raise RuntimeError("on purpose")


@pytest.mark.fast_cases("attention")
@pytest.mark.parametrize("method", METHODS)
def test_inference_mode_and_no_grad_make_no_difference(method):
    model, inputs = _case("swin")
    plain = explain(model, inputs, method)
    with torch.no_grad():
        assert torch.equal(explain(model, inputs, method).map, plain.map)
    with torch.inference_mode():
        assert torch.equal(explain(model, [image.clone() for image in inputs], method).map, plain.map)
    assert torch.equal(explain(model, inputs, method).map, plain.map)


@pytest.mark.slow_cases("gradient_rollout")
@pytest.mark.parametrize("method", ["rollout", "gradient_rollout", "gradcam"])
def test_threads_that_use_the_model_meanwhile(method):
    model, (images,) = _case("swin")
    others = torch.randn(1, 3, 40, 33)
    target = None if method == "rollout" else 1
    expected, theirs = explain(model, images, method, target).map, explain(model, others, method, target).map
    with torch.no_grad():
        logits = model(others)
    found, done = {}, threading.Event()

    def serve():
        with torch.no_grad():
            found["logits"] = model(others)

    def explain_too():
        found["map"] = explain(model, others, method, target).map

    threads = [threading.Thread(target=serve), threading.Thread(target=explain_too)]

    def meanwhile(module, args):
        if threading.current_thread() is threads[1]:
            done.wait(5)  # so that the first explanation would end in the middle of this one
        elif threading.current_thread() is not threads[0] and not threads[0].ident:
            for thread in threads:
                thread.start()
                thread.join(0.2)

    # Not before the first layer that reports, but in the middle.
    handle = model.layers[1].register_forward_pre_hook(meanwhile)
    assert torch.equal(explain(model, images, method, target).map, expected)
    done.set()
    for thread in threads:
        thread.join()
    handle.remove()
    assert torch.allclose(found["logits"], logits, atol=1e-5)
    assert torch.equal(found["map"], theirs)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin", "hvt"])
def test_compiled_models_are_explained_as_they_are(name):
    model, inputs = _case(name)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        before = compiled(*inputs)
    for method in METHODS:
        plain, watched = explain(model, inputs, method), explain(compiled, inputs, method)
        assert all(torch.equal(plain[stream].map, watched[stream].map) for stream in plain)
    with torch.no_grad():
        assert torch.equal(compiled(*inputs), before)


def test_no_more_is_kept_than_the_memory_budget():
    model, inputs = _case("vit")
    with torch.no_grad(), capture_attention(model) as record:
        model(*inputs)
    sizes = [step.nbytes for step in record.steps]
    assert sizes == [4 * step.weights.numel() for step in record.steps]
    with torch.no_grad(), capture_attention(model, memory_budget=sum(sizes)) as record:
        model(*inputs)
    assert len(record.steps) == len(sizes)
    with torch.no_grad(), capture_attention(model, memory_budget=sum(sizes) - 1) as record:
        words = rf"{record_name(sizes)}.*{sizes[-1] / 1e6:.4g} MB.*memory budget of .*; capture fewer layers \(layers="
        with pytest.raises(ConfigError, match=words):
            model(*inputs)
        assert not record.steps
    # A part of a tensor holds all of it; a copy of the part does not.
    for copied in (False, True):
        keep = (lambda s: s.weights[:, :, 0].clone()) if copied else (lambda s: s.weights[:, :, 0])
        with torch.no_grad(), capture_attention(model, keep=keep) as record:
            model(*inputs)
        assert (record.steps[0].nbytes < sizes[0]) == copied
    with torch.no_grad(), capture_attention(model, keep=lambda step: None, memory_budget=0) as record:
        model(*inputs)
    assert not record.steps
    with pytest.raises(ConfigError, match="at least 0 bytes, got -1"), capture_attention(model, memory_budget=-1):
        pass


def record_name(sizes):
    return rf"blocks\.{len(sizes) - 1}\.attn"
