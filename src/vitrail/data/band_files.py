"""Images whose bands are separate files: grouping of the files, and reading them as one image."""

from __future__ import annotations

import glob
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vitrail.data.image_errors import BandError, UnreadableError, head
from vitrail.data.images import Picture
from vitrail.data.rasters import Raster
from vitrail.errors import ConfigError, DataError, plural

# Separators left at the ends of a name after its mark is removed.
_SEPARATORS = " _-."


@dataclass(frozen=True)
class BandFiles:
    """Rule that assigns files to bands of one image.

    An image is known by the file of its first band; the others' names differ from it in the mark alone.

    Attributes:
        pattern: A regular expression with a group named "band", searched in a file's name (or, where the name lacks
            it, in the whole path); its last match counts.
        marks: Text of the group for each band, in the bands' order.
        bands: Names of the bands.
    """

    pattern: str
    marks: tuple[str, ...]
    bands: tuple[str, ...]

    def files(self, first: Path) -> list[Path]:
        """List the file of each band of an image, in order.

        Args:
            first: The file of one of its bands.

        Raises:
            UnreadableError: A band has no file; the message names the image and the band.
        """
        parts = split_mark(self.pattern, first)
        if parts is None:
            raise UnreadableError(f"{first} has no band (data.bands.files {self.pattern!r})", "remove or rename it")
        before, _, after = parts
        found = [Path(before + mark + after) for mark in self.marks]
        missing = [
            f"{band} ({file.name if file.parent == first.parent else file})"
            for band, file in zip(self.bands, found, strict=True)
            if not file.is_file()
        ]
        if missing:
            raise UnreadableError(
                f"{self.name(str(first))} lacks the band {' and '.join(missing)}", "add the file, or remove the others"
            )
        return found

    def name(self, path: str) -> str:
        """Return the name of an image: the path of its files without the mark of the band."""
        parts = split_mark(self.pattern, Path(path))
        return path if parts is None else _joined(parts[0], parts[2])


def split_mark(pattern: str, path: Path) -> tuple[str, str, str] | None:
    """Split a path into the parts before, inside and after the mark of its band; None without a mark.

    Args:
        pattern: A regular expression with a group named "band".
        path: The file.
    """
    text = path.as_posix()
    start = len(text) - len(path.name)
    for offset in (start, 0):
        matches = [match for match in re.finditer(pattern, text[offset:]) if match["band"]]
        if matches:
            left, right = (offset + edge for edge in matches[-1].span("band"))
            return text[:left], text[left:right], text[right:]
    return None


def _joined(before: str, after: str) -> str:
    folder, _, head = before.rpartition("/")
    if not head.strip(_SEPARATORS):
        after = after.lstrip(_SEPARATORS if "/" not in after[:1] else "/")
        return f"{folder}/{after}" if folder else after
    stem, dot, suffix = after.rpartition(".")
    if not stem.strip(_SEPARATORS) and "/" not in after:
        return f"{before.rstrip(_SEPARATORS)}{dot}{suffix}"
    return before + after


def check_pattern(pattern: str) -> None:
    """Raise an error for a pattern without a group for bands.

    Raises:
        ConfigError: Not a regular expression, or one without a group named "band".
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"data.bands.files {pattern!r} is not a valid regular expression ({error})") from error
    if "band" not in compiled.groupindex:
        raise ConfigError(
            f"data.bands.files {pattern!r} has no group named band; mark what differs between the files of an image, "
            r"for example 'Ch(?P<band>\d)_'"
        )


def gather(pattern: str, bands: Sequence[str], files: Sequence[Path]) -> tuple[BandFiles, list[list[int]], list[str]]:
    """Group the files that are bands of one image.

    Args:
        pattern: A regular expression with a group named "band".
        bands: Names of the bands: the marks themselves, in the wanted order, or other names for the marks in their
            natural order (2 before 10).
        files: The files.

    Returns:
        The rule; the indices of each image's files; lines on files of other bands, which are left out.

    Raises:
        DataError: Files without a mark, or another number of marks than of names.
    """
    marks: Counter[str] = Counter()
    images: dict[tuple[str, str], list[int]] = defaultdict(list)
    strangers = []
    for i, file in enumerate(files):
        parts = split_mark(pattern, file)
        if parts is None:
            strangers.append(str(file))
            continue
        marks[parts[1]] += 1
        images[parts[0], parts[2]].append(i)
    if strangers:
        raise DataError(
            f"data.bands.files {pattern!r} finds no band in {len(strangers):,} of {plural(len(files), 'file')}: "
            f"{head(strangers)}; correct the pattern, or move them away"
        )
    known = set(marks)
    if not known >= set(bands) and len(known) != len(bands):
        # Of files named one by one the others lie beside them.
        known |= {mark for before, after in images for mark in _beside(pattern, before, after)}
    if known & set(bands):
        # A band that no image has is missing, not another one.
        order = tuple(bands)
    elif len(known) == len(bands):
        order = tuple(sorted(known, key=natural_order))
    else:
        found = ", ".join(sorted(known, key=natural_order))
        raise DataError(
            f"data.bands.names has {plural(len(bands), 'name')} ({', '.join(bands)}) and data.bands.files finds "
            f"{plural(len(known), 'band')} ({found}); name each once, in this order, or name those that are wanted"
        )
    other = sorted(known - set(order), key=natural_order)
    number = sum(marks[mark] for mark in other)
    notes = (
        [f"left out {plural(number, 'file')} of bands that data.bands.names lacks: {', '.join(other)}"]
        if number
        else []
    )
    index = {mark: i for i, mark in enumerate(order)}
    wanted = []
    for rows in images.values():
        own = {index[mark]: i for i in rows if (mark := _mark(pattern, files[i])) in index}
        if own:
            wanted.append([own[band] for band in sorted(own)])
    return BandFiles(pattern, order, tuple(bands)), wanted, notes


def _mark(pattern: str, file: Path) -> str:
    parts = split_mark(pattern, file)
    return "" if parts is None else parts[1]


def _beside(pattern: str, before: str, after: str) -> list[str]:
    found = [split_mark(pattern, Path(path)) for path in glob.glob(f"{glob.escape(before)}*{glob.escape(after)}")]
    return [parts[1] for parts in found if parts is not None and (parts[0], parts[2]) == (before, after)]


def natural_order(mark: str) -> list[tuple[int, str]]:
    """Return a sort key for marks, in which 2 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", mark) if part]


def stack_rasters(files: Sequence[Path], open_one: Callable[[Path], Raster]) -> Raster:
    """Read single-band rasters as one image; smaller bands are enlarged to the largest by repeating pixels.

    Args:
        files: One for each band.
        open_one: Reads a file.

    Raises:
        BandError: A file of several bands, or files that differ in shape, type, scale or value of no data.
    """
    parts = [open_one(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if len(part.values) != 1:
            raise BandError(
                f"{file} has {plural(len(part.values), 'band')} where one is wanted (data.bands.files)",
                "keep one band a file",
                summary="have several bands where one is wanted (data.bands.files)",
            )
    for what, found in (
        ("types", {part.values.dtype.name for part in parts}),
        ("values of no data", {str(part.no_data) for part in parts}),
        ("kinds of values (with and without a scale)", {str(part.scale is None) for part in parts}),
    ):
        if len(found) > 1:
            raise BandError(
                f"the bands of {files[0]} have different {what} ({', '.join(sorted(found))})",
                "write all bands alike",
                summary=f"have bands of different {what}",
            )
    height, width = max(part.values.shape[1:] for part in parts)
    values = np.concatenate([_enlarged(part.values, height, width, files[0]) for part in parts])
    invalid = None
    if any(part.invalid is not None for part in parts):
        empty = np.zeros((1, height, width), dtype=bool)
        invalid = np.concatenate(
            [empty if p.invalid is None else _enlarged(p.invalid[None], height, width, files[0]) for p in parts]
        )
    scale = [part.scale for part in parts if part.scale is not None]
    offset = [part.offset for part in parts if part.offset is not None]
    return Raster(
        values,
        invalid,
        parts[0].no_data,
        tuple(v for own in scale for v in own) or None,
        tuple(v for own in offset for v in own) or None,
    )


def _enlarged(values: npt.NDArray[Any], height: int, width: int, name: Path) -> npt.NDArray[Any]:
    """Enlarge a band ``(1, h, w)`` to the largest size by repeating pixels."""
    rows, columns = values.shape[-2:]
    if (rows, columns) == (height, width):
        return values
    if abs(rows * width - columns * height) > max(height, width):
        raise BandError(
            f"the bands of {name} have different shapes ({rows} x {columns} and {height} x {width})",
            "cut them to the same area",
            summary="have bands of different shapes",
        )
    down, across = np.arange(height) * rows // height, np.arange(width) * columns // width
    taken: npt.NDArray[Any] = values[:, down[:, None], across]
    return taken


def stack_pictures(files: Sequence[Path], decode_one: Callable[[Path], Picture]) -> Picture:
    """Read gray pictures as one image of several bands; no data in one band is no data in all.

    Args:
        files: One for each band.
        decode_one: Decodes a file as gray.

    Raises:
        BandError: Pictures of different shapes.
    """
    parts = [decode_one(file) for file in files]
    if len({(part.planes.shape, part.reduced) for part in parts}) > 1:
        shapes = sorted({" x ".join(map(str, part.size)) for part in parts})
        raise BandError(
            f"the bands of {files[0]} have different shapes ({' and '.join(shapes)})",
            "scale them to one",
            summary="have bands of different shapes",
        )
    masks = [part.invalid for part in parts if part.invalid is not None]
    invalid = np.logical_or.reduce(masks) if masks else None
    planes = torch.cat([part.planes for part in parts])
    return Picture(planes, invalid, sum(part.pixels for part in parts), parts[0].reduced)
