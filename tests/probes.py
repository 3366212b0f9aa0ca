"""Small methods of explanation that tests register: by class and signed, random, impossible."""

import pytest


def _probe_signed(model, inputs, target, power: int = 1):
    """Gradient of the class times the input."""
    from vitrail.explain.methods.maps import StreamMap

    inputs = [x.clone().requires_grad_() for x in inputs]
    model(*inputs).gather(1, target[:, None]).sum().backward()
    maps = [(x.grad * x.detach()).sum(1) ** power for x in inputs]
    return {s.name: StreamMap(m, m[:, ::4, ::4]) for s, m in zip(model.streams, maps, strict=False)}


def _probe_random(model, inputs, target):
    """Random numbers, on the first stream alone."""
    import torch

    from vitrail.explain.methods.maps import StreamMap

    x = torch.rand_like(inputs[0][:, 0])
    return {model.streams[0].name: StreamMap(x, x)}


def _probe_refused(model, inputs, target):
    """What no model can have."""
    raise AssertionError("refused before it is computed")


@pytest.fixture
def probes():
    """Registers them for one test."""
    from vitrail.explain.methods.registry import METHODS, register_method

    before = dict(METHODS)
    register_method("probe_signed", by_class=True, signed=True)(_probe_signed)
    register_method("probe_random", by_class=False)(_probe_random)
    register_method("probe_refused", by_class=True, lacks=lambda model: "it fits no model; take another")(
        _probe_refused
    )
    yield
    METHODS.clear()
    METHODS.update(before)
