"""Suites of runs: planned, carried out, tabulated and compared with paired statistics."""

from vitrail.compare.plan import plan
from vitrail.compare.suite import load_suite

__all__ = ["load_suite", "plan"]
