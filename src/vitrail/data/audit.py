"""Looking for what spoils a data set: unreadable files, duplicates, leaks between splits, bands that hold nothing."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vitrail.config.data import DataConfig
from vitrail.data.classes import similar_names
from vitrail.data.dataset import ImageData, open_data
from vitrail.data.duplicates import HASHED_SIZE, close_pairs, clusters, likeness, perceptual_hashes
from vitrail.data.groups import groups_of
from vitrail.data.sources.opening import understands

# Images are looked at in this size, whole.
LOOKED_AT = 64
# Correlation of small images above which two of close hashes are called near duplicates.
_ALIKE = 0.92


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that are the same, or nearly.

    Attributes:
        kind: "exact" (the same files), or "near".
        rows: Their numbers in the source.
        keys: What they are called.
        splits: The split of each.
        labels: The class of each.
    """

    kind: str
    rows: tuple[int, ...]
    keys: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def leaks(self) -> bool:
        """Whether they lie in several splits."""
        return len(set(self.splits) - {""}) > 1

    @property
    def conflicts(self) -> bool:
        """Whether they are of several classes."""
        return len(set(self.labels)) > 1


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        images: How many images were looked at.
        unreadable: Files that cannot be read, and why.
        splits: Images of each split.
        balance: For each class, the images of each split.
        duplicates: Groups of the same or nearly the same images.
        shared_groups: Groups (of the data's own) that lie in several splits, with these splits.
        sizes: Height and width of images, and how many are of that size; the most frequent first.
        constant: Images with a band of one value: their name, stream and band.
        empty_bands: Bands that are constant in every image: stream and band.
        similar_classes: Groups of class names that differ only in letter case, blanks, "_" or "-".
    """

    images: int
    unreadable: list[tuple[str, str]]
    splits: dict[str, int]
    balance: dict[str, dict[str, int]]
    duplicates: list[DuplicateGroup]
    shared_groups: dict[str, tuple[str, ...]]
    sizes: list[tuple[tuple[int, int], int]]
    constant: list[tuple[str, str, str]]
    empty_bands: list[tuple[str, str]]
    similar_classes: list[tuple[str, ...]]

    @property
    def leaks(self) -> list[DuplicateGroup]:
        """Duplicates that lie in several splits."""
        return [group for group in self.duplicates if group.leaks]

    @property
    def conflicts(self) -> list[DuplicateGroup]:
        """Duplicates of several classes."""
        return [group for group in self.duplicates if group.conflicts]

    @property
    def split_leaks(self) -> bool:
        """Whether something of one split is seen in another."""
        return bool(self.leaks or self.shared_groups)

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**dataclasses.asdict(self), "split_leaks": self.split_leaks}


def audit(config: DataConfig, distance: int = 8) -> tuple[Audit, ImageData]:
    """Look at every image of a data set.

    Exact duplicates have the same bytes. Near duplicates have perceptual hashes of at most ``distance`` different bits
    of 64, and small images that correlate above 0.92: among photos of apple leaves (PlantVillage) all such pairs are of
    one leaf, and pairs of leaves that are only alike begin below. Scaled, recompressed, slightly cropped or brightened
    copies are found, mirrored and turned ones are not.

    Args:
        config: Which images, and how they are split.
        distance: Bits of the hash in which near duplicates may differ, 0 to 15.

    Returns:
        What was found, and the images as they were looked at: whole, 64 x 64.

    Raises:
        DataError: The data set cannot be opened, other than for files that cannot be read.
    """
    whole = dataclasses.replace(config, resize="squash", cache=False)
    if understands(config.source, "on_unreadable"):
        whole = dataclasses.replace(whole, on_unreadable="skip")
    data = open_data(whole, (LOOKED_AT, LOOKED_AT))
    source = data.source
    splits = [""] * len(source)
    for name, rows in data.splits.items():
        for row in rows:
            splits[row] = name
    # What belongs to no split (patches across the border of blocks) is not part of the data.
    rows = [row for row, name in enumerate(splits) if name]
    looks = _look(data, rows)
    duplicates = _duplicates(data, rows, looks, distance)
    groups = [
        DuplicateGroup(
            kind,
            tuple(members),
            tuple(source.keys[i] for i in members),
            tuple(splits[i] for i in members),
            tuple(source.label(i) for i in members),
        )
        for kind, members in duplicates
    ]
    with ThreadPoolExecutor() as pool:
        sizes = Counter(pool.map(source.original_size, rows))
    found = Audit(
        images=len(rows),
        unreadable=list(source.left_out),
        splits={name: len(own) for name, own in data.splits.items()},
        balance=data.balance(),
        duplicates=sorted(groups, key=lambda g: (not g.leaks, not g.conflicts, g.kind, g.rows)),
        shared_groups=_shared_groups(data, splits),
        sizes=sizes.most_common(),
        constant=[(source.keys[i], *where) for i, where in looks.constant],
        empty_bands=looks.empty_bands,
        similar_classes=similar_names(source.classes),
    )
    return found, data


@dataclass
class _Looks:
    """What one pass over the images leaves: gray thumbnails, hashes, and constant bands."""

    small: np.ndarray[Any, np.dtype[np.uint8]]
    hashes: np.ndarray[Any, np.dtype[np.uint64]]
    constant: list[tuple[int, tuple[str, str]]]
    empty_bands: list[tuple[str, str]]


def _look(data: ImageData, rows: list[int]) -> _Looks:
    small, hashes, constant = [], [], []
    counts: Counter[tuple[str, str]] = Counter()
    for batch in data.in_order(rows, 256):
        gray = F.interpolate(batch["image"].mean(1, keepdim=True), size=(HASHED_SIZE, HASHED_SIZE), mode="area")[:, 0]
        small.append((gray * 255).round().to(torch.uint8).numpy())
        hashes.append(perceptual_hashes(gray))
        for stream, bands in data.source.bands.items():
            flat = batch[stream].flatten(2)
            same = (flat.amax(2) - flat.amin(2)) < 1e-6
            for image, band in same.nonzero().tolist():
                where = (stream, bands[band])
                constant.append((int(batch["index"][image]), where))
                counts[where] += 1
    empty = [where for where, count in counts.items() if count == len(rows)]
    known = set(empty)
    return _Looks(
        np.concatenate(small), np.concatenate(hashes), [item for item in constant if item[1] not in known], empty
    )


def _duplicates(data: ImageData, rows: list[int], looks: _Looks, distance: int) -> list[tuple[str, list[int]]]:
    """Kind and rows of each group; a group of near duplicates takes in the exact ones of its images."""
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(data.source.digest, rows))
    copies: dict[bytes, list[int]] = {}
    for place, digest in enumerate(digests):
        copies.setdefault(digest, []).append(place)
    # One of each kind is enough for the search; what has no contrast looks like everything else that has none.
    first = np.array([places[0] for places in copies.values() if looks.hashes[places[0]] != 0], dtype=np.int64)
    pairs = first[close_pairs(looks.hashes[first], distance)] if len(first) else np.empty((0, 2), dtype=np.int64)
    if len(pairs):
        alike = likeness(looks.small[pairs[:, 0]], looks.small[pairs[:, 1]]) > _ALIKE
        pairs = pairs[alike]
    by_place = {places[0]: places for places in copies.values()}
    near = [sorted(p for first in group for p in by_place[first]) for group in clusters(pairs)]
    taken = {place for group in near for place in group}
    exact = [places for places in copies.values() if len(places) > 1 and places[0] not in taken]
    return [("near", [rows[p] for p in g]) for g in near] + [("exact", [rows[p] for p in g]) for g in exact]


def _shared_groups(data: ImageData, splits: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Groups of the data's own in several splits."""
    if data.source.groups is None and data.config.group is None:
        return {}
    found: dict[str, set[str]] = {}
    for group, split in zip(groups_of(data.source, data.config.group), splits, strict=True):
        if split:
            found.setdefault(group, set()).add(split)
    return {group: tuple(sorted(names)) for group, names in found.items() if len(names) > 1}
