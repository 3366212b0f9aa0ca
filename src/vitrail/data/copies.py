"""Find copies among images: turned, mirrored, cropped, recompressed, scaled, brighter or darker.

Descriptors of the eight orientations give candidates, and an alignment on pixels confirms them. A candidate that is not
confirmed is a look-alike where the perceptual hashes are close.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.data.alignment import Alignment, align
from vitrail.data.duplicates import HASHED_SIZE, Groups, perceptual_hashes

Thumbnails = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

# An orientation is three bits: transpose, then reverse rows, then reverse columns. 90 degrees are counter-clockwise.
ORIENTATIONS = (
    "", "mirrored", "mirrored and turned 180", "turned 180",
    "mirrored and turned 90", "turned 270", "turned 90", "mirrored and turned 270",
)  # fmt: skip
# Lowest frequencies a side that describe an image.
_FREQUENCIES = 8
# The second field of view that is described: without 4 % of each side, between the whole and 5 to 8 % cropped.
_ZOOM = 0.04
# Similarity of descriptors from which a pair is a candidate. Of the made copies of apple leaves, ants and bees, and
# CIFAR-10 (cropped by 5 % on all sides) 99.5 % are above; of unrelated pairs 5e-3, 0 and 1e-5 are.
_SIMILAR = 0.8
# Candidates of an image, at most: the most similar ones. A made copy is the first in 99 % of all cases.
_MOST_CANDIDATES = 12
# Confirmed are pairs whose aligned gradients correlate by more than these, as a whole and in most blocks, and pixels.
_GRADIENTS, _BLOCKS, _PIXELS = 0.85, 0.75, 0.85
# Images that have fewer pixels a side hold too little detail to tell a crop from another image of the same thing.
_FEW_PIXELS, _FEW_PIXELS_GRADIENTS = 24, 0.98
# Standard deviation, in grey levels, below which an image has no contrast to compare.
_MIN_CONTRAST = 1.5
_ROWS, _COLUMNS, _PAIRS = 256, 4096, 128


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


def thumbnails(images: Tensor) -> Thumbnails:
    """Gray images of 32 x 32 pixels, the mean of all bands.

    Args:
        images: Shape ``(B, C, H, W)``, 0..1.

    Returns:
        Shape ``(B, 32, 32)``.
    """
    gray = images.mean(1, keepdim=True)
    if gray.shape[2:] != (HASHED_SIZE, HASHED_SIZE):
        gray = torch.nn.functional.interpolate(gray, size=(HASHED_SIZE, HASHED_SIZE), mode="area")
    small: Thumbnails = (gray[:, 0] * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return small


def find_copies(
    small: Thumbnails,
    distance: int = 8,
    *,
    splits: Sequence[str] | None = None,
    sides: npt.NDArray[np.int64] | None = None,
) -> Found:
    """Find copies among images that differ in their bytes.

    Args:
        small: Gray thumbnails, shape ``(N, 32, 32)``.
        distance: Bits of 64 in which the hashes of unconfirmed look-alikes may differ.
        splits: Name of each image's split; only pairs of different splits are compared. All pairs when not given.
        sides: Shorter side of each image in pixels, before it became a thumbnail.
    """
    contrast = [part.std((1, 2)) for part in np.array_split(small, 1 + len(small) // 4096)]
    rows = np.flatnonzero(np.concatenate(contrast) >= _MIN_CONTRAST)
    if splits is not None:
        names = np.array(splits)[rows]
        order = np.argsort(names, kind="stable")
        rows, names = rows[order], names[order]
        # The first row of the next split: a row is compared with those from there on.
        starts = np.searchsorted(names, names, side="right")
    else:
        starts = np.arange(1, len(rows) + 1)
    groups = Groups(range(len(small)))
    copies: list[Copy] = []
    rest: list[_Candidates] = []
    for block in _candidates(small[rows], starts):
        pairs = dataclasses.replace(block, first=rows[block.first], second=rows[block.second])
        for start in range(0, len(pairs.first), _PAIRS):
            part = pairs[np.arange(start, min(start + _PAIRS, len(pairs.first)))]
            # A group that is connected already needs no further pair.
            part = part[np.array([not groups.joined(*ends) for ends in _ends(part)])]
            if not len(part.first):
                continue
            with _one_thread():
                aligned = align(*part.pixels(small), torch.from_numpy(part.scale))
            confirmed = _confirmed(
                aligned, None if sides is None else np.minimum(sides[part.first], sides[part.second])
            )
            for place in np.flatnonzero(confirmed).tolist():
                copy = _copy(part, aligned, place)
                if groups.join(copy.first, copy.second):
                    copies.append(copy)
            rest.append(part[~confirmed])
    return Found(copies, _look_alikes(small, rest, groups, distance))


def _ends(pairs: _Candidates) -> Iterator[tuple[int, int]]:
    return zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)


def _descriptors(small: Thumbnails, zoom: float = 0.0) -> Tensor:
    """Lowest frequencies of the cosine transform, each times its frequency, of unit length, shape ``(N, 8, 8)``.

    The spectrum of photos falls with the frequency; the factor gives every frequency about the same weight.
    """
    side = small.shape[1]
    u = torch.arange(side) + 0.5
    position = u * (1 - 2 * zoom) + zoom * side - 0.5
    sampling = (1 - (position[:, None] - torch.arange(side)[None]).abs()).clamp(min=0)
    frequency = torch.arange(_FREQUENCIES, dtype=torch.float32)
    basis = torch.cos(torch.pi * u[None] * frequency[:, None] / side) @ sampling
    basis[0] *= 0.5**0.5
    weight = torch.hypot(frequency[:, None], frequency[None])
    parts = np.array_split(small, 1 + len(small) // 4096)
    waves = torch.cat([basis @ _unit(part) @ basis.T for part in parts]) * weight
    result: Tensor = waves / waves.flatten(1).norm(dim=1).clamp(min=1e-6)[:, None, None]
    return result


def _orientations(waves: Tensor) -> Tensor:
    """Cosine transforms of the eight orientations: transposed, and with the odd frequencies negated.

    Args:
        waves: Shape ``(N, 8, 8)``.

    Returns:
        Shape ``(N, 8, 64)``.
    """
    sign = 1.0 - 2.0 * (torch.arange(_FREQUENCIES) % 2)
    ones = torch.ones(_FREQUENCIES)
    result = [
        (waves.mT if orientation & 4 else waves)
        * (sign if orientation & 2 else ones)[:, None]
        * (sign if orientation & 1 else ones)
        for orientation in range(8)
    ]
    return torch.stack(result, 1).flatten(2)


def orient(images: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Bring images into one of the eight orientations.

    Args:
        images: Shape ``(N, H, H)``.
        orientation: 0 to 7, see ``ORIENTATIONS``.
    """
    images = images.transpose(0, 2, 1) if orientation & 4 else images
    images = images[:, ::-1] if orientation & 2 else images
    return images[:, :, ::-1] if orientation & 1 else images


@dataclass(frozen=True)
class _Candidates:
    """Pairs of rows, and the orientation and scale of the first image that resemble the second; shapes ``(P,)``."""

    first: Integers
    second: Integers
    orientation: Integers
    scale: npt.NDArray[np.float32]

    def __getitem__(self, chosen: npt.NDArray[Any]) -> _Candidates:
        return _Candidates(self.first[chosen], self.second[chosen], self.orientation[chosen], self.scale[chosen])

    def pixels(self, small: Thumbnails) -> tuple[Tensor, Tensor]:
        """The first images, brought into their orientation, and the second images, 0..1."""
        turned = [
            orient(small[i : i + 1], o) for i, o in zip(self.first.tolist(), self.orientation.tolist(), strict=True)
        ]
        return _unit(np.concatenate(turned)), _unit(small[self.second])


def _unit(small: Thumbnails) -> Tensor:
    return torch.from_numpy(small).float() / 255


def _candidates(small: Thumbnails, starts: Integers) -> Iterator[_Candidates]:
    """Find similar pairs, block of rows by block of rows.

    Args:
        small: Shape ``(N, 32, 32)``.
        starts: For each row the first column that it is compared with, ascending.
    """
    if len(small) < 2:
        return
    whole, zoomed = _descriptors(small), _descriptors(small, _ZOOM)
    columns = (whole.flatten(1), zoomed.flatten(1))
    inside = 1 - 2 * _ZOOM
    for low in range(0, len(small), _ROWS):
        rows = slice(low, min(low + _ROWS, len(small)))
        views = (_orientations(whole[rows]), _orientations(zoomed[rows]))
        # Whole with whole; the row's image cropped; the column's image cropped.
        pairings = ((views[0], columns[0], 1.0), (views[1], columns[0], inside), (views[0], columns[1], 1 / inside))
        hits: list[tuple[Tensor, ...]] = []
        for left in range(int(starts[low]), len(small), _COLUMNS):
            part = slice(left, left + _COLUMNS)
            scores = torch.stack([
                (view.flatten(0, 1) @ column[part].T).view(len(view), 8, -1).amax(1) for view, column, _ in pairings
            ]).amax(0)  # fmt: skip
            row, column = (scores > _SIMILAR).nonzero(as_tuple=True)
            hits.append((row, column + left, scores[row, column]))
        if not hits:
            continue
        row, column, score = (torch.cat(values) for values in zip(*hits, strict=True))
        known = column >= torch.from_numpy(starts)[row + low]
        row, column, score = row[known], column[known], score[known]
        keep = _most_similar(row.numpy(), score.numpy())
        row, column = row[keep], column[keep]
        if not len(row):
            continue
        every = torch.cat([(view[row] * values[column][:, None]).sum(2) for view, values, _ in pairings], 1)
        best = every.argmax(1)
        scale = torch.tensor([zoom for *_, zoom in pairings])[best // 8]
        yield _Candidates((row + low).numpy(), column.numpy(), (best % 8).numpy(), scale.numpy())


def _most_similar(row: Integers, score: npt.NDArray[np.float32]) -> Integers:
    """Indices of the most similar candidates of each row, the most similar of all first."""
    order = np.lexsort((-score, row))
    first = np.searchsorted(row[order], row[order])
    kept = order[np.arange(len(order)) - first < _MOST_CANDIDATES]
    best: Integers = kept[np.argsort(-score[kept], kind="stable")]
    return best


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many small operations: several threads wait for each other more than they compute (10 x slower on a busy CPU)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _confirmed(aligned: Alignment, sides: npt.NDArray[np.int64] | None) -> npt.NDArray[np.bool_]:
    gradients = aligned.gradients.numpy()
    result: npt.NDArray[np.bool_] = (
        (gradients > _GRADIENTS) & (aligned.blocks.numpy() > _BLOCKS) & (aligned.pixels.numpy() > _PIXELS)
    )
    if sides is not None:
        result &= (sides >= _FEW_PIXELS) | (gradients > _FEW_PIXELS_GRADIENTS)
    return result


def _copy(pairs: _Candidates, aligned: Alignment, place: int) -> Copy:
    """Name what the alignment found: how the second image differs from the first."""
    orientation = int(pairs.orientation[place])
    kinds = [ORIENTATIONS[orientation]] if orientation else []
    area = float(aligned.scale[place].prod())
    moved = float(aligned.shift[place].abs().max())
    if abs(area - 1) > 0.03 or moved > 0.03:
        kinds.append("cropped")
    gain = float(aligned.gain[place])
    if abs(gain - 1) > 0.06 or abs(float(aligned.offset[place])) > 0.04:
        mean = 0.5 * gain + float(aligned.offset[place])
        kinds.append("brighter" if mean > 0.5 else "darker")
    first, second = int(pairs.first[place]), int(pairs.second[place])
    copy = Copy(first, second, ", ".join(kinds) or "recompressed or scaled")
    return copy if first < second else Copy(second, first, copy.reversed())


# Seen from the other image.
_REVERSED = {"turned 90": "turned 270", "turned 270": "turned 90", "brighter": "darker", "darker": "brighter"}


def _look_alikes(small: Thumbnails, rest: Sequence[_Candidates], groups: Groups[int], distance: int) -> list[LookAlike]:
    """Unconfirmed pairs whose hashes are close; images of one group are left out."""
    found = []
    for pairs in rest:
        if not len(pairs.first):
            continue
        first, second = (perceptual_hashes(images) for images in pairs.pixels(small))
        for (i, j), bits in zip(_ends(pairs), np.bitwise_count(first ^ second).tolist(), strict=True):
            if bits <= distance and not groups.joined(i, j):
                found.append(LookAlike(min(i, j), max(i, j), bits))
    return sorted(found, key=lambda pair: (pair.distance, pair.first, pair.second))
