"""Ratios of forward-pass times of variants, measured in alternation on one machine."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch

from vitrail.bench.side_by_side import Subject
from vitrail.bench.speed import Workload, alternate, make_step, time_ratio
from vitrail.compare.plan import Run
from vitrail.compare.results import Tables

# Batch size, rounds of alternation, and minimum seconds of each model in a round.
_BATCH, _ROUNDS, _LEAST = 16, 9, 0.1


def add_time_ratios(tables: Tables, runs: Sequence[Run]) -> Tables:
    """Time the models of each comparison in alternation, with the first run of each variant.

    Intervals are over rounds, for this machine.

    Args:
        tables: Tables of a suite.
        runs: Plan of the suite.

    Returns:
        The tables; ``pairs`` has the columns ``time_ratio`` (time of a / time of b), ``time_low`` and ``time_high``.
    """
    first = {run.variant: run for run in reversed(runs) if not run.is_pretraining and run.state() == "done"}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ratios = []
    for a, b in zip(tables.pairs.get("a", []), tables.pairs.get("b", []), strict=True):
        steps = []
        for name in (a, b):
            subject = Subject(str(first[name].folder.path))
            model = subject.build()
            steps.append(make_step(copy.deepcopy(model), subject.inputs(model, _BATCH), Workload(), device))
        times, others = alternate(steps, device, _ROUNDS, _LEAST)
        ratios.append(time_ratio(times, others))
    if not ratios:
        return tables
    columns = {f"time_{name}": [getattr(ratio, name) for ratio in ratios] for name in ("ratio", "low", "high")}
    return dataclasses.replace(tables, pairs=tables.pairs.assign(**columns))
