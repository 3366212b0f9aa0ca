"""Perceptual hashes of images, and groups of connected pairs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

Bits = npt.NDArray[np.uint64]
T = TypeVar("T", bound=Hashable)

# Side of the square of lowest frequencies that a hash is made of.
_FREQUENCIES = 8


def perceptual_hashes(images: Tensor) -> Bits:
    """Compute 64-bit hashes that hardly change when an image is scaled, recompressed or slightly brighter.

    The signs of the 63 lowest frequencies but the mean of an image's cosine transform, about their median.

    Args:
        images: Gray, shape ``(B, 32, 32)``.

    Returns:
        Shape ``(B,)``. Almost constant images have the hash 0.

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


def connected_components(pairs: npt.NDArray[np.int64]) -> list[list[int]]:
    """Group rows that pairs connect; groups are sorted, and ordered by their first row."""
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


class DisjointSets(Generic[T]):
    """Disjoint sets (union-find); the first member represents its set.

    Args:
        members: All of them, each in a set of its own at first; repeated ones count once.

    Source: Tarjan & van Leeuwen 1984, "Worst-case analysis of set union algorithms" (path halving).
    """

    def __init__(self, members: Iterable[T]) -> None:
        self.parent = {member: member for member in members}
        self.order = {member: i for i, member in enumerate(self.parent)}

    def root(self, member: T) -> T:
        """Return the representative of a member's set."""
        parent = self.parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def joined(self, first: T, second: T) -> bool:
        """Return whether two members are in one set."""
        return self.root(first) == self.root(second)

    def join(self, first: T, second: T) -> bool:
        """Join two sets; False if they are one already."""
        a, b = sorted((self.root(first), self.root(second)), key=self.order.__getitem__)
        self.parent[b] = a
        return a != b
