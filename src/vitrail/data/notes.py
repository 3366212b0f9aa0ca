"""Notices and warnings about opened images, printed by all verbs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable

from vitrail.errors import DataWarning


def print_notes(lines: Iterable[str]) -> None:
    """Print notices to standard error, one line each, in the first process only.

    Args:
        lines: The facts.
    """
    if _is_first():
        for line in lines:
            print(line, file=sys.stderr)


def warn_data(lines: Iterable[str]) -> None:
    """Issue :class:`vitrail.errors.DataWarning` for each line, in the first process only.

    Args:
        lines: The warnings.
    """
    if _is_first():
        for line in lines:
            warnings.warn(line, DataWarning, stacklevel=3)


def _is_first() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"
