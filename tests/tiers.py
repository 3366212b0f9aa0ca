"""Which cases of a test belong to the fast tests, and which to the slow ones."""

from collections.abc import Iterable
from typing import Any

import pytest


def fast_first(cases: Iterable[Any], count: int) -> list[Any]:
    """The first ``count`` cases stay fast tests; the rest run with ``make test-slow``.

    Args:
        cases: A tuple among them holds a value for each of several names.
        count: How many.
    """
    several = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=() if i < count else pytest.mark.slow) for i, case in enumerate(several)]
