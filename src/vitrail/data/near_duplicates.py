"""Find near duplicates among images: rotated, mirrored, cropped, recompressed, scaled, brighter or darker copies.

A search gives pairs that resemble each other in one of eight orientations; an alignment on pixels confirms them. A pair
that is not confirmed is a look-alike where the perceptual hashes are close.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.data.alignment import Alignment, align, self_similarity
from vitrail.data.candidate_pairs import ORIENTATIONS, Candidates, Integers, hashed_pairs, orient_pairs, similar_pairs
from vitrail.data.perceptual_hash import DisjointSets, connected_components, perceptual_hashes
from vitrail.data.thumbnails import Thumbnails

# Confirmed are pairs whose aligned gradients correlate by more than these, as a whole and in most blocks, and pixels.
_GRADIENTS, _BLOCKS, _PIXELS = 0.88, 0.75, 0.85
# Energy of gradients at frequencies of 8 and more below which an image is too coarse to distinguish a crop from another
# image of the same thing. Of 8 x 8 digits at most 0.2 is there, of photos 0.6 to 0.9, of 16 x 16 photos 0.3 to 0.9. Of
# coarse images only those count that agree almost exactly.
_COARSE, _COARSE_GRADIENTS = 0.25, 0.99
# Images whose gradients correlate with themselves by this much when moved hold a regular pattern; of these, copies
# agree in detail. Of tiles of noisy crop rows no two reach 0.76; 98 % of cropped photos exceed 0.9.
_REGULAR, _REGULAR_DETAIL = 0.7, 0.8
# Of a group of this many images so many pairs must agree directly; at most so many are aligned, for a whole group and
# for two groups that a pair joins.
_CHAIN, _COMPLETE, _SAMPLED, _SAMPLED_ACROSS = 4, 0.75, 32, 8
# All pairs of a chain of this many images or fewer are aligned, so that each image stays with its best match.
_SMALL_CHAIN = 64
# Standard deviation, in grey levels, below which an image has no contrast to compare.
_MIN_CONTRAST = 1.5
_PAIRS = 128
# A copy as seen from the other image.
_OPPOSITES = (("turned 90", "turned 270"), ("brighter", "darker"), ("a part", "longer"))
_REVERSED = {**dict(_OPPOSITES), **{b: a for a, b in _OPPOSITES}}


@dataclass(frozen=True)
class Copy:
    """Confirmed pair of copies.

    Attributes:
        first: Row of the one image.
        second: Row of the other, larger than ``first``.
        kind: Difference of the second from the first, for example "turned 180, cropped".
    """

    first: int
    second: int
    kind: str

    def reversed(self) -> str:
        """Return the pair in reverse: the difference of the first from the second."""
        return ", ".join(_REVERSED.get(kind, kind) for kind in self.kind.split(", "))


@dataclass(frozen=True)
class LookAlike:
    """Pair of close hashes that the comparison of pixels does not confirm.

    Attributes:
        first: Row of the one image.
        second: Row of the other, larger than ``first``.
        distance: Bits of 64 in which their hashes differ.
    """

    first: int
    second: int
    distance: int


@dataclass(frozen=True)
class SearchResult:
    """Result of a search for copies.

    Attributes:
        copies: Confirmed pairs that connect the images of each group; not all pairs of a group.
        look_alikes: Unconfirmed pairs, the closest first.
    """

    copies: list[Copy]
    look_alikes: list[LookAlike]


def find_copies(small: Thumbnails, distance: int = 8, *, splits: Sequence[str] | None = None) -> SearchResult:
    """Find copies among images that differ in their bytes.

    Args:
        small: Gray thumbnails, shape ``(N, 32, 32)``.
        distance: Bits of 64 in which the hashes of unconfirmed look-alikes may differ.
        splits: Name of each image's split; only pairs of different splits are compared. All pairs when not given.
    """
    rows = with_contrast(small)
    if splits is None:
        starts = np.arange(1, len(rows) + 1)
    else:
        names = np.array(splits)[rows]
        order = np.argsort(names, kind="stable")
        rows, names = rows[order], names[order]
        # A row is compared with those from the next split on.
        starts = np.searchsorted(names, names, side="right")
    groups = DisjointSets(range(len(small)))
    links: list[_Link] = []
    rest: list[Candidates] = []
    for block in similar_pairs(small[rows], starts):
        confirmed, unconfirmed = _confirm(small, _at(block, rows), groups)
        links += confirmed
        rest += unconfirmed
    kept, chained = _without_chains(small, links)
    copies = [link.copy for link in kept]
    joined = DisjointSets(range(len(small)))
    for copy in copies:
        joined.join(copy.first, copy.second)
    return SearchResult(copies, _look_alikes(small, [*rest, *(link.pair for link in chained)], joined, distance))


def find_copies_across_splits(small: Thumbnails, splits: Sequence[str]) -> DisjointSets[int]:
    """Find copies in different splits, fast in comparison with one epoch of training.

    Turned, mirrored, recompressed, scaled, brighter and darker copies are found; of cropped ones only some.

    Args:
        small: Gray thumbnails, shape ``(N, 32, 32)``.
        splits: Name of each image's split.

    Returns:
        The rows; copies of each other are in one set.
    """
    searched, joined = DisjointSets(range(len(small))), DisjointSets(range(len(small)))
    # Equal thumbnails need no search: one of each and of each split stands for them.
    first: dict[tuple[bytes, str], int] = {}
    alike: dict[bytes, int] = {}
    for row in with_contrast(small).tolist():
        content = small[row].tobytes()
        for other in (first.setdefault((content, splits[row]), row), alike.setdefault(content, row)):
            searched.join(other, row)
            joined.join(other, row)
    rows = np.array(list(first.values()), dtype=np.int64)
    links: list[_Link] = []
    for block in hashed_pairs(small[rows], [splits[row] for row in rows]):
        links += _confirm(small, _at(block, rows), searched)[0]
    for link in _without_chains(small, links)[0]:
        joined.join(link.copy.first, link.copy.second)
    return joined


def with_contrast(small: Thumbnails) -> Integers:
    """Find the images with contrast to compare; returns their rows."""
    contrast = [part.std((1, 2)) for part in np.array_split(small, 1 + len(small) // 4096)]
    return np.flatnonzero(np.concatenate(contrast) >= _MIN_CONTRAST)


def _at(pairs: Candidates, rows: Integers) -> Candidates:
    return dataclasses.replace(pairs, first=rows[pairs.first], second=rows[pairs.second])


@dataclass(frozen=True)
class _Link:
    """Confirmed pair that joins two groups.

    Attributes:
        copy: The pair.
        pair: The same as the search gave it.
        detail: Agreement in detail; see :class:`Alignment`.
    """

    copy: Copy
    pair: Candidates
    detail: float


def _confirm(small: Thumbnails, pairs: Candidates, groups: DisjointSets[int]) -> tuple[list[_Link], list[Candidates]]:
    """Align pairs and join the groups of those that agree; return the joins and the remaining pairs."""
    links, rest = [], []
    for start in range(0, len(pairs), _PAIRS):
        part = pairs[start : start + _PAIRS]
        # A group that is connected already needs no further pair.
        part = part[np.array([not groups.joined(*ends) for ends in part.ends()])]
        if not len(part):
            continue
        aligned, agree = compare_pairs(small, part)
        for index in np.flatnonzero(agree).tolist():
            link = _make_link(part, aligned, index)
            if groups.join(link.copy.first, link.copy.second):
                links.append(link)
        rest.append(part[~agree])
    return links, rest


def _without_chains(small: Thumbnails, links: Sequence[_Link]) -> tuple[list[_Link], list[_Link]]:
    """Drop links between images whose groups do not agree with each other.

    Images that each resemble the next (discs of growing radius, views of a panorama) are not copies of each other.
    Links of such a chain join groups, the best pairs first, where most pairs across agree directly.

    Returns:
        The links that stay, and those that were dropped.
    """
    kept: list[_Link] = []
    dropped: list[_Link] = []
    for rows, own in _by_group(links):
        if len(rows) < _CHAIN or _mostly_copies(small, *_all_pairs(rows), _SAMPLED):
            kept += own
            continue
        if len(rows) <= _SMALL_CHAIN:
            own = _best_links(small, rows)
        joined = DisjointSets(rows)
        members = {row: [row] for row in rows}
        for link in sorted(own, key=_rank):
            ends = [members[joined.root(row)] for row in (link.copy.first, link.copy.second)]
            first, second = (grid.ravel() for grid in np.meshgrid(*ends, indexing="ij"))
            if not _mostly_copies(small, first, second, _SAMPLED_ACROSS):
                dropped.append(link)
                continue
            kept.append(link)
            joined.join(link.copy.first, link.copy.second)
            members[joined.root(link.copy.first)] = ends[0] + ends[1]
    return sorted(kept, key=lambda link: (link.copy.first, link.copy.second)), dropped


def _all_pairs(rows: Sequence[int]) -> tuple[Integers, Integers]:
    first, second = np.triu_indices(len(rows), 1)
    members = np.array(rows, dtype=np.int64)
    return members[first], members[second]


def _by_group(links: Sequence[_Link]) -> list[tuple[list[int], list[_Link]]]:
    """Return the rows and the links of each group."""
    groups = connected_components(np.array([(link.copy.first, link.copy.second) for link in links], dtype=np.int64))
    number = {row: index for index, rows in enumerate(groups) for row in rows}
    own: list[list[_Link]] = [[] for _ in groups]
    for link in links:
        own[number[link.copy.first]].append(link)
    return list(zip(groups, own, strict=True))


def _best_links(small: Thumbnails, rows: Sequence[int]) -> list[_Link]:
    """Select the links of best detail that connect the images of a group, among all its pairs."""
    first, second = _all_pairs(rows)
    every: list[_Link] = []
    for start in range(0, len(first), _PAIRS):
        pairs = orient_pairs(small, first[start : start + _PAIRS], second[start : start + _PAIRS])
        aligned, agree = compare_pairs(small, pairs)
        every += [_make_link(pairs, aligned, index) for index in np.flatnonzero(agree).tolist()]
    groups = DisjointSets(rows)
    every.sort(key=_rank)
    return [link for link in every if groups.join(link.copy.first, link.copy.second)]


def _rank(link: _Link) -> tuple[bool, float]:
    """Rank pairs of equal field of view before crops, then by detail."""
    return "cropped" in link.copy.kind, -link.detail


def _make_link(pairs: Candidates, aligned: Alignment, index: int) -> _Link:
    return _Link(describe_copy(pairs, aligned, index), pairs[index : index + 1], float(aligned.detail[index]))


def _mostly_copies(small: Thumbnails, first: Integers, second: Integers, sampled: int) -> bool:
    """Check whether most pairs agree after alignment, on a sample of limited size."""
    if len(first) > sampled:
        chosen = np.random.default_rng(len(first)).choice(len(first), sampled, replace=False)
        first, second = first[chosen], second[chosen]
    _, agree = compare_pairs(small, orient_pairs(small, first, second))
    return float(agree.mean()) >= _COMPLETE


def compare_pairs(small: Thumbnails, pairs: Candidates) -> tuple[Alignment, npt.NDArray[np.bool_]]:
    """Align pairs, and classify them as copies or not."""
    first, second = pairs.pixels(small)
    with _one_thread():
        aligned = align(first, second, torch.from_numpy(pairs.scale))
        agree = _is_copy(aligned, torch.minimum(_fineness(first), _fineness(second)))
        found = agree.nonzero()[:, 0]
        regular = torch.maximum(self_similarity(first[found]), self_similarity(second[found])) > _REGULAR
        agree[found] = ~regular | (aligned.detail[found] > _REGULAR_DETAIL)
    return aligned, agree.numpy()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: with many small operations threads wait for each other (10 x slower on a busy CPU)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _is_copy(aligned: Alignment, fineness: Tensor) -> Tensor:
    agree = (aligned.gradients > _GRADIENTS) & (aligned.blocks > _BLOCKS) & (aligned.pixels > _PIXELS)
    return agree & ((fineness > _COARSE) | (aligned.gradients > _COARSE_GRADIENTS))


def _fineness(images: Tensor) -> Tensor:
    """Compute the share of gradient energy at frequencies of 8 and more, shape ``(P,)``."""
    side = images.shape[1]
    frequency = torch.arange(side, dtype=torch.float32)
    basis = torch.cos(torch.pi * frequency[:, None] * (torch.arange(side) + 0.5)[None] / side)
    basis[0] *= 0.5**0.5
    energy = (basis @ images @ basis.T).square() * (frequency[:, None].square() + frequency[None].square())
    low = energy[:, :8, :8].sum((1, 2))
    return 1 - low / energy.sum((1, 2)).clamp(min=1e-9)


def describe_copy(pairs: Candidates, aligned: Alignment, index: int) -> Copy:
    """Describe the difference of the second image from the first, from their alignment."""
    orientation = int(pairs.orientation[index])
    kinds = [ORIENTATIONS[orientation]] if orientation else []
    area = float(aligned.scale[index].prod())
    moved = float(aligned.shift[index].abs().max())
    if abs(area - 1) > 0.03 or moved > 0.03:
        kinds.append("cropped")
    gain, offset = float(aligned.gain[index]), float(aligned.offset[index])
    if abs(gain - 1) > 0.06 or abs(offset) > 0.04:
        kinds.append("brighter" if 0.5 * gain + offset > 0.5 else "darker")
    first, second = int(pairs.first[index]), int(pairs.second[index])
    copy = Copy(first, second, ", ".join(kinds) or "recompressed or scaled")
    return copy if first < second else Copy(second, first, copy.reversed())


def _look_alikes(
    small: Thumbnails, rest: Sequence[Candidates], groups: DisjointSets[int], distance: int
) -> list[LookAlike]:
    """List unconfirmed pairs with close hashes; images of one group are left out."""
    found = []
    for pairs in rest:
        if not len(pairs):
            continue
        first, second = (perceptual_hashes(images) for images in pairs.pixels(small))
        for (i, j), bits in zip(pairs.ends(), np.bitwise_count(first ^ second).tolist(), strict=True):
            if bits <= distance and not groups.joined(i, j):
                found.append(LookAlike(min(i, j), max(i, j), bits))
    return sorted(found, key=lambda pair: (pair.distance, pair.first, pair.second))
