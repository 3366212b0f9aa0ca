"""Names in figures: short and still distinct, in legends that take no room from the axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from vitrail.figures.picture import shorten

# Inches of a legend at 8 points: of a letter, of a key's mark with the spaces around it, of a line.
_LETTER, _MARK, _LINE = 0.066, 0.55, 0.17


def distinct_names(names: Sequence[str], most: int) -> list[str]:
    """Shorten names so that different ones stay different.

    Names that would be the same lose what they have in common at both ends instead; what is the same even then has its
    position in front.

    Args:
        names: The names.
        most: Letters of each at most, from 8 on.
    """
    short = [shorten(str(name), most) for name in names]
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(short):
        groups.setdefault(name, []).append(i)
    for alike in groups.values():
        own = [str(names[i]) for i in alike]
        if len(set(own)) < 2:
            continue
        start = _common_start(own)
        end = _common_start([name[start:][::-1] for name in own])
        for i, name in zip(alike, own, strict=True):
            core = name[start : len(name) - end]
            room = most - len(core) - 2
            head = name[:start] if start <= room else name[: max(room, 0)] + "…"
            tail = name[len(name) - end :] if len(head) + len(core) + end <= most else "…"
            short[i] = shorten(head + core + tail, most)
    seen: dict[str, str] = {}
    for i, name in enumerate(short):
        if seen.setdefault(name, str(names[i])) != str(names[i]):
            short[i] = shorten(f"{i + 1}: {name}", most)
    return short


def _common_start(names: Sequence[str]) -> int:
    """Count the letters with which all names begin."""
    same = 0
    for letters in zip(*names, strict=False):
        if len(set(letters)) > 1:
            break
        same += 1
    return same


def legend_below(figure: Figure, keys: Sequence[Any]) -> None:
    """Add a legend below the axes in as many columns as fit, and make the figure taller by its lines.

    Args:
        figure: Figure in constrained layout.
        keys: Artists with labels.
    """
    widest = max((_lines_width(str(key.get_label())) for key in keys), default=1)
    across = max(1, min(len(keys), int(figure.get_figwidth() / (_MARK + _LETTER * widest))))
    rows = math.ceil(len(keys) / across)
    figure.set_figheight(figure.get_figheight() + _LINE * (rows - 1))
    figure.legend(handles=list(keys), frameon=False, fontsize=8, loc="outside lower center", ncols=across)


def legend_beside(figure: Figure, keys: Sequence[Any]) -> None:
    """Add a legend to the right of the axes, and make the figure wider by its columns.

    Args:
        figure: Figure in constrained layout.
        keys: Artists with labels.
    """
    rows = max(1, int((figure.get_figheight() - 0.2) / _LINE))
    columns = math.ceil(len(keys) / rows)
    widest = max((_lines_width(str(key.get_label())) for key in keys), default=1)
    figure.set_figwidth(figure.get_figwidth() + columns * (_MARK + _LETTER * widest) + 0.2)
    figure.legend(handles=list(keys), frameon=False, fontsize=8, loc="outside right center", ncols=columns)


def _lines_width(text: str) -> int:
    return max(map(len, text.split("\n")))
