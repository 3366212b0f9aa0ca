"""What can be explained: a model, a wrapper around one, or a trained model that knows its classes and its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

from torch import nn

from vitrail.errors import ConfigError, did_you_mean
from vitrail.models.base import VisionModel
from vitrail.weights.wrapped import network_inside

# A message lists this many class names.
_SHOWN = 8


class Card(Protocol):
    """What a trained model knows of its classes."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of the logits."""
        ...


@runtime_checkable
class Trained(Protocol):
    """A model with the normalisation of its inputs and the names of its classes, as ``load_trained`` returns it."""

    @property
    def model(self) -> VisionModel:
        """The model."""
        ...

    @property
    def normalize(self) -> Any:
        """Normalises a mapping of streams in 0..1 to the model's inputs."""
        ...

    @property
    def card(self) -> Card:
        """Names of the classes."""
        ...


Explainable = nn.Module | Trained


def as_trained(model: Explainable) -> Trained | None:
    """A trained model, or None for a module; a module of a training loop may have attributes of the same names."""
    return None if isinstance(model, nn.Module) or not isinstance(model, Trained) else model


def network_of(model: Explainable) -> VisionModel:
    """Return the model to explain: itself, that of a trained model, or the only one inside of a wrapper.

    Raises:
        ConfigError: No model of vitrail, several, or one beside other modules.
    """
    trained = as_trained(model)
    network: VisionModel = network_inside(
        cast(nn.Module, trained.model if trained else model), VisionModel, "explained"
    )
    return network


def class_indices(target: Any, names: Sequence[str]) -> Any:
    """Replace names of classes by their indices.

    Args:
        target: A name, a list of names, or anything else, which is returned as it is.
        names: Names of the classes, in the order of the logits; empty where they are not known.

    Raises:
        ConfigError: An unknown name, or a name without a card to look it up in.
    """
    if isinstance(target, str):
        return _index(target, names)
    if isinstance(target, list | tuple):
        return [_index(one, names) if isinstance(one, str) else one for one in target]
    return target


def _index(name: str, names: Sequence[str]) -> int:
    if not names:
        raise ConfigError(
            f"target {name!r} is a name, and the model alone knows no names of classes; give the index of the class, "
            "or explain what load_trained(RUN) returns"
        )
    if name not in names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        known = ", ".join(names[:_SHOWN])
        raise ConfigError(f"no class {name!r}{did_you_mean(name, names)}; classes: {known}{more}")
    return list(names).index(name)
