"""What was measured of the runs on a page, read from their folders; what was not measured is not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from vitrail.errors import RunError
from vitrail.figures.picture import Picture
from vitrail.report.tables import Column, Table
from vitrail.runs.folder import EvaluationFiles, RunFolder

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One evaluation of one run.

    Attributes:
        run: The run.
        files: The evaluation's.
        metrics: What its metrics.json says.
    """

    run: RunFolder
    files: EvaluationFiles
    metrics: dict[str, Any]

    @classmethod
    def read(cls, run: RunFolder, folder: Path) -> Part:
        """Read an evaluation.

        Raises:
            RunError: It is damaged, or of other weights than the run holds.
        """
        return cls(run, EvaluationFiles(folder), run.read_measures(folder))

    def of_these_weights(self, content: Mapping[str, Any]) -> bool:
        """Check that another result of the run is of the weights that were evaluated.

        Args:
            content: The result, which names its weights.
        """
        code = content.get("weights")
        return bool(code == self.metrics.get("weights")) or (
            self.run.weights_hash() is not None and self.run.made_with(code)
        )

    def table(self, file: Path, *columns: str) -> pd.DataFrame | None:
        """One of the evaluation's tables; None where it was not measured.

        Args:
            file: Which.
            columns: What it must have.

        Raises:
            RunError: It is damaged.
        """
        if not file.is_file():
            return None
        try:
            # A class may be called 0 or NA.
            table = pd.read_csv(file, keep_default_na=False, na_values=[""], dtype={"class": str})
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise RunError(f"{file} is damaged ({error}); `vitrail evaluate {self.run}` writes it again") from error
        lacking = [column for column in columns if column not in table]
        if lacking or len(table) == 0:
            raise RunError(
                f"{file} holds no {', '.join(lacking) or 'rows'}; `vitrail evaluate {self.run}` writes it again"
            )
        return table

    def robustness(self, name: str, *columns: str) -> pd.DataFrame | None:
        """A table that was measured with the model; None where it was not, or with other weights."""
        file = self.files.of_the_model[name]
        if not file.is_file() or not self.files.robustness.is_file():
            return None
        known = self.run.read_json(self.files.robustness).get(name, {})
        return self.table(file, *columns) if self.of_these_weights(known) else None

    def confusion(self) -> pd.DataFrame:
        """Counts, a row a true class.

        Raises:
            RunError: It is missing or damaged.
        """
        table = self.table(self.run.require(self.files.confusion, f"`vitrail evaluate {self.run}` writes it"))
        assert table is not None, "the file is there"
        return table.set_index(table.columns[0])

    def mistakes(self) -> pd.DataFrame | None:
        """The most confident mistakes; no row where there was none."""
        if not self.files.mistakes.is_file():
            return None
        texts = {"path": str, "true": str, "predicted": str}
        try:
            return pd.read_csv(self.files.mistakes, dtype=texts, keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise RunError(f"{self.files.mistakes} is damaged ({error}); evaluate the run again") from error

    def content(self, file: Path) -> dict[str, Any] | None:
        """One of the evaluation's JSON files; None where it was not measured."""
        if not file.is_file():
            return None
        content: dict[str, Any] = self.run.read_json(file)
        return content


@dataclass(frozen=True)
class Subject:
    """What a page shows side by side: a run, or a variant with its runs.

    Attributes:
        label: What it is called.
        parts: Its evaluated runs.
        kind: "run" or "variant".
    """

    label: str
    parts: Sequence[Part]
    kind: str = "run"

    @property
    def told(self) -> str:
        """Its runs, for a caption."""
        names = ", ".join(part.run.name for part in self.parts)
        on = self.parts[0].metrics.get("name", "test")
        return f"{self.label} ({on})" if names == self.label else f"{self.label}: {names} ({on})"

    def each(self, read: Callable[[Part], T | None]) -> list[T] | None:
        """Something of each of its runs; None where one of them lacks it."""
        found = [value for part in self.parts if (value := read(part)) is not None]
        return found if len(found) == len(self.parts) else None


@dataclass
class Section:
    """A heading of a page and what is below it.

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


def who(subjects: Sequence[Subject]) -> Column:
    """The column that says which run or variant a row is of."""
    return Column("name", subjects[0].kind, "text")


def names_of(subjects: Sequence[Subject]) -> str:
    """The runs of several, for a caption."""
    return "; ".join(subject.told for subject in subjects)


def several(subjects: Sequence[Subject]) -> str:
    """How numbers of more than one run are brought together, for a caption; nothing where each has one."""
    return " Means over the runs of a variant." if any(len(s.parts) > 1 for s in subjects) else ""


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean; None where one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def mixed_up(counts: pd.DataFrame) -> str:
    """A confusion matrix in words: how many are correct, and the most frequent confusion.

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
    return f"{told}, most often {counts.index[i]} is predicted as {counts.columns[j]} ({table[i, j]} times)"
