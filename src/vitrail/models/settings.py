"""Whether settings are of the types that a family's config declares."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from torch import nn

from vitrail.config.typed import field_hints
from vitrail.config.vocabulary import suggest
from vitrail.errors import ConfigError

Config = TypeVar("Config")

_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    type(None): "none",
    nn.Module: "a torch module",
}


def serves_trainer(kind: type[Config]) -> type[Config]:
    """Adapt a frozen config to Hugging Face's Trainer, which expects one of its own.

    Trainer sets ``use_cache`` on the config of every model, and its loggers write ``to_dict()`` or
    ``to_json_string()``. All other attributes stay frozen.
    """
    frozen = kind.__setattr__

    def set_attribute(self: Any, name: str, value: Any) -> None:
        (object.__setattr__ if name == "use_cache" else frozen)(self, name, value)

    def to_dict(self: Any) -> dict[str, Any]:
        """Return the settings as plain values."""
        return dataclasses.asdict(self)

    def to_json_string(self: Any) -> str:
        """Return the settings as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    for name, method in (("__setattr__", set_attribute), ("to_dict", to_dict), ("to_json_string", to_json_string)):
        setattr(kind, name, method)
    return kind


def check_settings(kind: type[Any], settings: Mapping[str, Any], owner: str, prefix: str = "") -> None:
    """Refuse settings that a config does not have, or that are of other types.

    Nothing is converted: the text "false" is not a boolean, and 32.0 is not an integer. A list may stand for a tuple,
    and a mapping for the settings of a part.

    Args:
        kind: The config's dataclass.
        settings: Settings to check, by name.
        owner: The family, for the error.
        prefix: Name of the whole that the settings are part of, for the error.

    Raises:
        ConfigError: Naming the setting, what it must be and the value.
    """
    hints = field_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    # Settings and values of other families -> why this one does not have them.
    absent: Mapping[str, str] = getattr(kind, "absent", {})
    for name, value in settings.items():
        if name not in names:
            reason = absent.get(name)
            why = suggest(name, names) if reason is None else f": {reason}"
            raise ConfigError(f"{owner} has no setting {prefix + name!r}{why}")
        _check_value(name, value, hints[name], absent, prefix)
        for part in _alternatives(hints[name]):
            if dataclasses.is_dataclass(part) and isinstance(part, type) and isinstance(value, Mapping):
                check_settings(part, value, owner, f"{prefix}{name}.")


def check_choices(config: object) -> None:
    """Refuse settings whose type is a ``Literal`` and whose value is none of its names.

    Args:
        config: The settings; where they have ``absent``, a mapping, it gives the reason for ``SETTING=VALUE``.

    Raises:
        ConfigError: Naming the setting, the names, the value and the reason.
    """
    absent: Mapping[str, str] = getattr(config, "absent", {})
    for name, hint in field_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            _check_value(name, getattr(config, name), hint, absent)


def _check_value(name: str, value: Any, hint: Any, absent: Mapping[str, str], prefix: str = "") -> None:
    if not fits_type(value, hint):
        reason = absent.get(f"{name}={value}")
        why = "" if reason is None else f": {reason}"
        raise ConfigError(f"{prefix}{name} must be {describe_type(hint)}, got {value!r}{why}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def fits_type(value: Any, hint: Any) -> bool:
    """Return whether a value is of the declared type of a setting; a list may stand for a tuple."""
    options = _alternatives(hint)
    if len(options) > 1:
        return any(fits_type(value, option) for option in options)
    if typing.get_origin(hint) is Literal:
        return any(type(value) is type(option) and value == option for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        if not isinstance(value, tuple | list):
            return False
        if items[-1] is Ellipsis:
            return all(fits_type(item, items[0]) for item in value)
        return len(value) == len(items) and all(map(fits_type, value, items))
    if dataclasses.is_dataclass(hint):
        return isinstance(value, Mapping) or type(value) is hint
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint)


def describe_type(hint: Any) -> str:
    """Describe the declared type of a setting for an error."""
    options = _alternatives(hint)
    if len(options) > 1:
        return " or ".join(map(describe_type, options))
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        plural = _NAMES[items[0]].removeprefix("a ") + "s"
        if items[-1] is Ellipsis:
            return f"a list of {plural}"
        return f"a pair of {plural}" if len(items) == 2 else f"{len(items)} {plural}"
    return "settings" if dataclasses.is_dataclass(hint) else _NAMES.get(hint) or str(getattr(hint, "__name__", hint))
