"""A model is an ordinary nn.Module: contiguous parameters, hooks on any part, parts of other classes."""

import copy
import inspect
import io
import itertools
import pickle
import random
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import vitrail
from tests.tiers import fast_first, one_of_each, spread
from vitrail.errors import ConfigError
from vitrail.layers import mbconv, mlp
from vitrail.layers.fast import mbconv as fast_mbconv
from vitrail.layers.fast import mlp as fast_mlp
from vitrail.layers.fast.dispatch import is_plain
from vitrail.models import list_families

# A block of stride 2, and one of stride 1.
ONE_STAGE = {"embed_dim": (16,), "depths": (2,)}
CASES = {
    **{name: (name, {}) for name in list_families("image")},
    "maxvit": ("maxvit", ONE_STAGE),
    "vit with TokenLearner": ("vit", {"token_learner": {"num_tokens": 3, "layer": 1}}),
    "vit with fuser": ("vit", {"token_learner": {"num_tokens": 3, "layer": 1, "fuse": True}}),
    "vit, mean": ("vit", {"class_token": False, "global_pool": "avg"}),
    "vit, patches dropped": ("vit", {"patch_drop_rate": 0.5, "pos_drop_rate": 0.1}),
    "swin, attention pooling": ("swin", {"global_pool": "map", "qk_norm": True, "init_values": 0.1}),
    "maxvit as torchvision": ("maxvit", {"flavour": "torchvision", **ONE_STAGE}),
    "hvt in windows": ("hvt", {"attention": 3}),
    "hvt, streams side by side": ("hvt", {"fusion": "concat"}),
    "hvt of one stream": ("hvt", {"spectral_chans": 0, "spectral_embed_dim": None}),
}


def build(case, **settings):
    torch.manual_seed(0)
    name, changes = CASES[case]
    return vitrail.create_model(name, **{**list_families()[name].test_config, **changes, **settings})


def inputs_of(model, batch=2, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(batch, *stream.shape) for stream in model.streams]


def pytest_generate_tests(metafunc):
    spread(metafunc, case=CASES)


def covering(turns, values, every=1):
    """Cases with a value each: with each value a case of each family (of ``every`` second one) first, in turn."""
    first = [(case, value) for value, turn in turns for case in one_of_each(CASES, turn)[turn % every :: every]]
    return fast_first([*first, *(pair for pair in itertools.product(CASES, values) if pair not in first)], len(first))


@pytest.fixture
def model(case):
    return build(case)


@pytest.fixture
def _small_pieces(monkeypatch):
    """Every part of the fast paths runs in pieces, as on large images."""
    for name in ("_LARGE", "_PIECE", "_LARGE_TRAINING", "_PIECE_TRAINING"):
        monkeypatch.setattr(fast_mlp, name, 64)
    monkeypatch.setattr(fast_mbconv, "_WIDE_MAP", 400)
    monkeypatch.setattr(fast_mbconv, "_WORKING_SET", 400)


def test_the_state_dict_is_contiguous(model):
    for name, value in model.state_dict().items():
        assert value.is_contiguous(), name
        assert value.stride() == torch.empty(value.shape).stride(), name
    assert nn.utils.parameters_to_vector(model.parameters()).ndim == 1


@pytest.mark.fast_cases("vit with TokenLearner-True-False", "vit, patches dropped-False-False", "vit-False-False")
@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(("case", "training"), list(itertools.product(CASES, [False, True])))
def test_a_hook_on_any_module_sees_the_plain_computation_once(model, training, gradients):
    model.train(training)
    inputs = inputs_of(model)
    start = copy.deepcopy(model.state_dict())

    def run(names):
        model.load_state_dict(start)
        seen = {}
        modules = dict(model.named_modules())
        handles = [modules[n].register_forward_hook(partial(_keep, seen, n)) for n in names]
        torch.manual_seed(1)
        with torch.set_grad_enabled(gradients):
            model(*inputs)
        for handle in handles:
            handle.remove()
        return seen

    callable_ = [n for n, m in model.named_modules() if not isinstance(m, nn.ModuleList)]
    together = run(callable_)
    assert {name: len(outputs) for name, outputs in together.items()} == dict.fromkeys(callable_, 1)
    for info in model.feature_info:
        assert info.name in together
    # Alone, a hook must stop the fast paths of all modules around it.
    for name in random.Random(f"{training}{gradients}").sample(callable_, 10):
        (alone,) = run([name]).pop(name)
        torch.testing.assert_close(alone, together[name][0], rtol=1e-4, atol=1e-4, msg=name)


def _keep(seen, name, _module, _args, output):
    seen.setdefault(name, []).append(output.detach().clone() if isinstance(output, torch.Tensor) else output)


@pytest.mark.usefixtures("_small_pieces")
def test_backward_hooks_run_once(model):
    model.train()
    counts = {}

    def count(name, *_):
        counts[name] = counts.get(name, 0) + 1

    # RelativePositionBias takes no tensor, so torch has no gradient of its input to report.
    skipped = ("ModuleList", "RelativePositionBias")
    names = [name for name, module in model.named_modules() if type(module).__name__ not in skipped]
    for name in names:
        model.get_submodule(name).register_full_backward_hook(partial(count, name))
    inputs = [x.requires_grad_() for x in inputs_of(model)]
    model(*inputs).square().sum().backward()
    assert counts == dict.fromkeys(names, 1)


HOOKS = {
    "forward": lambda m: m.register_forward_hook(lambda *_: None),
    "forward pre": lambda m: m.register_forward_pre_hook(lambda *_: None),
    "full backward": lambda m: m.register_full_backward_hook(lambda *_: None),
    "full backward pre": lambda m: m.register_full_backward_pre_hook(lambda *_: None),
    "global forward": lambda _: nn.modules.module.register_module_forward_hook(lambda *_: None),
    "global backward": lambda _: nn.modules.module.register_module_full_backward_hook(lambda *_: None),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
def test_a_module_with_a_hook_is_not_plain(register):
    module = nn.Linear(2, 3)
    assert is_plain(nn.Linear, module)
    handle = register(module)
    assert not is_plain(nn.Linear, module)
    handle.remove()
    assert is_plain(nn.Linear, module)


class _Wrapped(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, *args):
        return self.base(*args)


def _own_forward(parent, name):
    part = getattr(parent, name)
    usual = part.forward
    part.forward = lambda *args: 2 * usual(*args)


def _parametrized(parent, name):
    part = getattr(parent, name)
    if isinstance(getattr(part, "weight", None), nn.Parameter):
        nn.utils.parametrizations.weight_norm(part)


PART_CHANGES = {
    "wrapped": lambda parent, name: setattr(parent, name, _Wrapped(getattr(parent, name))),
    "with a forward of its own": _own_forward,
    "parametrised": _parametrized,
}


@pytest.mark.fast_cases("maxvit as torchvision-with a forward of its own", "vit, patches dropped-wrapped")
@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize(
    ("case", "kind"), covering([(kind, turn) for turn, kind in enumerate(PART_CHANGES)], PART_CHANGES, every=2)
)
def test_a_part_of_another_class_is_called(model, kind):
    """Some leaves changed alone: with and without gradients the model gives what it gives with hooks everywhere."""
    inputs = inputs_of(model)
    model.eval()
    leaves = [n for n, m in model.named_modules() if n and not list(m.children())]
    for path in random.Random(len(leaves)).sample(leaves, 4):
        changed = copy.deepcopy(model)
        parent, _, name = path.rpartition(".")
        PART_CHANGES[kind](changed.get_submodule(parent), name)
        hooked = copy.deepcopy(changed)
        for module in hooked.modules():
            module.register_forward_hook(lambda *_: None)
        with torch.no_grad():
            expected = hooked(*inputs)
            torch.testing.assert_close(changed(*inputs), expected, rtol=1e-4, atol=1e-4, msg=path)
        torch.testing.assert_close(changed(*inputs).detach(), expected, rtol=1e-4, atol=1e-4, msg=path)


REPLACED = {
    "no squeeze and excitation": lambda conv: setattr(conv, "se", nn.Identity()),
    "biased expansion": lambda conv: setattr(conv, "conv1_1x1", nn.Conv2d(conv.conv1_1x1.in_channels, 64, 1)),
    "5 x 5": lambda conv: setattr(conv, "conv2_kxk", nn.Conv2d(64, 64, 5, padding=2, groups=64)),
    "group norm": lambda conv: setattr(conv, "norm1", nn.GroupNorm(4, 64)),
    "another activation": lambda conv: setattr(conv, "act2", nn.ReLU()),
}


@pytest.mark.parametrize("replace", REPLACED.values(), ids=REPLACED)
def test_replaced_parts_of_mbconv(replace):
    layer = mbconv.MBConv(16, 16).eval()
    replace(layer)
    x = torch.randn(2, 16, 12, 12)
    y = layer.norm1(layer.conv1_1x1(layer.pre_norm(x)))
    y = layer.se(layer.act2(layer.norm2(layer.conv2_kxk(layer.act1(y)))))
    expected = x + layer.conv3_1x1(y)
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    layer.train()(x).sum().backward()


def test_an_mlp_without_bias_infers():
    layer = mlp.Mlp(4, 8)
    layer.fc2 = nn.Linear(8, 4, bias=False)
    x = torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.fc2(layer.act(layer.fc1(x))))


def test_arguments_have_names(model):
    model.eval()
    inputs = inputs_of(model)
    names = ("image", "spectral") if "spectral" in model.forward.__code__.co_varnames else ("x",)
    with torch.no_grad():
        assert torch.equal(model(**dict(zip(names, inputs, strict=False))), model(*inputs))


@pytest.mark.parametrize(("case", "training"), covering([(True, 2), (False, 3)], [False, True]))
def test_a_symbolic_graph_serves_other_images(case, training):
    model = build(case, drop_path_rate=0.1 * training).train(training)
    graph = torch.fx.symbolic_trace(model)
    for batch in (2, 3):
        inputs = inputs_of(model, batch)
        torch.manual_seed(1)
        expected = model(*inputs)
        torch.manual_seed(1)
        torch.testing.assert_close(graph(*inputs), expected)
    expected.sum().backward()


@pytest.mark.fast_cases("vit with TokenLearner")
def test_symbolic_graphs_are_copied_and_pickled(case):
    model = build(case).eval()
    inputs = inputs_of(model)
    graph = torch.fx.symbolic_trace(model)
    graph.graph.lint()
    for again in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        torch.testing.assert_close(again(*inputs), model(*inputs))
    name, changes = CASES[case]
    encoder = vitrail.create_model(name, features_only=True, **{**list_families()[name].test_config, **changes})
    again = pickle.loads(pickle.dumps(torch.fx.symbolic_trace(encoder.eval())))
    torch.testing.assert_close(again(*inputs), encoder(*inputs))


def test_a_layer_of_one_node_alone_is_no_graph():
    with pytest.raises(ConfigError, match=r"torch\.fx cannot trace a PatchEmbed by itself"):
        torch.fx.symbolic_trace(build("swin").patch_embed)


# PyTorch's ways through TorchScript take seconds: each has a family of its own among the fast tests.
@pytest.mark.fast_cases("vit-True")
@pytest.mark.parametrize(("case", "gradients"), list(itertools.product(CASES, (False, True))))
def test_traced_by_jit_with_its_check(model, gradients):
    inputs = tuple(inputs_of(model))
    model.eval()
    with torch.set_grad_enabled(gradients), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, inputs)
        torch.testing.assert_close(traced(*inputs), model(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.fast_cases("vit-False")
@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize(("case", "training"), list(itertools.product(CASES, (False, True))))
def test_scripted_by_jit(case, training):
    model = build(case, drop_path_rate=0.2 * training).train(training)
    start = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    scripted = torch.jit.script(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    loaded, inputs = torch.jit.load(file), inputs_of(model, batch=3)
    outputs = []
    for network in (model, scripted, loaded):
        torch.manual_seed(1)
        outputs.append(network(*inputs))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[2], outputs[0], rtol=1e-4, atol=1e-5)
    outputs[1].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(torch.jit.Error, match=r"scripted for inputs of shape .*; build the model with"):
        scripted(*(x[..., :-1] for x in inputs))
    with pytest.raises(torch.jit.Error, match=r"scripted in another mode; call train\(\) or eval\(\) before"):
        scripted.train(not training)(*inputs)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("case", fast_first(sorted(CASES, key=lambda case: case != "maxvit"), 1))
def test_scripted_encoders_and_parts_of_scripted_modules(case):
    name, changes = CASES[case]
    encoder = vitrail.create_model(name, features_only=True, **{**list_families()[name].test_config, **changes}).eval()
    inputs = inputs_of(encoder.model)
    with torch.no_grad():
        for ours, scripted in zip(encoder(*inputs), torch.jit.script(encoder)(*inputs), strict=True):
            torch.testing.assert_close(scripted, ours, rtol=1e-4, atol=1e-5)
        if len(inputs) == 1:
            model = build(case).eval()
            expected, whole = model(*inputs), torch.jit.script(nn.Sequential(model, nn.Softmax(1)).eval())
            torch.testing.assert_close(whole(*inputs), expected.softmax(1), rtol=1e-4, atol=1e-5)


def test_properties_never_raise(model):
    assert dict(inspect.getmembers(model))["ends"] == model.ends
    assert hasattr(model, "streams")


@pytest.mark.slow_cases("swin, attention pooling")
def test_the_number_of_classes_follows_the_classifier(case):
    heads = {
        9: lambda dim: nn.Linear(dim, 9),
        4: lambda dim: nn.Sequential(nn.Linear(dim, 6), nn.ReLU(), nn.Linear(6, 4)),
        3: lambda dim: _Wrapped(nn.Linear(dim, 3)),
    }
    for classes, head in heads.items():
        for path in {"head", build(case).classifier}:
            model = build(case).eval()
            name, _, child = path.partition(".")
            setattr(model.head if child else model, child or name, head(model.num_features))
            inputs = inputs_of(model)
            assert model.num_classes == classes
            assert model(*inputs).shape == (2, classes)
            assert model.forward_head(model.forward_features(*inputs), pre_logits=True).shape == (2, model.num_features)
            model.reset_classifier(7)
            assert model.num_classes == model(*inputs).shape[1] == 7
            model.reset_classifier(0)
            assert model.num_classes == 0
