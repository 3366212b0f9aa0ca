"""Content of a checkpoint: named tensors at any depth, and other entries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vitrail.errors import WeightsError, plural
from vitrail.weights.pickles import Foreign, as_tensor

State = dict[str, Tensor]

# Deeper than any training script nests what it writes.
_DEEPEST = 10
# Settings that are heights and widths.
_SIZES = ("img_size", "patch_size", "window_size")


@dataclass(frozen=True)
class Checkpoint:
    """Content of a file of weights.

    Attributes:
        states: Tensors by name, on the CPU, by the path of the mapping that holds them (``"state_dict"``,
            ``"teacher"``; ``""`` for the file itself).
        format: "safetensors", "torch" or "memory".
        metadata: Metadata of a safetensors file; empty otherwise.
        notes: Steps that unpacked the tensors.
        beside: Path of everything else -> description.
        unnamed: Path of lists of tensors, which have no names -> number of tensors.
        numbers: Path of lists of numbers named mean or std -> the numbers.
    """

    states: dict[str, State]
    format: str
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    beside: dict[str, str] = field(default_factory=dict)
    unnamed: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def tensors(self) -> State:
        """Return all tensors, by path and name."""
        return {join(path, key): value for path, state in self.states.items() for key, value in state.items()}

    @property
    def settings(self) -> dict[str, Any] | None:
        """Return the settings of the model if vitrail wrote the file; None otherwise.

        Raises:
            WeightsError: A size among them is none.
        """
        try:
            settings = json.loads(self.metadata.get("settings", "null"))
        except json.JSONDecodeError:
            return None
        if not isinstance(settings, dict):
            return None
        for name, value in settings.items():
            if name.endswith(_SIZES) and value is not None and not _is_size(value):
                raise WeightsError(f"the file's metadata say {name} = {value!r}, which is not a size; it is damaged")
        return settings


def _is_size(value: Any) -> bool:
    values = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)


def join(path: str, key: str) -> str:
    """Join two parts of a dotted path; either may be empty."""
    return f"{path}.{key}" if path and key else path or key


def unwrap(content: Any, where: str) -> Checkpoint:
    """Find the tensors in the content of a checkpoint.

    Args:
        content: A mapping of tensors by name, or one that holds such mappings at any depth.
        where: The file's name, for the error.

    Raises:
        WeightsError: There is no mapping of tensors by name inside.
    """
    found = Checkpoint({}, "memory")
    _walk(content, "", found, {})
    if not found.states:
        raise WeightsError(
            f"{where} holds no tensors by name but {_instead(content, found)}; it is not a file of weights"
        )
    return found


def _instead(content: Any, found: Checkpoint) -> str:
    if found.unnamed:
        path, count = next(iter(found.unnamed.items()))
        return (
            f"a list of {plural(count, 'tensor')} without names{f' ({path})' if path else ''}, which fit no model by "
            "themselves"
        )
    if isinstance(content, Mapping):
        return f"values that are not tensors: {', '.join(list(found.beside)[:5])}" if found.beside else "nothing"
    return f"a {_kind(content)}"


def _walk(value: Any, path: str, found: Checkpoint, seen: dict[int, str]) -> None:
    """Collect the tensors of a value; those of one object at several paths are found at each."""
    if path.count(".") > _DEEPEST:
        return
    if isinstance(value, Mapping | Foreign | list | tuple):
        first = seen.setdefault(id(value), path)
        if first != path:
            if first in found.states:
                found.states[path] = found.states[first]
            return
    if isinstance(value, Foreign) and "_modules" in value.attributes:
        state: State = {}
        _module_state(value, "", state, set())
        found.states[path] = state
        found.beside[path or "the file"] = f"a whole {value.name}, of which the tensors were read"
    elif isinstance(value, Mapping | Foreign):
        if isinstance(value, Foreign):
            found.beside[path] = _kind(value)
        for key, item in _items(value):
            tensor = as_tensor(item)
            if tensor is None:
                _walk(item, join(path, key), found, seen)
            else:
                found.states.setdefault(path, {})[key] = tensor
    elif isinstance(value, list | tuple):
        if path.rpartition(".")[2] in ("mean", "std", "image_mean", "image_std") and (numbers := as_numbers(value)):
            found.numbers[path] = numbers
        tensors = sum(as_tensor(item) is not None for item in value)
        if tensors:
            found.unnamed[path] = tensors
        elif not any(isinstance(item, Mapping | Foreign) for item in value):
            found.beside[path] = _kind(value)
        for index, item in enumerate(value):
            if isinstance(item, Mapping | Foreign) and as_tensor(item) is None:
                _walk(item, join(path, str(index)), found, seen)
    else:
        found.beside[path] = _kind(value)


def as_numbers(value: Any) -> tuple[float, ...]:
    """Return a list of numbers; empty for anything else."""
    plain = isinstance(value, list | tuple) and all(type(item) in (int, float) for item in value)
    return tuple(float(item) for item in value) if plain else ()


def _items(value: Mapping[Any, Any] | Foreign) -> list[tuple[str, Any]]:
    pairs = [*value.attributes.items(), *value.items.items()] if isinstance(value, Foreign) else list(value.items())
    return [(str(key), item) for key, item in pairs]


def _module_state(module: Foreign, prefix: str, state: State, seen: set[int]) -> None:
    """Read the state dict of a pickled ``nn.Module`` from its parts."""
    if id(module) in seen or prefix.count(".") > 10 * _DEEPEST:
        return
    seen.add(id(module))
    parts = module.attributes
    passing = parts.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers"):
        tensors = parts.get(group)
        for key, value in tensors.items() if isinstance(tensors, Mapping) else ():
            tensor = as_tensor(value)
            if tensor is not None and not (group == "_buffers" and key in passing):
                state[f"{prefix}{key}"] = tensor
    children = parts.get("_modules")
    for key, child in children.items() if isinstance(children, Mapping) else ():
        if isinstance(child, Foreign):
            _module_state(child, f"{prefix}{key}.", state, seen)


def _kind(value: Any) -> str:
    if isinstance(value, Foreign):
        # A function that makes an object of a class names that class first.
        first = value.arguments[0] if value.arguments else None
        made = first.name if isinstance(first, type) and issubclass(first, Foreign) else value.name
        return "a number of NumPy" if made.endswith("multiarray.scalar") else made
    return type(value).__name__
