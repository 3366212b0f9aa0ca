"""Images that lie in files, one an image and a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.data.images import BandError, UnreadableError
from vitrail.data.reading import FileReader
from vitrail.data.sources.base import ImageSource, to_unit
from vitrail.errors import DataError


class FileSource(ImageSource):
    """Image files with a class each, and a second file each where there are two streams.

    Every file is decoded once, small, when the source is made, so that all faults are known before anything begins.

    Args:
        root: The folder that keys are relative to.
        rows: For each image: split ("" where none is given), class (or a tuple of several labels), file.
        classes: Names of the classes.
        readers: How the files of each stream are read.
        second: The second file of each image, where there are two streams.
        groups: The group of each image, where these are known.
        skip: Leave out files that cannot be read instead of refusing to begin.

    Raises:
        DataError: Files that are no images (all are named) or have other bands (all are counted, the first are named).
    """

    def __init__(
        self,
        root: Path,
        rows: Sequence[tuple[str, str | tuple[str, ...], Path]],
        classes: Sequence[str],
        readers: Mapping[str, FileReader],
        second: Sequence[Path] | None = None,
        groups: Sequence[str] | None = None,
        skip: bool = False,
    ) -> None:
        self.root, self.readers = root, dict(readers)
        self.bands = {name: reader.bands for name, reader in readers.items()}
        self.wavelengths = {name: r.wavelengths for name, r in readers.items() if r.wavelengths is not None}
        self.classes = tuple(classes)
        files = {"image": [file for _, _, file in rows]}
        if second is not None:
            files["spectral"] = list(second)
        self.left_out, kept = self._check(files, skip)
        self.files = {name: [paths[i] for i in kept] for name, paths in files.items()}
        self.keys = [_relative(file, root) for file in self.files["image"]]
        self.given_split = [rows[i][0] for i in kept]
        self.groups = None if groups is None else [groups[i] for i in kept]
        index = {name: i for i, name in enumerate(self.classes)}
        self.targets = as_targets([rows[i][1] for i in kept], index)

    def _check(self, files: Mapping[str, Sequence[Path]], skip: bool) -> tuple[list[tuple[str, str]], list[int]]:
        """Decode all files; gives what is left out and why, and which images stay."""
        work = [(i, self.readers[name], file) for name, paths in files.items() for i, file in enumerate(paths)]

        def fault(item: tuple[int, FileReader, Path]) -> DataError | None:
            _, reader, file = item
            try:
                reader.read(file, (8, 8))
            except DataError as error:
                return error
            return None

        with ThreadPoolExecutor() as pool:
            faults = [(*item, error) for item, error in zip(work, pool.map(fault, work), strict=True) if error]
        other_bands = [str(error) for *_, error in faults if isinstance(error, BandError)]
        unreadable = [(i, file, str(error)) for i, _, file, error in faults if isinstance(error, UnreadableError)]
        unset = [error for *_, error in faults if not isinstance(error, (BandError, UnreadableError))]
        if unset:  # files that are whole, for which the recipe lacks a setting: leaving them out is no answer
            raise type(unset[0])(f"{len(unset)} of {len(work)} files: {unset[0]}")
        if unreadable and not skip:
            raise DataError(
                f"{len(unreadable)} of {len(work)} files are no images that can be read (--data.on_unreadable skip "
                f"goes on without them): {'; '.join(message for *_, message in unreadable)}"
            )
        if other_bands:
            raise DataError(f"{len(other_bands)} of {len(work)} images have other bands: {some(other_bands)}")
        gone = {i for i, *_ in unreadable}
        kept = [i for i in range(len(files["image"])) if i not in gone]
        if not kept:
            raise DataError(f"none of {len(work)} files is an image that can be read; the first: {unreadable[0][2]}")
        return [(_relative(file, self.root), message) for _, file, message in unreadable], kept

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Images at the wanted size; see :meth:`ImageSource.read`."""
        streams = {}
        for name, files in self.files.items():
            images = [self.readers[name].read(files[i]) for i in indices]
            if len({image.dtype for image in images}) > 1:
                images = [to_unit(image) for image in images]
            streams[name] = torch.stack(images)
        return streams

    def original_size(self, index: int) -> tuple[int, int]:
        """Height and width of an image in its file."""
        return self.readers["image"].original_size(self.files["image"][index])

    def digest(self, index: int) -> bytes:
        """A hash of the image's files."""
        content = hashlib.sha256()
        for files in self.files.values():
            content.update(hashlib.sha256(files[index].read_bytes()).digest())
        return content.digest()


def _relative(file: Path, root: Path) -> str:
    return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()


def as_targets(labels: Sequence[str | tuple[str, ...]], index: Mapping[str, int]) -> npt.NDArray[np.int64]:
    """Labels as numbers.

    Args:
        labels: A name an image, or a tuple of any number of names an image.
        index: Name -> number.

    Returns:
        Classes, shape ``(N,)``; of tuples 1 for each label that an image has and 0 for others, shape ``(N, K)``.
    """
    if not any(isinstance(label, tuple) for label in labels):
        return np.array([index[str(label)] for label in labels], dtype=np.int64)
    targets = np.zeros((len(labels), len(index)), dtype=np.int64)
    for row, names in enumerate(labels):
        targets[row, [index[name] for name in names]] = 1
    return targets


def agree_on_classes(names: Sequence[str], given: Sequence[str] | None, where: Path) -> tuple[str, ...]:
    """The classes to use: those that a run gives, or those found.

    Args:
        names: Those found, in order.
        given: Those of a run, if there is one.
        where: Where they were found, for the error.

    Raises:
        DataError: A class that the run does not know, or fewer than two.
    """
    if given is not None:
        unknown = sorted(set(names) - set(given))
        if unknown:
            raise DataError(
                f"{where} has the classes {', '.join(unknown)} that the run does not know: {', '.join(given)}; rename "
                "or remove them"
            )
        return tuple(given)
    if len(names) < 2:
        raise DataError(f"{where} has one class only ({', '.join(names)}), two are needed")
    return tuple(names)


def some(items: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
