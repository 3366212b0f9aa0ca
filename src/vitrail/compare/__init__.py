"""Suites of runs: plan, execution, tables and paired statistics."""

from vitrail.compare.plan import plan
from vitrail.compare.suite import load_suite

__all__ = ["load_suite", "plan"]
