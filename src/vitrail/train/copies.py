"""Near duplicates across splits, reported before training."""

from __future__ import annotations

from collections.abc import Sequence

from vitrail.data.dataset import ImageData
from vitrail.data.near_duplicates import find_copies_across_splits
from vitrail.data.perceptual_hash import DisjointSets
from vitrail.data.sources.base import unwrap_source
from vitrail.data.video.copies import find_clip_copies
from vitrail.data.video.scan import scan_clips_within
from vitrail.data.video.source import VideoSource
from vitrail.errors import count_of

_NAMES = {"train": "training", "val": "validation", "test": "test"}
# Seconds of decoding clips, which are compared over time.
_SECONDS = 3.0


def describe_copies(data: ImageData, recipe: str) -> list[str]:
    """Describe near duplicates across splits, by the thumbnails of the opened images.

    Of clips, as many as some seconds allow are decoded and compared over time; the others are counted. Patches of a
    scene are left out, because they overlap. No random numbers are used.

    Args:
        data: The images and their splits.
        recipe: Path of the recipe, for the command in the remedy.

    Returns:
        One line if another split has copies of training images, or testing has copies of validation images; one if not
        all clips are compared.
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
    source = unwrap_source(data.source)
    if isinstance(source, VideoSource):
        groups, compared = _compare_clips(source, rows, splits)
    else:
        groups, compared = find_copies_across_splits(data.source.thumbnails()[rows], splits), len(rows)
    left_out = (
        []
        if compared == len(rows)
        else [
            f"{count_of(compared, len(rows), 'image', 'is', 'are')} compared to find copies in other splits, as "
            f"many as {_SECONDS:g} s of decoding allow; `vitrail data audit {recipe}` compares all"
        ]
    )
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
        return left_out
    return [
        f"{', '.join(found)} (equal, rotated, mirrored or recompressed): metrics on them are overestimated; "
        f"`vitrail data audit {recipe} --out audit.html --groups groups.csv` shows them and keeps copies together",
        *left_out,
    ]


def _compare_clips(source: VideoSource, rows: Sequence[int], splits: Sequence[str]) -> tuple[DisjointSets[int], int]:
    """Return the clips, copies of each other in one set, and the number of those compared.

    Args:
        source: The clips.
        rows: Indices of those to compare, split after split.
        splits: Name of each one's split.
    """
    number = {name: splits.count(name) for name in _NAMES}
    first = {name: splits.index(name) for name in _NAMES if name in splits}
    # Of each split the same share is decoded.
    order = sorted(range(len(rows)), key=lambda i: ((i - first[splits[i]] + 0.5) / number[splits[i]], i))
    clips = scan_clips_within(source, [rows[i] for i in order], _SECONDS)
    known = [i for i, row in enumerate(rows) if row in clips]
    numbers = [list(_NAMES).index(splits[i]) for i in known]
    groups = DisjointSets(range(len(rows)))
    for copy in find_clip_copies([clips[rows[i]] for i in known], splits=numbers).copies:
        groups.join(known[copy.first], known[copy.second])
    return groups, len(known)
