"""Whether settings of a method are of the kinds that it takes."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from vitrail.errors import ConfigError

_WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "none"}


def check_settings(method: str, compute: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Refuse values of other kinds than the annotations of a method say.

    Args:
        method: Its name.
        compute: What computes it; its parameters have annotations of plain types, tuples and literals.
        settings: Values by name, as they were given.

    Raises:
        ConfigError: Naming the setting, what it takes and the value.
    """
    if not settings:
        return
    kinds = typing.get_type_hints(compute)
    for name, value in settings.items():
        if name in kinds and not _fits(value, kinds[name]):
            raise ConfigError(f"{method}: {name} must be {_in_words(kinds[name])}, got {value!r}")


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    for one in _alternatives(kind):
        if typing.get_origin(one) is Literal:
            # Compared with words alone: an array would be compared element by element.
            fits = isinstance(value, str) and value in typing.get_args(one)
        elif typing.get_origin(one) is tuple:
            parts = typing.get_args(one)
            fits = isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
        elif one is float:
            fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        elif one in (int, str):
            fits = isinstance(value, one) and not isinstance(value, bool)
        else:
            fits = one is Any or isinstance(value, one)
        if fits:
            return True
    return False


def _in_words(kind: Any) -> str:
    said = []
    for one in _alternatives(kind):
        if typing.get_origin(one) is Literal:
            said += [repr(word) for word in typing.get_args(one)]
        elif typing.get_origin(one) is tuple:
            said.append(f"({', '.join(map(_in_words, typing.get_args(one)))})")
        else:
            said.append(_WORDS.get(one, getattr(one, "__name__", str(one))))
    return " or ".join(said) if len(said) < 3 else f"{', '.join(said[:-1])} or {said[-1]}"
