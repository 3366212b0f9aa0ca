"""Images in one folder a class, split already (train/, val/, test/) or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitrail.data.faults import some
from vitrail.data.listing import list_files
from vitrail.data.reading import FileReader
from vitrail.data.sources.arrangement import read_arrangement
from vitrail.data.sources.base import ImageSource
from vitrail.data.sources.files import FileSource, agree_on_classes
from vitrail.errors import ConfigError, DataError


class FolderSource(FileSource):
    """An image folder.

    Args:
        path: The folder: ``train/CLASS/...``, ``val/CLASS/...`` (and ``test/CLASS/...``), or ``CLASS/...``.
        readers: How the files of each stream are read.
        classes: Names of the classes where they are given (by a run); those of the folder otherwise.
        second: A folder with the second stream's file for each image, at the same place and of the same stem.
        skip: Leave out files that cannot be read.

        each: Take a file as often as links lead to it.

    Raises:
        DataError: No such folder, no or one class, folders that are no classes for certain, an empty class, files
            that are no images or have other bands (all are counted, the first are named), images without a second
            file, or a class that is not among the given ones.
    """

    def __init__(
        self,
        path: str | Path,
        readers: Mapping[str, FileReader],
        classes: Sequence[str] | None = None,
        second: str | Path | None = None,
        skip: bool = False,
        each: bool = False,
    ) -> None:
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"no folder of images at {root}; check data.path")
        found = read_arrangement(root, each=each)
        names = found.names
        for split, folders in found.classes.items():
            strangers = sorted(set(folders) - set(found.classes.get("train", folders)))
            if strangers and classes is None:
                raise DataError(
                    f"{root}: {split} has the classes {', '.join(strangers)} that train lacks; add images of them to "
                    "train, or remove them"
                )
        if len(names) == 1 and classes is None and any(p.is_dir() for p in (root / names[0]).glob("*")):
            inner = root / names[0]
            raise DataError(
                f"{root} has one class only ({names[0]}), two are needed; is {inner} the folder that you mean?"
            )
        rows = [
            (split, name, file)
            for split, folders in found.classes.items()
            for name, files in folders.items()
            for file in files
        ]
        if each and "" in found.classes:
            raise ConfigError(
                "data.repeated_files each takes images several times and needs them split already (train/, val/): "
                "copies would lie in several splits"
            )
        partners = None if second is None else find_partners([file for *_, file in rows], root, Path(second))
        agreed = agree_on_classes(names, classes, root)
        super().__init__(root, rows, agreed, readers, partners, skip=skip, notes=found.notes, each=each)


def find_partners(
    files: Sequence[Path], root: Path, other: Path, what: str = "second file", setting: str = "data.spectral_path"
) -> list[Path]:
    """The file in another folder that belongs to each file: at the same place, and of the same stem.

    Args:
        files: Files in ``root``.
        root: Their folder.
        other: The other folder.
        what: What is looked for, for errors.
        setting: Where the other folder was named.

    Raises:
        DataError: No such folder, a file without a partner or with several.
    """
    if not other.is_dir():
        raise DataError(f"no folder of {what}s at {other}; check {setting}")
    places: dict[Path, list[Path]] = {}
    for file in list_files(other):
        places.setdefault(file.relative_to(other).with_suffix(""), []).append(file)
    found = [places.get(file.relative_to(root).with_suffix(""), []) for file in files]
    alone = [str(file) for file, partners in zip(files, found, strict=True) if not partners]
    if alone:
        raise DataError(
            f"{len(alone)} of {len(files)} images have no {what} at the same place and of the same stem in {other}: "
            f"{some(alone)}; add it, or take the image out"
        )
    several = [f"{p[0]} and {p[1].name}" for p in found if len(p) > 1]
    if several:
        raise DataError(f"{len(several)} images have several {what}s of the same stem: {some(several)}; keep one each")
    return [partners[0] for partners in found]


def count_by_class(source: ImageSource, indices: Sequence[int]) -> dict[str, int]:
    """How many of the images are of each class."""
    counts = Counter(int(source.targets[i]) for i in indices)
    return {name: counts.get(i, 0) for i, name in enumerate(source.classes)}
