"""Labels and splits of files that are not images: by the folders they lie in, or by a CSV table."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitrail.data.sources.columns import groups_of_cells, splits_of_cells
from vitrail.data.sources.folder_names import parse_split
from vitrail.errors import DataError


def split_and_class(folders: Sequence[str]) -> tuple[str, str]:
    """Return split and class of a file, "" for none of them, from the names of the folders it lies in."""
    splits = [parse_split(name) for name in folders]
    label = next((name for name, split in zip(folders, splits, strict=True) if split is None), "")
    return next(filter(None, splits), ""), label


def read_rows(file: Path, needed: Sequence[str] = ("path", "label")) -> list[dict[str, str]]:
    """Read a CSV table; cells that a row lacks at its end are empty.

    Args:
        file: The table.
        needed: Columns that it must have.

    Raises:
        DataError: The file cannot be read, has no rows, or lacks one of these columns.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream, restval=""))
    except OSError as error:
        raise DataError(f"cannot read data.path {file}: {error.strerror or error}") from error
    if not rows or not set(needed) <= set(rows[0]):
        columns = "column" if len(needed) == 1 else "columns"
        raise DataError(
            f"{file}: needs the {columns} {' and '.join(needed)}, has {', '.join(rows[0]) if rows else 'no rows'}"
        )
    return rows


def splits_of_rows(rows: Sequence[Mapping[str, str]], file: Path) -> list[str]:
    """Return the split of each row of :func:`read_rows`, "" where it names none.

    Raises:
        DataError: A row names something else than a split.
    """
    return splits_of_cells([row.get("split", "") for row in rows], file)


def groups_of_rows(rows: Sequence[Mapping[str, str]]) -> list[str] | None:
    """Return the group of each row of :func:`read_rows`, "" where it names none; None without such a column."""
    return groups_of_cells([row["group"] for row in rows]) if "group" in rows[0] else None


def labels_of_rows(rows: Sequence[Mapping[str, str]], file: Path, noun: str, *, optional: bool = False) -> list[str]:
    """Return the label of each row of :func:`read_rows`.

    Args:
        rows: The rows.
        file: The table, for the error.
        noun: Name of a row's content, in the plural, for the error.
        optional: Whether all rows together may be without a label.

    Raises:
        DataError: A row without a label.
    """
    labels = [row.get("label", "") for row in rows]
    if "" in labels and (any(labels) or not optional):
        number = labels.index("")
        remedy = f", and other {noun} have; label all or none" if optional else f"; {noun} need one each"
        raise DataError(f"{file}, line {number + 2}: {rows[number]['path']} has no label{remedy}")
    return labels


def list_given(paths: Sequence[str | Path], inside: Callable[[Path], Iterable[Path]], lack: str) -> list[Path]:
    """List files that are given by themselves or by a folder, each once.

    Args:
        paths: Files and folders.
        inside: Lists what a folder holds.
        lack: Name of the missing files, for the error about an empty folder.

    Raises:
        DataError: Nothing at a path, or nothing in a folder.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"no file or folder at {path}")
        files = sorted(inside(path)) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path} holds no {lack}")
        found.update(dict.fromkeys(files))
    return list(found)


def class_of_folder(path: Path, classes: Sequence[str]) -> str:
    """Return the name of the folder a file lies in where it is a class, "" where not."""
    return path.parent.name if path.parent.name in classes else ""


def number_labels(
    labels: Sequence[str], classes: Sequence[str] | None, where: Path, *, given: bool = False
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Map labels to their class numbers.

    Args:
        labels: Class of each file; "" for none, -1 of the result.
        classes: Names of the classes where a run gives them; those of the labels in order when not given.
        where: Source of the labels, for the error.
        given: Whether files may be without a class.

    Returns:
        Names of the classes, and the target of each file, shape ``(N,)``.

    Raises:
        DataError: Labels that the run does not know.
    """
    own = tuple(classes) if classes is not None else tuple(sorted(set(labels)))
    unknown = sorted(set(labels) - {*own, *([""] if given else [])})
    if unknown:
        raise DataError(f"{where}: classes that the run does not know: {', '.join(unknown)}")
    return own, np.array([own.index(label) if label else -1 for label in labels], dtype=np.int64)
