"""Measurements of the runs on a page, read from their folders; missing ones are left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from vitrail.analyze.evaluated import Evaluation
from vitrail.config.load import dump_recipe
from vitrail.config.schema import Recipe
from vitrail.errors import plural
from vitrail.evaluate.confusion import clustered_together, most_confused
from vitrail.figures.confusion import confusion
from vitrail.figures.data import SPLIT_NAMES
from vitrail.figures.picture import Picture
from vitrail.figures.tables import Column, Table
from vitrail.runs.folder import RunFolder

T = TypeVar("T")

CONFUSION = "Confusion matrices"


@dataclass(frozen=True)
class Subject:
    """Unit of comparison on a page: a run, or a variant with its runs.

    Attributes:
        label: Name on the page.
        parts: Its evaluated runs.
        kind: "run" or "variant".
    """

    label: str
    parts: Sequence[Evaluation]
    kind: str = "run"

    @property
    def told(self) -> str:
        """Its runs, for a caption."""
        names = ", ".join(part.run.name for part in self.parts)
        on = self.parts[0].metrics.get("name", "test")
        return f"{self.label} ({on})" if names == self.label else f"{self.label}: {names} ({on})"

    def each(self, read: Callable[[Evaluation], T | None]) -> list[T] | None:
        """Return a value of each of its runs; None where one of them lacks it."""
        found = [value for part in self.parts if (value := read(part)) is not None]
        return found if len(found) == len(self.parts) else None


@dataclass
class LoadedRun:
    """A run on a page.

    Attributes:
        folder: Its folder.
        recipe: Its recipe.
        part: Its evaluation.
        label: Name on the page.
        environment: Content of environment.json.
    """

    folder: RunFolder
    recipe: Recipe
    part: Evaluation
    label: str = ""
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Any]:
        """The overall measures."""
        return self.part.metrics

    @property
    def name(self) -> str:
        """Name of the evaluated images: a split, or other data."""
        return str(self.metrics["name"])

    @property
    def split_name(self) -> str:
        """Display name of the evaluated images."""
        return SPLIT_NAMES.get(self.name, self.name)

    def details(self) -> dict[str, Any]:
        """Describe folder, recipe and environment, for the end of a page."""
        return {
            "name": self.label,
            "path": str(self.folder.path),
            "recipe": dump_recipe(self.recipe),
            "environment": {k: v for k, v in self.environment.items() if k != "resumed_from"},
        }


@dataclass
class Section:
    """A heading of a page and its content.

    Attributes:
        title: The heading.
        words: Paragraphs.
        shown: Pictures with their figures.
        tables: Tables.
    """

    title: str
    words: list[str] = field(default_factory=list)
    shown: list[tuple[Picture, Figure | None]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def sections_of(shown: Sequence[tuple[Picture, Figure | None]]) -> list[Section]:
    """Build a section for each picture, under its title."""
    return [Section(picture.title, [], [(picture, figure)]) for picture, figure in shown]


def who(subjects: Sequence[Subject]) -> Column:
    """Return the column that names the run or variant of a row."""
    return Column("name", subjects[0].kind, "text")


def names_of(subjects: Sequence[Subject]) -> str:
    """Name the runs of several, for a caption."""
    return "; ".join(subject.told for subject in subjects)


def names_with_splits(runs: Sequence[LoadedRun]) -> str:
    """List runs, each with its evaluated split."""
    return ", ".join(f"{run.label} ({run.split_name})" for run in runs)


def interval_of(low: float | None, high: float | None) -> str:
    """Format an interval; empty where an end is missing."""
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def several(subjects: Sequence[Subject]) -> str:
    """Describe the summary of several runs, for a caption; empty where each has one."""
    return " Means over the runs of a variant." if any(len(s.parts) > 1 for s in subjects) else ""


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where one value is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def draw_confusion(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw confusion matrices: counts, and per cent with confused classes side by side.

    Args:
        tables: Run or variant -> counts, a row a true class.
    """
    return confusion(tables, clustered_together(tables), {name: most_confused(table) for name, table in tables.items()})


def no_confusion() -> tuple[Picture, None]:
    """Return the reason in place of the confusion matrices of multi-label runs."""
    problem = "Not drawn: labels of a multi-label run do not exclude each other."
    return Picture("confusion", CONFUSION, "", problem=problem), None


def mixed_up(counts: pd.DataFrame) -> str:
    """Describe a confusion matrix in words: the number of correct ones, and the most frequent confusion.

    Args:
        counts: A row a true class.
    """
    table = counts.to_numpy().copy()
    correct, whole = int(table.trace()), int(table.sum())
    for i in range(len(table)):
        table[i, i] = 0
    told = f"{correct} of {whole} correct"
    if table.sum() == 0:
        return told
    i, j = divmod(int(table.argmax()), len(table))
    return (
        f"{told}, most often {counts.index[i]} is predicted as {counts.columns[j]} ({plural(int(table[i, j]), 'time')})"
    )
