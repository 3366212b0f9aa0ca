"""Suites of runs: planned, executed, tabulated and tested."""
