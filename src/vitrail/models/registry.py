"""Models by name: the known families and their variants."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import json
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

from vitrail.errors import ConfigError, closest
from vitrail.models.base import VisionModel
from vitrail.models.family import REGISTERED, Family, register_family
from vitrail.models.features_only import FeatureEncoder
from vitrail.models.settings import check_settings
from vitrail.plugins import FAMILIES, describe_origin, find_plugins, load_plugins
from vitrail.weights.load import load_weights
from vitrail.weights.remedies import CREATE

# Arguments of timm's create_model that choose among weights of its own.
_BUNDLED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def list_families(modality: str | None = None) -> dict[str, Family]:
    """Return all families by name: of this package, of other distributions, and registered in this process.

    Args:
        modality: Families of this modality alone (``"image"``, ``"video"``).

    Raises:
        ConfigError: An entry point names no family, or a name that is taken.
        VitrailError: An entry point that cannot be imported.
    """
    package = importlib.import_module("vitrail.models.families")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    for entry, found in zip(find_plugins(FAMILIES), load_plugins(FAMILIES), strict=True):
        if isinstance(found, Family):
            if REGISTERED.get(found.name) is not found:
                register_family(found)
        elif not isinstance(found, ModuleType):
            raise ConfigError(
                f"the entry point {entry.name} = {entry.value} of {describe_origin(entry)} is a "
                f"{type(found).__name__}; name a vitrail.models.Family, or a module that calls register_family"
            )
    return {name: own for name, own in sorted(REGISTERED.items()) if modality in (None, own.modality.name)}


def find_family(name: str) -> tuple[Family, dict[str, Any]]:
    """Find the family of a family's or variant's name, and the variant's settings (empty for a family).

    Raises:
        ConfigError: An unknown name; the message gives the closest.
    """
    known = list_families()
    if name in known:
        return known[name], {}
    for family in known.values():
        if name in family.variants:
            return family, dict(family.variants[name])
    names = [*known, *(variant for family in known.values() for variant in family.variants)]
    raise ConfigError(f"unknown model {name!r}{closest(name, names)} (`vitrail models` lists all)")


def complete_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting of a model, with the defaults of the variant and the family.

    Args:
        name: A variant or a family.
        settings: Settings that differ from the variant's or the family's.

    Returns:
        Plain values that JSON has.

    Raises:
        ConfigError: An unknown name, or a value out of range.
    """
    _, config = _configure(name, settings)
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def list_models(pattern: str = "*") -> list[str]:
    """List the names of all variants that a shell pattern matches, sorted.

    Args:
        pattern: Pattern, for example ``"vit_small*"``; a family's name stands for its variants.
    """
    known = list_families()
    if pattern in known:
        return sorted(known[pattern].variants)
    names = [name for family in known.values() for name in family.variants]
    return sorted(fnmatch.filter(names, pattern))


def create_model(name: str, **settings: Any) -> VisionModel:
    """Build a model, with random weights unless ``checkpoint_path`` gives others.

    Args:
        name: A variant (``"vit_tiny_patch16_224"``) or a family (``"vit"``).
        **settings: Settings of the family; they override the variant's. See the family's config class. As in timm,
            ``features_only=True`` builds an encoder that returns feature maps instead of logits, ``out_indices``
            chooses its levels (by index, or how many of the last; all when not given); ``checkpoint_path`` is a file
            that :func:`~vitrail.weights.load.load_weights` loads, into an encoder without its classifier.

    Returns:
        The model, on the CPU, in training mode; with ``features_only`` a
        :class:`~vitrail.models.features_only.FeatureEncoder` around it.

    Raises:
        ConfigError: An unknown name or setting (the message gives the closest), a value out of range, or
            ``pretrained=True``: no weights come with vitrail.
        WeightsError: The checkpoint cannot be read or does not fit.

    Example:
        >>> model = create_model("vit_tiny_patch16_224", num_classes=10, in_chans=5)
    """
    features_only, out_indices = settings.pop("features_only", False), settings.pop("out_indices", None)
    checkpoint_path = settings.pop("checkpoint_path", "")
    _refuse_bundled(name, settings)
    family, config = _configure(name, settings)
    model = family.build(config)
    model.name = name
    if features_only:
        # Typed as the usual result, so that a model is one wherever settings come as a mapping.
        model = cast(VisionModel, FeatureEncoder(model, out_indices))
    elif out_indices is not None:
        raise ConfigError("out_indices chooses the levels of an encoder; give features_only=True too")
    if checkpoint_path:
        load_weights(model, checkpoint_path, spelling=CREATE)
    return model


def _refuse_bundled(name: str, settings: dict[str, Any]) -> None:
    """Remove timm's arguments for bundled weights from the settings; refuse those that are set.

    Raises:
        ConfigError: One asks for such weights.
    """
    asked = {key: value for key in _BUNDLED if (value := settings.pop(key, None))}
    if asked:
        family, _ = find_family(name)
        from_timm = any(key_map.source == "timm" for key_map in family.key_maps) and name in family.variants
        example = f"hf://timm/{name}.TAG" if from_timm else "FILE"
        raise ConfigError(
            f"{next(iter(asked))}={next(iter(asked.values()))!r}: no weights come with vitrail; use "
            f"from_pretrained(FOLDER) for a run or a saved model, or load_weights(model, {example!r}) for a checkpoint "
            "of timm or another library"
        )


def _configure(name: str, settings: Mapping[str, Any]) -> tuple[Family, Any]:
    family, base = find_family(name)
    check_settings(family.config, settings, family.name)
    return family, family.config(**{**base, **settings})
