"""The plain sentences about a suite, decided from its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from vitrail.bootstrap import NOT_SHOWN
from vitrail.errors import plural
from vitrail.report.brief import Answer, listed

QUESTIONS = ("What was compared", "What is shown", "What to be careful about")
# Fewer runs of a variant, or fewer images, leave a comparison open to luck.
_FEW_RUNS, _FEW_IMAGES = 3, 100
_MOST_PAIRS = 3


def suite_brief(
    facts: Mapping[str, Any], results: pd.DataFrame, summary: pd.DataFrame, pairs: pd.DataFrame, data: str = ""
) -> list[Answer]:
    """Answer the three questions of a reader for a suite.

    Args:
        facts: Content of suite.json.
        results: results.csv, a row a run.
        summary: summary.csv, a row a variant.
        pairs: pairs.csv, a row a comparison.
        data: Name of the data.

    Returns:
        An answer to each question.
    """
    return [
        Answer(QUESTIONS[0], [_compared(facts, results, data)]),
        Answer(QUESTIONS[1], _shown(facts, summary, pairs)),
        Answer(QUESTIONS[2], _cautions(facts, results, pairs)),
    ]


def _compared(facts: Mapping[str, Any], results: pd.DataFrame, data: str) -> str:
    names = [variant["name"] for variant in facts["variants"]]
    told = f"{plural(len(names), 'variant')} of one recipe ({listed(names)})"
    if not len(results):
        return f"{told} are to be compared by {facts['metric_name']}; no run is done yet."
    runs = results.groupby("variant").size()
    times = f"{runs.min()}" if runs.min() == runs.max() else f"{runs.min()} to {runs.max()}"
    each = "once" if times == "1" else f"{times} times"
    folds = "" if facts["folds"] is None else f" in {plural(facts['folds'], 'fold')}"
    groups = "" if not facts.get("groups") else f" from {plural(facts['groups'], 'group')}"
    of = f" of {data}" if data else ""
    image = f"{_split_name(results)} image"
    images = f"{image}s" if facts.get("images") is None else plural(facts["images"], image)
    return (
        f"{told} were each trained {each}{folds} and compared by {facts['metric_name']} on the same "
        f"{images}{of}{groups}."
    )


def _split_name(results: pd.DataFrame) -> str:
    on = set(results["evaluated_on"].astype(str))
    return "validation" if on == {"val"} else "training" if on == {"train"} else "test"


def _amount(value: float, unit: float) -> str:
    return f"{unit * value:.1f}\u00a0%" if unit == 100 else f"{value:.3f}"


def _points(value: float, unit: float) -> str:
    return f"{unit * value:.1f} points" if unit == 100 else f"{value:.3f}"


def _shown(facts: Mapping[str, Any], summary: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    unit, metric = facts["unit"], facts["metric_name"]
    if not len(pairs):
        if not len(summary):
            return ["Nothing yet."]
        each = [f"{row['variant']} {_amount(row['mean'], unit)}" for row in summary.to_dict("records")]
        return [f"No comparison was made. Mean {metric}: {listed(each)}."]
    records: list[Any] = pairs.to_dict("records")
    shown = [row for row in records if row["statement"] != NOT_SHOWN]
    open_ = [row for row in records if row["statement"] == NOT_SHOWN]
    lines = [_statement(row, metric, unit) for row in shown]
    if open_:
        named = [f"{row['a']} and {row['b']}" for row in open_]
        told = "; ".join(named[:_MOST_PAIRS]) + (
            f"; {len(named) - _MOST_PAIRS} more" if len(named) > _MOST_PAIRS else ""
        )
        which = "between any of them" if not shown and len(open_) > 1 else f"between {told}"
        means = {row["variant"]: row["mean"] for row in summary.to_dict("records")}
        each = [f"{name} {_amount(value, unit)}" for name, value in means.items()]
        lines.append(f"No difference is shown {which}. Mean {metric}: {listed(each)}.")
    return lines


def _statement(row: Mapping[str, Any], metric: str, unit: float) -> str:
    size, low, high = row["difference"], row["low"], row["high"]
    if size < 0:
        size, low, high = -size, -high, -low
    more, less = (row["a"], row["b"]) if row["difference"] >= 0 else (row["b"], row["a"])
    interval = "" if math.isnan(low) else f" (between {_points(low, unit)} and {_points(high, unit)})"
    return f"{row['statement']}: {more} has {_points(size, unit)} more {metric} than {less}{interval}."


def _cautions(facts: Mapping[str, Any], results: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    lines = []
    missing = facts["runs_planned"] - facts["runs_done"]
    if missing:
        lines.append(f"{plural(missing, 'planned run')} of {facts['runs_planned']} did not finish and took no part.")
    if not len(results):
        return lines
    if facts.get("near_guess"):
        lines.append("No variant is shown to be better than a constant answer: the comparison says little.")
    if "seen_in_pretraining" in results and pd.to_numeric(results["seen_in_pretraining"]).max() > 0:
        lines.append(
            "Starting weights were pre-trained on evaluated images: such results are overestimated for new images."
        )
    if _split_name(results) != "test":
        lines.append(
            f"The images are {_split_name(results)} images, which had a part in training: new images may give less."
        )
    fewest = int(results.groupby("variant").size().min())
    if fewest < _FEW_RUNS:
        lines.append(
            f"With {plural(fewest, 'run')} of a variant, the luck of a seed is hard to tell from a difference."
        )
    number = facts.get("groups") or facts.get("images")
    if number is not None and number < _FEW_IMAGES:
        what = "group" if facts.get("groups") else "image"
        lines.append(f"The comparison rests on {plural(number, what)}: only large differences can be shown.")
    if len(pairs) and (pairs["statement"] == NOT_SHOWN).any():
        lines.append("That no difference is shown does not mean that the variants are equally good.")
    lines.append("The result is about these data and recipes; on other data the order may be another.")
    return lines
