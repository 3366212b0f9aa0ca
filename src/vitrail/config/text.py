"""Reading and writing YAML by its core schema (YAML 1.2, section 10.3.2): one reader for recipes, suites and words.

PyYAML follows YAML 1.1, in which ``010`` is eight, ``1:30`` ninety, ``no`` false and ``2024-01-01`` a date.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from vitrail.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
# Tag -> the texts that it stands for, and the characters that these begin with.
_CORE: dict[str, tuple[re.Pattern[str], list[str]]] = {
    "null": (re.compile(r"^(?:null|Null|NULL|~|)$"), ["n", "N", "~", ""]),
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    "float": (
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
    # Of YAML 1.1, and in use: `<<: *defaults`.
    "merge": (re.compile(r"^(?:<<)$"), ["<"]),
}


class _CoreLoader(yaml.SafeLoader):
    """Plain scalars by the core schema; keys are the names that are written, and no key is repeated."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping from names to values.

        Args:
            node: The mapping.
            deep: Construct nested values at once; always done here.

        Raises:
            ConfigError: A key that is not a plain word, or is repeated.
        """
        own: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"line {line}: a key must be a plain word, got {self.construct_object(key, True)!r}")
            if key.tag == _TAG + "merge":
                continue
            if key.value in own:
                raise ConfigError(
                    f"line {line}: {key.value!r} is given again (first in line {own[key.value]}); keep one of them"
                )
            own[key.value] = line
        self.flatten_mapping(node)
        # Merged mappings come first, so that a mapping's own keys take the place of theirs.
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


class _TextLoader(_CoreLoader):
    """As :class:`_CoreLoader`; all plain scalars are the text that is written."""


class _CoreDumper(yaml.SafeDumper):
    """Quotes texts that readers of YAML 1.2 or 1.1 would take for another type."""


def _construct_int(loader: _CoreLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _construct_float(loader: _CoreLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


def _construct_mapping(loader: _CoreLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    return loader.construct_mapping(node)


# Without those of YAML 1.1, which SafeLoader has.
_CoreLoader.yaml_implicit_resolvers = {}
_TextLoader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _CORE.items():
    for _side in (_CoreLoader, _CoreDumper):
        _side.add_implicit_resolver(_TAG + _name, _pattern, _first)
_CoreLoader.add_constructor(_TAG + "int", _construct_int)
_CoreLoader.add_constructor(_TAG + "float", _construct_float)
_CoreLoader.add_constructor(_TAG + "map", _construct_mapping)
_CoreLoader.add_constructor(None, yaml.SafeLoader.yaml_constructors[None])


def parse_yaml(text: str) -> Any:
    """Parse a YAML document by the core schema.

    Args:
        text: The document.

    Returns:
        Plain values. Keys are the names that are written: ``no`` and ``010`` stay as they are.

    Raises:
        ConfigError: A key that is not a plain word, or is repeated.
        yaml.YAMLError: Not YAML.
        ValueError: A value that its explicit tag does not fit.
        RecursionError: Nested too deeply.
    """
    return yaml.load(text, Loader=_CoreLoader)


def dump_yaml(value: Any) -> str:
    """Format plain values as YAML that :func:`parse_yaml` and readers of YAML 1.1 read back to equal values."""
    return yaml.dump(value, Dumper=_CoreDumper, sort_keys=False)


class Written(str):
    """A value as it is written on the command line, before it is known of which type its setting is."""


def read_word(word: str, *, as_text: bool = False) -> Any:
    """Read one value of the command line.

    Lists ``[...]``, mappings ``{...}`` and quoted texts are YAML. Anything else is one scalar, in which ``#`` and ``:``
    are characters like others.

    Args:
        word: Text as written.
        as_text: Take the scalars of a list or a mapping for text, as they are written.

    Raises:
        ConfigError: A list, mapping or quoted text that is not closed, or is followed by something.
    """
    stripped = str(word).strip()
    loader = _TextLoader if as_text else _CoreLoader
    if stripped.startswith(("[", "{", '"', "'")):
        try:
            node = yaml.compose(stripped, Loader=loader)
            assert node is not None, "it begins with a bracket or a quote"
            end = node.end_mark.index
            if stripped[end:].strip():
                raise ConfigError(f"unexpected text {stripped[end:].strip()!r} after {stripped[:end]}; remove it")
            return yaml.load(stripped, Loader=loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{' '.join(str(error).split())}") from error
    if as_text or not stripped:
        return str(word)
    for name, (pattern, _) in _CORE.items():
        if name != "merge" and pattern.fullmatch(stripped):
            return yaml.load(stripped, Loader=_CoreLoader)
    return str(word)
