"""Order in which training takes its images: shuffled in each epoch, and balanced over the classes where wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from vitrail.data.splits import rarest_label


def _systematic(items: npt.NDArray[np.int64], weights: npt.NDArray[np.float64], start: float) -> npt.NDArray[np.int64]:
    """Draw as many items as there are, each about as often as its share of the weights (systematic sampling).

    Source: systematic sampling: Madow & Madow 1944, Ann. Math. Stat. 15, 1-24.
    """
    ends = np.cumsum(weights / weights.sum() * len(items))
    marks = start + np.arange(len(items))
    chosen: npt.NDArray[np.int64] = items[np.searchsorted(ends, marks, side="right").clip(max=len(items) - 1)]
    return chosen


def balancing_weights(targets: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Compute sampling weights that balance all classes.

    Args:
        targets: Classes ``(N,)``, or labels of each image ``(N, K)``. Of multiple labels the rarest decides;
            images without any are a class of their own.

    Returns:
        Shape ``(N,)``.
    """
    strata = targets if targets.ndim == 1 else rarest_label(targets)
    return 1.0 / np.bincount(strata)[strata]


class EpochShuffle(Sampler[Any]):
    """Sampler whose order depends on seed and epoch alone, so that a resumed run repeats it.

    Each pass is the next epoch unless :meth:`set_epoch` chooses one.

    Args:
        length: Images.
        seed: Seed of the permutations.
        share: Images of a batch that one process takes.
        rank: Number of this process.
        world: Number of processes; with several, images that fill no batch of all are left out.
        weights: Relative frequency of each image, shape ``(length,)``; each once when not given.
            An image comes as often as its weight says, rounded up or down at random.
        seeded: Whether to give ``(index, seed)`` in place of the index, with a seed of its own for each image taken.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        share: int = 1,
        rank: int = 0,
        world: int = 1,
        weights: npt.NDArray[np.float64] | None = None,
        seeded: bool = False,
    ) -> None:
        self.length, self.seed, self.epoch = length, seed, 0
        self.share, self.rank, self.world = share, rank, world
        self.weights, self.seeded = weights, seeded

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next pass; the training loop calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        order = rng.permutation(self.length)
        if self.weights is not None:
            # Images of one weight side by side: then each class, too, comes as often as it should.
            order = order[np.argsort(self.weights[order], kind="stable")]
            order = rng.permutation(_systematic(order, self.weights[order], rng.random()))
        seeds = rng.integers(2**63, size=len(order)) if self.seeded else None
        if seeds is None:
            return iter(self._own(order).tolist())
        return iter(list(zip(self._own(order).tolist(), self._own(seeds).tolist(), strict=True)))

    def _own(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Take this process's part of the values of all images, in the order of the batches."""
        if self.world == 1:
            return values
        batches = values[: len(self) * self.world].reshape(-1, self.world, self.share)
        return batches[:, self.rank].reshape(-1)

    def __len__(self) -> int:
        if self.world == 1:
            return self.length
        return self.length // (self.share * self.world) * self.share
