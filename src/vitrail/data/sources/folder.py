"""Image folders with one subfolder for each class, split (train/, val/, test/) or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from vitrail.data.classes import (
    ClassRules,
    Label,
    clean_name,
    count_labels,
    describe_similar,
    normalize_label,
    resolve_classes,
)
from vitrail.data.file_reader import FileReader
from vitrail.data.image_errors import head
from vitrail.data.listing import describe_passed_over, list_files, list_images, subfolders
from vitrail.data.sources.files import FileSource
from vitrail.data.sources.folder_layout import read_arrangement
from vitrail.data.sources.folder_names import parse_split
from vitrail.data.sources.patterns import by_pattern
from vitrail.errors import ConfigError, DataError, count_of, plural


class FolderSource(FileSource):
    """Image folder.

    Args:
        path: The folder: ``train/CLASS/...``, ``val/CLASS/...`` (and ``test/CLASS/...``), or ``CLASS/...``.
        readers: Reader of the files of each stream.
        classes: Names of the classes where they are given (by a run); those of the folder otherwise.
        second: A folder with the second stream's file for each image, of the same relative path and stem.
        skip: Leave out files that cannot be read.
        rules: Rules that map folder names to classes; their own names when not given.
        label_pattern: Regular expression that finds the class in an image's path (relative to the folder) instead:
            its first parenthesis. Images may then lie anywhere in the folder.

        each: Take a file as often as links lead to it.

    Raises:
        DataError: No such folder, no or one class, folders that are not classes for certain, an empty class, files
            that are not images or have other bands (all are counted, the first are named), images without a second
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
        rules: ClassRules | None = None,
        label_pattern: str | None = None,
    ) -> None:
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"no folder of images at {root}; check data.path")
        rules = rules or ClassRules(known=None if classes is None else tuple(classes))
        stacked = readers["image"].band_pattern is not None
        rows, notes = _by_folder(root, each, stacked) if label_pattern is None else _by_name(root, label_pattern, each)
        labels = [label for _, label, _ in rows]
        if label_pattern is None and rules.known is None:
            _refuse_lone_class(root, set(labels))
        splits = [split for split, *_ in rows]
        if each and "" in splits:
            raise ConfigError(
                "data.images.repeated_files each takes images several times and needs them split already (train/, "
                "val/): copies would lie in several splits"
            )
        found = resolve_classes(count_labels(labels), rules, root)
        names = found.named(labels)
        if rules.known is None:
            _refuse_untrained(root, splits, names)
        files = [file for *_, file in rows]
        partners = None if second is None else find_partners(files, root, Path(second))
        named = list(zip(splits, names, files, strict=True))
        of_run = classes is not None
        super().__init__(root, named, found.names, readers, partners, None, skip, notes, each, of_run)
        self.numbering = found.numbering


_Rows = list[tuple[str, Label, Path]]


def _by_folder(root: Path, each: bool, stacked: bool) -> tuple[_Rows, Sequence[str]]:
    """Return split, label and path of each image, and notes; the class folder is the label."""
    found = read_arrangement(root, each=each, stacked=stacked)
    rows = [
        (split, normalize_label(name, root), file)
        for split, folders in found.classes.items()
        for name, files in folders.items()
        for file in files
    ]
    return rows, found.notes


def _by_name(root: Path, pattern: str, each: bool) -> tuple[_Rows, Sequence[str]]:
    """Return split, label and path of each image, and notes; a pattern finds the label in the path."""
    parts = {folder: parse_split(folder.name) for folder in subfolders(root)}
    splits = {folder: split for folder, split in parts.items() if split is not None}
    if splits and len(splits) < len(parts):
        others = [folder.name for folder in parts if folder not in splits]
        raise DataError(
            f"{root} has the folders {', '.join(folder.name for folder in splits)}, which are named like splits, "
            f"beside {head(others)}; rename them if they are not splits, or move the others into them"
        )
    listings = {split: list_images(folder, each=each) for folder, split in (splits or {root: ""}).items()}
    files = [(split, file) for split, listing in listings.items() for file in listing.files]
    if not files:
        raise DataError(f"{root} holds no image; check data.path")
    labels = by_pattern("data.classes.label_pattern", pattern, [file.relative_to(root).as_posix() for _, file in files])
    rows: _Rows = [
        (split, normalize_label(label, root), file) for (split, file), label in zip(files, labels, strict=True)
    ]
    return rows, describe_passed_over(list(listings.values()))


def _refuse_lone_class(root: Path, names: Set[Label]) -> None:
    if len(names) != 1:
        return
    (name,) = names
    splits = [path for path in subfolders(root) if parse_split(path.name)]
    folders = [p for part in splits or [root] for p in subfolders(part) if clean_name(p.name) == name]
    inside = [path.name for path in subfolders(folders[0])] if folders else []
    if not inside:
        return
    problem = f"{root} has one class only ({name}), two are needed"
    if splits:
        raise DataError(
            f"{problem}; are the folders in {folders[0]} the classes ({head(inside)})? --data.classes.label_pattern "
            "'([^/]+)/[^/]+$' takes the lowest folders"
        )
    raise DataError(f"{problem}; is {folders[0]} the folder that you mean?")


def _refuse_untrained(root: Path, splits: Sequence[str], names: Sequence[str | tuple[str, ...]]) -> None:
    """Raise an error for classes of other splits without training images."""
    of_split: dict[str, set[str]] = {}
    for split, name in zip(splits, names, strict=True):
        of_split.setdefault(split, set()).add(str(name))
    for split, own in of_split.items():
        strangers = sorted(own - of_split.get("train", own))
        if strangers:
            similar = describe_similar({*strangers, *of_split["train"]})
            raise DataError(
                f"{root}: {split} has the classes {', '.join(strangers)} that train lacks; add images of them to "
                f"train, or remove them{f' ({similar})' if similar else ''}"
            )


def find_partners(
    files: Sequence[Path], root: Path, other: Path, what: str = "second file", setting: str = "data.spectral.path"
) -> list[Path]:
    """Find the file of each image in another folder: same relative path, any suffix.

    Args:
        files: Files in ``root``.
        root: Their folder.
        other: The other folder.
        what: Kind of the files, for errors.
        setting: Setting that names the other folder.

    Raises:
        DataError: No such folder, a file without a partner or with several.
    """
    if not other.is_dir():
        raise DataError(f"no folder of {what}s at {other}; check {setting}")
    by_stem: dict[Path, list[Path]] = {}
    for file in list_files(other):
        by_stem.setdefault(file.relative_to(other).with_suffix(""), []).append(file)
    found = [by_stem.get(file.relative_to(root).with_suffix(""), []) for file in files]
    alone = [str(file) for file, partners in zip(files, found, strict=True) if not partners]
    if alone:
        raise DataError(
            f"{count_of(len(alone), len(files), 'image', 'has', 'have')} no {what} of the same relative path and stem "
            f"in {other}: {head(alone)}; add it, or take the image out"
        )
    several = [f"{p[0]} and {p[1].name}" for p in found if len(p) > 1]
    if several:
        raise DataError(
            f"{plural(len(several), 'image has', 'images have')} several {what}s of the same stem: {head(several)}; "
            "keep one each"
        )
    return [partners[0] for partners in found]
