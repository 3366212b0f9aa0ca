"""Images in files, one file for each image and stream."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.data.band_files import gather
from vitrail.data.classes import Label, encode_targets
from vitrail.data.file_reader import FileReader
from vitrail.data.image_errors import (
    BAND_COUNT,
    BandError,
    UnreadableError,
    bands_message,
    head,
    unreadable_message,
)
from vitrail.data.sources.base import to_unit
from vitrail.data.sources.encoded import EncodedSource
from vitrail.data.stored_values import Survey, Surveys
from vitrail.data.threads import map_in_threads
from vitrail.data.thumbnails import SIDE, Thumbnails
from vitrail.errors import DataError, plural

# Split, class (or a tuple of labels) and file of an image.
Row = tuple[str, str | tuple[str, ...], Path]


class FileSource(EncodedSource):
    """Image files with a class each, and a second file each for a second stream.

    Every file is decoded once, small, when the source is made, so that all faults are known before anything begins.

    Args:
        root: The folder that keys are relative to.
        rows: Split ("" where none is given), class (or a tuple of labels) and file of each image.
        classes: Names of the classes.
        readers: Reader of the files of each stream.
        second: The second file of each image, where there are two streams.
        groups: The group of each image, where these are known.
        skip: Leave out files that are missing, cannot be read or have another number of bands, instead of refusing
            to begin.
        notes: Files ignored by the listing.
        each: Take a file as often as links lead to it, instead of once.
        of_run: Whether the files are given to a trained run, for remedies.

    Raises:
        DataError: Files that are not images or have other bands (all are counted, the first are named);
            one file in several classes or splits; a class without an image that can be read.
    """

    named = True

    def __init__(
        self,
        root: Path,
        rows: Sequence[Row],
        classes: Sequence[str],
        readers: Mapping[str, FileReader],
        second: Sequence[Path] | None = None,
        groups: Sequence[str] | None = None,
        skip: bool = False,
        notes: Sequence[str] = (),
        each: bool = False,
        of_run: bool = False,
    ) -> None:
        self.root, self.readers, self._of_run = root, dict(readers), of_run
        self.bands = {name: reader.bands for name, reader in readers.items()}
        self.wavelengths = {name: r.wavelengths for name, r in readers.items() if r.wavelengths is not None}
        self.classes = tuple(classes)
        if readers["image"].band_pattern is not None:
            rows, groups, stacked = self._stack_bands(rows, groups)
            notes = [*notes, *stacked]
        files = {"image": [file for _, _, file in rows]}
        if second is not None:
            files["spectral"] = list(second)
        first, more = _once(rows, files, each)
        files = {name: [paths[i] for i in first] for name, paths in files.items()}
        self.notes = [*notes, *more]
        self._hashes: dict[str, list[bytes]] = {name: [b""] * len(paths) for name, paths in files.items()}
        self.left_out, kept = self._check(files, skip)
        self._hashes = {name: [hashes[i] for i in kept] for name, hashes in self._hashes.items()}
        self.files = {name: [paths[i] for i in kept] for name, paths in files.items()}
        kept = [first[i] for i in kept]
        _refuse_lost_classes(rows, kept)
        self.keys = [self._name(file) for file in self.files["image"]]
        self.given_split = [rows[i][0] for i in kept]
        self.groups = None if groups is None else [groups[i] for i in kept]
        index: dict[Label, int] = {name: i for i, name in enumerate(self.classes)}
        self.targets = encode_targets([rows[i][1] for i in kept], index, len(index))

    def _stack_bands(
        self, rows: Sequence[Row], groups: Sequence[str] | None
    ) -> tuple[list[Row], list[str] | None, list[str]]:
        """Merge the rows of files that are bands of one image into the first; also return groups and notes.

        Raises:
            DataError: Bands of one image in several classes, splits or groups.
        """
        reader = self.readers["image"]
        assert reader.band_pattern is not None, "asked for"
        stack, images, notes = gather(reader.band_pattern, reader.bands, [file for *_, file in rows])
        self.readers["image"] = dataclasses.replace(reader, stack=stack)
        for members in images:
            placed = {(rows[i][:2], None if groups is None else groups[i]) for i in members}
            if len(placed) > 1:
                examples = " and ".join(f"{rows[i][2]} ({_place(rows[i])})" for i in members[:2])
                raise DataError(
                    f"bands of one image lie in several classes, splits or groups: {examples}; keep them together"
                )
        first = [members[0] for members in images]
        return [rows[i] for i in first], None if groups is None else [groups[i] for i in first], notes

    def _name(self, file: Path) -> str:
        return self.readers["image"].name(_relative(file, self.root))

    def _check(self, files: Mapping[str, Sequence[Path]], skip: bool) -> tuple[list[tuple[str, str]], list[int]]:
        """Decode and hash all files and resolve the value range; return excluded files with reasons, and the others."""
        work = [(i, name, file) for name, paths in files.items() for i, file in enumerate(paths)]
        seen = {name: Surveys(reader.bands) for name, reader in self.readers.items()}
        faults: list[tuple[int, Path, DataError]] = []

        small = np.zeros((len(files["image"]), SIDE, SIDE), dtype=np.uint8)

        def survey(item: tuple[int, str, Path]) -> tuple[Survey | int, Thumbnails] | DataError:
            i, name, file = item
            if skip and not file.exists():
                return UnreadableError(f"{file} does not exist")
            try:
                found = self.readers[name].survey(file)
                # While the file's pages are in memory.
                self._hashes[name][i] = hash_files(self.readers[name].files(file))
                return found
            except DataError as error:
                return error

        for (i, name, file), found in zip(work, map_in_threads(survey, work), strict=True):
            if isinstance(found, DataError):
                faults.append((i, file, found))
            else:
                seen[name].add(i, str(file), found[0])
                if name == "image":
                    small[i] = found[1]
        # Images that only band names could convert are excluded like unreadable ones.
        leave = skip and sum(_is_band_count(error) for *_, error in faults) < len(files["image"])
        unreadable = [
            (i, file, error)
            for i, file, error in faults
            if isinstance(error, UnreadableError) or (leave and _is_band_count(error))
        ]
        other_bands = [
            (str(file), error)
            for _, file, error in faults
            if isinstance(error, BandError) and not (leave and _is_band_count(error))
        ]
        unset = [error for *_, error in faults if not isinstance(error, (BandError, UnreadableError))]
        if unset:  # files that are whole, for which the recipe lacks a setting: leaving them out is not an answer
            raise type(unset[0])(f"{len(unset)} of {plural(len(work), 'file')}: {unset[0]}")
        gone = {i for i, *_ in unreadable}
        kept = [i for i in range(len(files["image"])) if i not in gone]
        if unreadable and (not skip or not kept):
            named = [(str(file), error) for _, file, error in unreadable]
            raise DataError(
                unreadable_message(named, len(work), plural(len(work), "file"), skipped=skip, of_run=self._of_run)
            )
        if other_bands:
            raise DataError(bands_message(other_bands, len(work), of_run=self._of_run))
        self._decide_ranges(seen, kept)
        self._small = small[kept]
        return [(self._name(file), str(error)) for _, file, error in unreadable], kept

    def _decide_ranges(self, seen: Mapping[str, Surveys], kept: Sequence[int]) -> None:
        """Resolve one range of values for all files of a stream."""
        decided = {name: own.decide(self.readers[name].rule, kept) for name, own in seen.items()}
        self.values = {name: values for name, (values, _) in decided.items()}
        self.value_notes = [note for _, notes in decided.values() for note in notes]
        self.readers = {
            name: dataclasses.replace(reader, values=self.values[name].limits) for name, reader in self.readers.items()
        }

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Read images at the model's size; see :meth:`ImageSource.read`."""
        streams = {}
        for name, files in self.files.items():
            images = [self.readers[name].read(files[i]) for i in indices]
            if len({image.dtype for image in images}) > 1:
                images = [to_unit(image) for image in images]
            streams[name] = torch.stack(images)
        return streams

    def thumbnails(self) -> Thumbnails:
        """Return small gray images, computed at the first decoding."""
        return self._small

    def read_stored(self, stream: str, index: int) -> npt.NDArray[Any]:
        """Read a file in full and in its own units."""
        return self.readers[stream].read_stored(self.files[stream][index])

    def original_size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image in its file."""
        return self.readers["image"].original_size(self.files["image"][index])

    def digest(self, index: int) -> bytes:
        """Return the hash of the image's file, or of its files."""
        hashes = [hashes[index] for hashes in self._hashes.values()]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(b"".join(hashes)).digest()


def hash_files(files: Sequence[Path]) -> bytes:
    """Hash the bytes of a file; of several files, their hashes.

    Raises:
        UnreadableError: One cannot be read.
    """
    hashes = []
    for file in files:
        try:
            hashes.append(hashlib.sha256(file.read_bytes()).digest())
        except OSError as error:
            raise UnreadableError(f"{file} cannot be read ({error.strerror or error}); remove or replace it") from error
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(b"".join(hashes)).digest()


def _once(rows: Sequence[Row], files: Mapping[str, Sequence[Path]], each: bool) -> tuple[list[int], list[str]]:
    """Keep each file once (unless all are wanted), and describe the repeated ones.

    Raises:
        DataError: A file that is of several classes or in several splits, under whatever names.
    """
    seen: dict[tuple[str, ...], int] = {}
    resolve = _resolver()
    first, repeated, conflicts = [], [], []
    for i, (split, label, file) in enumerate(rows):
        real = tuple(resolve(paths[i]) for paths in files.values())
        known = seen.setdefault(real, i)
        if known == i or each:
            first.append(i)
        if known != i:
            repeated.append(f"{file} = {rows[known][2]}")
            if rows[known][:2] != (split, label):
                here, there = (_place(row) for row in (rows[i], rows[known]))
                conflicts.append(f"{rows[known][2]} ({there}) and {file} ({here})")
    if conflicts:
        raise DataError(
            f"{plural(len(conflicts), 'file')} in several classes or splits through links: {head(conflicts)}; keep "
            "each in one"
        )
    if not repeated:
        return first, []
    what = "taken each time (data.images.repeated_files each)" if each else "taken once"
    number = plural(len(repeated), "image")
    return first, [f"{number} reached through links a second time, {what}: {head(repeated)}"]


def _resolver() -> Callable[[Path], str]:
    """Return a function that identifies a file through links: by real path, or by inode for hard links.

    Folders, which hold many files, are resolved once.
    """
    folders: dict[str, str] = {}

    def resolve(file: Path) -> str:
        folder, name = os.path.split(file)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        path = os.path.join(folders[folder], name)
        path = os.path.realpath(path) if os.path.islink(path) else path
        try:
            status = os.stat(path)
        except OSError:  # a fault of its own, found when the file is read
            return path
        return path if status.st_nlink == 1 or status.st_ino == 0 else f"{status.st_dev}:{status.st_ino}"

    return resolve


def _place(row: Row) -> str:
    split, label, _ = row
    name = label if isinstance(label, str) else "+".join(label)
    return "/".join(part for part in (split, name) if part)


def _refuse_lost_classes(rows: Sequence[Row], kept: Sequence[int]) -> None:
    """Raise an error if a class lost all its images.

    Raises:
        DataError: There is one.
    """
    lost = sorted({row[1] for row in rows if isinstance(row[1], str)} - {rows[i][1] for i in kept})
    if lost:
        raise DataError(
            f"no image of {', '.join(str(name) for name in lost)} can be read; restore the images, or remove the class"
        )


def _relative(file: Path, root: Path) -> str:
    return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()


def _is_band_count(error: DataError) -> bool:
    return isinstance(error, BandError) and error.kind == BAND_COUNT
