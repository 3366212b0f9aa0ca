"""Images that a table lists: a path and a label a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from vitrail.data.reading import FileReader
from vitrail.data.sources.files import FileSource, agree_on_classes, some
from vitrail.errors import DataError, closest

_SPLITS = ("train", "val", "test", "")


class TableSource(FileSource):
    """A CSV or Parquet file with the columns ``path`` and ``label``.

    Where there are the columns ``split``, ``group`` (images that belong together) and ``spectral`` (path of the second
    stream's file), these are used; others are passed over.
    Other columns are passed over. With a separator, the label holds any number of labels; an empty one means none.

    Args:
        path: The table; image paths in it are relative to its folder, or absolute.
        readers: How the files of each stream are read.
        classes: Names of the classes where they are given (by a run); those of the table otherwise, sorted.
        group: The column that names the groups; "group" where there is one, when not given.
        skip: Leave out files that cannot be read.
        separator: What stands between several labels of an image; one label an image when not given.

    Raises:
        DataError: No such table, or one that cannot be read; a column or a label missing; images that do not exist,
            are listed twice, cannot be read or have other bands (all are counted, the first are named); an unknown
            split; fewer than two classes, or one that is not among the given ones; second files without names for
            their bands, or names without files.
    """

    def __init__(
        self,
        path: str | Path,
        readers: Mapping[str, FileReader],
        classes: Sequence[str] | None = None,
        group: str | None = None,
        skip: bool = False,
        separator: str | None = None,
    ) -> None:
        file = Path(path)
        table = _read_table(file)
        if "spectral" in table and "spectral" not in readers:
            raise DataError(f"{file} lists second files (spectral); name their bands with data.spectral_band_names")
        for name in ("path", "label", *(["spectral"] if "spectral" in readers else [])):
            if name not in table:
                columns = [str(column) for column in table.columns]
                raise DataError(
                    f"{file} has no column {name!r}, only {', '.join(map(repr, columns))}; {_remedy(name, columns)}"
                )
            if name == "label" and separator is not None:
                continue
            empty = [str(i + 2) for i in table.index[table[name] == ""]]
            if empty:
                raise DataError(
                    f"{file}: {name} is empty in {len(empty)} rows (line {some(empty)}); fill or remove them"
                )
        if table.empty:
            raise DataError(f"{file} lists no images; it has columns and no rows")
        splits = table["split"] if "split" in table else pd.Series("", index=table.index)
        unknown = sorted(set(splits) - set(_SPLITS))
        if unknown:
            raise DataError(f"{file}: split must be train, val, test or empty, got {some([repr(s) for s in unknown])}")
        files = [file.parent / name for name in table["path"]]
        second = [file.parent / name for name in table["spectral"]] if "spectral" in readers else None
        listed = [*files, *(second or ())]
        missing = [str(image) for image in listed if not image.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(listed)} images that {file} lists do not exist: {some(missing)}; paths are "
                "relative to the table's folder"
            )
        twice = [str(name) for name in table["path"][table["path"].duplicated()]]
        if twice:
            raise DataError(f"{file} lists {len(twice)} images more than once: {some(twice)}; keep one row each")
        labels: list[str | tuple[str, ...]] = [
            label if separator is None else _several(label, separator) for label in table["label"]
        ]
        names = sorted({name for label in labels for name in ((label,) if isinstance(label, str) else label)})
        rows = list(zip(splits, labels, files, strict=True))
        # A name that is no column is a regular expression on the paths.
        column = group if group is not None else "group"
        groups = [str(name) for name in table[column]] if column in table else None
        super().__init__(file.parent, rows, agree_on_classes(names, classes, file), readers, second, groups, skip)


def _remedy(name: str, columns: Sequence[str]) -> str:
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        return "separate its columns by commas"
    near = closest(name, columns)
    asked = f"{near.removeprefix('; ')} " if near.endswith("?") else ""
    return f"{asked}rename the column that holds it"


def _several(text: str, separator: str) -> tuple[str, ...]:
    """The labels in a text, each once and without the spaces around it."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(separator) if part.strip()))


def _read_table(file: Path) -> pd.DataFrame:
    """All values as text, empty where there is none."""
    if not file.is_file():
        raise DataError(f"no table at {file}; check data.path")
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            table = pd.read_parquet(file)
            return table.astype(object).where(table.notna(), "").astype(str)
        return pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise DataError(f"cannot read {file} as a table: {str(error).splitlines()[0]}") from error
