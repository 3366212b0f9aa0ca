"""Checks of a split: divided groups, missing classes, uneven shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vitrail.data.classes import similar_names
from vitrail.data.dataset import ImageData
from vitrail.data.groups import groups_of
from vitrail.data.splits import FEW_GROUPS
from vitrail.errors import count_of, few, plural

# A grouped split whose share differs by more than this factor from the wanted one is worth a line.
_UNEVEN = 2.0
# Share of the training images that an epoch may leave out without a line.
_MOST_DROPPED = 0.1


def describe_split(data: ImageData, *, of_run: bool = False) -> list[str]:
    """Describe groups and rare classes in a split.

    Args:
        data: The images with their split.
        of_run: Whether a model is trained on them already, whose split no setting changes any more.

    Returns:
        One plain line for each fact; empty for a split without any.
    """
    held_out = [name for name in ("val", "test") if name in data.splits]
    if not held_out or "train" not in data.splits:
        return []
    return [*_on_groups(data, held_out, of_run), *_on_classes(data, held_out)]


def describe_steps(data: ImageData) -> list[str]:
    """Describe a last incomplete batch, which training drops, of more than a tenth of the images."""
    count, size = len(data.splits.get("train", ())), data.config.images_a_step
    steps, left = divmod(count, size)
    if not steps or left <= _MOST_DROPPED * count:
        return []
    smaller = max(1, 2 ** int(np.log2(max(1, count // 8))))
    return [
        f"an epoch is {plural(steps, 'step')} of {plural(size, 'image')}, and leaves out {left} of "
        f"{plural(count, 'training image')} (others each time); --data.batch_size {smaller} leaves out "
        f"{count % smaller}"
    ]


def divided_groups(data: ImageData) -> tuple[int, int]:
    """Count the groups that lie in several splits.

    Returns:
        Their number, and the number of all groups; 0 and 0 where the data has none.
    """
    return _count_divided(data, _groups(data))


def _count_divided(data: ImageData, groups: Sequence[str]) -> tuple[int, int]:
    found: dict[str, set[str]] = {}
    for split, rows in data.splits.items() if groups else ():
        for row in rows if split != "labelled" else ():
            if groups[row]:
                found.setdefault(groups[row], set()).add("train" if split == "unlabelled" else split)
    return sum(len(splits) > 1 for splits in found.values()), len(found)


def _groups(data: ImageData) -> list[str]:
    """Return the group of each image, empty where it has none; an empty list without groups."""
    if data.source.scene is not None:
        return []
    if data.source.groups is not None:
        return [str(group) for group in data.source.groups]
    return [] if data.config.splitting.group is None else groups_of(data.source, data.config.splitting.group)


def _on_groups(data: ImageData, held_out: Sequence[str], of_run: bool) -> list[str]:
    groups = _groups(data)
    divided, number = _count_divided(data, groups)
    if not number:
        return []
    return [*_on_spelling(groups), *_on_division(data, groups, held_out, divided, number, of_run)]


def _on_spelling(groups: Sequence[str]) -> list[str]:
    """Describe groups that differ only in spelling."""
    alike = similar_names(set(groups) - {""})
    if not alike:
        return []
    return [
        f"{sum(map(len, alike))} groups differ from others only in letter case, blanks, '_' or '-', for example "
        f"{' and '.join(map(repr, alike[0]))}: where they are the same, spell them alike, or their images lie in "
        "several splits"
    ]


def _on_division(
    data: ImageData, groups: Sequence[str], held_out: Sequence[str], divided: int, number: int, of_run: bool
) -> list[str]:
    if divided:
        if of_run:
            remedy = "train on a split that keeps each group in one part, and evaluate that run"
        elif any(data.source.given_split):
            remedy = "give each group one split in the data"
        else:
            remedy = "--data.split grouped keeps each group in one split"
        return [
            f"{count_of(divided, number, 'group', 'lies', 'lie')} in several splits: metrics on "
            f"{' and '.join(held_out)} are overestimated; {remedy}"
        ]
    members = {split: sorted({groups[row] for row in rows}) for split, rows in data.splits.items() if split in _SHOWN}
    named = {split: f" ({', '.join(own)})" for split, own in members.items() if split != "train"}
    few = number <= FEW_GROUPS
    counts = ", ".join(f"{split} {len(own)}{named.get(split, '') if few else ''}" for split, own in members.items())
    return [f"each of {plural(number, 'group')} lies in one split: {counts}", *_on_shares(data, groups, held_out)]


_SHOWN = ("train", "val", "test")


def _on_shares(data: ImageData, groups: Sequence[str], held_out: Sequence[str]) -> list[str]:
    """Describe held-out splits whose shares differ from the settings because of large groups."""
    config = data.config
    if config.splitting.fold is not None or any(data.source.given_split):
        return []
    lines = []
    total = sum(len(rows) for split, rows in data.splits.items() if split != "labelled")
    for split in held_out:
        rows = data.splits[split]
        wanted, got = getattr(config.splitting, f"{split}_fraction"), len(rows) / total
        if wanted and not wanted / _UNEVEN <= got <= wanted * _UNEVEN:
            sizes = Counter(groups[row] for row in rows)
            name, count = sizes.most_common(1)[0]
            if count / total > wanted:
                why = f"its largest group {name!r} has {count} of its {plural(len(rows), 'image')}"
            else:
                why = (
                    f"{plural(len(set(groups)), 'group divides', 'groups divide')} no better"
                    if len(set(groups)) <= FEW_GROUPS
                    else "by chance"
                )
            lines.append(
                f"{split} has {got:.0%} of the images where data.splitting.{split}_fraction asks for {wanted:.0%}: "
                f"{why}; a "
                "column of splits (data.table.split_column) divides them otherwise, folds (data.splitting.fold) test "
                "every group once"
            )
    return lines


def _on_classes(data: ImageData, held_out: Sequence[str]) -> list[str]:
    """Describe classes without images in a held-out split."""
    source = data.source
    whole = {i: int(source.has_class(i).sum()) for i in range(len(source.classes))}
    lines = []
    for split in held_out:
        rows = np.array(data.splits[split])
        lacking = [i for i, count in whole.items() if count and not source.has_class(i)[rows].any()]
        if lacking:
            named = few([f"{source.classes[i]} ({plural(whole[i], 'image')} in all)" for i in lacking])
            fold = "" if data.config.splitting.fold is None else f" of fold {data.config.splitting.fold}"
            lines.append(f"{split}{fold} has no image of {named}; they are not evaluated there")
    return lines
