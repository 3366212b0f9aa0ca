"""Values by the declared types of their settings: words of the command line, and quoted values of files."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from vitrail.config.text import read_word
from vitrail.errors import ConfigError


def read_as(hint: Any, word: str) -> Any:
    """Read a word of the command line as a value of a type.

    Args:
        hint: The type of a setting; None where it is not known.
        word: Text as written.

    Returns:
        The text as it is written for a setting that may be any text, but ``null`` where it may be left out; otherwise
        the value that YAML's core schema gives it.

    Raises:
        ConfigError: A list, a mapping or a quoted text that is not closed.
    """
    kinds = _members(hint)
    if word == "null" and type(None) in kinds:
        return None
    if str in kinds or word in _choices(kinds):
        return str(word)
    return read_word(word, as_text=any(_is_tuple(kind) and str in typing.get_args(kind) for kind in kinds))


def check_value(name: str, hint: Any, value: Any) -> Any:
    """Parse a quoted value (``"3"``) by the type of its setting, and refuse values of other types.

    Args:
        name: Name of the setting, for errors.
        hint: Its type; None where it is not known.
        value: As the file gives it.

    Returns:
        The value, with quoted numbers and words read by the core schema where the setting is not a text.

    Raises:
        ConfigError: Text where the setting takes none, or null where it has to have a value.
    """
    kinds = _members(hint)
    if hint is None or Any in kinds:
        return value
    if value is None and type(None) not in kinds:
        raise ConfigError(f"{_wanted(name, kinds)}, got null")
    if isinstance(value, str):
        if str in kinds or value in _choices(kinds) or all(typing.get_origin(k) is typing.Literal for k in kinds):
            return value
        read = read_word(value)
        if read is None or isinstance(read, str):
            shown = value if len(kinds) > 1 and value.strip() else repr(value)
            raise ConfigError(f"{_wanted(name, kinds)}, got {shown}{spelling(_describe(kinds), value)}")
        return read
    if isinstance(value, (list, tuple)):
        items = next((typing.get_args(kind) for kind in kinds if _is_tuple(kind)), ())
        inner = [items[0]] * len(value) if len(items) == 2 and items[1] is Ellipsis else list(items)
        if len(inner) == len(value):
            return [check_value(f"{name}[{i}]", h, v) for i, (h, v) in enumerate(zip(inner, value, strict=True))]
    if isinstance(value, Mapping) and any(_is_config(kind) for kind in kinds):
        return {key: check_value(f"{name}.{key}", hint_of_field(hint, key), v) for key, v in value.items()}
    return value


def as_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the lists among values of JSON or YAML to the tuples that settings are."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


# Types of a class's fields; evaluated for each field, they would take longer than the rest of reading a recipe.
field_hints = typing.cast("Callable[[type[Any]], dict[str, Any]]", functools.cache(typing.get_type_hints))


def hint_of_field(hint: Any, name: str) -> Any:
    """Return the type of a field of a nested dataclass; None where it is not known."""
    for kind in _members(hint):
        if _is_config(kind):
            return field_hints(kind).get(name)
    return None


def spelling(kinds: str, value: str) -> str:
    """Suggest the spelling that was probably meant, to append to an error.

    Args:
        kinds: The types that the setting has.
        value: As it was written.
    """
    if re.search(r"\bbool\b", kinds) and re.fullmatch(r"(?i)y|yes|on|n|no|off", value):
        return "; write true or false"
    if re.search(r"\b(int|float)\b", kinds) and re.fullmatch(r"[-+]?\d[\d_:,]*[_:,][\d_:,.]*", value):
        return "; write a number in digits alone, such as 1000 or 1.5"
    if re.search(r"\bstr\b", kinds) and not value.startswith(("[", "{")):
        return "; a text that looks like a number or like true, false and null is written in quotes"
    return ""


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union; the type itself where it is not a union."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(kind for member in typing.get_args(hint) for kind in _members(member))
    return (hint,)


def _choices(kinds: tuple[Any, ...]) -> list[Any]:
    return [value for kind in kinds if typing.get_origin(kind) is typing.Literal for value in typing.get_args(kind)]


def _is_tuple(kind: Any) -> bool:
    return typing.get_origin(kind) in (tuple, list)


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _wanted(name: str, kinds: tuple[Any, ...]) -> str:
    return f"{name} must be {'of type' if len(kinds) == 1 else 'one of'} {_describe(kinds)}"


def _describe(kinds: tuple[Any, ...]) -> str:
    words = []
    for kind in kinds:
        if typing.get_origin(kind) is typing.Literal:
            words += [repr(value) for value in typing.get_args(kind)]
        elif kind is type(None):
            words.append("null")
        else:
            words.append(kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind))
    return ", ".join(words)
