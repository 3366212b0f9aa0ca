"""Images that nobody labelled: all of a folder's, at any depth."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from vitrail.data.images import list_files
from vitrail.data.sources.files import FileSource
from vitrail.errors import DataError

# A folder of one of these names holds images that were set apart; pre-training must not take them in unseen.
_SET_APART = {"val", "valid", "validation", "test"}


class UnlabelledSource(FileSource):
    """All images in a folder and the folders in it, without classes; every target is -1.

    Args:
        path: The folder.
        size: Height and width that images are brought to.
        color: "rgb" or "gray".
        resize: "crop" or "squash".
        convert: Convert images of other bands instead of refusing them.

    Raises:
        DataError: No such folder, no file in it, a folder of validation or test images directly in it, or files that
            are no images or have other bands (all are counted, the first are named).
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        color: Literal["rgb", "gray"] = "rgb",
        resize: Literal["crop", "squash"] = "crop",
        convert: bool = False,
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
        super().__init__(root, [("", "", file) for file in files], ("",), size, color, resize, convert)
        self.classes = ()
        self.targets = np.full(len(files), -1, dtype=np.int64)
