"""Which cases of a test belong to the fast tests, which to the slow ones, and which need the fast paths of layers."""

from collections.abc import Iterable
from typing import Any

import pytest

from vitrail.layers.fast.dispatch import FAST_AT_START

fast_paths_on = pytest.mark.skipif(not FAST_AT_START, reason="VITRAIL_FAST=0: the plain code runs everywhere")


def fast_first(cases: Iterable[Any], count: int) -> list[Any]:
    """The first ``count`` cases stay fast tests; the rest run with ``make test-slow``.

    Args:
        cases: A tuple among them holds a value for each of several names.
        count: How many.
    """
    several = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=() if i < count else pytest.mark.slow) for i, case in enumerate(several)]
