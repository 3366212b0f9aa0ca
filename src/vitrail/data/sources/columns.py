"""Columns beside image and label: splits, groups, and unused ones with such names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vitrail.data.classes import MISSING, parse_number, similar_key
from vitrail.data.image_errors import head
from vitrail.data.sources.folder_names import SPLIT_NAMES
from vitrail.errors import DataError

# Names of splits in tables, in any letter case: those of folders, and none.
_SPLITS = {name: split for split, names in SPLIT_NAMES.items() for name in names} | {"": ""}
_SPLIT_LIKE = frozenset("splits set subset partition fold folds phase usage datasplit traintest istrain istest".split())
_GROUP_LIKE = frozenset(
    "groups patient subject person individual animal donor case study plant tree leaf plot field farm site station "
    "camera video clip sequence session scene slide specimen".split()
)


def find_column(names: Sequence[str], wanted: str) -> str | None:
    """Find a column by exact name, or else the only one that differs in letter case and blanks alone."""
    if wanted in names:
        return wanted
    alike = [name for name in names if similar_key(name) == wanted]
    return alike[0] if len(alike) == 1 else None


def are_splits(cells: Iterable[object]) -> bool:
    """Check whether all cells of a column are names of splits."""
    return all(str(cell).casefold() in _SPLITS for cell in cells)


def splits_of_cells(cells: Sequence[object], where: object) -> list[str]:
    """Return the split of each row, from the cells of a column.

    Args:
        cells: "train", "val", "test" and their longer names, in any letter case; empty for no split.
        where: The table, for errors.

    Raises:
        DataError: A cell is none of these.
    """
    if not are_splits(cells):
        unknown = sorted({str(cell) for cell in cells if str(cell).casefold() not in _SPLITS})
        raise DataError(
            f"{where}: split must be train, val, test or empty, got {head([repr(cell) for cell in unknown])}"
        )
    return [_SPLITS[str(cell).casefold()] for cell in cells]


def groups_of_cells(cells: Sequence[object]) -> list[str]:
    """Return the group of each row: ``1``, ``"1"`` and ``"1.0"`` are one group.

    Returns:
        Names of the groups; empty where a cell is empty or holds what programs write for no value ("nan", "None").
    """
    texts = ["" if str(cell).casefold() in MISSING else str(cell) for cell in cells]
    numbers = {text: parse_number(text) for text in set(texts) - {""}}
    if any(number is None for number in numbers.values()):
        return texts
    return [str(numbers[text]) if "." in text else text for text in texts]


def describe_unused(names: Iterable[str], split: str | None, group: str | None) -> list[str]:
    """Describe unused columns with names of splits, and those with names of groups.

    Args:
        names: Names of all columns.
        split: The column of splits that is used, or None.
        group: Name of the group column, or None.
    """
    lines = []
    if split is None and (found := [name for name in names if _bare(name) in _SPLIT_LIKE]):
        lines.append(
            f"the column {head([repr(name) for name in found])} is not used; where it says which images are tested on, "
            "write train, val and test into it and name it with data.table.split_column"
        )
    if group is None and (found := [name for name in names if _bare(name) in _GROUP_LIKE]):
        lines.append(
            f"the column {head([repr(name) for name in found])} is not used; where images of one value belong "
            "together, name it with data.table.group_column"
        )
    return lines


def _bare(name: str) -> str:
    """Normalise a column name, without "id", "name" or "number" at its end: "Patient_ID" is "patient"."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    while len(words) > 1 and words[-1] in ("id", "ids", "name", "number", "no", "nr", "code", "key", "index"):
        words.pop()
    return "".join(words)
