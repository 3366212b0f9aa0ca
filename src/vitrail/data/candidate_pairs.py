"""Search for candidate pairs of copies among thumbnails, in eight orientations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.data.thumbnails import Thumbnails

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
_MOST_CANDIDATES = 5
_ROWS, _COLUMNS, _QUERIES = 256, 4096, 1024
# The quick search: pieces of the sign hash that are looked up whole, bits of each that may also be inverted (those
# nearest to 0), bits of 64 in which two hashes may differ, and images of one piece above which it is no use.
_PIECES, _UNSURE, _DISTANCE, _CROWDED = 4, 2, 10, 500
# The same of the search by groups, which compares what it finds; matches of an image, in shares of all images, above
# which a comparison with all takes less time.
_SIMILAR_DISTANCE, _MANY = 16, 0.2


@dataclass(frozen=True)
class Candidates:
    """Pairs of similar rows.

    Attributes:
        first: Row of the one image, shape ``(P,)``.
        second: Row of the other.
        orientation: Orientation of the first image in which it resembles the second, 0 to 7.
        scale: Field of view of the second image, in sides of the first.
    """

    first: Integers
    second: Integers
    orientation: Integers
    scale: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, chosen: npt.NDArray[Any] | slice) -> Candidates:
        return Candidates(self.first[chosen], self.second[chosen], self.orientation[chosen], self.scale[chosen])

    def ends(self) -> list[tuple[int, int]]:
        """Return the two rows of each pair."""
        return list(zip(self.first.tolist(), self.second.tolist(), strict=True))

    def pixels(self, small: Thumbnails) -> tuple[Tensor, Tensor]:
        """Return the oriented first images and the second images, shape ``(P, N, N)``, 0..1."""
        turns = zip(self.first.tolist(), self.orientation.tolist(), strict=True)
        return _unit(np.concatenate([orient(small[i : i + 1], turn) for i, turn in turns])), _unit(small[self.second])


def orient(images: Thumbnails, orientation: int) -> Thumbnails:
    """Transform images to one of the eight orientations.

    Args:
        images: Shape ``(B, N, N)``.
        orientation: 0 to 7, see ``ORIENTATIONS``.
    """
    images = images.transpose(0, 2, 1) if orientation & 4 else images
    images = images[:, ::-1] if orientation & 2 else images
    return images[:, :, ::-1] if orientation & 1 else images


def similar_pairs(small: Thumbnails, starts: Integers) -> Iterator[Candidates]:
    """Compare each image with all later ones; slightly cropped copies are found.

    The time grows with the square of the number of images: all pairs go through a matrix product.

    Args:
        small: Gray thumbnails, shape ``(N, 32, 32)``.
        starts: First row that each row is compared with, ascending, shape ``(N,)``.
    """
    if len(small) >= 2:
        every = np.arange(len(small))
        yield from _compared(_described(small), every, every, starts)


def pairs_of_groups(small: Thumbnails, starts: Integers, groups: Integers) -> Iterator[Candidates]:
    """Find the candidates of :func:`similar_pairs` where some images of two groups have a common part of their hash.

    All images of such groups are compared. Groups of which many images share a part are compared with all later images,
    so that the time grows with the number of images, and with its square where most of them resemble each other.

    Args:
        small: Gray thumbnails, shape ``(N, 32, 32)``.
        starts: As for :func:`similar_pairs`.
        groups: Number of each image's group, ascending, shape ``(N,)``.
    """
    if len(small) < 2:
        return
    described = _described(small)
    whole, inside = (_Index(waves) for waves in described)
    number = int(groups[-1]) + 1
    crowded = np.zeros(number, dtype=bool)
    found = []
    for low in range(0, len(small), _QUERIES):
        own = groups[low : low + _QUERIES]
        views = tuple(oriented_descriptors(waves[low : low + _QUERIES]) for waves in described)
        for view, index in ((views[0], whole), (views[1], whole), (views[0], inside)):
            row, column, many = index.find_groups(view)
            crowded[own[many]] = True
            ends = np.sort(np.stack([own[row], groups[column]]), axis=0)
            found.append(np.unique(ends[0] * number + ends[1]))
    first, second = np.divmod(np.unique(np.concatenate(found)), number)
    bounds = np.searchsorted(groups, np.arange(number + 1))
    every = np.arange(len(small))
    yield from _compared(described, np.flatnonzero(crowded[groups]), every, starts)
    sparse = ~crowded[first]
    for group, others in _partners(first[sparse], second[sparse]):
        rows = every[bounds[group] : bounds[group + 1]]
        columns = np.concatenate([every[bounds[other] : bounds[other + 1]] for other in others])
        yield from _compared(described, rows, columns[columns >= starts[rows[0]]], starts)


def _partners(first: Integers, second: Integers) -> Iterator[tuple[int, list[int]]]:
    """Return the second ends of each first end; pairs are sorted."""
    ends = (np.flatnonzero(np.diff(first, append=-1)) + 1).tolist()
    for begin, end in itertools.pairwise([0, *ends]):
        yield int(first[begin]), second[begin:end].tolist()


def _compared(
    described: tuple[Tensor, Tensor], rows: Integers, columns: Integers, starts: Integers
) -> Iterator[Candidates]:
    """Compare images with others.

    Args:
        described: Descriptors of all images.
        rows: The images, ascending.
        columns: The others, ascending.
        starts: As for :func:`similar_pairs`.
    """
    for low in range(0, len(rows), _ROWS):
        own = rows[low : low + _ROWS]
        views = tuple(oriented_descriptors(waves[torch.from_numpy(own)]) for waves in described)
        others = columns[np.searchsorted(columns, starts[own[0]]) :]
        hits: list[tuple[Tensor, ...]] = []
        for left in range(0, len(others), _COLUMNS):
            part = torch.from_numpy(others[left : left + _COLUMNS])
            pairings = _pairings(views, tuple(waves[part].flatten(1) for waves in described))
            scores = torch.stack([
                (view.flatten(0, 1) @ column.T).view(len(view), 8, -1).amax(1) for view, column, _ in pairings
            ]).amax(0)  # fmt: skip
            row, column = (scores > _SIMILAR).nonzero(as_tuple=True)
            hits.append((row, part[column], scores[row, column]))
        if not hits:
            continue
        row, column, score = (torch.cat(values) for values in zip(*hits, strict=True))
        known = column.numpy() >= starts[own[row.numpy()]]
        row, column, score = row[known], column[known], score[known]
        keep = _most_similar(row.numpy(), score.numpy())
        row, column = row[keep], column[keep]
        pairings = _pairings(views, tuple(waves.flatten(1) for waves in described))
        orientation, scale = _best(pairings, row, column)
        yield Candidates(own[row.numpy()], column.numpy(), orientation, scale)


def orient_pairs(small: Thumbnails, first: Integers, second: Integers) -> Candidates:
    """Find the orientation and scale of the highest similarity of each pair.

    Args:
        small: Gray thumbnails, shape ``(N, 32, 32)``.
        first: Row of the one image of each pair, shape ``(P,)``.
        second: Row of the other.
    """
    views = tuple(oriented_descriptors(waves) for waves in _described(small[first]))
    columns = tuple(waves.flatten(1) for waves in _described(small[second]))
    each = torch.arange(len(first))
    return Candidates(first, second, *_best(_pairings(views, columns), each, each))


def hashed_pairs(small: Thumbnails, splits: Sequence[str]) -> Iterator[Candidates]:
    """Compare images of different splits with a common part of their hash; cropped copies are mostly missed.

    A hash is the signs of the lowest frequencies. Of the larger split the pieces are sorted; each image of the smaller
    one looks up its pieces in eight orientations, also with its least certain bits inverted.

    Args:
        small: Gray thumbnails, shape ``(N, 32, 32)``.
        splits: Name of each image's split.

    Source: Norouzi et al. 2012, arXiv:1307.2982 (pieces of hashes); Lv et al. 2007, VLDB, "Multi-probe LSH".
    """
    waves = descriptors(small)
    names = np.array(splits)
    order = sorted(set(splits), key=lambda name: int((names == name).sum()))
    for number, name in enumerate(order[:-1]):
        known = np.flatnonzero(np.isin(names, order[number + 1 :]))
        index = _Index(waves[torch.from_numpy(known)])
        asked = np.flatnonzero(names == name)
        for start in range(0, len(asked), _COLUMNS):
            rows = asked[start : start + _COLUMNS]
            row, column, orientation = index.find(oriented_descriptors(waves[torch.from_numpy(rows)]))
            first, second = rows[row], known[column]
            score = (oriented_descriptors(waves[first])[torch.arange(len(first)), torch.from_numpy(orientation)]
                     * waves[second].flatten(1)).sum(1).numpy() if len(first) else np.empty(0, np.float32)  # fmt: skip
            similar = np.flatnonzero(score > _SIMILAR)
            chosen = similar[_most_similar(row[similar], score[similar])]
            scale = np.ones(len(chosen), dtype=np.float32)
            yield Candidates(first[chosen], second[chosen], orientation[chosen], scale)


class _Index:
    """Index of hashes by their parts.

    Args:
        waves: Descriptors, shape ``(N, 8, 8)``.
    """

    def __init__(self, waves: Tensor) -> None:
        bits = (waves.flatten(1) > 0).numpy()
        self.hashes = _packed(bits)
        self.orders, self.keys = [], []
        for piece in range(_PIECES):
            keys = _key(bits[:, piece::_PIECES])
            order = np.argsort(keys, kind="stable")
            self.orders.append(order)
            self.keys.append(keys[order])

    def find(self, views: Tensor) -> tuple[Integers, Integers, Integers]:
        """Return rows of the query, rows of the index and orientations, each pair once.

        Args:
            views: Descriptors in eight orientations, shape ``(B, 8, 64)``.
        """
        values = views.flatten(0, 1).numpy()
        lookups = self._look_up(values)
        for _, _, count in lookups:
            count[count > _CROWDED] = 0
        query, row = self._near(values, lookups, _DISTANCE)
        return query // 8, row, query % 8

    def find_groups(self, views: Tensor) -> tuple[Integers, Integers, Integers]:
        """Return rows of the query and of the index, of pairs that may be similar, and the queries with too many.

        Args:
            views: Descriptors in eight orientations, shape ``(B, 8, 64)``.
        """
        values = views.flatten(0, 1).numpy()
        lookups = self._look_up(values)
        number = np.sum([count for *_, count in lookups], axis=0).reshape(-1, 8).sum(1)
        # As many as this take the time of a comparison with all.
        many = number > _MANY * len(self.hashes)
        for _, _, count in lookups:
            count[np.repeat(many, 8)] = 0
        query, row = self._near(values, lookups, _SIMILAR_DISTANCE)
        return query // 8, row, np.flatnonzero(many)

    def _look_up(self, values: npt.NDArray[np.float32]) -> list[tuple[int, Integers, Integers]]:
        """Return, for each piece and each of its probes, the piece, the first match of each query and their number."""
        bits = values > 0
        found = []
        for piece in range(_PIECES):
            keys = _key(bits[:, piece::_PIECES])
            unsure = np.argsort(np.abs(values[:, piece::_PIECES]), axis=1)[:, :_UNSURE]
            probes = [keys]
            for column in range(_UNSURE):
                probes += [probe ^ (np.int64(1) << unsure[:, column]) for probe in probes]
            for probe in probes:
                left, right = (np.searchsorted(self.keys[piece], probe, side=side) for side in ("left", "right"))
                found.append((piece, left, right - left))
        return found

    def _near(
        self, values: npt.NDArray[np.float32], lookups: list[tuple[int, Integers, Integers]], distance: int
    ) -> tuple[Integers, Integers]:
        """Return queries and rows of the index whose hashes differ in few bits, each pair once."""
        hashes = _packed(values > 0)
        found: list[npt.NDArray[np.int64]] = []
        for piece, left, count in lookups:
            query = np.repeat(np.arange(len(count)), count)
            offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            row = self.orders[piece][left[query] + offset]
            near = np.bitwise_count(hashes[query] ^ self.hashes[row]) <= distance
            found.append(query[near] * len(self.hashes) + row[near])
        return np.divmod(np.unique(np.concatenate(found)), len(self.hashes))


def _key(bits: npt.NDArray[np.bool_]) -> Integers:
    keys: Integers = bits @ (np.int64(1) << np.arange(bits.shape[1], dtype=np.int64))
    return keys


def _packed(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    packed: npt.NDArray[np.uint64] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return packed


def _unit(small: Thumbnails) -> Tensor:
    return torch.from_numpy(small).float() / 255


def descriptors(small: Thumbnails, zoom: float = 0.0) -> Tensor:
    """Compute the lowest DCT frequencies, each times its frequency, of unit length, shape ``(N, 8, 8)``.

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


# Descriptors of rows in eight orientations, those of columns, and the scale that such a pair has.
_Pairings = tuple[tuple[Tensor, Tensor, float], ...]


def _described(small: Thumbnails) -> tuple[Tensor, Tensor]:
    """Compute descriptors of the whole images, and of the images without their margins."""
    return descriptors(small), descriptors(small, _ZOOM)


def _pairings(views: tuple[Tensor, ...], columns: tuple[Tensor, ...]) -> _Pairings:
    """Pair whole with whole, cropped row with column, and row with cropped column."""
    inside = 1 - 2 * _ZOOM
    return ((views[0], columns[0], 1.0), (views[1], columns[0], inside), (views[0], columns[1], 1 / inside))


def _best(pairings: _Pairings, row: Tensor, column: Tensor) -> tuple[Integers, npt.NDArray[np.float32]]:
    """Return orientation and scale of the highest similarity of each pair, both of shape ``(P,)``."""
    every = torch.cat([(view[row] * values[column][:, None]).sum(2) for view, values, _ in pairings], 1)
    best = every.argmax(1)
    return (best % 8).numpy(), torch.tensor([zoom for *_, zoom in pairings])[best // 8].numpy()


def oriented_descriptors(waves: Tensor) -> Tensor:
    """Compute descriptors of the eight orientations: transposed, and with the odd frequencies negated.

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


def _most_similar(row: Integers, score: npt.NDArray[np.float32]) -> Integers:
    """Return the indices of the most similar candidates of each row, sorted by similarity."""
    order = np.lexsort((-score, row))
    first = np.searchsorted(row[order], row[order])
    kept = order[np.arange(len(order)) - first < _MOST_CANDIDATES]
    best: Integers = kept[np.argsort(-score[kept], kind="stable")]
    return best
