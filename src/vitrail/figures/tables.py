"""Tables of a page: numbers as people read them, and as they sort; whole as CSV."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

# Letters of a cell that is broken into lines.
_LONG = 40
_FORMS = {"share": "{:.3f}", "error": "{:.4f}", "number": "{:.3g}", "count": "{:,.0f}"}


@dataclass(frozen=True)
class Column:
    """Display of a column.

    Attributes:
        name: Name of the column in the table; with ``low`` and ``high`` beside it, as ``NAME_low`` or by their own
            names.
        heading: Heading on the page.
        form: "text", "share" (0 to 1), "error" (a small share), "number", "count", or a function that formats a number.
        low: Column with the lower end of its interval; shown with it where there is one.
        high: Column with the upper end.
        style: Names the style of a text: "text", "text long" or "text shown"; long texts are wrapped by default.
    """

    name: str
    heading: str
    form: str | Callable[[Any], str] = "share"
    low: str = ""
    high: str = ""
    style: Callable[[str], str] | None = None


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        name: Name of its CSV file.
        caption: Text above it, with its runs.
        frame: All rows and columns, as in the CSV.
        columns: Columns of the page; empty ones are left out.
        most: Largest number of rows on the page.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    most: int = 100

    @property
    def told(self) -> str:
        """The caption, with the number of rows left out."""
        more = len(self.frame) - self.most
        return self.caption + (
            f" The first {self.most} of {len(self.frame)} rows; the CSV has all." if more > 0 else ""
        )

    def shown(self) -> dict[str, Any]:
        """Make header and rows for the template: text, sort key and style of each cell."""
        columns = [c for c in self.columns if c.name in self.frame and self.frame[c.name].notna().any()]
        header = [{"text": c.heading, "kind": "text" if c.form == "text" else ""} for c in columns]
        records: list[Any] = self.frame.head(self.most).to_dict("records")
        return {"header": header, "rows": [[_cell(row, column) for column in columns] for row in records]}

    def markdown(self) -> str:
        """Make a Markdown table."""
        shown = self.shown()
        header = [head["text"] for head in shown["header"]]
        lines = [header, ["---"] * len(header), *([cell["text"] for cell in row] for row in shown["rows"])]
        return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)


def escaped(text: str) -> str:
    """Escape mark-up for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _cell(row: Mapping[str, Any], column: Column) -> dict[str, Any]:
    value = row[column.name]
    if is_nothing(value):
        return {"text": "", "sort": "", "kind": ""}
    if column.form == "text":
        text = str(value)
        kind = column.style(text) if column.style else "text long" if len(text) > _LONG else "text"
        return {"text": text, "sort": None, "kind": kind}
    number = float(value)
    form = column.form if callable(column.form) else _FORMS[column.form].format
    text = form(number)
    ends = [row.get(end) for end in (column.low, column.high)]
    if not any(is_nothing(end) for end in ends):
        text += f" ({form(ends[0])} to {form(ends[1])})"
    return {"text": text, "sort": repr(number) if math.isfinite(number) else "1e308", "kind": ""}


def is_nothing(value: Any) -> bool:
    """Check whether a value is missing."""
    return value is None or (isinstance(value, float) and math.isnan(value))
