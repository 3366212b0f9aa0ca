"""Declaration of a family, and its registration."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from vitrail.errors import ConfigError
from vitrail.models.base import VisionModel
from vitrail.models.modality import Modality
from vitrail.models.peer import Peer
from vitrail.models.settings import serves_trainer
from vitrail.weights.rules import KeyMap


class Results(NamedTuple):
    """Published ImageNet-1k accuracies of variants that were pre-trained on the same images.

    Attributes:
        pretraining: Name of the images.
        source: Paper and table, and the resolution of fine-tuning where the variant does not have it.
        top1: Variant name -> top-1 in per cent.
    """

    pretraining: str
    source: str
    top1: Mapping[str, float]


@dataclass(frozen=True)
class Family:
    """One architecture: name, config, model and variants.

    Attributes:
        name: The family's name, lower case (``"vit"``).
        config: Its frozen dataclass of settings; each field is a setting of ``create_model``.
        build: The model's class; called with a config it builds a model.
        variants: Variant name -> the settings in which it differs from the config's defaults.
        test_config: Settings of a tiny model, for tests and for trying things out.
        published: Variant name -> the authors' ImageNet-1k top-1 in per cent, trained on ImageNet-1k alone.
        results: The same after pre-training on other images, and those of other papers.
        source: Paper, for the model table.
        peers: Library -> counterpart of the family there.
        layers: Layers of the family whose weights may stand alone in a checkpoint, with key maps of their own.
    """

    name: str
    config: type[Any]
    build: type[VisionModel]
    variants: Mapping[str, Mapping[str, Any]]
    test_config: Mapping[str, Any]
    published: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    peers: Mapping[str, Peer] = field(default_factory=dict)
    layers: Sequence[type[Any]] = ()
    results: Sequence[Results] = ()

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the settings that ``create_model`` takes for this family."""
        return tuple(f.name for f in dataclasses.fields(self.config))

    @property
    def key_maps(self) -> Sequence[KeyMap]:
        """Key maps of its class; where it declares none, one that recognises vitrail's own names of the family."""
        first = next(iter(self.build.input_kernels), None)
        own = () if first is None else (KeyMap("vitrail", (re.escape(first),)),)
        return self.build.key_maps or own

    @property
    def modality(self) -> Modality:
        """Modality of its models' inputs, as its class declares."""
        return self.build.modality

    @property
    def takes_spectral(self) -> bool:
        """Whether its models can have a second stream, whose bands the setting ``spectral_chans`` counts."""
        return "spectral_chans" in self.settings

    @functools.cached_property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of the tensors of its tiny model; they show a family's names inside a checkpoint."""
        with torch.device("meta"):
            return tuple(self.build(self.config(**self.test_config)).state_dict())


# Families by name, filled by their files.
REGISTERED: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Add a family; from then on every verb and function knows it by its name.

    A distribution registers its families by entry points of the group ``vitrail.families``. A class that is defined
    again (a cell of a notebook that runs twice) replaces the earlier one.

    Args:
        family: The family.

    Returns:
        The family.

    Raises:
        ConfigError: The family's name or one of its variants' names is taken, its config lacks a setting that every
            family of its modality has, or its class is not a :class:`~vitrail.models.base.VisionModel`.
    """
    if not (isinstance(family.build, type) and issubclass(family.build, VisionModel)):
        raise ConfigError(f"the family {family.name}: build must be a subclass of VisionModel, got {family.build!r}")
    lacking = [name for name in family.modality.settings if name not in family.settings]
    if lacking:
        raise ConfigError(f"the config of the family {family.name} has no {' and no '.join(lacking)}; add it")
    others = [known for known in REGISTERED.values() if not _is_same_definition(known, family)]
    taken = {name for known in others for name in (known.name, *known.variants)}
    for name in (family.name, *family.variants):
        if name in taken:
            raise ConfigError(f"the model name {name!r} is registered already; choose another")
    serves_trainer(family.config)
    REGISTERED[family.name] = family
    return family


def _is_same_definition(known: Family, family: Family) -> bool:
    return known.name == family.name and all(
        getattr(known.build, key) == getattr(family.build, key) for key in ("__module__", "__qualname__")
    )
