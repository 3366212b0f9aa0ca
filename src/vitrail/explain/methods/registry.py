"""Registry of explanation methods, and the check of their settings."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vitrail.errors import ConfigError, closest, did_you_mean
from vitrail.explain.capture.prepare import Target, lacks_class
from vitrail.explain.methods.maps import StreamMap
from vitrail.models.base import VisionModel
from vitrail.models.modality import IMAGE, Modality
from vitrail.models.settings import describe_type, fits_type
from vitrail.plugins import METHODS as PLUGINS
from vitrail.plugins import load_plugins

Compute = Callable[..., dict[str, StreamMap]]


@dataclass(frozen=True)
class Method:
    """An explanation method.

    Attributes:
        name: Its name.
        compute: ``compute(model, inputs, target, **settings)``; inputs are a tuple of tensors, one for each stream
            (None without input), the target ``(B,)`` or None.
        by_class: Whether it explains a class.
        signed: Whether its maps have negative values (evidence against the class).
        summary: Description, one line.
        lacks: Returns the reason why a model cannot be explained, or None.
        any_grid: Whether it explains inputs of any modality, on grids of any number of axes, and not images alone.
    """

    name: str
    compute: Compute
    by_class: bool
    signed: bool
    summary: str
    lacks: Callable[[VisionModel], str | None] = lambda model: None
    any_grid: bool = False

    def takes(self, modality: Modality) -> bool:
        """Check whether it explains inputs of a modality."""
        return self.any_grid or modality is IMAGE

    def refusal(self, model: VisionModel) -> str | None:
        """Return the reason why the method cannot explain a model; None where it can."""
        if not self.takes(model.modality):
            return f"{self.name} explains {IMAGE.noun}, and this model takes {model.modality.noun}"
        return (lacks_class(model) if self.by_class else None) or self.lacks(model)

    def target(self, classes: Target) -> Target:
        """Return the classes as :func:`~vitrail.explain.explain` accepts them: None unless the method needs them."""
        return classes if self.by_class else None

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings with their defaults."""
        parameters = list(inspect.signature(self.compute).parameters.values())[3:]
        return {parameter.name: parameter.default for parameter in parameters}

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Check names and types of settings against the signature of the method.

        Raises:
            ConfigError: An unknown setting, or a value of another type than the annotation.
        """
        if not settings:
            return
        types_ = typing.get_type_hints(self.compute)
        for name, value in settings.items():
            if name not in self.settings:
                raise ConfigError(
                    f"{self.name} has no setting {name!r}{closest(name, self.settings)}; its settings: "
                    f"{', '.join(self.settings) or 'none'}"
                )
            if name in types_ and not fits_type(value, types_[name]):
                raise ConfigError(f"{self.name}: {name} must be {describe_type(types_[name])}, got {value!r}")


METHODS: dict[str, Method] = {}


def _known() -> dict[str, Method]:
    """Return the registered methods, those of other distributions included."""
    load_plugins(PLUGINS)  # their modules register them
    return METHODS


def register_method(
    name: str,
    *,
    by_class: bool,
    signed: bool = False,
    lacks: Callable[[VisionModel], str | None] = lambda model: None,
    any_grid: bool = False,
) -> Callable[[Compute], Compute]:
    """Register a function as a method; the first line of its docstring becomes the summary.

    A distribution adds methods by entry points of the group ``vitrail.methods`` that name its modules.

    Args:
        name: Name of the method.
        by_class: Whether it explains a class.
        signed: Whether its maps have negative values.
        lacks: Returns the reason why a model cannot be explained, or None.
        any_grid: Whether it explains inputs of any modality; images alone by default.
    """

    def register(compute: Compute) -> Compute:
        summary = (inspect.getdoc(compute) or "").split("\n")[0]
        METHODS[name] = Method(name, compute, by_class, signed, summary, lacks, any_grid)
        return compute

    return register


def list_methods(model: VisionModel | None = None) -> list[str]:
    """List the names of all methods, or of those that can explain a model."""
    return sorted(name for name, method in _known().items() if model is None or method.refusal(model) is None)


# The first of these that can explain a model is its default; where none can, the first says why.
_DEFAULTS = ("rollout", "gradcam", "saliency")


def default_method(model: VisionModel) -> str:
    """Choose the method for a model where none is named: attention rollout where the model has one."""
    possible = (name for name in ("part_rollout", *_DEFAULTS) if METHODS[name].refusal(model) is None)
    return next(possible, _DEFAULTS[0])


def get_method(name: str) -> Method:
    """Return a method by its name.

    Raises:
        ConfigError: There is no such method.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a method is a name, got {name!r}; methods: {', '.join(list_methods())}")
    if name not in _known():
        raise ConfigError(f"no method {name!r}{did_you_mean(name, METHODS)}; methods: {', '.join(list_methods())}")
    return METHODS[name]
