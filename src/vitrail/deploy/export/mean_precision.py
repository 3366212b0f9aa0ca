"""Mean average precision of several outputs for the same images, its intervals, and the bound of its drop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitrail.bootstrap import Bootstrap, Doubles
from vitrail.deploy.export.bounds import LEVEL, images_needed
from vitrail.evaluate.bootstrap_measures import Ranker, Weights

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]

# Elements of a chunk of weights; bounds the memory.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class PrecisionDrop:
    """Drop of the mean average precision.

    Attributes:
        value: Drop on the images.
        high: Its one-sided upper bound.
        labels: Number of labels that have positives, over which the mean runs.
        rarest: Index of the one with the fewest positives.
        positives: Its number of positives.
    """

    value: float
    high: float
    labels: int
    rarest: int
    positives: int

    def missing(self, max_drop: float, level: float = LEVEL) -> int:
        """Compute how many further positives of the rarest label, all ranked alike, would show the limit of the drop.

        Args:
            max_drop: The limit.
            level: Confidence level.
        """
        share = self.labels * max_drop
        return 0 if share >= 1 else max(0, images_needed(1 - share, 0, level) - self.positives)


def bound_precision_drop(
    targets: Bools, original: Floats, other: Floats, level: float = LEVEL, resamples: int = 2000, seed: int = 0
) -> PrecisionDrop | None:
    """Bound the drop of the mean average precision over labels that have positives.

    Images have exponential weights (the Bayesian bootstrap), so that no resample is without positives. The label with
    the fewest positives has one more, unseen, which only the original ranks above all negatives. Of positives that are
    either ranked alike or lost the bound is Clopper and Pearson's: without a lost one, P positives of a single label
    show a drop of at most ``1 - (1 - level) ** (1 / P)``. In simulations with changed scores and with lost positives
    the true drop is above the bound in at most ``1 - level`` of the gates. Not covered are negatives that the candidate
    ranks first, so rarely that a label has less than one among the images: above in 31 to 61 % of the gates then.

    Args:
        targets: Shape ``(N, K)``.
        original: Logits of the original, shape ``(N, K)``.
        other: Logits of the candidate, shape ``(N, K)``.
        level: Confidence level.
        resamples: Number of resamples.
        seed: Seed of the weights.

    Returns:
        The drop; None where no label has positives.

    Source: Rubin 1981, Ann. Stat. 9, 130-134 (weights); Learned-Miller & Thomas 2019, arXiv:1905.06208 (the unseen
    value at its worst).
    """
    labels = np.flatnonzero(targets.any(axis=0))
    if len(labels) == 0:
        return None
    positives = targets[:, labels].sum(axis=0)
    rarest = int(positives.argmin())
    precisions = _rank(targets, labels, (original, other))

    def drops(weights: Weights) -> Doubles:
        """Compute the drop of each label, shape ``(K, R)``."""
        first, second = precisions(weights)
        drop: Doubles = first - second
        return drop

    rng, n = np.random.default_rng(seed), len(targets)
    means, size = [], max(1, _CHUNK // (n + 1))
    for start in range(0, resamples, size):
        weights = rng.exponential(size=(n + 1, min(size, resamples - start))).astype(np.float32)
        found, unseen = drops(weights[:-1]), weights[-1].astype(np.float64)
        share = unseen / (unseen + weights[:-1][targets[:, labels[rarest]]].sum(axis=0))
        means.append(found.mean(axis=0) + share * (1 - found[rarest]) / len(labels))
    value = float(drops(np.ones((n, 1), np.float32)).mean())
    high = max(value, float(np.quantile(np.concatenate(means), level)))
    return PrecisionDrop(value, high, len(labels), int(labels[rarest]), int(positives[rarest]))


def mean_precisions(targets: Bools, logits: Sequence[Floats], bootstrap: Bootstrap) -> tuple[Doubles, Doubles] | None:
    """Compute the mean average precision over labels that have positives.

    Args:
        targets: Shape ``(N, K)``.
        logits: Logits of M models, shape ``(N, K)`` each.
        bootstrap: Resamples of the N images.

    Returns:
        Values of the images, shape ``(M,)``, and of resamples, shape ``(M, R)``, NaN where one of these labels has no
        positives: a mean over the others would estimate something else. None where no label has positives.
    """
    labels = np.flatnonzero(targets.any(axis=0))
    if len(labels) == 0:
        return None
    precisions = _rank(targets, labels, logits)
    values = precisions(np.ones((len(targets), 1), np.float32)).mean(axis=1)[:, 0]
    return values, np.concatenate([precisions(weights).mean(axis=1) for weights in bootstrap.weights()], axis=1)


def _rank(targets: Bools, labels: npt.NDArray[np.int64], logits: Sequence[Floats]) -> Callable[[Weights], Doubles]:
    """Rank the images by each label; return the function from weights to average precisions ``(M, K, R)``."""
    rankers = [[Ranker(targets[:, k], x[:, k].astype(np.float64)) for k in labels] for x in logits]
    return lambda weights: np.stack([[ranker(weights)[1] for ranker in own] for own in rankers])
