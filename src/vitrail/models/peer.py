"""Counterparts of a family in other libraries, which benchmarks compare with; a family declares its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vitrail.extras import import_extra
from vitrail.layers.shapes import to_pair
from vitrail.models.layer_settings import LayerSettings

Settings = Mapping[str, Any]


def _nothing_missing(settings: Settings) -> str:
    return ""


@dataclass(frozen=True)
class Peer:
    """Counterpart of a family in another library.

    The family's key map of this library's name loads the counterpart's weights.

    Attributes:
        build: Function from all settings of our model to the library's model, with random weights.
        missing: Function from all settings to the feature that the library lacks; empty if it has all.
        settings: Settings with which our model computes the same function as the library's.
    """

    build: Callable[[Settings], nn.Module]
    missing: Callable[[Settings], str] = _nothing_missing
    settings: Settings = field(default_factory=dict)


def build_timm(name: str, settings: Settings, keys: Sequence[str], **renamed: Any) -> nn.Module:
    """Build a timm model.

    Args:
        name: Name of timm's model that the settings override.
        settings: All settings of our model.
        keys: Settings that timm has under the same name.
        **renamed: timm's other settings.
    """
    own = {key: settings[key] for key in keys}
    model: nn.Module = import_extra("timm", "peers").create_model(name, **own, **renamed)
    return model


def build_torchvision(name: str, **settings: Any) -> nn.Module:
    """Build a torchvision model by the name of its class."""
    model: nn.Module = getattr(import_extra("torchvision.models", "peers"), name)(**settings)
    return model


def missing_layers(settings: Settings, rates: bool = True) -> str:
    """Name the first of the :class:`~vitrail.models.layer_settings.LayerSettings` that a library lacks.

    Args:
        settings: All settings of our model.
        rates: Whether the library has the dropout rates.
    """
    known = {f.name: f.default for f in dataclasses.fields(LayerSettings)} | {"pos_embed": "relative"}
    for name, default in known.items():
        if settings[name] != default and not (rates and name.endswith("_rate")):
            return f"no {name} {settings[name]!r}"
    return ""


def missing_in_torchvision(settings: Settings, *square: str) -> str:
    """Name the feature that torchvision's transformers lack; empty if they have all.

    Args:
        settings: All settings of our model.
        *square: Settings that must be square.
    """
    if settings["in_chans"] != 3:
        return f"3 bands only, not {settings['in_chans']}"
    if not settings["qkv_bias"]:
        return "always a bias of queries, keys and values"
    for key in square:
        if len(set(to_pair(settings[key] or 1))) > 1:
            return f"{key} {settings[key]} is not square"
    return ""
