"""Facts about opened images that every verb prints: what was passed over, what may leak."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable

from vitrail.errors import DataWarning


def print_notes(lines: Iterable[str]) -> None:
    """Print facts to standard error, a line each; of processes that train together the first alone prints them.

    Args:
        lines: The facts.
    """
    if _is_first():
        for line in lines:
            print(line, file=sys.stderr)


def warn_data(lines: Iterable[str]) -> None:
    """Warn of what is suspicious in the images, as :class:`vitrail.errors.DataWarning`; in the first process alone.

    Args:
        lines: The warnings.
    """
    if _is_first():
        for line in lines:
            warnings.warn(line, DataWarning, stacklevel=3)


def _is_first() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"
