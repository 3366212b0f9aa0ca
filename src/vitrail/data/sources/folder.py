"""Images in one folder a class, split already (train/, val/, test/) or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from vitrail.data.images import list_files
from vitrail.data.sources.base import ImageSource
from vitrail.data.sources.files import FileSource, agree_on_classes
from vitrail.errors import DataError

# Names that a split's folder may have.
_SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class FolderSource(FileSource):
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
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"no folder of images at {root}; check data.path")
        parts = _split_folders(root)
        found = {split: _class_folders(folder) for split, folder in parts.items()}
        names = sorted({name for folders in found.values() for name in folders})
        for split, folders in found.items():
            strangers = sorted(set(folders) - set(found.get("train", folders)))
            if strangers and classes is None:
                raise DataError(f"{root}: {split} has the classes {', '.join(strangers)} that train lacks")
        if len(names) == 1 and classes is None and any(p.is_dir() for p in (root / names[0]).glob("*")):
            inner = root / names[0]
            raise DataError(
                f"{root} has one class only ({names[0]}), two are needed; is {inner} the folder that you mean?"
            )
        rows = [
            (split, name, file)
            for split, folders in found.items()
            for name, folder in folders.items()
            for file in _files_of(folder)
        ]
        super().__init__(root, rows, agree_on_classes(names, classes, root), size, color, resize, convert)


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


def count_by_class(source: ImageSource, indices: Sequence[int]) -> dict[str, int]:
    """How many of the images are of each class."""
    counts = Counter(int(source.targets[i]) for i in indices)
    return {name: counts.get(i, 0) for i, name in enumerate(source.classes)}
