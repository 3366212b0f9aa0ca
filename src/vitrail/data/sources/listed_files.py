"""Find the files that a table lists."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vitrail.data.image_errors import SKIP, head
from vitrail.data.listing import list_files
from vitrail.errors import DataError, plural


class ListedFiles:
    """Files of a folder by their names in a table.

    A name is a path relative to the folder, or absolute. Where there is no such file, it may be written with
    backslashes, in another Unicode form or letter case, without its suffix, or without the folders inside: the file is
    taken where exactly one fits.

    Args:
        folder: The folder.
        table: The table, for errors.
    """

    def __init__(self, folder: Path, table: Path) -> None:
        self.folder, self.table = folder, table
        self._indices: list[tuple[Callable[[str], str], dict[str, list[Path]]]] | None = None

    def is_image(self, cell: str) -> bool:
        """Check whether a cell is the exact path of a file."""
        try:
            return bool(cell.strip()) and (self.folder / cell.strip()).is_file()
        except OSError:  # longer than a file name may be
            return False

    def find(self, names: Sequence[str], skip: bool = False) -> list[Path]:
        """Find the file of each name.

        Args:
            names: The names.
            skip: Give a path where nothing lies for a name of no file, unless that holds for all names.

        Raises:
            DataError: Names of no file, or of several.
        """
        found = [[self.folder / name] if self.is_image(name) else self._fitting(name) for name in names]
        missing = [str(self.folder / name) for name, files in zip(names, found, strict=True) if not files]
        if missing and (not skip or len(missing) == len(names)):
            remedy = "" if len(missing) == len(names) else f"; {SKIP}"
            absent = "does not exist" if len(missing) == 1 else "do not exist"
            raise DataError(
                f"{len(missing)} of {plural(len(names), 'image')} that {self.table} lists {absent}: {head(missing)}; "
                f"paths are relative to {self.folder} (data.table.image_folder){remedy}"
            )
        several = [
            f"{name} ({' and '.join(str(file.relative_to(self.folder)) for file in files[:2])})"
            for name, files in zip(names, found, strict=True)
            if len(files) > 1
        ]
        if several:
            fit = "fits" if len(several) == 1 else "fit"
            raise DataError(
                f"{len(several)} of {plural(len(names), 'name')} in {self.table} {fit} several files: {head(several)}; "
                "write the path and the suffix of one"
            )
        return [files[0] if files else self.folder / name for name, files in zip(names, found, strict=True)]

    def _fitting(self, name: str) -> list[Path]:
        """Find the files that match a name without a path, by the strictest rule with a match."""
        wanted = name.replace("\\", "/").removeprefix("./")
        if not wanted:
            return []
        if self.is_image(wanted):
            return [self.folder / wanted]
        for key, index in self._index():
            files = index.get(key(wanted), [])
            if files:
                return files
        return []

    def _index(self) -> list[tuple[Callable[[str], str], dict[str, list[Path]]]]:
        if self._indices is None:
            files = list_files(self.folder) if self.folder.is_dir() else []
            self._indices = []
            # How a name is compared with the path of a file, and the part of the path that it is compared with.
            for key, part in (
                (_composed, str),
                (_folded, str),
                (_folded, _without_suffix),
                (_folded, _name),
                (_folded, _stem),
            ):
                index: dict[str, list[Path]] = {}
                for file in files:
                    index.setdefault(key(part(file.relative_to(self.folder).as_posix())), []).append(file)
                self._indices.append((key, index))
        return self._indices


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _without_suffix(path: str) -> str:
    return PurePosixPath(path).with_suffix("").as_posix()


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def rows_by_file(files: Sequence[Path]) -> dict[Path, list[int]]:
    """Return the rows of each file, links in its folder's path resolved."""
    rows: dict[Path, list[int]] = {}
    folders = {folder: folder.resolve() for folder in {file.parent for file in files}}
    for i, file in enumerate(files):
        rows.setdefault(folders[file.parent] / file.name, []).append(i)
    return rows


def refuse_repeated(
    table: Path,
    names: Sequence[str],
    files: Sequence[Path],
    labels: Sequence[Any],
    noun: str,
    remedy: str = "",
) -> None:
    """Refuse a table that lists a file more than once.

    Args:
        table: The table, for the error.
        names: The files as the table names them.
        files: The file of each row.
        labels: Label of each row.
        noun: Name of a row's content, for the error.
        remedy: Remedy for different labels, besides leaving rows out.

    Raises:
        DataError: A file of several rows; the message names those of different labels first.
    """
    repeated = {names[rows[0]]: rows for rows in rows_by_file(files).values() if len(rows) > 1}
    if not repeated:
        return
    differing = {
        name: sorted({str(labels[i]) for i in rows})
        for name, rows in repeated.items()
        if len({labels[i] for i in rows}) > 1
    }
    many = f"{table} lists {plural(len(repeated), noun)} more than once"
    if differing:
        first = [f"{name} ({', '.join(own)})" for name, own in differing.items()]
        raise DataError(
            f"{many}, {len(differing)} of them with different labels: {head(first)}; keep one row each"
            + (f", or {remedy}" if remedy else "")
        )
    raise DataError(f"{many}: {head(list(repeated))}; keep one row each")
