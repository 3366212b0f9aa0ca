"""Data sets of the Hugging Face hub, or saved by its library (the ``hf`` extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from vitrail.data.sources.embedded import Part
from vitrail.data.sources.parquet import SPLIT_WORDS
from vitrail.errors import DataError, closest, first_line
from vitrail.extras import import_extra


def hub_parts(path: str, subset: str | None = None, image_column: str | None = None) -> list[Part]:
    """Load the splits of a data set.

    Args:
        path: A name on the hub (``"owner/name"``), a folder that ``save_to_disk`` wrote, or a folder that
            ``datasets.load_dataset`` understands (images in folders by class, Parquet, WebDataset, ...).
        subset: Configuration of the data set, where it has several.
        image_column: The column of images, where it has several.

    Raises:
        VitrailError: The extra is not installed.
        DataError: No such data set, no network, or nothing in it that is an image.
    """
    library = import_extra("datasets", "hf")
    splits = _load(library, path, subset)
    parts = []
    for name, rows in splits.items():
        images = [column for column, kind in rows.features.items() if isinstance(kind, library.Image)]
        if not images:
            raise DataError(f"{path} has no column of images in {name}, only {', '.join(rows.column_names)}")
        if image_column is not None and image_column not in images:
            raise DataError(f"{path}: {image_column!r} is not a column of images{closest(image_column, images)}")
        for column in images:
            rows = rows.cast_column(column, library.Image(decode=False))
        parts.append(_part(rows, name, f"{path} ({name})", SPLIT_WORDS.get(name, "") if len(splits) > 1 else ""))
    return parts


def _load(library: Any, path: str, subset: str | None) -> dict[str, Any]:
    """Load the splits by name."""
    saved = Path(path)
    try:
        if (saved / "dataset_dict.json").is_file() or (saved / "state.json").is_file():
            found = library.load_from_disk(path)
        else:
            found = library.load_dataset(path, subset)
    except (OSError, ValueError, RuntimeError) as error:
        # The library's kinds of error for a missing data set, subset or network all derive from these.
        raise DataError(
            f"cannot load the data set {path!r}: {first_line(error)}; check data.path (owner/name on the hub, or a "
            "folder), data.table.subset and the network"
        ) from error
    return dict(found) if isinstance(found, dict) else {str(found.split or "all"): found}


def _part(rows: Any, name: str, title: str, split: str) -> Part:
    # What was filtered or shuffled without being written lies in another order in the table.
    table: pa.Table = rows.flatten_indices().data.table if rows._indices is not None else rows.data.table
    return Part(name, title, split, table.schema, table.select, has_files=True)
