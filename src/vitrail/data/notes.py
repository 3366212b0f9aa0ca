"""Facts about opened images that every verb prints: what was passed over, what may leak."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable


def print_notes(lines: Iterable[str]) -> None:
    """Print facts to standard error, a line each; of processes that train together the first alone prints them.

    Args:
        lines: The facts.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    for line in lines:
        print(line, file=sys.stderr)
