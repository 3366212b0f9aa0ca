"""Finding images that are the same or nearly: perceptual hashes, and pairs of close hashes without comparing all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Bits = npt.NDArray[np.uint64]

# Side of the small gray image that is hashed, and of the square of its lowest frequencies that is kept.
HASHED_SIZE = 32
_FREQUENCIES = 8
# Pairs that agree in one piece of their hashes are compared in groups of this many, so that memory stays small.
_CHUNK = 4_000_000


def perceptual_hashes(images: Tensor) -> Bits:
    """64 bits that stay nearly the same when an image is scaled, recompressed or made a little brighter.

    The signs of the 63 lowest frequencies but the mean of an image's cosine transform, about their median.

    Args:
        images: Gray, shape ``(B, 32, 32)``.

    Returns:
        Shape ``(B,)``. What is all but constant has the hash 0.

    Source: the "pHash" of Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", 3.2.1.
    """
    from scipy.fft import dctn

    waves = dctn(images.double().numpy(), axes=(1, 2), norm="ortho")[:, :_FREQUENCIES, :_FREQUENCIES]
    flat = waves.reshape(len(waves), -1)[:, 1:]
    bits = flat > np.median(flat, axis=1, keepdims=True)
    # An image without contrast has only noise to give: rounding to 8 bits alone moves frequencies by less than this.
    bits &= np.abs(flat).max(axis=1, keepdims=True) > 0.02
    padded = np.concatenate([np.zeros((len(bits), 1), dtype=bool), bits], axis=1)
    packed: Bits = np.packbits(padded, axis=1).view(">u8").astype(np.uint64).reshape(-1)
    return packed


def close_pairs(hashes: Bits, distance: int) -> npt.NDArray[np.int64]:
    """All pairs of hashes that differ in at most some bits.

    The bits are cut into one more piece than may differ: of a close pair at least one piece is equal, so that only
    hashes that share a piece are compared. The result is exact.

    Args:
        hashes: Shape ``(N,)``.
        distance: Bits that may differ, 0 to 15.

    Returns:
        Row numbers, smaller first, each pair once, in order, shape ``(pairs, 2)``.

    Source: Norouzi et al. 2012, "Fast search in Hamming space with multi-index hashing", arXiv:1307.2982.
    """
    # Images with the very same hash are one point of the search: a thousand copies are not half a million pairs of it.
    values, members = np.unique(hashes, return_inverse=True)
    borders = np.linspace(0, 64, distance + 2).astype(int)
    found: list[npt.NDArray[np.int64]] = []
    for low, high in itertools.pairwise(borders.tolist()):
        mask = np.uint64(((1 << (high - low)) - 1) << low)
        pieces = values & mask
        order = np.argsort(pieces, kind="stable")
        for left, right in _equal_neighbours(pieces[order]):
            a, b = order[left], order[right]
            near = np.bitwise_count(values[a] ^ values[b]) <= distance
            found.append(np.stack([a[near], b[near]], axis=1))
    pairs = np.unique(np.sort(np.concatenate(found), axis=1), axis=0) if found else np.empty((0, 2), dtype=np.int64)
    return _expand(pairs, members, len(values))


def _equal_neighbours(ordered: Bits) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """All pairs of places with equal values in a sorted array, in parts."""
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(ordered)])
    # The place d steps further is of the same value for all but the last d of each run.
    longest = int(sizes.max(initial=0))
    ends = np.repeat(starts + sizes, sizes)
    places = np.arange(len(ordered))
    lefts: list[npt.NDArray[np.int64]] = []
    rights: list[npt.NDArray[np.int64]] = []
    waiting = 0
    for step in range(1, longest):
        places = places[places + step < ends[places]]
        lefts.append(places)
        rights.append(places + step)
        waiting += len(places)
        if waiting > _CHUNK:
            yield np.concatenate(lefts), np.concatenate(rights)
            lefts, rights, waiting = [], [], 0
    if lefts:
        yield np.concatenate(lefts), np.concatenate(rights)


def _expand(pairs: npt.NDArray[np.int64], members: npt.NDArray[Any], number: int) -> npt.NDArray[np.int64]:
    """From pairs of different hashes to pairs of images, and those of one hash."""
    order = np.argsort(members, kind="stable")
    borders = np.searchsorted(members[order], np.arange(number + 1))
    rows = [order[borders[i] : borders[i + 1]] for i in range(number)]
    result = [np.array([(a, b) for a in rows[i] for b in rows[j]], dtype=np.int64) for i, j in pairs]
    for own in rows:
        if len(own) > 1:
            left, right = np.triu_indices(len(own), 1)
            result.append(np.stack([own[left], own[right]], axis=1))
    if not result:
        return np.empty((0, 2), dtype=np.int64)
    return np.unique(np.sort(np.concatenate(result), axis=1), axis=0)


def likeness(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Correlation of small images, pair by pair; 0 where one has no contrast.

    Args:
        a: Shape ``(P, ...)``.
        b: The same.

    Returns:
        Shape ``(P,)``, -1 to 1.
    """
    x, y = (v.reshape(len(v), -1).astype(np.float64) for v in (a, b))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    scale = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    result: npt.NDArray[np.float64] = (x * y).sum(1) / np.where(scale > 1e-9, scale, np.inf)
    return result


def clusters(pairs: npt.NDArray[np.int64]) -> list[list[int]]:
    """Groups of rows that pairs connect, each in order, by their first row."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(pairs):
        return []
    rows, inverse = np.unique(pairs, return_inverse=True)
    inverse = inverse.reshape(-1, 2)
    graph = coo_array((np.ones(len(inverse)), (inverse[:, 0], inverse[:, 1])), shape=(len(rows), len(rows)))
    _, labels = connected_components(graph, directed=False)
    groups: dict[int, list[int]] = {}
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        groups.setdefault(label, []).append(row)
    return list(groups.values())
