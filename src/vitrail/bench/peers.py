"""The same model in other libraries, with the same weights, to be measured beside ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitrail.errors import ConfigError, VitrailError, WeightsError
from vitrail.extras import import_extra
from vitrail.layers.shapes import to_pair
from vitrail.models.base import VisionModel
from vitrail.models.profile import example_inputs
from vitrail.models.registry import create_model, find_family
from vitrail.weights.load import load_weights

LIBRARIES = ("timm", "torchvision")
# Differences of the outputs over their largest value, above which two models do not compute the same.
_AGREEMENT = 1e-4

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """A model of ours and its counterpart, on the CPU.

    Attributes:
        ours: The model, with the counterpart's weights.
        theirs: The counterpart, in the form that its library gives it.
        difference: Largest difference of their outputs for one random image, over the largest output.
    """

    ours: VisionModel
    theirs: nn.Module
    difference: float


def check_counterpart(library: str, name: str, settings: Settings) -> None:
    """Refuse early what has no counterpart.

    Args:
        library: "timm" or "torchvision".
        name: A variant or a family.
        settings: Settings of the model; all of them, or those that differ from the variant's.

    Raises:
        ConfigError: The library does not have the model.
        VitrailError: The library is not installed, or cannot be imported.
    """
    _plan(library, name, settings)
    import_extra(library, "peers")


def own_settings(library: str, name: str, settings: Settings) -> dict[str, Any]:
    """Settings with which our model computes what a library's does: torchvision's MaxViT is another flavour."""
    if library == "torchvision" and find_family(name)[0].name == "maxvit":
        return {**settings, "flavour": "torchvision"}
    return dict(settings)


def build_counterpart(library: str, name: str, settings: Settings) -> nn.Module:
    """A library's model of the same architecture, in the library's own form, with random weights.

    Args:
        library: "timm" or "torchvision".
        name: A variant or a family of ours.
        settings: Settings of our model.

    Raises:
        ConfigError: The library does not have the model.
        VitrailError: The library is not installed, or refuses the settings.
    """
    make, values = _plan(library, name, settings)
    try:
        return make(values)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise VitrailError(f"{library} cannot build {name} with these settings: {_first_line(error)}") from error


def pair_up(library: str, name: str, settings: Settings) -> Pair:
    """Build a model and its counterpart and give both the same random weights.

    Args:
        library: "timm" or "torchvision".
        name: A variant or a family.
        settings: Settings of the model; ours gets :func:`own_settings`.

    Raises:
        ConfigError: The library does not have the model.
        VitrailError: It is not installed, or the two do not compute the same.
    """
    theirs = build_counterpart(library, name, settings).eval()
    ours = create_model(name, **own_settings(library, name, settings)).eval()
    inputs = [torch.rand_like(x) for x in example_inputs(ours)]
    _randomise(theirs)
    try:
        load_weights(ours, theirs.state_dict(), source=library)
        with torch.no_grad():
            a, b = ours(*inputs), theirs(*inputs)
    except (AssertionError, RuntimeError, WeightsError) as error:
        raise VitrailError(f"{library} cannot take part with this {name}: {_first_line(error)}") from error
    difference = float((a - b).abs().max() / b.abs().max())
    if not difference < _AGREEMENT:
        raise VitrailError(
            f"{library}'s {name} does not compute the same: with equal weights its output differs by "
            f"{difference:.1e} of the largest value, and {_AGREEMENT:g} is allowed; leave out --against {library}"
        )
    return Pair(ours, theirs, difference)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _randomise(model: nn.Module) -> None:
    """Move all weights a little, so that none is zero or alike where a wrong one would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.ndim == 1 else 0.02)


def _plan(library: str, name: str, settings: Settings) -> tuple[Callable[[dict[str, Any]], nn.Module], dict[str, Any]]:
    """What builds the counterpart, and all settings for it; checked before anything is imported."""
    if library not in LIBRARIES:
        raise ConfigError(f"models are measured against {' and '.join(LIBRARIES)}, not against {library!r}")
    family, base = find_family(name)
    values = dataclasses.asdict(family.config(**{**base, **own_settings(library, name, settings)}))
    makers = _TIMM if library == "timm" else _TORCHVISION
    lacks = _lacks(library, family.name, values) if family.name in makers else f"no {family.name}"
    if lacks:
        raise ConfigError(f"{library} has no counterpart of {name} ({lacks}); leave out --against {library}")
    return makers[family.name], values


def _lacks(library: str, family: str, settings: dict[str, Any]) -> str:
    """What of a model the library does not have; empty if nothing."""
    torchvision = library == "torchvision"
    if family == "vit" and settings["token_learner"] is not None:
        return "no TokenLearner"
    if family == "vit" and torchvision and settings["global_pool"] != "token":
        return "no mean over tokens"
    if family == "maxvit" and not torchvision and settings["flavour"] != "tf":
        return f"no flavour {settings['flavour']!r}"
    if torchvision and settings["in_chans"] != 3:
        return f"3 bands only, not {settings['in_chans']}"
    if torchvision and not settings["qkv_bias"]:
        return "always a bias of queries, keys and values"
    if torchvision and family in ("vit", "maxvit"):
        for key in ("img_size", "patch_size", "window_size"):
            if len(set(to_pair(settings.get(key) or 1))) > 1:
                return f"{key} {settings[key]} is not square"
    return ""


_SHARED = ("img_size", "in_chans", "num_classes", "mlp_ratio", "qkv_bias", "drop_path_rate")


def _timm(base: str, settings: Settings) -> nn.Module:
    model: nn.Module = import_extra("timm", "peers").create_model(base, **settings)
    return model


def _timm_vit(s: dict[str, Any]) -> nn.Module:
    own = ("patch_size", "embed_dim", "depth", "num_heads", "class_token", "global_pool")
    return _timm("vit_small_patch16_224", {key: s[key] for key in (*_SHARED, *own)})


def _timm_swin(s: dict[str, Any]) -> nn.Module:
    own = ("patch_size", "embed_dim", "depths", "num_heads", "window_size")
    return _timm("swin_tiny_patch4_window7_224", {key: s[key] for key in (*_SHARED, *own)})


def _timm_maxvit(s: dict[str, Any]) -> nn.Module:
    own = (
        "img_size",
        "in_chans",
        "num_classes",
        "drop_path_rate",
        "stem_width",
        "embed_dim",
        "depths",
        "head_hidden_size",
    )
    blocks = ("M",) * len(s["depths"])
    transformer = {
        "transformer_window_size": s["window_size"],
        "transformer_grid_size": s["window_size"],
        "transformer_dim_head": s["dim_head"],
        "transformer_expand_ratio": s["mlp_ratio"],
        "transformer_attn_bias": s["qkv_bias"],
    }
    return _timm("maxvit_tiny_tf_224", {key: s[key] for key in own} | transformer | {"block_type": blocks})


def _torchvision_vit(s: dict[str, Any]) -> nn.Module:
    model: nn.Module = import_extra("torchvision.models", "peers").VisionTransformer(
        image_size=to_pair(s["img_size"])[0],
        patch_size=to_pair(s["patch_size"])[0],
        num_layers=s["depth"],
        num_heads=s["num_heads"],
        hidden_dim=s["embed_dim"],
        mlp_dim=int(s["embed_dim"] * s["mlp_ratio"]),
        num_classes=s["num_classes"],
    )
    return model


def _torchvision_swin(s: dict[str, Any]) -> nn.Module:
    model: nn.Module = import_extra("torchvision.models", "peers").SwinTransformer(
        patch_size=list(to_pair(s["patch_size"])),
        embed_dim=s["embed_dim"],
        depths=list(s["depths"]),
        num_heads=list(s["num_heads"]),
        window_size=list(to_pair(s["window_size"])),
        mlp_ratio=s["mlp_ratio"],
        stochastic_depth_prob=s["drop_path_rate"],
        num_classes=s["num_classes"],
    )
    return model


def _torchvision_maxvit(s: dict[str, Any]) -> nn.Module:
    model: nn.Module = import_extra("torchvision.models", "peers").MaxVit(
        input_size=to_pair(s["img_size"]),
        stem_channels=s["stem_width"],
        partition_size=to_pair(s["window_size"])[0],
        block_channels=list(s["embed_dim"]),
        block_layers=list(s["depths"]),
        head_dim=s["dim_head"],
        stochastic_depth_prob=s["drop_path_rate"],
        mlp_ratio=int(s["mlp_ratio"]),
        num_classes=s["num_classes"],
    )
    return model


_TIMM = {"vit": _timm_vit, "swin": _timm_swin, "maxvit": _timm_maxvit}
_TORCHVISION = {"vit": _torchvision_vit, "swin": _torchvision_swin, "maxvit": _torchvision_maxvit}
