"""Unlabelled images of a folder, at any depth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitrail.data.file_reader import FileReader
from vitrail.data.listing import by_suffix, describe_passed_over, list_images, subfolders
from vitrail.data.sources.files import FileSource
from vitrail.data.sources.folder import find_partners
from vitrail.data.sources.folder_names import guess_split
from vitrail.errors import DataError


class UnlabelledSource(FileSource):
    """All images in a folder and its subfolders, without classes; every target is -1.

    Args:
        path: The folder.
        readers: Reader of the files of each stream.
        second: A folder with the second stream's file for each image, of the same relative path and stem.
        skip: Leave out files that cannot be read.

    Raises:
        DataError: No such folder, no file in it, a folder of validation or test images directly in it, files that
            are not images or have other bands (all are counted, the first are named), or images without a second file.
    """

    def __init__(
        self,
        path: str | Path,
        readers: Mapping[str, FileReader],
        second: str | Path | None = None,
        skip: bool = False,
    ) -> None:
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"no folder of images at {root}; check data.path")
        # A folder named like one of these splits holds images that were set apart; pre-training must not take them in.
        apart = [path.name for path in subfolders(root) if guess_split(path.name) in ("val", "test")]
        if apart:
            raise DataError(
                f"{root} has the folder {apart[0]}, whose images look set apart: name the folder with the others (its "
                "train, say), or use data.source folder, which keeps them apart"
            )
        listing = list_images(root)
        files, notes = listing.files, describe_passed_over([listing])
        if not files:
            only = f"no image, only {by_suffix(listing.passed_over)}" if listing.passed_over else "no file"
            raise DataError(f"{root} holds {only}; check data.path")
        partners = None if second is None else find_partners(files, root, Path(second))
        rows = [("", "", file) for file in files]
        super().__init__(root, rows, ("",), readers, partners, skip=skip, notes=notes)
        self.classes = ()
        self.targets = np.full(len(self.keys), -1, dtype=np.int64)
