"""Which cases of a test belong to the fast tests, which to the slow ones, and which need the fast paths of layers.

The functions choose among computed cases; the markers ``fast_cases`` and ``slow_cases`` name single ones. Cases that
``fast_cases`` does not name are slow whatever the functions chose.
"""

import re
from collections.abc import Callable, Iterable
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


def in_turn(kinds: Iterable[Any], others: Iterable[Any], each: int = 1) -> list[Any]:
    """All pairs; each kind with one of the others, or with ``each`` of them, in turn stays a fast test."""
    kinds, others = list(kinds), list(others)
    pairs = [(k, o) for k in range(len(kinds)) for o in range(len(others))]
    pairs.sort(key=lambda pair: (pair[1] - pair[0] * each) % len(others) >= each)
    return fast_first([(kinds[k], others[o]) for k, o in pairs], len(kinds) * each)


def one_of_each(cases: Iterable[str], turn: int) -> list[str]:
    """Choose cases of each family: one of up to four, two of up to eight; other ones at another turn.

    Args:
        cases: Names that begin with a family's name.
        turn: Number of a test in its module.
    """
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault(re.split(r"[\W_]", case)[0], []).append(case)
    return [case for group in groups.values() for i, case in enumerate(group) if (i - turn) % min(len(group), 4) == 0]


def every_other(cases: Iterable[str], turn: int) -> list[str]:
    """Choose every second case, at the next turn the others: for cases that share most of their code."""
    return list(cases)[turn % 2 :: 2]


def spread(
    metafunc: pytest.Metafunc,
    choose: Callable[[Iterable[str], int], list[str]] = one_of_each,
    indirect: bool = False,
    **arguments: Iterable[str],
) -> None:
    """Give each test one case of each family among the fast ones, in turn; the rest run with ``make test-slow``.

    For ``pytest_generate_tests`` of modules whose tests share cases. Tests that are parametrised otherwise stay as
    they are.

    Args:
        metafunc: The test.
        choose: Which cases are fast tests, by the test's number in its module.
        indirect: Whether the cases are parameters of fixtures.
        arguments: The cases by argument.
    """
    taken: set[str] = set()
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0]
        taken.update(names.split(",") if isinstance(names, str) else names)
    tests = [name for name in vars(metafunc.module) if name.startswith("test_")]
    turn = tests.index(metafunc.function.__name__)
    for name, cases in arguments.items():
        if name in metafunc.fixturenames and name not in taken:
            chosen = choose(cases, turn)
            fast = [pytest.param(case, marks=() if case in chosen else pytest.mark.slow) for case in cases]
            metafunc.parametrize(name, fast, scope="function", indirect=indirect)
