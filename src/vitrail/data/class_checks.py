"""Checks of the classes of opened images: classes without images, missing values, joined names."""

from __future__ import annotations

from collections.abc import Sequence

from vitrail.data.classes import clean_name
from vitrail.data.image_errors import head
from vitrail.data.sources.base import ImageSource
from vitrail.errors import count_of, plural


def describe_empty(source: ImageSource) -> list[str]:
    """Describe classes without images in one line; an empty list if all have images."""
    empty = [name for i, name in enumerate(source.classes) if not source.has_class(i).any()]
    if not empty:
        return []
    return [
        f"{count_of(len(empty), len(source.classes), 'class', 'has', 'have')} no image: {head(empty)}; a model cannot "
        "learn them"
    ]


def describe_doubtful(names: Sequence[str]) -> list[str]:
    """Describe names that seem to join several classes ("ant|bee"), and names of missing values."""
    lines = []
    for mark in "|;,":
        joined = [
            name for name in names if mark in name and {clean_name(part) for part in name.split(mark)} <= {*names}
        ]
        if joined:
            lines.append(
                f"warning: {plural(len(joined), 'class name joins', 'class names join')} others, such as "
                f"{joined[0]!r}; data.table.label_separator {mark!r} gives an image each of them (in a table, with "
                "task.loss bce)"
            )
    missing = [repr(name) for name in names if name.casefold() in ("nan", "<na>", "nat")]
    if missing:
        lines.append(f"warning: a class is called {head(missing)}, which programs write where a label is missing")
    return lines
