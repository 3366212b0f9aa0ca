"""Read tables of any separator, header, encoding and column types."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vitrail.config.data import DataConfig
from vitrail.config.data_groups import TableConfig
from vitrail.data.classes import Label, clean_name, normalize_label
from vitrail.data.image_errors import refuse_pointer
from vitrail.errors import ConfigError, DataError, did_you_mean, first_line, plural

_NAMED = {"comma": ",", "semicolon": ";", "tab": "\t", "space": " ", "pipe": "|"}
_FOUND = (",", ";", "\t", "|")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_SPREADSHEETS = {
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a spreadsheet (or another zip archive)",
    b"\xd0\xcf\x11\xe0": "a spreadsheet",
}
_PARQUET = b"PAR1"
# Rows by which the separator is found.
_SAMPLE_LINES = 200

# A cell: a text; labels of a Parquet table may be numbers or lists too.
Cell = Label | tuple[Label, ...]


@dataclass(frozen=True)
class TableForm(TableConfig):
    """Format of a table by the recipe: the settings of its group, and two of the classes."""

    multi_label: bool = False
    label_pattern: str | None = None

    @classmethod
    def of(cls, config: DataConfig) -> TableForm:
        """Read the format from a config."""
        classes = config.classes
        return cls(**vars(config.table), multi_label=classes.multi_label, label_pattern=classes.label_pattern)


@dataclass(frozen=True)
class Table:
    """Content of a table.

    Attributes:
        path: The file.
        names: Names of the columns; their positions where there is no header.
        columns: The cells of each column, texts without blanks around them; of a column that cannot be read the reason.
        lines: Line of the file that each row is in, from 1.
        header: Whether the names are the file's own.
    """

    path: Path
    names: list[str]
    columns: list[list[Cell] | str]
    lines: list[int]
    header: bool

    def column(self, name: str) -> list[Cell]:
        """Return the cells of a column.

        Raises:
            DataError: Several columns have the name, or its values cannot be read.
        """
        if self.names.count(name) > 1:
            raise DataError(f"{self.path} has {self.names.count(name)} columns named {name!r}; rename all but one")
        cells = self.columns[self.names.index(name)]
        if isinstance(cells, str):
            raise DataError(f"{self.path}: the column {name!r} {cells}")
        return cells

    def texts(self, name: str) -> list[str]:
        """Return the cells of a column as texts."""
        return [str(cell) for cell in self.column(name)]


def read_table(file: Path, form: TableForm, is_image: Callable[[str], bool]) -> Table:
    """Read a CSV file (of any separator) or a Parquet file.

    Args:
        file: The file; its content decides which of the two it is.
        form: Columns and format of the table, by the recipe.
        is_image: Whether a cell names an image that exists; by that a first row that is not a header is known.

    Raises:
        DataError: No such file, not a table, or columns that cannot be told apart.
        ConfigError: A setting that does not fit the file.
    """
    try:
        content = file.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"no table at {file}; check data.path") from error
    except OSError as error:
        raise DataError(f"cannot read {file} as a table: {error.strerror or error}") from error
    refuse_pointer(file)
    if content.startswith(_PARQUET) or file.suffix.lower() in (".parquet", ".pq"):
        for name in ("separator", "header", "encoding"):
            if getattr(form, name) is not None:
                raise ConfigError(f"data.table.{name} does not apply to {file}, a Parquet file; remove it")
        return _read_parquet(file)
    kind = next((kind for mark, kind in _SPREADSHEETS.items() if content.startswith(mark)), None)
    if kind is not None:
        raise DataError(f"{file} is {kind}, not a text; save it as CSV, and give that file")
    text = _decode(content, file, form.encoding)
    text, separator = _declared_separator(text, form.separator)
    return _divide(text, separator, file, form, is_image)


def _decode(content: bytes, file: Path, encoding: str | None) -> str:
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    chosen = marked or encoding or "utf-8"
    try:
        text = content.decode(chosen)
    except LookupError as error:
        raise ConfigError(
            f"data.table.encoding {encoding!r} is unknown; use utf-8, latin-1, cp1252, utf-16, ..."
        ) from error
    except UnicodeDecodeError as error:
        given = content[error.start : error.start + 4].hex(" ")
        line = content[: error.start].count(b"\n") + 1
        if encoding is not None and marked is None:
            raise DataError(
                f"{file} is not {encoding} text ({error.reason} at byte {error.start}, line {line}: {given}); "
                "change data.table.encoding"
            ) from error
        raise DataError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start}, line {line}: {given}); name its encoding "
            "with data.table.encoding (latin-1, cp1252, ...), or save it as UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(
            f"cannot read {file} as a table: it holds NUL characters; name its encoding with data.table.encoding "
            "(utf-16-le, utf-16-be), or save it as UTF-8"
        )
    return text


def _declared_separator(text: str, given: str | None) -> tuple[str, str | None]:
    """Return the text without Excel's line "sep=;", and the separator in it or in the recipe."""
    match = re.match(r"sep=(.)\r?\n", text)
    if match:
        text = "\n" + text[match.end() :]
    if given is None:
        return text, match.group(1) if match else None
    separator = _NAMED.get(given, given)
    if len(separator) != 1:
        raise ConfigError(
            f"data.table.separator {given!r} is neither a character nor one of {', '.join(_NAMED)}"
            f"{did_you_mean(given, _NAMED)}"
        )
    return text, separator


def _divide(text: str, separator: str | None, file: Path, form: TableForm, is_image: Callable[[str], bool]) -> Table:
    """Parse the table by its separator, which is detected if only one fits."""
    if separator is not None:
        return _with_header(_cells(text, separator, file), file, form, is_image)
    head = "".join(itertools.islice(io.StringIO(text, newline=""), _SAMPLE_LINES))
    wanted = _wanted_names(form)
    tries: dict[str, list[tuple[int, list[str]]]] = {}
    for mark in (*_FOUND, " "):
        # A separator of the labels inside a cell separates no columns.
        if mark == form.label_separator or mark not in (head.replace("\t", " ") if mark == " " else head):
            continue
        try:
            tries[mark] = _cells(head, mark, file)
        except DataError:  # a quoted cell that goes on below, or quotes that this separator cuts
            tries[mark] = []
    whole = next((line.strip() for line in head.splitlines() if line.strip()), "")
    if is_image(whole) or {clean_name(whole)} == wanted:  # one column, whatever its names hold
        return _with_header([(line, [text]) for line, text in _lines(text)], file, form, is_image)
    named = [mark for mark, rows in tries.items() if rows and wanted <= {clean_name(cell) for cell in rows[0][1]}]
    fits = named or [mark for mark, rows in tries.items() if _is_even(rows)]
    # A separator under which the first row names an image is right; without one, blanks are rather part of the names.
    fits = [mark for mark in fits if any(is_image(cell) for cell in tries[mark][0][1])] or fits
    if len(fits) > 1 and " " in fits:
        fits.remove(" ")
    if len(fits) > 1:
        marks = " and ".join(next(name for name, mark in _NAMED.items() if mark == fit) for fit in fits)
        raise ConfigError(f"{file} can be divided by {marks}; name its separator with data.table.separator")
    # A single column is divided by nothing.
    rows = _cells(text, fits[0] if fits else ",", file)
    return _with_header(rows, file, form, is_image)


def _lines(text: str) -> list[tuple[int, str]]:
    """Iterate over number and text of each line that is not empty."""
    lines = enumerate(io.StringIO(text, newline=None), 1)
    return [(i, line.strip()) for i, line in lines if line.strip()]


def _wanted_names(form: TableForm) -> set[str]:
    """Return the column names that mark the first row as the header."""
    names = {form.image_column or "path"}
    if form.label_pattern is None:
        names.add(form.label_column or "label")
    return names


def _is_even(rows: Sequence[tuple[int, list[str]]]) -> bool:
    """Check whether all rows have the same number of cells, at least two; trailing empty ones do not count."""
    counts = {max((i + 1 for i, cell in enumerate(row) if cell.strip()), default=0) for _, row in rows}
    widths = {len(row) for _, row in rows}
    return bool(rows) and (len(widths) == 1 or len(counts) == 1) and min(counts) >= 2


def _cells(text: str, separator: str, file: Path) -> list[tuple[int, list[str]]]:
    """Iterate over line number and cells of each row that is not empty."""
    lines: Iterable[str] = io.StringIO(text, newline="")
    if separator == " ":
        lines = (line.replace("\t", " ").strip() + "\n" for line in lines)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t", strict=True)
    rows: list[tuple[int, list[str]]] = []
    begun = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((begun, row))
            begun = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"cannot read {file} as a table: {error} (line {begun}); mend its quotes") from error
    return rows


def _with_header(
    rows: list[tuple[int, list[str]]], file: Path, form: TableForm, is_image: Callable[[str], bool]
) -> Table:
    if not rows:
        raise DataError(f"cannot read {file} as a table: it is empty")
    first = [clean_name(cell) for cell in rows[0][1]]
    header = form.header
    if header is None:
        # A first row that names an image is one of the rows, unless the names of the columns are in it.
        header = _wanted_names(form) <= set(first) or not any(is_image(cell) for cell in first)
    width = max(len(row) for _, row in rows)
    if header:
        names, body = first, rows[1:]
    else:
        names, body = [str(i) for i in range(width)], rows
    for line, row in body:
        if any(cell.strip() for cell in row[len(names) :]):
            raise DataError(
                f"cannot read {file} as a table: line {line} has {plural(len(row), 'cell')} and the table "
                f"{plural(len(names), 'column')}; put cells that hold the separator into quotes, or check "
                "data.table.separator"
            )
    cells: list[list[Cell]] = [
        [clean_name(row[i]) if i < len(row) else "" for _, row in body] for i in range(len(names))
    ]
    # Spreadsheets leave columns behind that have neither a name nor a value.
    kept = [i for i, name in enumerate(names) if name or any(cells[i])]
    return Table(file, [names[i] for i in kept], [cells[i] for i in kept], [line for line, _ in body], header)


def _read_parquet(file: Path) -> Table:
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"cannot read {file} as a table: {first_line(error)}") from error
    columns = [column_problem(column.type) or cells_of(column, file) for column in table.columns]
    names = [clean_name(name) for name in table.column_names]
    return Table(file, names, columns, list(range(1, table.num_rows + 1)), True)


def column_problem(kind: pa.DataType) -> str | None:
    """Describe the reason if a column of Arrow cannot be read as cells; None otherwise."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = column_problem(kind.value_type)
        return None if inner is None else inner.replace("holds", "holds lists of", 1)
    if pa.types.is_struct(kind):
        fields = ", ".join(kind.field(i).name for i in range(kind.num_fields))
        return f"holds structs ({fields}); take one of these fields as a column of its own"
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return f"holds {kind}; texts or numbers are wanted"
    return None


def cells_of(column: pa.ChunkedArray, file: Path) -> list[Cell]:
    """Convert a column of Arrow: texts and whole numbers, tuples for lists, "" for missing values."""
    return [_cell(value, file) for value in column.to_pylist()]


def _cell(value: Any, file: Path) -> Cell:
    if value is None or value != value:
        return ""
    if isinstance(value, (list, tuple)):
        return tuple(dict.fromkeys(_one(item, file) for item in value if item is not None))
    return _one(value, file)


def _one(value: Any, file: Path) -> Label:
    if isinstance(value, (str, bool, int)) or (isinstance(value, float) and value.is_integer()):
        return normalize_label(value, file)
    return clean_name(str(value))
