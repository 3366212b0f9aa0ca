"""Images that nobody labelled: all of a folder's, at any depth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitrail.data.images import list_files
from vitrail.data.reading import FileReader
from vitrail.data.sources.files import FileSource
from vitrail.data.sources.folder import find_partners
from vitrail.errors import DataError

# A folder of one of these names holds images that were set apart; pre-training must not take them in unseen.
_SET_APART = {"val", "valid", "validation", "test", "testing"}


class UnlabelledSource(FileSource):
    """All images in a folder and the folders in it, without classes; every target is -1.

    Args:
        path: The folder.
        readers: How the files of each stream are read.
        second: A folder with the second stream's file for each image, at the same place and of the same stem.
        skip: Leave out files that cannot be read.

    Raises:
        DataError: No such folder, no file in it, a folder of validation or test images directly in it, files that
            are no images or have other bands (all are counted, the first are named), or images without a second file.
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
        apart = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name.lower() in _SET_APART)
        if apart:
            raise DataError(
                f"{root} has the folder {apart[0]}, whose images look set apart: name the folder with the others (its "
                "train, say), or take data.source folder, which keeps them apart"
            )
        files = list_files(root)
        if not files:
            raise DataError(f"{root} holds no file; check data.path")
        partners = None if second is None else find_partners(files, root, Path(second))
        super().__init__(root, [("", "", file) for file in files], ("",), readers, partners, skip=skip)
        self.classes = ()
        self.targets = np.full(len(self.keys), -1, dtype=np.int64)
