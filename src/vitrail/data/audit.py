"""Audit of a data set: unreadable files, duplicates, leaks between splits, constant and empty bands."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitrail.config.data import DataConfig
from vitrail.data.classes import similar_names
from vitrail.data.dataset import ImageData, open_data
from vitrail.data.groups import groups_of
from vitrail.data.identity import KnownImages
from vitrail.data.near_duplicates import Copy, SearchResult, find_copies
from vitrail.data.no_data import fill_no_data
from vitrail.data.perceptual_hash import DisjointSets, connected_components
from vitrail.data.sources.base import unwrap_source
from vitrail.data.sources.opening import accepts_setting, first_stream
from vitrail.data.threads import map_in_threads
from vitrail.data.video.copies import find_clip_copies
from vitrail.data.video.scan import ClipFacts, clip_facts, scan_clips
from vitrail.data.video.source import VideoSource

# Images are looked at in this size, whole; of clips so many frames, where the settings give no number.
AUDIT_SIZE = 64
_FRAMES = 8


@dataclass(frozen=True)
class DuplicateGroup:
    """Group of identical or nearly identical images.

    Attributes:
        kind: "exact" (the same files), or "near".
        rows: Their indices in the source.
        keys: Their names.
        splits: The split of each.
        labels: The class of each.
        relations: Difference of each from the first, or from the image that it names: "exact", "turned 180, cropped".
    """

    kind: str
    rows: tuple[int, ...]
    keys: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    relations: tuple[str, ...]

    @property
    def leaks(self) -> bool:
        """Whether the images lie in several splits."""
        return len(set(self.splits) - {""}) > 1

    @property
    def conflicts(self) -> bool:
        """Whether the images have several classes."""
        return len(set(self.labels)) > 1


@dataclass(frozen=True)
class LookAlikes:
    """Pair of images with close hashes that the comparison of pixels does not confirm as copies.

    Attributes:
        rows: Their indices in the source.
        keys: Their names.
        splits: The split of each.
        labels: The class of each.
        distance: Bits of 64 in which their hashes differ.
    """

    rows: tuple[int, int]
    keys: tuple[str, str]
    splits: tuple[str, str]
    labels: tuple[str, str]
    distance: int


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        images: Number of images compared.
        unreadable: Files that cannot be read, and why.
        splits: Images of each split.
        balance: Images of each split, for each class.
        duplicates: Groups of the same or nearly the same images.
        shared_groups: Groups (of the data's own) that lie in several splits, with these splits.
        sizes: Height and width of images, and how many are of that size; the most frequent first.
        constant: Images with a band of one value: their name, stream and band.
        empty_bands: Bands that are constant in every image: stream and band.
        similar_classes: Groups of class names that differ only in letter case, blanks, "_" or "-".
        look_alikes: Unconfirmed pairs with close hashes, the closest first.
        distance: Bits of 64 in which the hashes of these may differ.
        joined_groups: Groups (of the data's own) that duplicates join into one, each time more than one.
        clips: Damage, motion, rates and lengths of clips; None of images, and of clips made by the code.
        searched: Whether copies were searched; not among images that the code makes and groups.
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
    look_alikes: list[LookAlikes]
    distance: int
    joined_groups: list[tuple[str, ...]] = field(default_factory=list)
    clips: ClipFacts | None = None
    searched: bool = True

    @property
    def damaged(self) -> list[tuple[str, str]]:
        """Clips with damaged frames, with the fault."""
        return [] if self.clips is None else self.clips.damaged

    @property
    def possible_leaks(self) -> list[LookAlikes]:
        """Look-alikes in different splits."""
        return [pair for pair in self.look_alikes if pair.splits[0] != pair.splits[1]]

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
        """Whether images of one split occur in another."""
        return bool(self.leaks or self.shared_groups)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for JSON."""
        return {**dataclasses.asdict(self), "split_leaks": self.split_leaks}


def audit(
    config: DataConfig,
    distance: int = 8,
    classes: Sequence[str] | None = None,
    known: KnownImages | None = None,
) -> tuple[Audit, ImageData]:
    """Audit all images of a data set.

    Exact duplicates have the same bytes. Near duplicates are copies that are rotated, mirrored, cropped by up to 5 % a
    side, recompressed, scaled, brighter or darker: images whose pixels agree after an alignment
    (:func:`vitrail.data.near_duplicates.find_copies`). Pairs with close hashes that do not agree are look-alikes.
    Patches of a scene overlap by construction; of these only pairs in different splits are compared. Clips are decoded
    to their ends, and compared by their frames over time (:func:`vitrail.data.video.copies.find_clip_copies`). Images
    that the code makes, and groups by their origin, are not compared.

    Args:
        config: Data settings, with the split.
        distance: Bits of the hash in which look-alikes may differ, 0 to 15.
        classes: The classes of a run whose data it is.
        known: The images of a run, which keep their splits.

    Returns:
        The result, and the images as read by the audit: whole, 64 x 64; of clips some frames.

    Raises:
        DataError: The data set cannot be opened, other than for files that cannot be read.
    """
    whole = config.changed({"images.resize": "squash", "images.crop_pct": 1.0, "loader.cache": False})
    if accepts_setting(config.source, "errors.on_unreadable"):
        whole = whole.changed({"errors.on_unreadable": "skip"})
    frames = (config.video.num_frames or _FRAMES,) if first_stream(config.source) == "video" else ()
    data = open_data(whole, (*frames, AUDIT_SIZE, AUDIT_SIZE), classes, known=known)
    source = data.source
    splits = [""] * len(source)
    for name, rows in data.splits.items():
        for row in rows:
            splits[row] = name
    # Images of no split (patches across the border of blocks) are not part of the data.
    rows = [row for row, name in enumerate(splits) if name]
    files = unwrap_source(source)
    clips = dict(zip(rows, scan_clips(files, rows), strict=True)) if isinstance(files, VideoSource) else {}
    looks = _read_pixel_facts(data, [row for row in rows if row not in clips or not clips[row].fault])
    sizes = Counter(map_in_threads(source.original_size, rows))

    def described(members: Sequence[int]) -> dict[str, Any]:
        return {
            "rows": tuple(members),
            "keys": tuple(source.keys[i] for i in members),
            "splits": tuple(splits[i] for i in members),
            "labels": tuple(source.label(i) for i in members),
        }

    def search(chosen: Sequence[int]) -> SearchResult:
        if source.copies_grouped:
            return SearchResult([], [])
        if clips:
            return find_clip_copies([clips[row] for row in chosen], distance)
        patches = None if source.scene is None else [splits[row] for row in chosen]
        return find_copies(source.thumbnails()[chosen], distance, splits=patches)

    duplicates, pairs = _duplicates(data, rows, search)
    groups = [DuplicateGroup(kind, **described(members), relations=how) for kind, members, how in duplicates]
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
        look_alikes=[LookAlikes(**described(members), distance=bits) for members, bits in pairs],
        distance=distance,
        clips=clip_facts([source.keys[row] for row in clips], list(clips.values())) if clips else None,
        searched=not source.copies_grouped,
    )
    return dataclasses.replace(found, joined_groups=_joined_groups(found, data)), data


@dataclass
class _PixelFacts:
    """Constant and empty bands, found in one pass over the images."""

    constant: list[tuple[int, tuple[str, str]]]
    empty_bands: list[tuple[str, str]]


def _read_pixel_facts(data: ImageData, rows: list[int]) -> _PixelFacts:
    constant = []
    counts: Counter[tuple[str, str]] = Counter()
    for batch in data.batches(rows, 256):
        if data.source.has_no_data:
            batch |= {name: fill_no_data(batch[name]) for name in data.source.bands}
        for stream, bands in data.source.bands.items():
            flat = batch[stream].flatten(2)
            same = (flat.amax(2) - flat.amin(2)) < 1e-6
            for image, band in same.nonzero().tolist():
                where = (stream, bands[band])
                constant.append((int(batch["index"][image]), where))
                counts[where] += 1
    empty = [where for where, count in counts.items() if count == len(rows)]
    known = set(empty)
    return _PixelFacts([item for item in constant if item[1] not in known], empty)


def _duplicates(
    data: ImageData,
    rows: list[int],
    search: Callable[[list[int]], SearchResult],
) -> tuple[list[tuple[str, list[int], tuple[str, ...]]], list[tuple[tuple[int, int], int]]]:
    """Find groups (kind, rows, relations) and look-alikes (rows, distance); near groups include exact copies."""
    digests = map_in_threads(data.source.digest, rows)
    copies: dict[bytes, list[int]] = {}
    for index, digest in enumerate(digests):
        copies.setdefault(digest, []).append(index)
    # One image of each digest is enough for the search.
    first = np.array([indices[0] for indices in copies.values()], dtype=np.int64)
    by_first = {indices[0]: indices for indices in copies.values()}
    found = search([rows[i] for i in first])
    pairs = [Copy(int(first[c.first]), int(first[c.second]), c.kind) for c in found.copies]
    neighbours: dict[int, list[tuple[int, str]]] = {}
    for pair in pairs:
        neighbours.setdefault(pair.first, []).append((pair.second, pair.kind))
        neighbours.setdefault(pair.second, []).append((pair.first, pair.reversed()))
    near: list[tuple[str, list[int], tuple[str, ...]]] = []
    for group in connected_components(np.array([(c.first, c.second) for c in pairs], dtype=np.int64).reshape(-1, 2)):
        members = sorted(p for member in group for p in by_first[member])
        relations = _relations(min(group), neighbours, lambda index: data.source.keys[rows[index]])
        for member in group:
            exact_of = "exact" if member == min(group) else f"exact of {data.source.keys[rows[member]]}"
            relations |= dict.fromkeys(by_first[member][1:], exact_of)
        near.append(("near", [rows[p] for p in members], tuple(relations[p] for p in members)))
    taken = {row for _, members, _ in near for row in members}
    exact = [
        [rows[i] for i in indices] for indices in copies.values() if len(indices) > 1 and rows[indices[0]] not in taken
    ]
    look_alikes = [((rows[first[p.first]], rows[first[p.second]]), p.distance) for p in found.look_alikes]
    return [*near, *(("exact", members, ("", *["exact"] * (len(members) - 1))) for members in exact)], look_alikes


def _relations(
    root: int, neighbours: Mapping[int, Sequence[tuple[int, str]]], name: Callable[[int], str]
) -> dict[int, str]:
    """Describe the difference of each image from the first of its group, or from the one that links it."""
    found, waiting = {root: ""}, [root]
    for image in waiting:
        for other, kind in neighbours[image]:
            if other not in found:
                found[other] = kind if image == root else f"{kind} of {name(image)}"
                waiting.append(other)
    return found


def _shared_groups(data: ImageData, splits: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """List the groups of the data set that lie in several splits."""
    if data.source.groups is None and data.config.splitting.group is None:
        return {}
    found: dict[str, set[str]] = {}
    for group, split in zip(groups_of(data.source, data.config.splitting.group), splits, strict=True):
        if split:
            found.setdefault(group, set()).add(split)
    return {group: tuple(sorted(names)) for group, names in found.items() if len(names) > 1}


def merge_groups(found: Audit, data: ImageData) -> dict[int, str]:
    """Merge the groups of the data set with the groups of duplicates: a copy in two fields joins both.

    Returns:
        Name of the group of each image that belongs to one, by its index in the source: the name of the first of the
        data's groups, or the key of the first duplicate.
    """
    own, names, sets = _merged(found, data)
    together = {row for group in found.duplicates for row in group.rows}
    return {row: sets.root(name) for row, name in enumerate(names) if own or row in together}


def _merged(found: Audit, data: ImageData) -> tuple[bool, list[str], DisjointSets[str]]:
    """Return whether the data set has groups, the group (or key) of each image, and the merged groups."""
    own = data.source.groups is not None or data.config.splitting.group is not None
    names = list(groups_of(data.source, data.config.splitting.group)) if own else list(data.source.keys)
    sets = DisjointSets(names)
    for group in found.duplicates:
        for row in group.rows[1:]:
            sets.join(names[group.rows[0]], names[row])
    return own, names, sets


def _joined_groups(found: Audit, data: ImageData) -> list[tuple[str, ...]]:
    """List the groups of the data set that duplicates join, the longest list first."""
    own, names, sets = _merged(found, data)
    members: dict[str, list[str]] = {}
    for name in dict.fromkeys(names) if own else ():
        members.setdefault(sets.root(name), []).append(name)
    return sorted((tuple(group) for group in members.values() if len(group) > 1), key=lambda g: (-len(g), g))
