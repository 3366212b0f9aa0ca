"""Dotted settings on top of a recipe: their order, how mappings merge, and how words of the command line are read."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.config.text import Written
from vitrail.config.typed import hint_of_field, read_as
from vitrail.errors import ConfigError, closest

PARTS = ("data", "model", "task", "trainer", "run")
# Beginnings of their settings on the command line.
PREFIXES = tuple(f"--{part}." for part in PARTS)


def split_words(words: Sequence[str], prefixes: Sequence[str] = ("--",)) -> tuple[dict[str, Written], list[str]]:
    """Split a command line into settings and everything else.

    Args:
        words: Arguments, for example ``["r.yaml", "--data.path", "photos #2", "--trainer.max_epochs=3"]``.
        prefixes: Beginnings of the words that name a setting.

    Returns:
        Settings by dotted name, each value as it is written, and the other words in order.

    Raises:
        ConfigError: A setting without its value, or given twice.
    """
    settings: dict[str, Written] = {}
    rest: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith(tuple(prefixes)):
            rest.append(word)
            continue
        option, equals, value = word.partition("=")
        if not equals and "." not in option:
            value = ""  # a flag that is not known, which is the error to report
        elif not equals:
            if position == len(words) or words[position].startswith("--"):
                raise ConfigError(f"{option} lacks its value: expected one argument")
            value = words[position]
            position += 1
        name = option.removeprefix("--")
        if name in settings:
            raise ConfigError(f"{option} is given twice; keep one of them")
        settings[name] = Written(value)
    return settings, rest


def apply_changes(content: Mapping[str, Any], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Apply layers of dotted settings to a recipe's plain values; the last layer has precedence.

    The order loses nothing. The last whole part ``model`` replaces the recipe's own (another family) before any dotted
    setting is applied; what it names then holds against the layers before its own. Then come the layers' dotted
    settings, in each layer shorter names before longer ones, in whatever order they are written. A mapping changes the
    keys that it names and leaves the others; an empty one (``{}``) empties; any other value replaces the one before it.

    Args:
        content: The values.
        layers: Changes, from the most general to the most specific: ``part.setting`` (or deeper,
            ``data.augmentation.mixup``) -> value; or ``model`` -> the whole part.

    Raises:
        ConfigError: A name of another form, or below a value without nested settings, or a setting that a layer
            gives twice.
    """
    result: dict[str, Any] = copy.deepcopy(dict(content))
    whole = max((i for i, layer in enumerate(layers) if isinstance(layer.get("model"), Mapping)), default=None)
    if whole is not None:
        result["model"] = copy.deepcopy(dict(layers[whole]["model"]))  # of another family: none of the settings fit
    for i, layer in enumerate(layers):
        _refuse_repeats(layer)
        if i == whole:
            for name, value in layer["model"].items():
                _set(result, f"model.{name}", value)
        dotted = [name for name in layer if not (name == "model" and isinstance(layer[name], Mapping))]
        for name in sorted(dotted, key=lambda name: name.count(".")):
            _set(result, name, layer[name])
    return result


def _set(content: dict[str, Any], dotted: str, value: Any) -> None:
    parts = dotted.split(".")
    if len(parts) < 2 or not all(parts) or parts[0] not in PARTS:
        hint = closest(parts[0], PARTS) if len(parts) > 1 else "; settings are named PART.SETTING"
        raise ConfigError(f"{dotted!r} names no setting{hint}")
    inner = content
    for part in parts[:-1]:
        inner[part] = {} if inner.get(part) is None else inner[part]
        inner = inner[part]
        if not isinstance(inner, dict):
            raise ConfigError(f"{dotted}: {part} is {inner!r}, which has no nested settings")
    inner[parts[-1]] = merge(inner.get(parts[-1]), value)


def merge(below: Any, above: Any) -> Any:
    """Merge two values, the second above the first: mappings key by key; {} and any other value replace."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping) or not above:
        return copy.deepcopy(above)
    result = copy.deepcopy(dict(below))
    for key, value in above.items():
        result[key] = merge(result.get(key), value)
    return result


def _refuse_repeats(changes: Mapping[str, Any]) -> None:
    seen: dict[str, str] = {}
    for dotted, value in changes.items():
        for leaf in _leaves(dotted, value):
            if leaf in seen:
                raise ConfigError(f"{leaf} is given twice, by {seen[leaf]} and by {dotted}; keep one of them")
            seen[leaf] = dotted


def _leaves(name: str, value: Any) -> list[str]:
    if not isinstance(value, Mapping):
        return [name]
    return [leaf for key, inner in value.items() for leaf in _leaves(f"{name}.{key}", inner)]


def read_written(changes: Mapping[str, Any], hints: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Read the words of the command line by the types of their settings.

    A setting that may be any text takes the word as it is written, whatever it looks like; ``null`` alone stands for
    none where the setting may be left out. Other words are read by YAML's core schema, as in a file.

    Args:
        changes: Dotted settings, those of the command line as :class:`Written`.
        hints: Part -> setting -> type.

    Raises:
        ConfigError: A list, a mapping or a quoted text that is not closed.
    """
    result = dict(changes)
    for dotted, value in changes.items():
        if isinstance(value, Written):
            part, *names = dotted.split(".")
            hint: Any = hints.get(part, {}).get(names[0]) if names else None
            for name in names[1:]:
                hint = hint_of_field(hint, name)
            try:
                result[dotted] = read_as(hint, value)
            except ConfigError as error:
                raise ConfigError(f"{dotted} cannot be read: {error}") from error
    return result
