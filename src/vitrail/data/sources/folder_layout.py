"""Layout of a folder of images: splits, classes, or an ambiguity that raises an error."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitrail.data.classes import clean_name
from vitrail.data.image_errors import head
from vitrail.data.listing import (
    TEXT_SUFFIXES,
    Listing,
    by_suffix,
    describe_passed_over,
    list_images,
    subfolders,
)
from vitrail.data.sources.folder_names import (
    MASK_MARK,
    are_bands,
    are_masks,
    are_variants,
    guess_split,
    images_and_masks,
    parse_split,
)
from vitrail.errors import DataError, few, plural

_VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".mpeg", ".mpg", ".webm", ".m4v", ".wmv")
_NUMBERED = re.compile(r"[^\d]*\d+")
_MASK_MARK = re.compile(rf"(?i){MASK_MARK}")
_ARRAYS = (".npy", ".npz", ".mat", ".h5", ".hdf5", ".parquet")


@dataclass
class Arrangement:
    """Classes of a folder of images.

    Attributes:
        classes: Split ("" where there is none) -> class -> its images.
        notes: Ignored files, one line for each kind.
    """

    classes: dict[str, dict[str, list[Path]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Return the names of the classes, sorted."""
        return sorted({name for folders in self.classes.values() for name in folders})


def read_arrangement(root: Path, *, each: bool = False, stacked: bool = False) -> Arrangement:
    """Find the splits and classes of a folder.

    Args:
        root: ``train/CLASS/...``, ``val/CLASS/...`` (and ``test/CLASS/...``), or ``CLASS/...``.
        each: Take files as often as links lead to them.
        stacked: Whether the bands of an image lie in files, or folders, of their own.

    Raises:
        DataError: Folders that are not classes for certain (splits by other names, masks, bands), a class folder
            without an image, or no class at all.
    """
    found = Arrangement()
    parts = _split_folders(root, found)
    listings: list[Listing] = []
    if "" not in parts:
        listings.append(list_images(root, deep=False))
    for split, folder in parts.items():
        _refuse_other_things(folder, subfolders(folder), stacked, found)
        found.classes[split] = _class_folders(folder, each, listings, found)
    for listing in listings:
        if listing.files and not listing.deep:
            found.notes.append(
                f"passed over {plural(len(listing.files), 'image')} in no class folder, directly in {listing.root}: "
                f"{head([file.name for file in listing.files])}"
            )
    found.notes += describe_passed_over(listings)
    return found


def _split_folders(root: Path, found: Arrangement) -> dict[str, Path]:
    """Return the folder of each split; one under "" if the folder is not split."""
    parts: dict[str, Path] = {}
    folders = subfolders(root)
    for folder in folders:
        split = parse_split(folder.name)
        if split in parts:
            raise DataError(f"{root} has {parts[split].name} and {folder.name}; keep one folder for {split}")
        if split is not None:
            parts[split] = folder
    others = [folder for folder in folders if folder not in parts.values()]
    _refuse_missed_splits(root, parts, others)
    if parts and others and not ("train" in parts and subfolders(parts["train"])):
        # Perhaps train and test are vehicles and exams here, or the images to predict lie beside the classes.
        raise DataError(
            f"{root} has the folders {', '.join(p.name for p in parts.values())}, which are named like splits, beside "
            f"{head([p.name for p in others])}; rename them if they are classes, put the others into a folder train if "
            "they are not"
        )
    if not parts:
        _refuse_splits_by_other_names(root, folders)
        return {"": root}
    for folder in [folder for folder in others if guess_split(folder.name)]:
        _note_unlabelled(folder, list_images(folder).files, found)
        others.remove(folder)
    if others:
        found.notes.append(
            f"passed over {plural(len(others), 'folder')} beside {', '.join(p.name for p in parts.values())}: "
            f"{head([p.name for p in others])}"
        )
    for split in [split for split in ("val", "test") if split in parts and "train" in parts]:
        images = _unlabelled(parts[split], parts["train"])
        if images:
            _note_unlabelled(parts.pop(split), images, found)
    return {"": parts["train"]} if set(parts) == {"train"} else parts


def _note_unlabelled(folder: Path, images: Sequence[Path], found: Arrangement) -> None:
    found.notes.append(
        f"passed over {folder}: its {plural(len(images), 'image')} lie in no class folders and look unlabelled; "
        f"`vitrail predict RUN {shlex.quote(str(folder))}` classifies them after training"
    )


def _refuse_missed_splits(root: Path, parts: dict[str, Path], others: Sequence[Path]) -> None:
    """Raise an error for other folders beside splits: splits by other names, masks, training images without classes.

    Raises:
        DataError: There are some.
    """
    if not parts:
        return
    for folder in others:
        split = guess_split(folder.name)
        if (
            split is not None
            and split not in parts
            and ("train" not in parts or not _unlabelled(folder, parts["train"]))
        ):
            raise DataError(
                f"{root} has {folder.name} beside {', '.join(part.name for part in parts.values())}: it is named like "
                f"the split {split}; rename it {split}, or move it out of {root}"
            )
    # Perhaps train is a vehicle here, and the others are too.
    if all(guess_split(folder.name) or are_masks(folder.name) for folder in others) and "train" in parts:
        _refuse_flat_training(parts["train"])


def _refuse_flat_training(train: Path) -> None:
    if not subfolders(train):
        number = len(list_images(train, deep=False).files)
        if number:
            raise DataError(
                f"{train} holds {plural(number, 'image')} and no class folders; put each class's images "
                "into a folder of its own, or take the class from a table (data.source table) or from the images' "
                f"names: --data.path {shlex.quote(str(train))} --data.classes.label_pattern REGEX"
            )


def _unlabelled(folder: Path, train: Path) -> list[Path]:
    """List the images of a split's folder without class folders, or with one that is not a class in training."""
    inner = subfolders(folder)
    known = {clean_name(path.name) for path in subfolders(train)}
    if not inner or (len(inner) == 1 and clean_name(inner[0].name) not in known and len(known) > 1):
        return list_images(folder).files
    return []


def _class_folders(folder: Path, each: bool, listings: list[Listing], found: Arrangement) -> dict[str, list[Path]]:
    """List the images of each class; the listings are appended to the given ones."""
    direct = list_images(folder, deep=False)
    own = [list_images(path, each=each) for path in subfolders(folder)]
    listings += [direct, *own]
    if not own:
        only = f" and no image, only {by_suffix(direct.passed_over)}" if direct.passed_over and not direct.files else ""
        raise DataError(
            f"{folder} has no class folders{only}; put each class's images into a folder of its own"
            + ("" if not direct.files else ", or pre-train on them without classes (data.source unlabelled)")
        )
    passed = [path for listing in (direct, *own) for path in listing.passed_over]
    if not any(listing.files for listing in own) and passed:
        raise DataError(f"no folder in {folder} holds an image, only {by_suffix(passed)}; {_remedy(passed)}")
    classes = {}
    for listing in own:
        if listing.files:
            classes[listing.root.name] = listing.files
        elif listing.figures or listing.outputs:  # outputs of vitrail: counted, not a class
            continue
        elif not listing.passed_over:
            raise DataError(
                f"the class folder {listing.root} holds no file; fill it or remove it ({listing.root.name!r} would be "
                "empty)"
            )
        elif all(path.suffix.lower() in TEXT_SUFFIXES for path in listing.passed_over):
            found.notes.append(
                f"{listing.root} is not a class: it holds no image, only {by_suffix(listing.passed_over)}"
            )
        else:
            raise DataError(
                f"the class folder {listing.root} holds no image, only {by_suffix(listing.passed_over)}; "
                f"{_remedy(listing.passed_over)}, or remove it"
            )
    return classes


def _remedy(files: Sequence[Path]) -> str:
    suffixes = {path.suffix.lower() for path in files}
    if suffixes & set(_VIDEOS):
        return "videos are not read: extract their frames into images"
    if suffixes & set(_ARRAYS):
        return "name an array or Parquet file itself (data.source arrays or parquet)"
    if suffixes & {".xyz", ".pcd", ".ply", ".las", ".laz", ".off", ".stl", ".obj"}:
        return "point clouds are not images"
    if suffixes & {".zip", ".tar", ".gz", ".7z", ".rar"}:
        return "unpack the archives"
    return "add images"


def _refuse_splits_by_other_names(root: Path, folders: Sequence[Path]) -> None:
    """Raise an error for folders named like splits in an unknown form.

    Raises:
        DataError: They are.
    """
    likely = {folder.name: guess_split(folder.name) for folder in folders}
    if len(folders) < 2 or None in likely.values() or "train" not in likely.values():
        return
    train = next(folder for folder in folders if likely[folder.name] == "train")
    inner, classes = _unwrap(train)
    guess = f"their classes seem to be {_listed(classes)}; " if classes else ""
    remedy = f"--data.path {shlex.quote(str(inner))} splits that folder by itself, or " if classes else ""
    names = ", ".join(name for name in ("train", "val", "test") if name in likely.values())
    raise DataError(
        f"the folders {_listed([folder.name for folder in folders])} in {root} are named like splits, not like "
        f"classes; {guess}{remedy}rename them {names}, with class folders directly inside"
    )


def _refuse_other_things(root: Path, folders: Sequence[Path], stacked: bool, found: Arrangement) -> None:
    """Raise an error for folders that are not classes.

    Raises:
        DataError: They are sets that hold the same classes, images beside their masks, or bands.
    """
    names = {folder.name for folder in folders}
    if images_and_masks(names):
        raise DataError(
            f"the folders {_listed(sorted(names))} in {root} look like images and what was drawn on them, not like "
            "classes; put each class's images into a folder of its own, or list path and label in a table (data.source "
            f"table){_classes_inside(folders)}"
        )
    for folder in folders:
        if are_masks(folder.name) and (other := _drawn_on(folder, folders)):
            raise DataError(
                f"the files of {folder} are named like those of {other} and look like masks of them, not like a "
                f"class; move {folder.name} out of {root}; if it is a class, --data.classes.label_pattern "
                "'^([^/]+)/' takes all"
            )
    _refuse_nested_classes(root, folders)
    if not stacked and are_bands(names) and _same_stems(folders):
        raise DataError(
            f"the folders {_listed(sorted(names))} in {root} hold files of the same names and look like bands of the "
            "same images, not like classes; put each class into a folder with the bands' folders inside, and stack "
            "them with data.bands.files"
        )
    below = [_unwrap(folder) for folder in folders]
    sets = [set(inside) for _, inside in below]
    if len(folders) < 2 or min(map(len, sets)) < 2:
        return
    shared = set.intersection(*sets)
    # Numbers may be days, patients or clips as well as the classes 0 to 9.
    numbered = all(_NUMBERED.fullmatch(name) for name in shared) and not are_bands(shared)
    if all(own == shared for own in sets) and are_variants(shared):
        found.notes.append(
            f"each class folder in {root} ({_listed(sorted(names))}) holds {_listed(sorted(shared))}, which look like "
            "images and changed copies of them; `vitrail data audit` finds copies, and its --groups keeps them together"
        )
    elif all(own == shared for own in sets) and not numbered:
        _refuse_same_folders(root, folders, below[0][0], sorted(shared), stacked)
    elif len(shared) > 1 and 2 * len(shared) >= len(set.union(*sets)):
        found.notes.append(
            f"the class folders in {root} ({_listed(sorted(names))}) share the sub-folders {_listed(sorted(shared))} "
            "and hold no images of their own; are these the classes?"
        )


def _classes_inside(folders: Sequence[Path]) -> str:
    """Return a remedy if the folder of images has subfolders, which may be classes or splits."""
    for folder in [folder for folder in folders if not are_masks(folder.name)]:
        inside = subfolders(folder)
        classes = [path for path in inside if not parse_split(path.name)] or [
            p for path in inside for p in subfolders(path)
        ]
        if len(classes) > 1:
            return f"; --data.path {shlex.quote(str(folder))} takes the folders inside"
    return ""


def _drawn_on(masks: Path, folders: Sequence[Path]) -> Path | None:
    """Find the folder whose file names equal those of a folder of masks."""
    files = [file.stem.lower() for file in list_images(masks).files]
    stems = {_MASK_MARK.sub("", stem) for stem in files}
    if all(stem.isdigit() for stem in files):  # numbers are the names of any images: "mask" may be a class
        return None
    for folder in folders:
        if folder != masks and stems and stems <= {file.stem.lower() for file in list_images(folder).files}:
            return folder
    return None


def _refuse_nested_classes(root: Path, folders: Sequence[Path]) -> None:
    """Raise an error for a class folder that holds folders of all classes, as of an archive unpacked twice.

    Raises:
        DataError: There is one.
    """
    names = {folder.name for folder in folders}
    for folder in folders:
        nested = sorted(names & {path.name for path in subfolders(folder)})
        # Numbers inside numbers may be days or patients.
        if all(_NUMBERED.fullmatch(name) for name in (folder.name, *nested)):
            continue
        if len(nested) > 1 and names - {folder.name} <= set(nested):
            raise DataError(
                f"{folder} holds folders named like the classes beside it ({_listed(nested)}); move it out of {root}, "
                "or say which folder is the class, --data.classes.label_pattern '([^/]+)/[^/]+$' (the lowest) or "
                "'^([^/]+)/' (the highest)"
            )


def _refuse_same_folders(root: Path, folders: Sequence[Path], first: Path, shared: list[str], stacked: bool) -> None:
    names = _listed([folder.name for folder in folders])
    if images_and_masks(set(shared)):
        raise DataError(
            f"each class folder in {root} ({names}) holds {_listed(shared)}: masks or annotations would be trained on "
            f"as images; move them out of {root}"
        )
    if are_bands(set(shared)):
        if stacked:
            return
        raise DataError(
            f"each class folder in {root} ({names}) holds {_listed(shared)}, which look like bands of the same images; "
            "stack them with --data.bands.files '(?P<band>[^/]+)/[^/]+$' and --data.bands.names "
            f"'[{', '.join(shared)}]'"
        )
    if any(parse_split(name) or are_masks(name) for name in shared) and not all(parse_split(name) for name in shared):
        raise DataError(
            f"each class folder in {root} ({names}) holds {_listed(shared)}, which are named like splits or masks, not "
            f"like classes; --data.path {shlex.quote(str(folders[0]))} takes {folders[0].name} alone"
        )
    inside = [path.name for path in subfolders(folders[0] / shared[0])] if first == folders[0] else []
    if len(inside) > 1 and all(parse_split(name) for name in shared):
        raise DataError(
            f"the folders {names} in {root} hold the splits {_listed(shared)}, and these {_listed(inside)}, which seem "
            f"to be the classes; --data.path {shlex.quote(str(folders[0]))} takes {folders[0].name} alone"
        )
    if all(parse_split(name) for name in shared):
        raise DataError(
            f"each class folder in {root} ({names}) holds the splits {_listed(shared)}; put the classes into the "
            f"splits: {shared[0]}/{folders[0].name}, ..."
        )
    raise DataError(
        f"all class folders in {root} ({names}) hold the same sub-folders and no image of their own: the classes seem "
        f"to be {_listed(shared)}. Name splits train, val and test; or say which folder is the class, "
        "--data.classes.label_pattern '([^/]+)/[^/]+$' (the lowest) or '^([^/]+)/' (the highest); "
        f"--data.path {shlex.quote(str(first))} takes {folders[0].name} alone"
    )


def _unwrap(folder: Path) -> tuple[Path, list[str]]:
    """List the subfolders, below chains of single folders; none if images lie beside them."""
    while True:
        inside = subfolders(folder)
        if not inside or list_images(folder, deep=False).files:
            return folder, []
        if len(inside) > 1:
            return folder, [path.name for path in inside]
        folder = inside[0]


def _same_stems(folders: Sequence[Path]) -> bool:
    stems = [{file.relative_to(folder).with_suffix("") for file in list_images(folder).files} for folder in folders]
    return bool(stems[0]) and all(own == stems[0] for own in stems)


def _listed(names: Sequence[str]) -> str:
    return few(names, 5)
