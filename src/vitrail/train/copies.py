"""Near duplicates across splits, reported before training."""

from __future__ import annotations

from vitrail.data.dataset import ImageData
from vitrail.data.near_duplicates import find_copies_across_splits

_NAMES = {"train": "training", "val": "validation", "test": "test"}


def describe_copies(data: ImageData, recipe: str) -> list[str]:
    """Describe near duplicates across splits, by the thumbnails of the opened images.

    Patches of a scene are left out, because they overlap. No random numbers are used.

    Args:
        data: The images and their splits.
        recipe: Path of the recipe, for the command in the remedy.

    Returns:
        One line if another split has copies of training images, or testing has copies of validation images.
    """
    if not data.config.splitting.check_copies or data.source.scene is not None or not data.source.is_image:
        return []
    members = {
        name: [*data.splits.get(name, []), *(data.splits.get("unlabelled", []) if name == "train" else [])]
        for name in _NAMES
    }
    rows = [row for own in members.values() for row in own]
    splits = [name for name, own in members.items() for _ in own]
    if len(set(splits)) < 2:
        return []
    groups = find_copies_across_splits(data.source.thumbnails()[rows], splits)
    roots: dict[str, set[int]] = {name: set() for name in _NAMES}
    for index, name in enumerate(splits):
        roots[name].add(groups.root(index))
    found = []
    for name, others in (("val", ("train",)), ("test", ("train",)), ("test", ("val",))):
        number = sum(splits[i] == name and groups.root(i) in roots[others[0]] for i in range(len(rows)))
        if number:
            of = "image is a copy" if number == 1 else "images are copies"
            found.append(f"{number} {_NAMES[name]} {of} of {_NAMES[others[0]]} images")
    if not found:
        return []
    return [
        f"{', '.join(found)} (the same, turned, mirrored or recompressed): what is measured on them is too good; "
        f"`vitrail data audit {recipe} --out audit.html --groups groups.csv` shows them and keeps copies together"
    ]
