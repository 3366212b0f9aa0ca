"""Find copies among images: turned, mirrored, cropped, recompressed, scaled, brighter or darker.

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

from vitrail.data.alignment import Alignment, align
from vitrail.data.duplicates import Groups, perceptual_hashes
from vitrail.data.look_alikes import ORIENTATIONS, Candidates, hashed_pairs, similar_pairs
from vitrail.data.thumbnails import Thumbnails

# Confirmed are pairs whose aligned gradients correlate by more than these, as a whole and in most blocks, and pixels.
_GRADIENTS, _BLOCKS, _PIXELS = 0.88, 0.75, 0.85
# Energy of gradients at frequencies of 8 and more below which an image is too coarse to distinguish a crop from another
# image of the same thing. Of 8 x 8 digits at most 0.2 is there, of photos 0.6 to 0.9, of 16 x 16 photos 0.3 to 0.9. Of
# coarse images only those count that agree almost exactly.
_COARSE, _COARSE_GRADIENTS = 0.25, 0.99
# Standard deviation, in grey levels, below which an image has no contrast to compare.
_MIN_CONTRAST = 1.5
_PAIRS = 128
# A copy as seen from the other image.
_REVERSED = {"turned 90": "turned 270", "turned 270": "turned 90", "brighter": "darker", "darker": "brighter"}


@dataclass(frozen=True)
class Copy:
    """A confirmed pair.

    Attributes:
        first: Row of the one image.
        second: Row of the other, larger than ``first``.
        kind: How the second differs from the first, for example "turned 180, cropped".
    """

    first: int
    second: int
    kind: str

    def reversed(self) -> str:
        """How the first differs from the second."""
        return ", ".join(_REVERSED.get(kind, kind) for kind in self.kind.split(", "))


@dataclass(frozen=True)
class LookAlike:
    """A pair of close hashes that the pixels do not confirm.

    Attributes:
        first: Row of the one image.
        second: Row of the other, larger than ``first``.
        distance: Bits of 64 in which their hashes differ.
    """

    first: int
    second: int
    distance: int


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
        copies: Confirmed pairs that connect the images of each group; not all pairs of a group.
        look_alikes: Unconfirmed pairs, the closest first.
    """

    copies: list[Copy]
    look_alikes: list[LookAlike]


def find_copies(small: Thumbnails, distance: int = 8, *, splits: Sequence[str] | None = None) -> Found:
    """Find copies among images that differ in their bytes.

    Args:
        small: Gray thumbnails, shape ``(N, 32, 32)``.
        distance: Bits of 64 in which the hashes of unconfirmed look-alikes may differ.
        splits: Name of each image's split; only pairs of different splits are compared. All pairs when not given.
    """
    rows = _with_contrast(small)
    if splits is None:
        starts = np.arange(1, len(rows) + 1)
    else:
        names = np.array(splits)[rows]
        order = np.argsort(names, kind="stable")
        rows, names = rows[order], names[order]
        # A row is compared with those from the next split on.
        starts = np.searchsorted(names, names, side="right")
    groups = Groups(range(len(small)))
    copies: list[Copy] = []
    rest: list[Candidates] = []
    for block in similar_pairs(small[rows], starts):
        confirmed, unconfirmed = _confirm(small, _at(block, rows), groups)
        copies += confirmed
        rest += unconfirmed
    return Found(copies, _look_alikes(small, rest, groups, distance))


def find_across(small: Thumbnails, splits: Sequence[str]) -> Groups[int]:
    """Find copies in different splits, in a time that hardly counts beside an epoch of training.

    Turned, mirrored, recompressed, scaled, brighter and darker copies are found; of cropped ones only some.

    Args:
        small: Gray thumbnails, shape ``(N, 32, 32)``.
        splits: Name of each image's split.

    Returns:
        The rows; copies of each other are in one set.
    """
    groups = Groups(range(len(small)))
    # Equal thumbnails need no search: one of each and of each split stands for them.
    first: dict[tuple[bytes, str], int] = {}
    alike: dict[bytes, int] = {}
    for row in _with_contrast(small).tolist():
        content = small[row].tobytes()
        if row != first.setdefault((content, splits[row]), row):
            groups.join(first[content, splits[row]], row)
        groups.join(alike.setdefault(content, row), row)
    rows = np.array(list(first.values()), dtype=np.int64)
    for block in hashed_pairs(small[rows], [splits[row] for row in rows]):
        _confirm(small, _at(block, rows), groups)
    return groups


def _with_contrast(small: Thumbnails) -> npt.NDArray[np.int64]:
    contrast = [part.std((1, 2)) for part in np.array_split(small, 1 + len(small) // 4096)]
    return np.flatnonzero(np.concatenate(contrast) >= _MIN_CONTRAST)


def _at(pairs: Candidates, rows: npt.NDArray[np.int64]) -> Candidates:
    return dataclasses.replace(pairs, first=rows[pairs.first], second=rows[pairs.second])


def _confirm(small: Thumbnails, pairs: Candidates, groups: Groups[int]) -> tuple[list[Copy], list[Candidates]]:
    """Align pairs, join the groups of those that agree, and return the copies and the pairs that do not agree."""
    copies, rest = [], []
    for start in range(0, len(pairs), _PAIRS):
        part = pairs[start : start + _PAIRS]
        # A group that is connected already needs no further pair.
        part = part[np.array([not groups.joined(*ends) for ends in part.ends()])]
        if not len(part):
            continue
        first, second = part.pixels(small)
        with _one_thread():
            aligned = align(first, second, torch.from_numpy(part.scale))
            agree = _agree(aligned, torch.minimum(_detail(first), _detail(second)))
        for place in np.flatnonzero(agree).tolist():
            copy = _copy(part, aligned, place)
            if groups.join(copy.first, copy.second):
                copies.append(copy)
        rest.append(part[~agree])
    return copies, rest


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many small operations: several threads wait for each other more than they compute (10 x slower on a busy CPU)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _agree(aligned: Alignment, detail: Tensor) -> npt.NDArray[np.bool_]:
    agree = (aligned.gradients > _GRADIENTS) & (aligned.blocks > _BLOCKS) & (aligned.pixels > _PIXELS)
    result: npt.NDArray[np.bool_] = (agree & ((detail > _COARSE) | (aligned.gradients > _COARSE_GRADIENTS))).numpy()
    return result


def _detail(images: Tensor) -> Tensor:
    """Share of the gradients' energy at frequencies of 8 and more, shape ``(P,)``."""
    side = images.shape[1]
    frequency = torch.arange(side, dtype=torch.float32)
    basis = torch.cos(torch.pi * frequency[:, None] * (torch.arange(side) + 0.5)[None] / side)
    basis[0] *= 0.5**0.5
    energy = (basis @ images @ basis.T).square() * (frequency[:, None].square() + frequency[None].square())
    low = energy[:, :8, :8].sum((1, 2))
    return 1 - low / energy.sum((1, 2)).clamp(min=1e-9)


def _copy(pairs: Candidates, aligned: Alignment, place: int) -> Copy:
    """Name what the alignment found: how the second image differs from the first."""
    orientation = int(pairs.orientation[place])
    kinds = [ORIENTATIONS[orientation]] if orientation else []
    area = float(aligned.scale[place].prod())
    moved = float(aligned.shift[place].abs().max())
    if abs(area - 1) > 0.03 or moved > 0.03:
        kinds.append("cropped")
    gain, offset = float(aligned.gain[place]), float(aligned.offset[place])
    if abs(gain - 1) > 0.06 or abs(offset) > 0.04:
        kinds.append("brighter" if 0.5 * gain + offset > 0.5 else "darker")
    first, second = int(pairs.first[place]), int(pairs.second[place])
    copy = Copy(first, second, ", ".join(kinds) or "recompressed or scaled")
    return copy if first < second else Copy(second, first, copy.reversed())


def _look_alikes(small: Thumbnails, rest: Sequence[Candidates], groups: Groups[int], distance: int) -> list[LookAlike]:
    """Unconfirmed pairs whose hashes are close; images of one group are left out."""
    found = []
    for pairs in rest:
        if not len(pairs):
            continue
        first, second = (perceptual_hashes(images) for images in pairs.pixels(small))
        for (i, j), bits in zip(pairs.ends(), np.bitwise_count(first ^ second).tolist(), strict=True):
            if bits <= distance and not groups.joined(i, j):
                found.append(LookAlike(min(i, j), max(i, j), bits))
    return sorted(found, key=lambda pair: (pair.distance, pair.first, pair.second))
