"""Registry of explanation methods, and the check of their settings."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vitrail.errors import ConfigError, closest, did_you_mean
from vitrail.explain.capture.prepare import Target, lacks_class
from vitrail.explain.methods.maps import StreamMap
from vitrail.models.base import VisionModel
from vitrail.models.modality import IMAGE, Modality
from vitrail.plugins import METHODS as PLUGINS
from vitrail.plugins import load_plugins

Compute = Callable[..., dict[str, StreamMap]]
_TYPES = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "none"}


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
            if name in types_ and not _matches(value, types_[name]):
                raise ConfigError(f"{self.name}: {name} must be {_describe(types_[name])}, got {value!r}")


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


def _alternatives(type_: Any) -> tuple[Any, ...]:
    return typing.get_args(type_) if typing.get_origin(type_) in (typing.Union, types.UnionType) else (type_,)


def _matches(value: Any, type_: Any) -> bool:
    """Check a value against a plain type, a tuple, a literal, or a union of them."""
    return any(_matches_one(value, one) for one in _alternatives(type_))


def _matches_one(value: Any, type_: Any) -> bool:
    if typing.get_origin(type_) is Literal:
        # Only strings: an array would be compared element by element.
        return isinstance(value, str) and value in typing.get_args(type_)
    if typing.get_origin(type_) is tuple:
        parts = typing.get_args(type_)
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_matches, value, parts))
    if type_ is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if type_ in (int, str):
        return isinstance(value, type_) and not isinstance(value, bool)
    return type_ is Any or isinstance(value, type_)


def _describe(type_: Any) -> str:
    names = []
    for one in _alternatives(type_):
        if typing.get_origin(one) is Literal:
            names += [repr(word) for word in typing.get_args(one)]
        elif typing.get_origin(one) is tuple:
            names.append(f"({', '.join(map(_describe, typing.get_args(one)))})")
        else:
            names.append(_TYPES.get(one, getattr(one, "__name__", str(one))))
    return " or ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} or {names[-1]}"
