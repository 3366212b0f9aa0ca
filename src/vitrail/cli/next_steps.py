"""Suggested next commands at the end of a verb's output."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence

# Beneath the verbs: ways to begin. The documentation lies in docs/ of the source, the first steps in its README.
BEGIN = {
    "vitrail demo": "trains and compares the models on 1,797 digits: runs/demo/report.html",
    "vitrail data audit --data.source folder --data.path DIR": "checks your own images, in one folder a class",
    "vitrail train --data.source folder --data.path DIR --run.dir runs/first": "trains on them",
    "vitrail models": "lists the models",
    "vitrail VERB --help": "explains a verb; README.md and docs/ explain the rest",
}


def print_next(*commands: Sequence[object]) -> None:
    """Print suggested next commands to standard error.

    Args:
        *commands: Each as its words.
    """
    for number, words in enumerate(commands):
        print(f"{'next:' if number == 0 else '   or'} {shlex.join(map(str, words))}", file=sys.stderr)


def data_words(recipe: str | None, argv: Iterable[str]) -> list[str]:
    """Return the recipe and the settings among the arguments of ``vitrail data WORD``, for a verb that trains.

    Args:
        recipe: The recipe's file, where there is one.
        argv: The words.
    """
    from vitrail.config.changes import PREFIXES, split_words

    settings, _ = split_words(list(argv), PREFIXES)
    given = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return given if recipe is None else [recipe, *given]
