"""Whether a model's settings build the model: its twin is built, given the same weights, and compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError, VitrailError, few, first_line
from vitrail.layers.modes import evaluation_mode
from vitrail.models.base import VisionModel
from vitrail.models.registry import create_model

# Largest difference of outputs, over the largest output: rounding of another route through the same layers.
_ROUNDING, _HALF_ROUNDING = 1e-4, 3e-2
# What modules print that matters in training alone.
_TRAINING_ONLY = re.compile(r"\b(momentum|p|rate|inplace)=[^,)]+")


def check_rebuilt(model: VisionModel, name: str, settings: Mapping[str, Any]) -> None:
    """Refuse a model that its settings do not build again.

    Keys, shapes, the settings of modules and the output for one image of random pixels are compared.

    Args:
        model: The model; its mode and its random state stay as they are.
        name: Its variant or family.
        settings: As :func:`~vitrail.models.registry.create_model` takes them.

    Raises:
        ConfigError: Naming the parts that differ.
    """
    with torch.device("meta"):
        twin = create_model(name, **settings)
    differing = _differing_tensors(model, twin) or _differing_settings(model, twin)
    if not differing and not any(value.is_meta for value in model.state_dict().values()):
        differing = _differing_outputs(model, twin)
    if differing:
        raise ConfigError(
            f"the model was changed: its settings build another one: {few(differing, between='; ')}. "
            "Save the weights alone, torch.save(model.state_dict(), FILE), and load them into a model that was changed "
            "in the same way"
        )


def _differing_tensors(model: VisionModel, twin: VisionModel) -> list[str]:
    own, wanted = model.state_dict(), twin.state_dict()
    lines = [f"{key} is not part of it" for key in own if key not in wanted]
    lines += [f"{key} is missing" for key in wanted if key not in own]
    for key, value in own.items():
        if key in wanted and value.shape != wanted[key].shape:
            lines.append(f"{key} has the shape {tuple(value.shape)} instead of {tuple(wanted[key].shape)}")
    return lines


def _differing_settings(model: VisionModel, twin: VisionModel) -> list[str]:
    """List modules of one class with other settings, such as an epsilon, whose effect is as small as rounding."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    lines = []
    for name, wanted in twin.named_modules():
        own = modules.get(name)
        if own is not None and type(own) is type(wanted) and _settings_of(own) != _settings_of(wanted):
            lines.append(f"{name} is {_describe(own)} instead of {_describe(wanted)}")
    return lines


def _settings_of(module: nn.Module) -> str:
    return _TRAINING_ONLY.sub("", module.extra_repr())


def _describe(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"


def _differing_outputs(model: VisionModel, twin: VisionModel) -> list[str]:
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.eval()
    try:
        expected, found = _run(twin, model), _run(model, model)
    except (RuntimeError, VitrailError, TypeError, AttributeError) as error:  # whatever an own part raises
        return [f"an image of its own size does not run ({first_line(error)})"]
    if _agree(found, expected):
        return []
    types = {name: type(module) for name, module in model.named_modules()}
    replaced = [
        f"{name} is {types[name].__name__} instead of {type(module).__name__}"
        for name, module in twin.named_modules()
        if name in types and types[name] is not type(module)
    ]
    return replaced or [f"{_first_difference(model, twin)} gives another output"]


def _run(network: VisionModel, model: VisionModel) -> Tensor:
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = (torch.randn(1, *stream.shape, generator=generator) for stream in model.streams)
    with evaluation_mode(network), torch.no_grad():
        out: Tensor = network(*(x.to(parameter.device, parameter.dtype) for x in images))
    return out


def _agree(found: Any, expected: Any) -> bool:
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        return True  # only tensors are compared, those of the whole model among them
    if found.shape != expected.shape:
        return False
    limit = _ROUNDING if expected.dtype in (torch.float32, torch.float64) else _HALF_ROUNDING
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return torch.allclose(found.float(), expected.float(), rtol=0.0, atol=limit * scale, equal_nan=True)


def _first_difference(model: VisionModel, twin: VisionModel) -> str:
    """Find the first module, in the order in which they end, whose output differs."""
    seen: list[dict[str, Any]] = [{}, {}]
    for network, outputs in zip((twin, model), seen, strict=True):
        with ExitStack() as stack:
            for name, module in network.named_modules():
                stack.callback(module.register_forward_hook(partial(_note, outputs, name)).remove)
            _run(network, model)
    return next((name for name, x in seen[0].items() if not _agree(seen[1].get(name), x)), "") or type(model).__name__


def _note(outputs: dict[str, Any], name: str, module: nn.Module, arguments: Any, output: Any) -> None:
    outputs[name] = output
