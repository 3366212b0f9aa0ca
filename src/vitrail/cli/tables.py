"""Aligned tables for a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lay out cells in columns, two spaces apart.

    Args:
        header: Names of the columns.
        rows: Cells; each row as long as the header.
        right: Columns, by number, that are aligned to the right (numbers).

    Returns:
        Lines without a newline at the end.
    """
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    )


def format_fields(fields: Sequence[tuple[str, str]]) -> str:
    """Lay out names and values, one pair a line, indented."""
    width = max(len(name) for name, _ in fields)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in fields)


def text_width() -> int:
    """Return the width of help texts: the terminal's, at most 100."""
    return min(shutil.get_terminal_size().columns, 100) - 2


def format_terms(terms: Mapping[str, str]) -> str:
    """Format terms in a column beside their meanings, wrapped to the terminal.

    Args:
        terms: Term -> its meaning.
    """
    column = max(map(len, terms)) + 4
    lines: list[str] = []
    for term, meaning in terms.items():
        first = f"  {term:<{column - 4}}  "
        lines += textwrap.wrap(meaning, text_width(), initial_indent=first, subsequent_indent=" " * column)
    return "\n".join(lines)
