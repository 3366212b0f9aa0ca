"""Tables with embedded images: Parquet files and data sets of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from vitrail.data.classes import ClassRules, Label, clean_name, count_labels, encode_targets, resolve_classes
from vitrail.data.file_reader import FileReader
from vitrail.data.image_errors import BandError, bands_message, head, unreadable_message
from vitrail.data.images import image_size
from vitrail.data.sources.base import to_unit
from vitrail.data.sources.columns import are_splits, describe_unused, find_column, groups_of_cells, splits_of_cells
from vitrail.data.sources.encoded import EncodedSource
from vitrail.data.sources.table_file import Cell, cells_of, column_problem
from vitrail.data.stored_values import Survey, Surveys
from vitrail.data.threads import map_in_threads
from vitrail.data.thumbnails import SIDE, Thumbnails
from vitrail.errors import DataError, count_of, did_you_mean, plural

# Decoded images of this many bytes are kept in memory.
_SMALL = 512 * 2**20


@dataclass(frozen=True)
class Part:
    """One of several tables of a collection.

    Attributes:
        name: Prefix of its rows' names, before their number.
        title: Name in errors.
        split: The split that all its rows are in, "" where it does not say.
        schema: Its columns.
        read: Reads the columns of these names.
        has_files: Whether an image that is not in the table lies in a file of this machine, at its path.
    """

    name: str
    title: str
    split: str
    schema: pa.Schema
    read: Callable[[list[str]], pa.Table]
    has_files: bool = False


class EmbeddedSource(EncodedSource):
    """Column of images (a struct of ``bytes`` and ``path``, or bytes) and column of labels.

    The images' bytes are read into memory. Every image is decoded once, so that all faults are known before anything
    begins; where all of them at the wanted size take at most 512 MiB they are kept. Names of classes come from the
    hub's metadata where they are there.

    Args:
        parts: The tables.
        root: Name of all parts in errors.
        reader: Reader of the images.
        rules: Rules that map labels to classes; by their names when not given.
        image_column: The column of images; the only one that holds bytes when not given.
        label_column: The column of labels.
        group: A column of groups, or a regular expression on the paths; "group" where there is one, when not given.
        skip: Leave out images that cannot be read.
        group_column: A column of groups that must be there.
        split_column: A column of splits that must be there; "split" where it holds nothing else, when not given.

    Raises:
        DataError: A column that is missing or of another kind; images that cannot be read or have other bands; labels
            that are missing, or have no name.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        root: str | Path,
        reader: FileReader,
        rules: ClassRules | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        group: str | None = None,
        skip: bool = False,
        group_column: str | None = None,
        split_column: str | None = None,
    ) -> None:
        self.root, self.readers = Path(root), {"image": reader}
        self.bands = {"image": reader.bands}
        if reader.wavelengths is not None:
            self.wavelengths = {"image": reader.wavelengths}
        schema, title = parts[0].schema, parts[0].title
        image_column = image_column or _image_column(schema, title)
        label_column = label_column or "label"
        for column in (image_column, label_column, group_column, split_column):
            if column is not None and column not in schema.names:
                raise DataError(
                    f"{title} has no column {column!r}, only {', '.join(schema.names)}"
                    f"{did_you_mean(column, schema.names)}"
                )
        own_group = find_column(schema.names, "group") if group is None or group not in schema.names else group
        group_column = group_column or own_group
        split_given = split_column is not None
        split_column = split_column or find_column(schema.names, "split")
        columns = {image_column, label_column, group_column, split_column} - {None}
        tables = [part.read(sorted(name for name in columns if name is not None)) for part in parts]
        self._has_files = any(part.has_files for part in parts)
        self._bytes, self._paths = _bytes_and_paths(_joined(tables, image_column, self.root), image_column, self.root)
        origins = [(part, row) for part, rows in zip(parts, tables, strict=True) for row in range(rows.num_rows)]
        keys = [path or f"{part.name}/{row:08d}" for path, (part, row) in zip(self._paths, origins, strict=True)]
        if len(set(keys)) < len(keys):  # the paths inside are not unique: their rows are
            keys = [f"{part.name}/{row:08d}" for part, row in origins]
        self.named = keys == self._paths
        labels, own = _labels_of_parts(parts, tables, label_column)
        found = resolve_classes(count_labels(labels), rules or ClassRules(), self.root, own)
        self.classes, self.numbering = found.names, found.numbering
        targets = encode_targets(labels, found.index, len(found.names))
        self._decoded: Tensor | None = None
        self.left_out, kept = self._check(keys, skip)
        self._rows = np.array(kept, dtype=np.int64)
        self.keys, self.targets = [keys[i] for i in kept], targets[self._rows]
        self.given_split = [origins[i][0].split for i in kept]
        if split_column is not None:
            cells = _cells_of_parts(parts, tables, split_column)
            if split_given or (not any(self.given_split) and are_splits(cells)):
                splits = splits_of_cells(cells, self.root)
                self.given_split = [splits[i] for i in kept]
        if group_column is not None:
            groups = groups_of_cells(_cells_of_parts(parts, tables, group_column))
            self.groups = [groups[i] for i in kept]
        rest = [name for name in schema.names if name not in (image_column, label_column)]
        self.notes = describe_unused(rest, split_column, group_column or group)

    @property
    def reader(self) -> FileReader:
        """Reader of the images."""
        return self.readers["image"]

    def _check(self, keys: Sequence[str], skip: bool) -> tuple[list[tuple[str, str]], list[int]]:
        """Decode all images and cache small ones; return excluded rows with reasons, and the others."""
        shape = (len(keys), len(self.reader.bands), *self.reader.size)
        if math.prod(shape) <= _SMALL:
            self._decoded, self.in_memory = torch.empty(shape, dtype=torch.uint8), True
        small = np.zeros((0 if self._decoded is not None else len(keys), SIDE, SIDE), dtype=np.uint8)
        faults: list[tuple[int, DataError]] = []
        seen = Surveys(self.reader.bands)
        # Images whose values become floats (they have pixels without data, or a stated range).
        floats: dict[int, Tensor] = {}

        def decode(row: int) -> Survey | int | None:
            try:
                if self._decoded is None:
                    own, small[row] = self.reader.survey_picture(self._content(row), keys[row])
                    return own
                image, own = self.reader.read_and_survey_picture(self._content(row), keys[row])
            except DataError as error:
                faults.append((row, error))
                return None
            if image.dtype == torch.uint8:
                self._decoded[row] = image
            else:
                floats[row] = image
            return own

        for row, own in enumerate(map_in_threads(decode, range(len(keys)))):
            if own is not None:
                seen.add(row, keys[row], own)
        faults.sort(key=lambda item: item[0])
        other_bands = [(keys[row], error) for row, error in faults if isinstance(error, BandError)]
        unreadable = [(row, error) for row, error in faults if not isinstance(error, BandError)]
        gone = {row for row, _ in unreadable}
        if unreadable and (not skip or len(gone) == len(keys)):
            named = [(keys[row], error) for row, error in unreadable]
            of = f"{plural(len(keys), 'image')} in {self.root}"
            raise DataError(unreadable_message(named, len(keys), of, skipped=skip))
        if other_bands:
            raise DataError(bands_message(other_bands, len(keys)))
        kept = [i for i in range(len(keys)) if i not in gone]
        self._small = small if self._decoded is not None else small[kept]
        values, self.value_notes = seen.decide(self.reader.rule, kept)
        self.values = {"image": values}
        if floats and self._decoded is not None:
            self._decoded = to_unit(self._decoded)
            for row, image in floats.items():
                self._decoded[row] = image
        return [(keys[row], str(error)) for row, error in unreadable], kept

    def _content(self, row: int) -> bytes:
        content: bytes | None = self._bytes[row].as_py()
        if content is None and self._has_files and self._paths[row]:
            try:
                return Path(self._paths[row]).read_bytes()
            except OSError as error:
                raise DataError(f"cannot read {self._paths[row]}: {error.strerror or error}") from error
        return content if content is not None else b""

    def _decode(self, row: int, name: str, size: tuple[int, int] | None) -> Tensor:
        return self.reader.read_picture(self._content(row), name, size)

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Read images ``(B, C, H, W)``, uint8; float32 with NaN where some have pixels without data."""
        if self._decoded is not None and not self.reader.in_full:
            return {"image": self._decoded[torch.from_numpy(self._rows[list(indices)])]}
        rows = self._rows[list(indices)].tolist()
        images = [self._decode(row, self.keys[i], self.reader.size) for i, row in zip(indices, rows, strict=True)]
        if len({image.dtype for image in images}) > 1:
            images = [to_unit(image) for image in images]
        return {"image": torch.stack(images)}

    def thumbnails(self) -> Thumbnails:
        """Return small gray images, computed at the first decoding."""
        return super().thumbnails() if self._decoded is not None else self._small

    def original_size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image in its file."""
        return image_size(self._content(int(self._rows[index])), self.keys[index])

    def read_stored(self, stream: str, index: int) -> npt.NDArray[Any]:
        """Read an image in full and in its own units."""
        return self.readers[stream].read_stored_picture(self._content(int(self._rows[index])), self.keys[index])

    def digest(self, index: int) -> bytes:
        """Hash the bytes of an image."""
        return hashlib.sha256(self._content(int(self._rows[index]))).digest()


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _image_column(schema: pa.Schema, title: str) -> str:
    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" and _is_binary(kind.field(i).type) for i in range(kind.num_fields))
        return _is_binary(kind)

    found = [field.name for field in schema if holds_bytes(field.type)]
    if len(found) == 1:
        return str(found[0])
    if "image" in found:
        return "image"
    held = f"several ({', '.join(found)}); choose one with data.table.image_column" if found else "none"
    raise DataError(f"{title} should have one column with the bytes of images, it has {held}")


def _bytes_and_paths(column: pa.ChunkedArray, name: str, path: Path) -> tuple[pa.ChunkedArray, list[str]]:
    kind = column.type
    if pa.types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields)):
        fields = [kind.field(i).name for i in range(kind.num_fields)]
        paths = pc.struct_field(column, "path").to_pylist() if "path" in fields else [None] * len(column)
        return pc.struct_field(column, "bytes"), [name or "" for name in paths]
    if not _is_binary(kind):
        raise DataError(
            f"{path}: the column {name!r} holds {kind}; bytes of images are wanted (data.table.image_column)"
        )
    return column, [""] * len(column)


def _joined(tables: Sequence[pa.Table], name: str, path: Path) -> pa.ChunkedArray:
    """Concatenate one column of several tables."""
    try:
        return pa.concat_tables([table.select([name]) for table in tables], promote_options="permissive")[name]
    except pa.ArrowException as error:
        raise DataError(f"{path}: the column {name!r} is of other types in other files ({error})") from error


def _cells_of_parts(parts: Sequence[Part], tables: Sequence[pa.Table], name: str) -> list[Cell]:
    """Return the cells of a column of all parts."""
    cells: list[Cell] = []
    for part, table in zip(parts, tables, strict=True):
        reason = column_problem(table[name].type)
        if reason is not None:
            raise DataError(f"{part.title}: the column {name!r} {reason}")
        cells += cells_of(table[name], Path(part.title))
    return cells


_Labels = list[Label | tuple[Label, ...]]


def _labels_of_parts(
    parts: Sequence[Part], tables: Sequence[pa.Table], name: str
) -> tuple[_Labels, dict[int, str] | None]:
    """Return the label (or labels) of each image, and the class names of numeric labels.

    Where the files name their numbers differently, the labels are these names.

    Raises:
        DataError: Labels that cannot be read, or numbers without names in one file that others name.
    """
    of_parts = [
        _labels(table[name], name, Path(part.title)) for part, table in zip(parts, tables, strict=True) if len(table)
    ]
    filled = [part for part, table in zip(parts, tables, strict=True) if len(table)]
    named = [
        None if any(isinstance(label, str) for label in count_labels(own)) else _hub_names(part.schema, name)
        for part, own in zip(filled, of_parts, strict=True)
    ]
    joined = [label for own in of_parts for label in own]
    if all(names == named[0] for names in named):
        return joined, None if not named or named[0] is None else dict(enumerate(named[0]))
    texts: _Labels = []
    for part, own, names in zip(filled, of_parts, named, strict=True):
        counts = count_labels(own)
        if names is None and any(isinstance(label, int) for label in counts):
            raise DataError(
                f"{part.title}: the labels ({name}) are numbers without names, and other files name theirs; store the "
                "names as labels there"
            )
        names = names or []
        strangers = sorted(v for v in counts if isinstance(v, int) and not 0 <= v < len(names))
        if strangers:
            raise DataError(
                f"{part.title}: the labels {head([str(v) for v in strangers])} have no name, there are {len(names)}: "
                f"{head(names)}; correct them"
            )
        by_label: dict[Label, Label] = {v: clean_name(names[v]) if isinstance(v, int) else v for v in counts}
        texts += [tuple(by_label[v] for v in x) if isinstance(x, tuple) else by_label[x] for x in own]
    return texts, None


def _labels(column: pa.ChunkedArray, name: str, path: Path) -> _Labels:
    """Return the label or labels of each image."""
    missing = column.null_count + (pc.sum(pc.is_nan(column)).as_py() or 0 if pa.types.is_floating(column.type) else 0)
    if missing:
        raise DataError(
            f"{path}: {count_of(missing, len(column), 'label', 'is', 'are')} missing ({name}); fill or remove them"
        )
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    reason = column_problem(kind)
    if reason is not None:
        raise DataError(f"{path}: the column {name!r} {reason}; numbers or texts are wanted as labels")
    while pa.types.is_nested(kind):
        kind = kind.value_type
    plain = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_integer,
        pa.types.is_boolean,
    )
    whole = pa.types.is_floating(kind) and (
        pa.types.is_nested(column.type) or bool(pc.all(pc.equal(pc.floor(column), column)).as_py())
    )
    if not whole and not any(fits(kind) for fits in plain):
        raise DataError(f"{path}: the column {name!r} holds {column.type}; numbers or texts are wanted as labels")
    cells = cells_of(column, path)
    empty = sum(cell == "" for cell in cells)
    if empty:
        raise DataError(
            f"{path}: {count_of(empty, len(column), 'label', 'is', 'are')} missing ({name}); fill or remove them"
        )
    return list(cells)


def _hub_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Read class names from the hub's metadata, for labels and lists of labels."""
    content = (schema.metadata or {}).get(b"huggingface")
    if content is None:
        return None
    try:
        feature = json.loads(content)["info"]["features"][column]
        feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
        names = feature["names"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None
