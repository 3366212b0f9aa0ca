"""The few kinds of error that a user of vitrail can meet.

Every message is one line that gives the offending value, the limit and what to do about it. The command
line prints that line alone; the exit code is 2 for :class:`ConfigError` (wrong usage) and 1 for the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

# Names less alike than this (1: the same) are not suggested.
_ALIKE = 0.5


class VitrailError(Exception):
    """Base of every error that vitrail raises on purpose."""


class ConfigError(VitrailError, ValueError):
    """A setting, name or option that is unknown, repeated, of the wrong type or out of range."""


class UnknownNameError(ConfigError, KeyError):
    """A key that a mapping does not have; a KeyError too, so that ``in`` and ``get`` work as for any mapping."""

    def __str__(self) -> str:
        """Return the message as it is; a KeyError's own form would quote it."""
        return str(self.args[0])


class ShapeError(VitrailError, ValueError):
    """A tensor whose shape does not fit; the message gives the shape that came and the one that was wanted."""


class DataError(VitrailError, ValueError):
    """Images or labels that are missing, unreadable or inconsistent."""


class WeightsError(VitrailError, ValueError):
    """A checkpoint that cannot be read or does not fit the model."""


class RunError(VitrailError, ValueError):
    """A run folder that lacks a file, is not a run folder, or cannot be written."""


class DataWarning(UserWarning):
    """Usable images that are probably not the intended ones; the command line prints it as one line."""


def closest(name: str, choices: Iterable[str]) -> str:
    """Phrase that names the known spelling nearest to a mistaken one, to append to an error message.

    Args:
        name: Name as the user wrote it.
        choices: Known names.

    Returns:
        ``"; did you mean 'x'?"``, or the choices themselves where none is near and there are few of them.
    """
    known = sorted(set(choices))
    near = did_you_mean(name, known)
    return f"; known: {', '.join(known)}" if not near and 0 < len(known) <= 12 else near


def few(items: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """List the first items, and the number of the others.

    Args:
        items: All items.
        most: Items to list.
        between: Separator of the items.
    """
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return between.join(items[:most]) + more


def plural(number: int, what: str, several: str | None = None) -> str:
    """Format a number with its noun, in the plural unless the number is 1.

    Args:
        number: The number.
        what: The noun of one, also with its verb: "image has".
        several: The same of any other number; by default the noun with its regular ending.
    """
    if several is None:
        several = f"{what}es" if what.endswith(("s", "tch", "nch")) else f"{what}s"
    return f"{number:,} {what if number == 1 else several}"


def count_of(number: int, total: int, what: str, does: str, do: str) -> str:
    """Format a number of a whole with its verb: "1 of 3 files is empty", "2 of 3 files are empty".

    Args:
        number: The number.
        total: The whole.
        what: The noun of one.
        does: Verb, and its object, where the number is 1.
        do: The same of any other number.
    """
    return f"{number:,} of {plural(total, what)} {does if number == 1 else do}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Phrase that names the known spelling nearest to a mistaken one, where the message lists the choices itself.

    Args:
        name: Name as the user wrote it.
        choices: Known names.

    Returns:
        ``"; did you mean 'x'?"``, or nothing where none is near.
    """
    found = nearest(name, choices)
    return "" if found is None else f"; did you mean {found!r}?"


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Find the known name nearest to a misspelled one; None where none is near.

    Args:
        name: Name as the user wrote it.
        choices: Known names; the dashes of options do not count.
    """
    plain = name.lstrip("-")
    near = {c: score for c in sorted(set(choices)) if (score := _likeness(plain, c.lstrip("-")))[0] >= _ALIKE}
    return max(near, key=near.__getitem__) if near else None


def _likeness(name: str, choice: str) -> tuple[float, float]:
    """Compute the similarity of a name to another or to its first words (0..1), then to the whole of it.

    By first words, since names of models grow on the right: vit_tny is nearer to vit_tiny_patch16_224 than to hvt_tiny.
    """
    matcher = difflib.SequenceMatcher(None, "", name)
    ratios = []
    words = choice.split("_")
    for count in range(len(words), 0, -1):
        matcher.set_seq1("_".join(words[:count]))
        ratios.append(matcher.ratio())
    # The whole wins where its beginning is hardly more like.
    return max(ratios[0], *(0.95 * ratio for ratio in ratios)), ratios[0]
