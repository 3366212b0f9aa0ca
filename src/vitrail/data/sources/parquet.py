"""Parquet files with embedded images, in the format of the Hugging Face hub."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vitrail.data.image_errors import refuse_pointer
from vitrail.data.listing import list_by_suffix
from vitrail.data.sources.embedded import Part
from vitrail.errors import DataError, first_line

# The hub names files SPLIT-00000-of-00004.parquet.
SPLIT_WORDS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}


def parquet_parts(path: str | Path) -> list[Part]:
    """List the files of a collection; names that begin with train, validation or test give the split.

    Args:
        path: A Parquet file, or a folder of them.

    Raises:
        DataError: No such file, or one that cannot be read.
    """
    files = _files(Path(path))
    return [
        Part(file.stem, str(file), _split_of(file, len(files)), _schema(file), partial(_read, file)) for file in files
    ]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = list_by_suffix(path, ".parquet")
        if not files:
            raise DataError(f"the folder {path} holds no Parquet file (*.parquet)")
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"no Parquet file at {path}; check data.path")
    for file in files:
        refuse_pointer(file)
    return files


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file} as Parquet: {first_line(error)}") from error


def _read(file: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file} as Parquet: {first_line(error)}") from error


def _split_of(file: Path, number: int) -> str:
    """Return the split by the beginning of a file's (or its folder's) name, if there are several files."""
    if number == 1:
        return ""
    match = re.match(r"[a-z]+", file.name.lower())
    for word in (match.group() if match else "", file.parent.name.lower()):
        if word in SPLIT_WORDS:
            return SPLIT_WORDS[word]
    return ""
