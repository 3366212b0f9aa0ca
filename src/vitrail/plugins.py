"""Parts that other distributions add to vitrail, found by their entry points."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from vitrail.errors import VitrailError

FAMILIES = "vitrail.families"
METHODS = "vitrail.methods"
SOURCES = "vitrail.sources"


def find_plugins(group: str) -> tuple[EntryPoint, ...]:
    """Find the entry points of a group, by name, without importing anything.

    Args:
        group: ``"vitrail.families"``, ``"vitrail.methods"`` or ``"vitrail.sources"``.
    """
    return _scan(group, tuple(sys.path))


@functools.cache
def _scan(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    found = importlib.metadata.entry_points(group=group)
    return tuple(sorted(found, key=lambda entry: (entry.name, entry.value)))


def load_plugins(group: str) -> list[Any]:
    """Import the entry points of a group.

    Args:
        group: As for :func:`find_plugins`.

    Raises:
        VitrailError: One cannot be imported.
    """
    return [_load(entry) for entry in find_plugins(group)]


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise VitrailError(
            f"the entry point {entry.name} = {entry.value} of {describe_origin(entry)} ({entry.group}) cannot be "
            f"imported: {error}; repair or uninstall that distribution"
        ) from error


def describe_origin(entry: EntryPoint) -> str:
    """Return the distribution of an entry point, with its version."""
    return "an unknown distribution" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def digest_plugins(entries: Sequence[EntryPoint], *more: str) -> str:
    """Digest of entry points, their distributions and the times of their source files; another one after a change.

    Args:
        entries: The entry points.
        *more: Other text that the digest depends on.
    """
    lines = [*more]
    for entry in entries:
        lines.append(f"{entry.name} {entry.value} {describe_origin(entry)}")
        spec = importlib.util.find_spec(entry.module.partition(".")[0])
        folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
        files = sorted(file for folder in folders for file in folder.rglob("*.py"))
        if not folders and spec is not None and spec.origin is not None:
            files = [Path(spec.origin)]
        lines += [f"{file} {file.stat().st_mtime_ns} {file.stat().st_size}" for file in files if file.exists()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:20]
