"""Images in one folder a class, split already (train/, val/, test/) or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vitrail.data.images import BANDS, BandError, list_files, read_image
from vitrail.data.sources.base import ImageSource
from vitrail.errors import DataError

# Names that a split's folder may have.
_SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class FolderSource(ImageSource):
    """An image folder.

    Args:
        path: The folder: ``train/CLASS/...``, ``val/CLASS/...`` (and ``test/CLASS/...``), or ``CLASS/...``.
        size: Height and width that images are brought to.
        color: "rgb" or "gray".
        resize: "crop" or "squash".
        convert: Convert images of other bands instead of refusing them.
        classes: Names of the classes where they are given (by a run); those of the folder otherwise.

    Raises:
        DataError: No such folder, no or one class, an empty class, files that are no images or have other
            bands (all are counted, the first are named), or a class that is not among the given ones.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        color: Literal["rgb", "gray"] = "rgb",
        resize: Literal["crop", "squash"] = "crop",
        convert: bool = False,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.root = Path(path)
        self.size, self.color, self.resize, self.convert = size, color, resize, convert
        self.bands = {"image": BANDS[color]}
        if not self.root.is_dir():
            raise DataError(f"no folder of images at {self.root}; check data.path")
        parts = _split_folders(self.root)
        found = {split: _class_folders(folder) for split, folder in parts.items()}
        names = sorted({name for folders in found.values() for name in folders})
        for split, folders in found.items():
            strangers = sorted(set(folders) - set(found.get("train", folders)))
            if strangers and classes is None:
                raise DataError(f"{self.root}: {split} has the classes {', '.join(strangers)} that train lacks")
        self.classes = _agree(names, classes, self.root)
        rows = [
            (split, name, file)
            for split, folders in found.items()
            for name, folder in folders.items()
            for file in _files_of(folder)
        ]
        self._check(rows)
        self.keys = [file.relative_to(self.root).as_posix() for _, _, file in rows]
        self.given_split = [split for split, _, _ in rows]
        index = {name: i for i, name in enumerate(self.classes)}
        self.targets = np.array([index[name] for _, name, _ in rows], dtype=np.int64)

    def _check(self, rows: list[tuple[str, str, Path]]) -> None:
        """Decode every image once, small, so that all faults are known before anything begins."""

        def fault(file: Path) -> DataError | None:
            try:
                read_image(file, self.color, (8, 8), "squash", self.convert)
            except DataError as error:
                return error
            return None

        with ThreadPoolExecutor() as pool:
            faults = [error for error in pool.map(fault, [file for _, _, file in rows]) if error is not None]
        other_bands = [str(error) for error in faults if isinstance(error, BandError)]
        unreadable = [str(error) for error in faults if not isinstance(error, BandError)]
        if unreadable:
            raise DataError(
                f"{len(unreadable)} of {len(rows)} files are no images that can be read: {_some(unreadable)}"
            )
        if other_bands:
            raise DataError(f"{len(other_bands)} of {len(rows)} images have other bands: {_some(other_bands)}")

    def load(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Images ``(B, C, H, W)`` in 0..1, at the wanted size."""
        images = [
            read_image(self.root / self.keys[i], self.color, self.size, self.resize, self.convert) for i in indices
        ]
        return {"image": torch.stack(images).float().div_(255.0)}


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; one under "" where the folder is not split."""
    parts: dict[str, Path] = {}
    folders = [p for p in sorted(root.iterdir()) if p.is_dir()]
    for split, names in _SPLIT_NAMES.items():
        present = [p for p in folders if p.name.lower() in names]
        if len(present) > 1:
            raise DataError(f"{root} has {' and '.join(p.name for p in present)}; keep one folder for {split}")
        if present:
            parts[split] = present[0]
    if set(parts) == {"train"}:
        return {"": parts["train"]}
    return parts or {"": root}


def _class_folders(folder: Path) -> dict[str, Path]:
    folders = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    if not folders:
        raise DataError(f"{folder} has no class folders; put each class's images into a folder of its own")
    for name, path in folders.items():
        if next(_files_of(path), None) is None:
            raise DataError(f"the class folder {path} holds no file; fill it or remove it ({name!r} would be empty)")
    return folders


def _files_of(folder: Path) -> Iterator[Path]:
    return iter(list_files(folder))


def _agree(names: list[str], given: Sequence[str] | None, root: Path) -> tuple[str, ...]:
    if given is not None:
        unknown = sorted(set(names) - set(given))
        if unknown:
            raise DataError(
                f"{root} has the classes {', '.join(unknown)} that the run does not know: {', '.join(given)}"
            )
        return tuple(given)
    if len(names) < 2:
        inner = root / names[0]
        hint = f"; is {inner} the folder that you mean?" if any(p.is_dir() for p in inner.glob("*")) else ""
        raise DataError(f"{root} has one class only ({names[0]}), two are needed{hint}")
    return tuple(names)


def _some(items: list[str], most: int = 3) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more


def count_by_class(source: ImageSource, indices: Sequence[int]) -> dict[str, int]:
    """How many of the images are of each class."""
    counts = Counter(int(source.targets[i]) for i in indices)
    return {name: counts.get(i, 0) for i, name in enumerate(source.classes)}
