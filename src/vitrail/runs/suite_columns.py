"""Headings and number formats of a suite's tables, for people."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from vitrail.bootstrap import NOT_SHOWN
from vitrail.figures.tables import Column, Table

# Column -> heading, of summary.csv, pairs.csv and results.csv; other columns are for programs.
SUMMARY = {
    "variant": "variant", "runs": "runs", "mean": "{metric}", "low": "from", "high": "to", "parameters": "parameters",
    "guess": "guessing", "gmacs": "G multiply-adds", "milliseconds_per_image": "ms an image",
    "training_seconds": "training, s",
}  # fmt: skip
PAIRS = {
    "statement": "statement", "a": "a", "b": "b", "difference": "a minus b", "low": "from", "high": "to", "p": "p",
    "p_holm": "corrected p", "p_equal_holm": "corrected p, equal",
    "time_ratio": "time of a / b", "time_low": "time, from", "time_high": "time, to",
    "runs_needed": "runs needed", "cohens_dz": "d_z over runs", "odds_ratio": "odds ratio",
    "p_mcnemar": "p, McNemar", "p_sign_flip_images": "p, sign flips", "why": "why not",
}  # fmt: skip
RUNS = {
    "variant": "variant", "seed": "seed", "fold": "fold", "run": "folder", "images": "images",
    "epochs": "epochs", "best_epoch": "best epoch", "training_seconds": "training, s", "device": "device",
    "vitrail": "vitrail", "git_commit": "commit", "finished": "finished",
}  # fmt: skip
TEXTS = ("variant", "a", "b", "statement", "why", "run", "device", "git_commit", "finished", "vitrail")
_COUNTS = ("parameters", "runs", "runs_needed", "images", "epochs", "seed", "fold", "best_epoch")


def suite_table(
    name: str, frame: pd.DataFrame, columns: Mapping[str, str], metric: str, unit: float, caption: str
) -> Table:
    """Make the table of a suite for pages and Markdown.

    Args:
        name: Its heading.
        frame: One of a suite's tables.
        columns: Its columns and their headings.
        metric: Name of the measure.
        unit: 100 for measures in per cent, else 1.
        caption: Text of the table.
    """
    shown = [
        Column(column, heading.format(metric=metric), "text", style=functools.partial(_style, column))
        if column in TEXTS
        else Column(column, heading.format(metric=metric), functools.partial(cell_text, column, unit=unit))
        for column, heading in columns.items()
    ]
    return Table(name, caption, frame, shown, most=len(frame))


def table_of_tests(summary: pd.DataFrame, unit: float) -> Table | None:
    """Make the table of a suite's tests: a row for each variant, a column for each test.

    Args:
        summary: summary.csv.
        unit: As of :func:`suite_table`.

    Returns:
        None for a suite without tests.
    """
    if "test" not in summary:
        return None

    def cell(row: Any) -> str:
        mean, low, high = (cell_text(name, row[name], unit) for name in ("mean", "low", "high"))
        return f"{mean} ({low} to {high})" if low else mean

    found = {(row["subject"], row["test"]): cell(row) for _, row in summary.iterrows()}
    tests = list(dict.fromkeys(summary["test"]))
    rows = [
        {"variant": name, **{test: found.get((name, test), "") for test in tests}}
        for name in dict.fromkeys(summary["subject"])
    ]
    columns = [Column(name, name, "text", style=lambda text: "text") for name in ("variant", *tests)]
    caption = "Mean over runs of each variant in each test, and its 95 % interval over seeds."
    return Table("Tests", caption, pd.DataFrame(rows), columns)


def _style(column: str, text: str) -> str:
    if column == "statement" and text != NOT_SHOWN:
        return "text shown"
    return "text long" if column == "why" else "text"


def cell_text(name: str, value: Any, unit: float) -> str:
    """Format a cell; empty for missing values.

    Args:
        name: Name of the column.
        value: Value of the cell.
        unit: 100 for measures in per cent, else 1.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if name in TEXTS:
        return str(value)
    number = float(value)
    if name in ("mean", "low", "high", "difference", "guess"):
        return f"{unit * number:.2f}" if unit == 100 else f"{number:.4f}"
    if name in _COUNTS:
        return f"{number:,.0f}"
    if math.isinf(number):
        return "∞"
    if name.startswith("p") and number < 0.0001:
        return "< 0.0001"
    return f"{number:.3g}"


def captions(unit: float, alpha: float) -> tuple[str, str, str]:
    """Write the captions of summary.csv, pairs.csv and results.csv.

    Args:
        unit: See :func:`cell_text`.
        alpha: Significance level.
    """
    points = "percentage points" if unit == 100 else "nats"
    return (
        f"Mean over runs and its 95 % interval over seeds, in {'per cent' if unit == 100 else 'nats'}; median times as "
        "measured on the machine named under Runs.",
        f"Difference of a and b, in {points}, with its {1 - alpha:.0%} interval; runs needed: of each variant, to show "
        "a difference of this size 4 times in 5.",
        "Each run, its folder, and what it was made with.",
    )
