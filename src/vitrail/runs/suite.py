"""The suite folder: names of its files, reading and writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from vitrail.errors import RunError
from vitrail.files import write_json, write_text


class SuiteFolder:
    """Folder of a suite's results; the runs are in folders of their own, which suites may share.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.facts = self.path / "suite.json"
        self.results = self.path / "results.csv"
        self.summary = self.path / "summary.csv"
        self.pairs = self.path / "pairs.csv"
        self.text = self.path / "suite.md"
        self.report = self.path / "report.html"
        self.figures = self.path / "figures"

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def is_one(cls, path: str | Path) -> bool:
        """Return whether a folder is a suite folder."""
        return cls(path).facts.is_file()

    def recipe(self, identity: str) -> Path:
        """Return the path of the resolved recipe of a run."""
        return self.path / "recipes" / f"{identity}.yaml"

    def log(self, identity: str) -> Path:
        """Return the path of the output of a run."""
        return self.path / "logs" / f"{identity}.log"

    def write_table(self, file: Path, table: pd.DataFrame) -> None:
        """Write one of the suite's tables."""
        write_text(file, table.to_csv(index=False))

    def read_table(self, file: Path) -> pd.DataFrame:
        """Read one of the suite's tables.

        Raises:
            RunError: It is missing or damaged.
        """
        if not file.is_file():
            raise RunError(f"{self.path} lacks {file.name}; `vitrail compare` writes it when the runs are done")
        try:
            return pd.read_csv(file)
        except pd.errors.EmptyDataError:
            return pd.DataFrame()
        except (pd.errors.ParserError, UnicodeDecodeError) as error:
            raise RunError(f"{file} is damaged ({error}); `vitrail compare` writes it again") from error

    def read_text(self) -> str:
        """Read the result as Markdown; empty before it is written."""
        return self.text.read_text(encoding="utf-8") if self.text.is_file() else ""

    def write_facts(self, facts: dict[str, Any]) -> None:
        """Write suite.json."""
        write_json(self.facts, facts)

    def read_facts(self) -> dict[str, Any]:
        """Read suite.json.

        Raises:
            RunError: It is missing or damaged.
        """
        if not self.facts.is_file():
            raise RunError(
                f"{self.path} is not a suite's folder: it lacks {self.facts.name}; `vitrail compare` makes one"
            )
        try:
            facts: dict[str, Any] = json.loads(self.facts.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{self.facts} is damaged ({error}); `vitrail compare` writes it again") from error
        return facts
