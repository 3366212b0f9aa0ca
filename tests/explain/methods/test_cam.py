"""Class activation maps against the definitions, computed from graphs that this file builds itself."""

import pytest
import torch
import torch.nn.functional as F

import vitrail
from tests.explain.tiny_models import SETTINGS, VIT, tiny_inputs, tiny_model
from tests.tiers import spread
from vitrail.errors import ConfigError
from vitrail.explain import explain
from vitrail.explain.methods.levels import choose_levels, level_gradients

METHODS = ("gradcam", "gradcam++", "layercam", "eigencam")


def pytest_generate_tests(metafunc):
    spread(metafunc, name=SETTINGS)


def _intermediates_with_graph(model, inputs, target):
    """Levels inside the graph of the logits: every tensor that a level shows is found again among the graph's."""
    kept = {}

    def keep(name):
        def hook(module, arguments, output):
            if isinstance(output, torch.Tensor) and output.requires_grad:
                output.retain_grad()
                kept.setdefault(name, []).append((arguments, output))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    logits = model(*inputs)
    logits.gather(1, target[:, None]).sum().backward()
    for handle in handles:
        handle.remove()
    return kept


def _gradient(model, kept, info, values):
    """The gradient by a level: of the one module whose output is that level, whatever the layout."""

    def maps(tokens):
        if tokens.ndim == 4:
            return [tokens, tokens.permute(0, 3, 1, 2)]
        number = values.shape[2] * values.shape[3]
        if tokens.ndim != 3 or tokens.shape[1] < number:
            return []
        return [tokens[:, -number:].transpose(1, 2).unflatten(2, values.shape[2:])]

    scale = float(values.abs().amax())
    for outputs in kept.values():
        for arguments, output in outputs:
            seconds = [a for a in arguments[1:] if isinstance(a, torch.Tensor) and a.shape == output.shape]
            for value in (output, *(output + a for a in seconds)):
                for number, candidate in enumerate(maps(value)):
                    if candidate.shape == values.shape and torch.allclose(candidate, values, atol=1e-4 * scale):
                        return maps(output.grad)[number] if output.grad is not None else None
    raise AssertionError(info)


def _definition(method, A, g):
    if method == "gradcam":
        w = g.mean((2, 3), keepdim=True)
    elif method == "layercam":
        w = g.clamp(min=0)
    else:
        w = torch.zeros(*A.shape[:2], 1, 1)
        for b in range(A.shape[0]):
            for c in range(A.shape[1]):
                for i in range(A.shape[2]):
                    for j in range(A.shape[3]):
                        d = float(g[b, c, i, j])
                        below = 2 * d**2 + float(A[b, c].clamp(min=0).sum()) * d**3
                        w[b, c] += d**2 / below * d if d > 0 else 0.0
    return (w * A).sum(1).clamp(min=0)


@pytest.mark.fast_cases("vit token")
def test_equal_the_definitions_by_another_graph(name):
    model, target = tiny_model(name), torch.tensor([2, 0])
    inputs = tiny_inputs(model)
    kept = _intermediates_with_graph(model, [x.clone().requires_grad_() for x in inputs], target)
    levels = choose_levels(model, inputs, None)
    assert [level.stream for level in levels] == [stream.name for stream in model.streams]
    for level in levels:
        with torch.no_grad():
            (values,) = model.forward_intermediates(*inputs, indices=[level.index], intermediates_only=True)
        gradient = _gradient(model, kept, level, values)
        assert gradient is not None, level
        assert gradient.abs().amax() > 1e-7, level
        for method in ("gradcam", "gradcam++", "layercam"):
            got = explain(model, inputs, method, target)[level.stream]
            expected = _definition(method, values, gradient)
            assert torch.allclose(got.tokens, expected, rtol=1e-4, atol=1e-6 + 1e-4 * float(expected.max())), method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.fast_cases(
    "vit mean-gradcam", "vit fuser-layercam", "swin-gradcam++", "maxvit-eigencam", "hvt two streams-layercam"
)
def test_every_family_gets_maps_of_its_inputs_size(name, method):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    target = None if method == "eigencam" else [1, 3]
    result = explain(model, inputs, method, target)
    for stream, x in zip(model.streams, inputs, strict=True):
        assert result[stream.name].map.shape == (2, *x.shape[2:])
        assert (result[stream.name].map >= 0).all()
    # What one image shows does not depend on the others.
    alone = explain(model, [x[1:] for x in inputs], method, None if target is None else 3)
    for stream in result:
        assert torch.allclose(alone[stream].tokens[0], result[stream].tokens[1], rtol=1e-3, atol=1e-5)


@pytest.mark.slow_cases("hvt two streams", "maxvit")
@pytest.mark.parametrize("name", ["vit mean", "vit fuser", "vit fuser mean", "swin", "maxvit", "hvt two streams"])
def test_gradients_of_every_level_agree_with_finite_differences(name):
    model = tiny_model(name).double()
    inputs = [x.double() for x in tiny_inputs(model, 1)]
    target = torch.tensor([1])
    for number in range(len(model.feature_info)):
        info = model.feature_info[number]
        if name == "vit fuser" and number == len(model.feature_info) - 1:
            continue  # the class token does not see it
        (level,) = choose_levels(model, inputs, info.name)
        (read,) = level_gradients(model, inputs, target, [level])
        # Move the values themselves, by a hook on whatever module reads them unchanged from the level's module.
        direction = torch.randn(read.values.shape, dtype=torch.float64)

        def moved(step, level=level, direction=direction):
            def hook(module, arguments, output):
                d = direction
                if output.ndim == 3:
                    tail = torch.zeros_like(output)
                    tail[:, -d[0, 0].numel() :] = d.flatten(2).transpose(1, 2)
                    return output + step * tail
                return output + step * (d if name == "maxvit" else d.permute(0, 2, 3, 1))

            handle = model.level_module(level.index).register_forward_hook(hook)
            with torch.no_grad():
                logit = model(*inputs)[0, 1]
            handle.remove()
            return logit

        slope = (moved(1e-4) - moved(-1e-4)) / 2e-4
        assert torch.allclose(slope, (read.gradient.double() * direction).sum(), rtol=1e-3, atol=1e-6), info.name


def test_equals_captum_where_captum_needs_no_reshape():
    from captum.attr import LayerGradCam

    model = tiny_model("maxvit")
    (x,) = tiny_inputs(model)
    target = torch.tensor([3, 1])
    expected = LayerGradCam(model, model.stages[1].blocks[-1]).attribute(x, target=target, relu_attributions=True)
    assert torch.allclose(explain(model, x, "gradcam", target).tokens, expected[:, 0].detach(), atol=1e-6)


def test_eigencam_is_the_direction_of_greatest_energy():
    model = tiny_model("swin")
    (x,) = tiny_inputs(model)
    with torch.no_grad():
        (values,) = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    for b, tokens in enumerate(explain(model, x, "eigencam").tokens):
        rows = values[b].flatten(1).T.double()
        _, vectors = torch.linalg.eigh(rows.T @ rows)
        projected = rows @ vectors[:, -1]
        projected = projected * projected.sum().sign()
        assert torch.allclose(tokens.flatten(), projected.clamp(min=0).float(), rtol=1e-3, atol=1e-4)


def test_a_level_by_number_or_name():
    model = tiny_model("hvt two streams")
    inputs = tiny_inputs(model)
    by_number, by_name = explain(model, inputs, "gradcam", 1, layer=0), explain(
        model, inputs, "gradcam", 1, layer="spectral.stages.0")  # fmt: skip
    assert list(by_name) == ["spectral"]
    assert torch.equal(by_name["spectral"].tokens, by_number["spectral"].tokens)
    assert by_number["image"].tokens.shape == (2, 6, 5)
    assert by_number["spectral"].tokens.shape == (2, 7, 8)


def test_with_a_class_token_the_patches_before_the_last_block():
    model = tiny_model("vit token")
    (x,) = tiny_inputs(model)
    assert choose_levels(model, (x,), None)[0].name == "blocks.1"
    assert choose_levels(tiny_model("vit mean"), (x,), None)[0].name == "blocks.2"
    assert choose_levels(tiny_model("vit learner"), (x,), None)[0].name == "blocks.1"
    with pytest.raises(ConfigError, match=r"class token alone is read; take blocks\.1"):
        explain(model, x, "gradcam", layer=-1)


@pytest.mark.parametrize(
    ("layer", "words"),
    [(3, "-3 to 2"), ("block.1", r"did you mean 'blocks\.\d'"), (True, "a whole number"), (-4, "-3 to 2")],
)
def test_levels_that_are_not_there(layer, words):
    model = tiny_model("vit mean")
    with pytest.raises(ConfigError, match=words):
        explain(model, tiny_inputs(model), "gradcam", layer=layer)


def test_models_without_a_level():
    x = torch.randn(1, 3, 16, 16)
    learner = vitrail.create_model("vit", **{**VIT, "token_learner": {"num_tokens": 2, "layer": 0}})
    with pytest.raises(ConfigError, match="no level with a grid"):
        explain(learner, x, "gradcam")
    with pytest.raises(ConfigError, match="no earlier level"):
        explain(vitrail.create_model("vit", **{**VIT, "depth": 1}), x, "gradcam")


def test_a_stream_left_out_has_no_map():
    model = vitrail.create_model("hvt", **{**SETTINGS["hvt two streams"][1], "missing_spectral": "learned"})
    image = torch.randn(1, 3, 24, 24)
    assert list(explain(model, image, "gradcam")) == ["image"]
    with pytest.raises(ConfigError, match="without an input"):
        explain(model, image, "gradcam", layer="spectral.stages.0")


def test_parameters_need_gradients_as_before():
    model = tiny_model("vit mean")
    model.pos_embed.requires_grad_(False)
    explain(model, tiny_inputs(model), "gradcam")
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["pos_embed"]
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_tokens_that_reach_beyond_the_edge_are_not_squeezed_into_the_image():
    model = tiny_model("vit mean")
    x = torch.randn(1, 3, 17, 16)
    result = explain(model, x, "layercam", 0)
    full = F.interpolate(result.tokens[:, None], size=(20, 16), mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(result.map, full[:, :17])
