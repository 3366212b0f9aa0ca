"""The list of model families and their variants, filled by the families' own files."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from vitrail.errors import ConfigError, closest
from vitrail.models.base import VisionModel
from vitrail.models.features_only import FeatureEncoder
from vitrail.models.settings import check_settings


@dataclass(frozen=True)
class Family:
    """One architecture: what it is called, how it is configured and built, and which sizes it comes in.

    Attributes:
        name: The family's name, lower case (``"vit"``).
        config: Its frozen dataclass of settings; each field is a setting of ``create_model``.
        build: Makes the model from a config.
        variants: Variant name -> the settings in which it differs from the config's defaults.
        test_config: Settings of a tiny model, for tests and for trying things out.
        published: Variant name -> the authors' ImageNet-1k top-1 in per cent.
        source: Paper, for the model table.
    """

    name: str
    config: type[Any]
    build: Callable[[Any], VisionModel]
    variants: Mapping[str, Mapping[str, Any]]
    test_config: Mapping[str, Any]
    published: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the settings that ``create_model`` takes for this family."""
        return tuple(f.name for f in dataclasses.fields(self.config))


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Add a family; from then on it is created, listed, tested and shown by its name.

    Raises:
        ConfigError: The family's name or one of its variants' names is taken.
    """
    taken = {name for known in _FAMILIES.values() for name in (known.name, *known.variants)}
    for name in (family.name, *family.variants):
        if name in taken:
            raise ConfigError(f"the model name {name!r} is registered already; choose another")
    _FAMILIES[family.name] = family
    return family


def families() -> dict[str, Family]:
    """All families by name; imports the files of this package on the first call, which registers them."""
    package = importlib.import_module("vitrail.models")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"vitrail.models.{module.name}")
    return dict(sorted(_FAMILIES.items()))


def find_family(name: str) -> tuple[Family, dict[str, Any]]:
    """The family that a family's or variant's name belongs to, and the variant's settings (empty for a family).

    Raises:
        ConfigError: An unknown name; the message gives the closest.
    """
    known = families()
    if name in known:
        return known[name], {}
    for family in known.values():
        if name in family.variants:
            return family, dict(family.variants[name])
    names = [*known, *(variant for family in known.values() for variant in family.variants)]
    raise ConfigError(f"unknown model {name!r}{closest(name, names)} (`vitrail models` lists all)")


def complete_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of a model, those that are the variant's or the family's defaults too.

    Args:
        name: A variant or a family.
        settings: Those that differ.

    Returns:
        Plain values that JSON has.

    Raises:
        ConfigError: An unknown name, or a value out of range.
    """
    _, config = _configure(name, settings)
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def list_models(pattern: str = "*") -> list[str]:
    """Names of all variants that a shell pattern matches, sorted.

    Args:
        pattern: For example ``"vit_small*"``; a family's name stands for its variants.
    """
    known = families()
    if pattern in known:
        return sorted(known[pattern].variants)
    names = [name for family in known.values() for name in family.variants]
    return sorted(fnmatch.filter(names, pattern))


def create_model(name: str, **settings: Any) -> VisionModel:
    """Build a model with random weights.

    Args:
        name: A variant (``"vit_tiny_patch16_224"``) or a family (``"vit"``).
        **settings: Settings of the family; they override the variant's. See the family's config class. As in timm,
            ``features_only=True`` builds an encoder that returns feature maps instead of logits, ``out_indices``
            chooses its levels (by index, or how many of the last; all when not given).

    Returns:
        The model, on the CPU, in training mode; with ``features_only`` a
        :class:`~vitrail.models.features_only.FeatureEncoder` around it.

    Raises:
        ConfigError: An unknown name or setting (the message gives the closest), or a value out of range.

    Example:
        >>> model = create_model("vit_tiny_patch16_224", num_classes=10, in_chans=5)
    """
    features_only, out_indices = settings.pop("features_only", False), settings.pop("out_indices", None)
    family, config = _configure(name, settings)
    model = family.build(config)
    model.name = name
    if features_only:
        # Typed as the usual result, so that a model is one wherever settings come as a mapping.
        return cast(VisionModel, FeatureEncoder(model, out_indices))
    if out_indices is not None:
        raise ConfigError("out_indices chooses the levels of an encoder; give features_only=True too")
    return model


def _configure(name: str, settings: Mapping[str, Any]) -> tuple[Family, Any]:
    family, base = find_family(name)
    check_settings(family.config, settings, family.name)
    return family, family.config(**{**base, **settings})
