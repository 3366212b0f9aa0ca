"""Images that lie in files, one an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.data.images import BANDS, BandError, read_image
from vitrail.data.sources.base import ImageSource
from vitrail.errors import DataError


class FileSource(ImageSource):
    """Image files with a class each.

    Every file is decoded once, small, when the source is made, so that all faults are known before anything begins.

    Args:
        root: The folder that keys are relative to.
        rows: For each image: split ("" where none is given), class (or a tuple of several labels), file.
        classes: Names of the classes.
        size: Height and width that images are brought to.
        color: "rgb" or "gray".
        resize: "crop" or "squash".
        convert: Convert images of other bands instead of refusing them.

    Raises:
        DataError: Files that are no images or have other bands; all are counted, the first are named.
    """

    def __init__(
        self,
        root: Path,
        rows: Sequence[tuple[str, str | tuple[str, ...], Path]],
        classes: Sequence[str],
        size: tuple[int, int],
        color: Literal["rgb", "gray"],
        resize: Literal["crop", "squash"],
        convert: bool,
    ) -> None:
        self.root, self.size, self.color, self.resize, self.convert = root, size, color, resize, convert
        self.bands = {"image": BANDS[color]}
        self.classes = tuple(classes)
        self._files = [file for _, _, file in rows]
        self._check()
        self.keys = [(file.relative_to(root) if file.is_relative_to(root) else file).as_posix() for file in self._files]
        self.given_split = [split for split, _, _ in rows]
        index = {name: i for i, name in enumerate(self.classes)}
        self.targets = as_targets([label for _, label, _ in rows], index)

    def _check(self) -> None:
        def fault(file: Path) -> DataError | None:
            try:
                read_image(file, self.color, (8, 8), "squash", self.convert)
            except DataError as error:
                return error
            return None

        with ThreadPoolExecutor() as pool:
            faults = [error for error in pool.map(fault, self._files) if error is not None]
        other_bands = [str(error) for error in faults if isinstance(error, BandError)]
        unreadable = [str(error) for error in faults if not isinstance(error, BandError)]
        count = len(self._files)
        if unreadable:
            raise DataError(f"{len(unreadable)} of {count} files are no images that can be read: {some(unreadable)}")
        if other_bands:
            raise DataError(f"{len(other_bands)} of {count} images have other bands: {some(other_bands)}")

    def load(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Images ``(B, C, H, W)`` in 0..1, at the wanted size."""
        images = [read_image(self._files[i], self.color, self.size, self.resize, self.convert) for i in indices]
        return {"image": torch.stack(images).float().div_(255.0)}


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
                f"{where} has the classes {', '.join(unknown)} that the run does not know: {', '.join(given)}"
            )
        return tuple(given)
    if len(names) < 2:
        raise DataError(f"{where} has one class only ({', '.join(names)}), two are needed")
    return tuple(names)


def some(items: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
