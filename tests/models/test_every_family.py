"""What every registered family promises, tried on its tiny ``test_config``."""

import copy
import pickle

import pytest
import torch

import vitrail
from tests.tiers import every_other, in_turn, spread
from vitrail.errors import ConfigError, ShapeError
from vitrail.layers import AttentionTap
from vitrail.models import list_families

FAMILIES = sorted(list_families())


def pytest_generate_tests(metafunc):
    spread(metafunc, every_other, indirect=True, family=FAMILIES)


@pytest.fixture
def family(request):
    return list_families()[request.param]


@pytest.fixture
def model(family):
    return _build(family)


def _build(family, seed=0, **settings):
    torch.manual_seed(seed)
    return vitrail.create_model(family.name, **{**family.test_config, **settings})


def _inputs(model, resize=lambda *size: size, batch=2):
    streams = [stream._replace(size=resize(*stream.size)) for stream in model.streams]
    return [torch.randn(batch, *stream.shape) for stream in streams]


# Height and width, with the number of frames before them for a clip; the number of points alone.
RESIZES = {
    "built": lambda *size: size,
    "tall": lambda *size: (*size[:-2], *(2 * length for length in size[-2:-1]), size[-1]),
    "wide": lambda *size: (*size[:-1], size[-1] + size[-1] // 2),
    "odd": lambda *size: tuple(length + 3 - 2 * (axis > 0) for axis, length in enumerate(size)),
    "small_and_odd": lambda *size: (*(length // 2 + 1 for length in size[:-1]), size[-1] - 5),
}


@pytest.mark.parametrize(("family", "size"), in_turn(FAMILIES, RESIZES), indirect=["family"])
def test_any_height_and_width(family, model, size):
    inputs = _inputs(model, RESIZES[size])
    model.train()
    logits = model(*inputs)
    assert logits.shape == (2, family.test_config["num_classes"])
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    model.eval()
    with torch.no_grad():
        logits = model(*inputs)
        levels = model.forward_intermediates(*inputs, intermediates_only=True)
    assert torch.isfinite(logits).all()
    assert len(levels) == len(model.feature_info) > 0
    sizes = {stream.size_of(x) for stream, x in zip(model.streams, inputs, strict=True)}
    for level, info in zip(levels, model.feature_info, strict=True):
        grids = {tuple(-(-s // stride) for s, stride in zip(size, info.stride, strict=True)) for size in sizes}
        assert level.shape[:2] == (2, info.channels)
        assert tuple(level.shape[2:]) in grids
        assert model.get_submodule(info.name) is not None


def test_the_same_seed_or_the_same_weights_give_the_same_model(family):
    first, second, other = (_build(family, seed).eval() for seed in (1, 1, 2))
    inputs = _inputs(first)
    with torch.no_grad():
        logits = [m(*inputs) for m in (first, second, other)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])
    report = vitrail.load_weights(other, first.state_dict())
    assert sorted(report.loaded) == sorted(first.state_dict())
    assert (report.renamed, report.resampled, report.dropped) == ({}, {}, {})
    with torch.no_grad():
        assert torch.equal(other(*inputs), logits[0])


def test_evaluation_changes_nothing_and_repeats(model):
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = _inputs(model)
    with torch.no_grad():
        logits = model(*inputs)
        model(*_inputs(model, RESIZES["odd"]))
        assert torch.equal(model(*inputs), logits)
        assert torch.allclose(model(*(x[1:] for x in inputs)), logits[1:], atol=1e-5)
        by_parts = model.forward_head(model.forward_features(*inputs))
    assert torch.equal(by_parts, logits)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_levels_can_be_chosen(model):
    model.eval()
    inputs = _inputs(model)
    with torch.no_grad():
        levels = model.forward_intermediates(*inputs, intermediates_only=True)
        last = model.forward_intermediates(*inputs, indices=1, intermediates_only=True)
        first = model.forward_intermediates(*inputs, indices=[0], intermediates_only=True)
        negative = model.forward_intermediates(*inputs, indices=[-1], intermediates_only=True)
    assert len(last) == len(first) == len(negative) == 1
    assert torch.equal(last[0], levels[-1])
    assert torch.equal(negative[0], levels[-1])
    assert torch.equal(first[0], levels[0])
    with pytest.raises(ConfigError, match="feature levels"):
        model.forward_intermediates(*inputs, indices=[len(levels)], intermediates_only=True)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_layer_groups_hold_every_parameter_once(model):
    names = [name for name, _ in model.named_parameters()]
    groups = model.layer_groups()
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert all(groups)
    assert len(groups) >= 3
    assert model.no_weight_decay() <= set(names)


def test_classifier_can_be_replaced(model):
    inputs = _inputs(model)
    model.eval()
    with torch.no_grad():
        features = model.forward_features(*inputs)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        model.reset_classifier(7)
        assert model(*inputs).shape == (2, 7)
        assert model.num_classes == model.config.num_classes == 7
        assert torch.equal(model.forward_features(*inputs), features)
        model.reset_classifier(0)
        assert torch.equal(model(*inputs), pooled)
        model.double().reset_classifier(4)
        assert model(*(x.double() for x in inputs)).dtype == torch.float64


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_grad_checkpointing_gives_the_same_gradients(model):
    inputs = _inputs(model)
    model.train()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(*inputs).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-5, rtol=1e-4)


@pytest.mark.slow  # tests/models/families/test_hvt.py compiles a model among the fast tests
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(model, backend):
    torch.compiler.reset()
    model.eval()
    inputs = _inputs(model)
    results = []
    for call in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.zero_grad()
        logits = call(*inputs)
        logits.square().sum().backward()
        results.append([logits.detach()] + [p.grad.clone() for p in model.parameters()])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(eager, compiled, atol=1e-5, rtol=1e-4)


@pytest.mark.slow  # tests/deploy has an export for any batch among the fast tests
def test_exports_for_any_batch(model):
    model.eval()
    inputs = _inputs(model)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({0: batch} for _ in inputs)
    program = torch.export.export(model, tuple(inputs), dynamic_shapes=shapes)
    inputs = _inputs(model, batch=5)
    with torch.no_grad():
        assert torch.allclose(program.module()(*inputs), model(*inputs), atol=1e-5)


def test_other_precisions(model):
    model.eval()
    inputs = _inputs(model, RESIZES["odd"])
    with torch.no_grad():
        exact = model(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(*inputs)
        double = model.double()(*(x.double() for x in inputs))
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), exact, atol=1e-5)
    scale = exact.abs().max()
    assert (mixed.float() - exact).abs().max() < 0.1 * scale
    model.bfloat16()
    logits = model(*(x.bfloat16() for x in inputs))
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).abs().max() < 0.1 * scale
    logits.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_weights_load_under_another_classifier(family):
    model = _build(family, 1)
    other = _build(family, 2, num_classes=family.test_config["num_classes"] + 2)
    report = vitrail.load_weights(other, model.state_dict(), allow_missing=["head.*"])
    assert report.missing
    assert all(name.startswith("head.") for name in report.missing)


def test_copies_are_equal_and_separate(model):
    model.eval()
    inputs = _inputs(model)
    with torch.no_grad():
        logits = model(*inputs)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(*inputs), logits)
            for parameter in other.parameters():
                parameter.zero_()
        assert torch.equal(model(*inputs), logits)


def test_watching_changes_nothing(model):
    model.eval()
    inputs = _inputs(model, RESIZES["odd"])
    taps = {n: m.tap for n, m in model.named_modules() if isinstance(getattr(m, "tap", None), AttentionTap)}
    if not taps:
        assert not any("attn" in name for name in model.mixers())
        pytest.skip("a family without attention")
    seen = {}
    with torch.no_grad():
        plain = model(*inputs)
        for name, tap in taps.items():
            tap.consumer = lambda weights, layout, name=name: seen.update({name: (weights, layout)})
        watched = model(*inputs)
    assert torch.allclose(watched, plain, atol=1e-5)
    # A convolution that keeps the grid mixes no tokens that a rollout would follow, and reports nothing.
    assert {name for name in taps if not name.endswith(".conv")} <= set(seen) <= set(taps)
    for weights, layout in seen.values():
        assert weights.ndim == (4 if layout.kind in ("global", "window", "grid", "cross") else 3)
        # Attention's and merging's rows are shares of a whole.
        assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)
        assert (weights >= 0).all()
    assert not any(key.endswith("tap") or ".tap." in key for key in model.state_dict())


def test_wrong_images_are_refused(model):
    inputs = _inputs(model)
    channels = -1 if model.streams[0].channels_last else 1
    with pytest.raises(ShapeError, match=r"got \(2, "):
        model(torch.cat([inputs[0], inputs[0]], dim=channels), *inputs[1:])
    with pytest.raises(ShapeError):
        model(inputs[0][0], *inputs[1:])


@pytest.mark.slow_cases("maxvit-first")
@pytest.mark.parametrize("count", [4, pytest.param(None, marks=pytest.mark.slow)], ids=["first", "all"])
def test_variants_build(family, count):
    for name in list(family.variants)[:count]:
        with torch.device("meta"):
            model = vitrail.create_model(name)
        assert len({info.name for info in model.feature_info}) == len(model.feature_info)
        assert model.streams[0].name == family.modality.name
        assert all(len(s.size) == len(family.modality.axes) for s in model.streams)
    assert set(family.published) <= set(family.variants)
    for table in family.results:
        assert set(table.top1) <= set(family.variants)
        assert "arXiv:" in table.source
        assert all(50 < top1 < 100 for top1 in table.top1.values())
