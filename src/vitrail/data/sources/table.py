"""Images listed in a table: a path and a label in each row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitrail.data.classes import ClassRules, Label, clean_name, count_labels, normalize_label, resolve_classes
from vitrail.data.file_reader import FileReader
from vitrail.data.image_errors import head
from vitrail.data.sources.columns import describe_unused, find_column, groups_of_cells, splits_of_cells
from vitrail.data.sources.files import FileSource
from vitrail.data.sources.listed_files import ListedFiles, refuse_repeated, rows_by_file
from vitrail.data.sources.patterns import by_pattern
from vitrail.data.sources.table_file import Cell, Table, TableForm, read_table
from vitrail.errors import ConfigError, DataError, closest, plural

# Remedy for rows of one image whose labels differ.
_ALL_LABELS = "give each image the labels of all its rows (data.classes.multi_label true, task.loss bce)"
_PRINTED_LIST = re.compile(r"\[.*\]|\{['\"].*['\"]\}|\(['\"].*\)", re.DOTALL)


class TableSource(FileSource):
    """CSV or Parquet file with a column of paths and a column of labels, by default ``path`` and ``label``.

    Where there are the columns ``split``, ``group`` (images that belong together) and ``spectral`` (path of the second
    stream's file), these are used; others are passed over. Labels that are lists, or texts of multiple labels with a
    separator, are multi-label; an empty one means none.

    Args:
        path: The table.
        readers: Reader of the files of each stream.
        classes: Names of the classes where they are given (by a run); those of the table otherwise.
        group: The column that names the groups; "group" where there is one, when not given.
        skip: Leave out files that are missing, cannot be read or have another number of bands.
        form: Columns and format of the table.
        rules: Rules that map labels to classes; by their names when not given.

    Raises:
        DataError: No such table, or one that cannot be read; a column or a label missing; images that do not exist,
            are listed twice, cannot be read or have other bands (all are counted, the first are named); an unknown
            split; fewer than two classes, or one that is not among the given ones; second files without names for
            their bands, or names without files.
        ConfigError: Settings that do not fit the table.
    """

    def __init__(
        self,
        path: str | Path,
        readers: Mapping[str, FileReader],
        classes: Sequence[str] | None = None,
        group: str | None = None,
        skip: bool = False,
        form: TableForm | None = None,
        rules: ClassRules | None = None,
    ) -> None:
        file, form = Path(path), form or TableForm()
        listed = ListedFiles(_image_folder(file, form), file)
        table = read_table(file, form, listed.is_image)
        if "spectral" in table.names and "spectral" not in readers:
            raise DataError(f"{file} lists second files (spectral); name their bands with data.spectral.names")
        paths = _filled(table, _path_column(table, form, listed))
        second = None
        if "spectral" in readers:
            second = listed.find(_filled(table, _find(table, "spectral", None, "data.spectral.names")), skip)
        if not table.lines:
            raise DataError(f"{file} lists no images; it has columns and no rows")
        files = listed.find(paths, skip)
        split_column = _split_column(table, form)
        splits = [""] * len(paths) if split_column is None else splits_of_cells(table.column(split_column), file)
        labels = _labels_of(table, form, paths)
        group_column = _group_column(table, form, group, paths)
        groups = None if group_column is None else groups_of_cells(table.column(group_column))
        kept = list(range(len(files)))
        if form.multi_label:
            kept, labels = _join_rows(file, files, labels, splits, groups)
        else:
            refuse_repeated(file, paths, files, labels, "image", _ALL_LABELS)
        rules = rules or ClassRules(known=None if classes is None else tuple(classes))
        found = resolve_classes(count_labels(labels), rules, file)
        rows = [(splits[i], name, files[i]) for i, name in zip(kept, found.named(labels), strict=True)]
        second = None if second is None else [second[i] for i in kept]
        groups = None if groups is None else [groups[i] for i in kept]
        notes = []
        if table.header:
            rest = [name for name in table.names if name not in (form.image_column, form.label_column)]
            notes = describe_unused(rest, split_column, group_column or group)
        of_run = classes is not None
        super().__init__(listed.folder, rows, found.names, readers, second, groups, skip, notes, of_run=of_run)
        self.numbering = found.numbering


def _image_folder(file: Path, form: TableForm) -> Path:
    """Return the base folder of paths; a named one is relative to the working directory or the table."""
    if form.image_folder is None:
        return file.parent
    for folder in (Path(form.image_folder), file.parent / form.image_folder):
        if folder.is_dir():
            return folder
    raise DataError(f"no folder of images at {form.image_folder}; check data.table.image_folder")


def _find(table: Table, default: str, given: str | None, setting: str) -> str:
    """Find the name of a column.

    Raises:
        DataError: There is none of that name.
    """
    name = default if given is None else clean_name(given)
    if name in table.names:
        return name
    columns = ", ".join(map(repr, table.names))
    if not table.header:
        raise DataError(
            f"{table.path} has no header (its first row names an image) and {plural(len(table.names), 'column')}; name "
            f"one by its position with {setting} (0 to {len(table.names) - 1}), or give data.table.header true"
        )
    near = closest(name, table.names)
    asked = f"{near.removeprefix('; ')} " if near.endswith("?") else ""
    remedy = f"{asked}name the column that holds it with {setting}, or rename it"
    if len(table.names) == 1:
        remedy += "; where the columns are separated by another character, give data.table.separator"
    raise DataError(
        f"{table.path} has no column {name!r}, only {columns}; {remedy}; where this row is not a header, give "
        "data.table.header false"
    )


def _path_column(table: Table, form: TableForm, listed: ListedFiles) -> str:
    if table.header or form.image_column is not None or not table.lines:
        return _find(table, "path", form.image_column, "data.table.image_column")
    # Without a header: the only column whose first cell is a file.
    found = [name for name in table.names if listed.is_image(table.texts(name)[0])]
    return found[0] if len(found) == 1 else _find(table, "path", None, "data.table.image_column")


def _filled(table: Table, name: str) -> list[str]:
    """Return the cells of a column without empty ones."""
    cells = table.texts(name)
    _refuse_empty(table, name, [i for i, cell in enumerate(cells) if cell == ""])
    return cells


def _refuse_empty(table: Table, name: str, rows: Sequence[int]) -> None:
    if rows:
        lines = head([str(table.lines[i]) for i in rows])
        raise DataError(
            f"{table.path}: {name} is empty in {plural(len(rows), 'row')} (line {lines}); fill or remove them"
        )


def _split_column(table: Table, form: TableForm) -> str | None:
    if form.split_column is None:
        return find_column(table.names, "split")
    return _find(table, "split", form.split_column, "data.table.split_column")


def _group_column(table: Table, form: TableForm, group: str | None, paths: Sequence[str]) -> str | None:
    if form.group_column is not None:
        return _find(table, "group", form.group_column, "data.table.group_column")
    if group is None:
        return find_column(table.names, "group")
    if group not in table.names and re.fullmatch(r"\w[\w .-]*", group):
        _refuse_unfound(table, group, paths)
    # A name that is not a column is a regular expression on the paths.
    return group if group in table.names else None


def _refuse_unfound(table: Table, group: str, paths: Sequence[str]) -> None:
    """Raise an error for a group that is neither a column nor found in a path.

    Raises:
        DataError: It is neither.
    """
    if not any(group in path for path in paths):
        near = closest(group, table.names)
        raise DataError(
            f"data.splitting.group {group!r} is not a column of {table.path} (it has "
            f"{', '.join(map(repr, table.names))}) and is found in no path{near if near.endswith('?') else ''}"
        )


def _labels_of(table: Table, form: TableForm, paths: Sequence[str]) -> list[Label | tuple[Label, ...]]:
    """Return the label or labels of each row."""
    separator = form.label_separator
    if form.label_pattern is not None:
        if separator is not None:
            raise ConfigError(
                "data.table.label_separator cannot be combined with data.classes.label_pattern; remove one of them"
            )
        found = by_pattern(
            "data.classes.label_pattern", form.label_pattern, [path.replace("\\", "/") for path in paths]
        )
        return [normalize_label(label, table.path) for label in found]
    name = _find(table, "label", form.label_column, "data.table.label_column")
    cells: list[Cell] = table.column(name)
    lists = any(isinstance(cell, tuple) for cell in cells)
    _refuse_printed_lists(table, name, cells, separator)
    if separator is None and lists:
        _refuse_empty(table, name, [i for i, cell in enumerate(cells) if cell == ""])
    if separator is None and not lists:
        empty = [i for i, cell in enumerate(cells) if cell == ""]
        if not form.multi_label:
            _refuse_empty(table, name, empty)
        if form.multi_label:
            return [() if cell == "" else cell if isinstance(cell, tuple) else (cell,) for cell in cells]
        return list(cells)
    return [cell if isinstance(cell, tuple) else _several(cell, separator) for cell in cells]


def _refuse_printed_lists(table: Table, name: str, cells: Sequence[Cell], separator: str | None) -> None:
    """Raise an error for printed lists such as "['ant', 'bee']", which are not class names."""
    printed = [cell for cell in cells if isinstance(cell, str) and _PRINTED_LIST.fullmatch(cell)]
    if printed and len(printed) == sum(cell != "" for cell in cells):
        longest = max(printed, key=len)
        plain = (separator or ";").join(item.strip(" '\"") for item in longest.strip("[](){}").split(","))
        raise DataError(
            f"{table.path}: {name} holds printed lists ({longest}); write the labels as {plain}, with "
            f"data.table.label_separator {(separator or ';')!r} where an image has several, or lists "
            "into a Parquet file"
        )


def _several(cell: Label, separator: str | None) -> tuple[Label, ...]:
    """Split a text into distinct labels without surrounding blanks."""
    parts = str(cell).split(separator) if separator is not None else [str(cell)]
    return tuple(dict.fromkeys(name for part in parts if (name := clean_name(part))))


def _join_rows(
    file: Path,
    files: Sequence[Path],
    labels: Sequence[Label | tuple[Label, ...]],
    splits: Sequence[str],
    groups: Sequence[str] | None,
) -> tuple[list[int], list[Label | tuple[Label, ...]]]:
    """Merge the rows of each image: the first row, with the labels of all."""
    rows = list(rows_by_file(files).values())
    torn = [
        str(files[own[0]]) for own in rows if len({(splits[i], None if groups is None else groups[i]) for i in own}) > 1
    ]
    if torn:
        raise DataError(
            f"{file} puts {plural(len(torn), 'image')} into several splits or groups: {head(torn)}; keep one each"
        )
    joined: list[Label | tuple[Label, ...]] = []
    for own in rows:
        joined.append(tuple(count_labels(labels[i] for i in own)))
    return [own[0] for own in rows], joined
