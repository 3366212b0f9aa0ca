"""What a model costs, and the walk through it."""

import pytest
import torch
from torch import nn

import vitrail
from tests.peers import import_peer
from vitrail.catalogue import read_catalogue
from vitrail.errors import ConfigError, ShapeError
from vitrail.layers import Attention
from vitrail.models.profile import count_multiply_adds, count_parameters, example_inputs, walk
from vitrail.models.registry import list_families

# Counted on the reference implementations: variant, parameters, G multiply-adds of one image.
REFERENCE = """
vit_tiny_patch16_224 5,717,416 1.25
vit_small_patch16_224 22,050,664 4.60
vit_small_patch32_224 22,878,952 1.14
vit_base_patch32_224 88,224,232 4.41
vit_base_patch16_224 86,567,656 17.56
vit_base_patch8_224 86,576,872 78.15
vit_large_patch16_224 304,326,632 61.55
vit_huge_patch14_224 630,764,800 167.29
swin_tiny_patch4_window7_224 28,288,354 4.49
swin_small_patch4_window7_224 49,606,258 8.74
swin_base_patch4_window7_224 87,768,224 15.43
swin_large_patch4_window7_224 196,532,476 34.48
swin_base_patch4_window12_384 87,903,584 47.08
swin_large_patch4_window12_384 196,735,516 103.92
maxvit_tiny_tf_224 30,916,528 5.55
maxvit_small_tf_224 68,927,956 11.59
maxvit_base_tf_224 119,467,708 23.92
maxvit_large_tf_224 211,785,560 43.52
maxvit_xlarge_tf_224 506,987,643 97.29
maxvit_tiny_tf_384 30,977,008 17.39
maxvit_tiny_tf_512 31,049,584 33.25
"""


@pytest.mark.parametrize("line", REFERENCE.strip().splitlines(), ids=lambda line: line.split()[0])
@pytest.mark.fast_cases("swin_small_patch4_window7_224", "swin_base_patch4_window7_224", "maxvit_tiny_tf_512")
def test_catalogue_equals_the_reference(line):
    # tests/models/test_catalogue.py holds the catalogue to what the code counts.
    name, parameters, gmacs = line.split()
    variant = read_catalogue().variants[name]
    assert f"{variant.parameters:,}" == parameters
    assert f"{(variant.multiply_adds + _one_hot_lookups(variant)) / 1e9:.2f}" == gmacs


def _one_hot_lookups(variant):
    """What the reference's MaxViT spends on reading its position tables by products with one-hot matrices.

    For each head a table of (2M - 1)^2 becomes M^2 x (2M - 1), then M^2 x M^2; a block has two attentions.
    """
    if variant.family != "maxvit":
        return 0
    M = variant.settings["window_size"]
    L = 2 * M - 1
    defaults = {key: setting.default for key, setting in read_catalogue().families["maxvit"].settings.items()}
    settings = {**defaults, **variant.settings}
    widths = zip(settings["embed_dim"], settings["depths"], strict=True)
    heads = sum(2 * depth * dim // settings["dim_head"] for dim, depth in widths)
    return heads * (M**2 * L**2 + M**4 * L)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["vit_small_patch32_224", "swin_tiny_patch4_window7_224", "maxvit_tiny_tf_512"])
def test_counts_equal_timm(name):
    timm = import_peer("timm")
    with torch.device("meta"):
        peer = timm.create_model(name)
        model = vitrail.create_model(name)
    theirs = count_multiply_adds(peer, *example_inputs(model))
    assert theirs == count_multiply_adds(model) + _one_hot_lookups(read_catalogue().variants[name])


def _tiny(family, **settings):
    settings = {**list_families()[family].test_config, **settings}
    return vitrail.create_model(family, **settings)


def _tiny_models():
    """Two streams, BatchNorms, and parameters beside modules; windows count in the tests of the catalogue."""
    yield _tiny("hvt", spectral_chans=5, depths=(1,), num_heads=(2,))
    yield _tiny("maxvit", depths=(1, 1))
    yield _tiny("vit", depth=1)


def _noise(model, batch=2):
    return [torch.randn(x.shape) for x in example_inputs(model, batch)]


def test_attention_by_hand():
    # qkv and projection: 4 N C^2; Q K^T and its product with V: 2 N^2 C.
    N, C = 10, 24
    assert count_multiply_adds(Attention(C, 3), torch.zeros(1, N, C)) == 4 * N * C * C + 2 * N * N * C


def test_what_only_the_device_computes_does_not_count():
    class Twice(nn.Linear):
        def forward(self, x):
            return super().forward(x if x.is_meta else super().forward(x))

    (step, _) = walk(nn.Sequential(Twice(4, 4)), torch.randn(3, 4), 1)
    assert step.multiply_adds == 3 * 4 * 4


@pytest.mark.slow
def test_count_leaves_the_model_as_it_was():
    for model in _tiny_models():
        model.train()
        next(model.children()).eval()
        modes = [module.training for module in model.modules()]
        before = {key: value.clone() for key, value in model.state_dict().items()}
        pointers = [p.data_ptr() for p in model.parameters()]
        assert count_multiply_adds(model) * 3 == count_multiply_adds(model, *example_inputs(model, 3))
        assert [p.data_ptr() for p in model.parameters()] == pointers
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_count_needs_to_know_the_inputs():
    with pytest.raises(ConfigError, match="pass them"):
        count_multiply_adds(nn.Linear(2, 3))
    assert count_multiply_adds(nn.Linear(2, 3), torch.zeros(5, 2)) == 30


def test_parameters_shared_and_frozen():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    assert count_parameters(model) == 15
    assert count_parameters(model, trainable_only=True) == 12


@pytest.mark.parametrize("depth", ["parts", *(pytest.param(d, marks=pytest.mark.slow) for d in ("blocks", 2))])
def test_columns_sum_to_the_totals_and_the_walk_changes_nothing(depth):
    for model in _tiny_models():
        inputs = _noise(model)
        with torch.no_grad():
            plain = model.eval()(*inputs)
        model.train()
        model.get_submodule(next(model.named_children())[0]).eval()
        modes = [module.training for module in model.modules()]
        state = {key: value.clone() for key, value in model.state_dict().items()}
        steps = walk(model, inputs, depth, repeats=1)
        assert len({step.name for step in steps}) == len(steps)
        assert sum(step.parameters for step in steps) == count_parameters(model)
        assert sum(step.multiply_adds for step in steps) == count_multiply_adds(model, *inputs)
        assert sum(step.share for step in steps) == pytest.approx(1.0)
        assert all(step.share >= 0 for step in steps)
        assert steps[-1].output_shape == (2, model.num_classes)
        assert [module.training for module in model.modules()] == modes
        assert _hooks(model) == 0
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        with torch.no_grad():
            assert torch.equal(model.eval()(*inputs), plain)


def _hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_hooks_go_after_an_error():
    model = _tiny("vit").train()
    with pytest.raises(ShapeError):
        walk(model, torch.randn(1, 7, 32, 32))
    broken = model.blocks[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        walk(model, torch.randn(1, 3, 32, 32))
    broken.remove()
    assert _hooks(model) == 0
    assert model.training
    assert model.blocks[1].training


def test_steps_of_a_vit_in_order():
    steps = walk(_tiny("vit", depth=1), torch.randn(1, 3, 32, 32), repeats=1)
    assert [step.name for step in steps] == [
        "patch_embed", "cls_token", "pos_embed", "blocks.0.norm1", "blocks.0.attn", "blocks.0.norm2",
        "blocks.0.mlp", "norm", "head", "(between)",
    ]  # fmt: skip
    by_name = {step.name: step for step in steps}
    assert by_name["pos_embed"].output_shape == (1, 17, 24)
    assert by_name["blocks.0.attn"].output_shape == (1, 17, 24)
    assert by_name["blocks.0.attn"].multiply_adds == 4 * 17 * 24 * 24 + 2 * 17 * 17 * 24
    assert by_name["blocks.0.attn"].what == "Multi-head self-attention over all tokens."


def test_matrix_products_of_an_opened_attention():
    steps = {step.name: step for step in walk(_tiny("vit", depth=1), torch.randn(1, 3, 32, 32), 3, repeats=0)}
    assert steps["blocks.0.attn.qkv"].multiply_adds == 3 * 17 * 24 * 24
    assert steps["blocks.0.attn"].multiply_adds == 2 * 17 * 17 * 24
    assert steps["blocks.0.attn"].parameters == 0


def test_what_does_not_run_is_said():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(3, 2), nn.Linear(3, 4)
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.used(x)

    steps = {step.name: step for step in walk(Half(), torch.randn(1, 3), 1)}
    assert list(steps) == ["used", "spare", "scale", "(between)"]
    assert steps["spare"].output_shape is None
    assert steps["spare"].parameters == 16
    assert "Not run" in steps["spare"].what
    assert "Not run" in steps["scale"].what


def test_meta_device_has_no_time():
    with torch.device("meta"):
        model = vitrail.create_model("vit_tiny_patch16_224", depth=1)
    steps = walk(model, example_inputs(model), "blocks", repeats=1)
    assert all(step.share is None for step in steps)
    assert sum(step.parameters for step in steps) == 5_717_416 - 11 * 444_864


@pytest.mark.parametrize("arguments", [{"depth": 0}, {"depth": "block"}, {"repeats": -1}])
def test_wrong_arguments(arguments):
    with pytest.raises(ConfigError, match="at least"):
        walk(nn.Linear(2, 2), torch.zeros(1, 2), **arguments)
