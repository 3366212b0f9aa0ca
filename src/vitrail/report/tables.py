"""Tables of a page: numbers as people read them, and as they sort; whole as CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

# Letters of a cell that is broken into lines.
_LONG = 40
_FORMS = {"share": "{:.3f}", "error": "{:.4f}", "number": "{:.3g}", "count": "{:,.0f}"}


@dataclass(frozen=True)
class Column:
    """How a column is shown.

    Attributes:
        name: In the table; with ``low`` and ``high`` beside it, as ``NAME_low`` or by their own names.
        heading: For people.
        form: "text", "share" (0 to 1), "error" (a small share), "number" or "count".
        low: Column with the lower end of its interval; shown with it where there is one.
        high: Column with the upper end.
    """

    name: str
    heading: str
    form: str = "share"
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        name: Of its CSV file.
        caption: What it shows and which runs it came from.
        frame: All of it, as the CSV has it.
        columns: What the page shows of it; those that hold nothing are left out.
        most: Rows on the page; the CSV has all.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    most: int = 100

    @property
    def told(self) -> str:
        """The caption, and what the page leaves out."""
        more = len(self.frame) - self.most
        return self.caption + (
            f" The first {self.most} of {len(self.frame)} rows; the CSV has all." if more > 0 else ""
        )

    def shown(self) -> dict[str, Any]:
        """Header and rows for the template: the text of each cell, what it sorts by, and its kind."""
        columns = [c for c in self.columns if c.name in self.frame and self.frame[c.name].notna().any()]
        header = [{"text": c.heading, "kind": "text" if c.form == "text" else ""} for c in columns]
        records: list[Any] = self.frame.head(self.most).to_dict("records")
        return {"header": header, "rows": [[_cell(row, column) for column in columns] for row in records]}

    def markdown(self) -> str:
        """The same as a table of Markdown."""
        shown = self.shown()
        header = [head["text"] for head in shown["header"]]
        lines = [header, ["---"] * len(header), *([cell["text"] for cell in row] for row in shown["rows"])]
        return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)


def escaped(text: str) -> str:
    """Text that is no mark-up in a cell of Markdown."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _cell(row: Mapping[str, Any], column: Column) -> dict[str, Any]:
    value = row[column.name]
    if is_nothing(value):
        return {"text": "", "sort": "", "kind": ""}
    if column.form == "text":
        return {"text": str(value), "sort": None, "kind": "text long" if len(str(value)) > _LONG else "text"}
    number, form = float(value), _FORMS[column.form]
    text = form.format(number)
    ends = [row.get(end) for end in (column.low, column.high)]
    if not any(is_nothing(end) for end in ends):
        text += f" ({form.format(ends[0])} to {form.format(ends[1])})"
    return {"text": text, "sort": repr(number), "kind": ""}


def is_nothing(value: Any) -> bool:
    """Whether there is no value."""
    return value is None or (isinstance(value, float) and math.isnan(value))
