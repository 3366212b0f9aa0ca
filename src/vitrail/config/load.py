"""From YAML and dotted overrides to a recipe, and back; nothing unknown, repeated or mistyped gets through."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import os
import pickle
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vitrail.config.changes import PARTS, apply_changes, read_written, split_words
from vitrail.config.data import DEFAULTS, DataConfig
from vitrail.config.data_groups import GROUPS
from vitrail.config.renamed import print_renamed, rename_changes, rename_content
from vitrail.config.schema import ModelConfig, Recipe, RunConfig, TaskConfig, TrainerConfig
from vitrail.config.text import dump_yaml, parse_yaml
from vitrail.config.typed import check_value, field_hints, spelling
from vitrail.config.vocabulary import suggest
from vitrail.errors import ConfigError, closest

if TYPE_CHECKING:
    import jsonargparse

_PARTS: dict[str, type[Any]] = {
    "data": DataConfig,
    "task": TaskConfig,
    "trainer": TrainerConfig,
    "run": RunConfig,
}
# Those of the part "model" that are not the family's settings.
_MODEL_FIELDS = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.name != "settings")

_DATA_SETTINGS = tuple(f"data.{name}" for name in DEFAULTS)
_DATA_GROUPS = tuple(f"--data.{name}" for name in GROUPS)

# What a file begins with, by what it is.
_EXAMPLE = {"recipe": "data:, model:, ...", "suite": "recipe:, variants:, ..."}

SettingsOf = Callable[[str], type[Any]]


def read_yaml(path: str | Path, what: str = "recipe") -> dict[str, Any]:
    """Read a YAML mapping strictly.

    Args:
        path: The file.
        what: It is, for errors.

    Raises:
        ConfigError: No such file, not YAML, not a mapping, or a repeated key; the message gives the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {path}: {error.strerror or error}") from error
    try:
        content = copy.deepcopy(_parse_once(text))
    except ConfigError as error:
        raise ConfigError(f"{path}, {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping ({_EXAMPLE[what]}), it holds a {type(content).__name__}")
    return content


def load_recipe(
    base: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    settings_of: SettingsOf,
    prog: str = "vitrail train",
    flags: Iterable[str] = (),
    recorded: bool = False,
) -> Recipe:
    """Make a recipe from a file (or plain values) and dotted overrides.

    Args:
        base: A YAML file, nested plain values, or nothing for the defaults.
        overrides: Command-line words (``--trainer.max_epochs 20 --model.embed_dim=64``), or dotted settings by name,
            those of the command line as :class:`vitrail.config.text.Written`.
        settings_of: Gives the dataclass of settings for a model's name; raises for an unknown name.
        prog: The command, for usage errors and ``--help``.
        flags: Its other options, which a mistaken word may have meant.
        recorded: Whether the file is a run's own record, whose names of earlier versions are not reported.

    Raises:
        ConfigError: A part, key or option that is unknown (the closest is named) or repeated, or a value that does
            not fit its type or range.
    """
    content = read_yaml(base) if isinstance(base, (str, Path)) else dict(base or {})
    where = f"{base}: " if isinstance(base, (str, Path)) else ""
    _check_parts(content, where)
    content, notes = rename_content(content, where)
    if not recorded:
        print_renamed(notes)
    if isinstance(overrides, Mapping):
        changes: Mapping[str, Any] = overrides
    else:
        changes, stray = split_words(overrides)
        if stray:
            raise ConfigError(f"unexpected argument {stray[0]!r}; settings are --PART.SETTING VALUE (`{prog} --help`)")
    changes, notes = rename_changes(changes)
    print_renamed(notes)
    named = changes.get("model.name")
    in_file = content.get("model", {}).get("name", ModelConfig.name)
    if not isinstance(in_file, str):
        raise ConfigError(f"{where}model.name must be a name, got {in_file!r}")
    try:
        settings_type = settings_of(str(named or in_file))
    except ConfigError as error:
        raise ConfigError(f"{'' if named else where}{error}") from error
    _check_keys(content, settings_type, where, of=f" of {named}, which --model.name asks for" if named else "")
    _check_options(changes, settings_type, prog, flags)
    content = apply_changes(content, read_written(changes, _all_hints(settings_type)))
    _check_keys(content, settings_type, "", of="")
    try:
        if changes or not where:
            values = _instantiate(content, settings_type)
        else:
            kept = _instantiate_once(pickle.dumps(content), settings_type, os.path.expanduser("~"))
            values = copy.deepcopy(kept)
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        message = _readable(error)
        # What the command line gave is not the file's fault.
        blamed = "" if any(message.startswith((f"{name} ", f"{name}:")) for name in changes) else where
        raise ConfigError(blamed + message) from error
    model = dict(vars(values.model)) if "model" in values else {}
    settings = {f.name: model[f.name] for f in dataclasses.fields(settings_type) if f.name in model}
    own = {name: model[name] for name in _MODEL_FIELDS if name in model}
    parts = {part: values[part] if part in values else kind() for part, kind in _PARTS.items()}
    return Recipe(model=ModelConfig(**own, settings=settings), **parts)


def _instantiate(content: Mapping[str, Any], settings_type: type[Any]) -> Any:
    """Read values by the types of their settings, and make the parts of a recipe from them."""
    hints = _all_hints(settings_type)
    parser = _kept_parser(settings_type)
    content = {
        part: {key: check_value(f"{part}.{key}", hints[part][key], value) for key, value in values.items()}
        for part, values in content.items()
    }
    # The file of a run has all settings, and to parse one takes longer than to compare it with its default.
    content = {
        part: _without_defaults(values, _PARTS[part]) if part in _PARTS else values for part, values in content.items()
    }
    # A text stays the text it is ("#", "null", "1e3"): only what is not text goes through the parser's reading.
    texts: dict[str, str] = {}
    rest = {part: _without_texts(part, values, hints[part], texts) for part, values in content.items()}
    # What is not given is the classes' own default; to parse these too would take four times as long.
    namespace = parser.parse_object(rest, defaults=False)
    for name, text in texts.items():
        namespace[name] = text
    return parser.instantiate_classes(namespace)


def _instantiate_pickled(content: bytes, settings_type: type[Any], home: str) -> Any:
    """Make the parts from pickled plain values; paths in them may begin with ``~``, the home folder."""
    return _instantiate(pickle.loads(content), settings_type)


# A verb reads the file of its run several times.
_parse_once = typing.cast("Callable[[str], Any]", functools.lru_cache(maxsize=32)(parse_yaml))
_instantiate_once = typing.cast(
    "Callable[[bytes, type[Any], str], Any]", functools.lru_cache(maxsize=32)(_instantiate_pickled)
)


def recipe_parser(settings_type: type[Any] | None = None, prog: str = "vitrail train") -> jsonargparse.ArgumentParser:
    """Build the parser of a recipe's options.

    Args:
        settings_type: Dataclass of the model's settings; without it only those of :class:`ModelConfig`.
        prog: The command, for the usage line.
    """
    import jsonargparse  # half of the time of a verb's help, which needs no parser

    parser = jsonargparse.ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False, add_help=False)
    for part, kind in _PARTS.items():
        parser.add_class_arguments(kind, part)
    hints = field_hints(ModelConfig)
    for name in _MODEL_FIELDS:
        parser.add_argument(f"--model.{name}", type=hints[name], default=getattr(ModelConfig, name))
    if settings_type is not None:
        hints = field_hints(settings_type)
        for f in dataclasses.fields(settings_type):
            parser.add_argument(f"--model.{f.name}", type=hints[f.name], default=argparse.SUPPRESS)
    return parser


def list_settings(settings_type: type[Any] | None = None) -> Iterator[tuple[str, Any]]:
    """List the settings of a recipe with their defaults, those of groups by their dotted names.

    Args:
        settings_type: Dataclass of the model's settings, whose defaults are ``argparse.SUPPRESS``.

    Yields:
        Dotted name and default.
    """
    for name, default in DEFAULTS.items():
        yield f"data.{name}", default
    for part in ("task", "trainer", "run"):
        for f in dataclasses.fields(_PARTS[part]):
            yield f"{part}.{f.name}", f.default
    for name in _MODEL_FIELDS:
        yield f"model.{name}", getattr(ModelConfig, name)
    for f in () if settings_type is None else dataclasses.fields(settings_type):
        yield f"model.{f.name}", argparse.SUPPRESS


# Making a parser takes longer than reading a recipe.
_kept_parser = typing.cast("Callable[[type[Any]], jsonargparse.ArgumentParser]", functools.cache(recipe_parser))


def dump_recipe(recipe: Recipe) -> str:
    """Format a recipe as YAML that :func:`load_recipe` reads back to an equal recipe."""
    return dump_yaml(recipe.to_dict())


def _check_parts(content: Mapping[str, Any], where: str) -> None:
    for part, values in content.items():
        if part not in PARTS:
            raise ConfigError(f"{where}unknown part {part!r}{closest(str(part), PARTS)}")
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}{part} must hold settings (key: value), got {values!r}")


def _check_keys(content: Mapping[str, Mapping[str, Any]], settings_type: type[Any], where: str, of: str) -> None:
    for part, values in content.items():
        if part == "model":
            _check_fields(values, settings_type, part, where, _MODEL_FIELDS, of)
        else:
            _check_fields(values, _PARTS[part], part, where)


def _check_fields(
    values: Mapping[str, Any], kind: type[Any], name: str, where: str, more: tuple[str, ...] = (), of: str = ""
) -> None:
    known = [*more, *(f.name for f in dataclasses.fields(kind))]
    hints = field_hints(kind)
    for key, value in values.items():
        if key not in known:
            in_data = name.split(".")[0] == "data"
            meant = suggest(f"{name}.{key}", _DATA_SETTINGS) if in_data else suggest(str(key), known)
            raise ConfigError(f"{where}unknown setting {name}.{key}{of}{meant}")
        hint = hints.get(key)
        if (dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict) and not isinstance(value, Mapping):
            remedy = "; data.augment names presets" if (name, key) == ("data", "augmentation") else ""
            raise ConfigError(f"{where}{name}.{key} must hold settings (key: value), got {value!r}{remedy}")
        nested = [t for t in (hint, *typing.get_args(hint)) if isinstance(t, type) and dataclasses.is_dataclass(t)]
        if nested and isinstance(value, Mapping):
            _check_fields(value, nested[0], f"{name}.{key}", where)


def _without_defaults(values: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    """Leave out settings at the defaults of their dataclass; groups included."""
    hints = field_hints(kind)
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(kind)}
    rest: dict[str, Any] = {}
    for key, value in values.items():
        hint = hints[key]
        if isinstance(value, Mapping) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
            of_group = _without_defaults(value, hint)
            if of_group:
                rest[key] = of_group
        # As they are written: 1, 1.0 and True are equal.
        elif repr(value) != repr(defaults[key]):
            rest[key] = value
    return rest


def _without_texts(name: str, values: Mapping[str, Any], hints: Mapping[str, Any], texts: dict[str, str]) -> Any:
    """Move the texts of settings that may be any text into ``texts``, by dotted name; groups included."""
    rest: dict[str, Any] = {}
    for key, value in values.items():
        hint, dotted = hints.get(key), f"{name}.{key}"
        if isinstance(value, str) and (hint is str or str in typing.get_args(hint)):
            texts[dotted] = value
        elif isinstance(value, Mapping) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
            rest[key] = _without_texts(dotted, value, field_hints(hint), texts)
        else:
            rest[key] = value
    return rest


def _all_hints(settings_type: type[Any]) -> dict[str, dict[str, Any]]:
    """Return the type of every setting, by part and setting."""
    of_model = {name: hint for name, hint in field_hints(ModelConfig).items() if name in _MODEL_FIELDS}
    return {
        **{part: field_hints(kind) for part, kind in _PARTS.items()},
        "model": {**of_model, **field_hints(settings_type)},
    }


def _check_options(changes: Iterable[str], settings_type: type[Any], prog: str, flags: Iterable[str]) -> None:
    others = [f"{part}.{name}" for part, hints in _all_hints(settings_type).items() if part != "data" for name in hints]
    known = [f"--{name}" for name in (*_DATA_SETTINGS, *others)]
    for option in (f"--{name}" for name in changes):
        # A nested setting (--model.token_learner.num_tokens) belongs to the option that it continues.
        if option not in _DATA_GROUPS and not any(option == k or option.startswith(k + ".") for k in known):
            raise ConfigError(
                f"unknown setting {option!r}{suggest(option, [*known, *flags])} (`{prog} --help all` lists all)"
            )


def _readable(error: BaseException) -> str:
    """Reword an error of jsonargparse: the setting, its possible values, the value given."""
    text = " ".join(str(error).split())
    match = re.search(r'(?:Parser key|argument) "?-*([\w.]+)"?\s*:\s*(.*)', text)
    if match is None:
        return text
    key, problem = match.groups()
    union = re.search(r"Union subtypes Subtypes: \[(.*?)\] Errors: .*Given value: (.*)$", problem)
    if union is not None:
        kinds = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", union.group(1)).replace("NoneType", "null")
        kinds = re.sub(r"(?:typing\.)?Literal\[(.*?)\]", r"\1", kinds)
        return f"{key} must be one of {kinds}, got {union.group(2)}{spelling(kinds, union.group(2))}"
    wanted = re.search(r"Expected an? (?:typing\.)?(.*?)\. Got value: (.*)$", problem)
    if wanted is None:
        return f"{key}: {problem}"
    kind, value = wanted.groups()
    if kind.startswith("Literal["):
        return f"{key} must be one of {kind[8:-1]}, got {value!r}"
    kind = re.sub(r"<class '([\w.]+)'>", r"\1", kind)
    return f"{key} must be of type {kind}, got {value!r}{spelling(kind, value)}"
