"""Facts about copies that lie in different splits, found before training begins."""

from __future__ import annotations

from vitrail.data.dataset import ImageData
from vitrail.data.near_duplicates import find_across

_NAMES = {"train": "training", "val": "validation", "test": "test"}


def describe_copies(data: ImageData, recipe: str) -> list[str]:
    """Describe copies across splits, found among the thumbnails that were made when the images were opened.

    Patches of a scene overlap by construction and are left out. No random number is drawn.

    Args:
        data: The images with their split.
        recipe: Path of the recipe, for the command in the remedy.

    Returns:
        One plain line where there are copies of training images in another split, or test images in validation.
    """
    if not data.config.check_copies or data.source.scene is not None:
        return []
    members = {
        name: [*data.splits.get(name, []), *(data.splits.get("unlabelled", []) if name == "train" else [])]
        for name in _NAMES
    }
    rows = [row for own in members.values() for row in own]
    splits = [name for name, own in members.items() for _ in own]
    if len(set(splits)) < 2:
        return []
    groups = find_across(data.source.thumbnails()[rows], splits)
    roots: dict[str, set[int]] = {name: set() for name in _NAMES}
    for place, name in enumerate(splits):
        roots[name].add(groups.root(place))
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
