"""ROAD (remove and debias): scores of a class with imputed pixels.

A constant baseline reveals the shape of the removed region to the model. Noisy linear imputation does not: each removed
pixel is the weighted mean of its neighbours, solved for all removed pixels together, plus noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.errors import ConfigError, ShapeError
from vitrail.explain.capture.forwarding import check_score, in_batches, score_class, slice_inputs
from vitrail.explain.capture.prepare import Explainable, Images, Target, prepared
from vitrail.explain.metrics.scoring import Maps, maps_of, rank_pixels, target_of

# Weights of the paper: a direct neighbour counts twice a diagonal one.
_NEIGHBOURS = {
    (down, right): 1 / 6 if 0 in (down, right) else 1 / 12
    for down in (-1, 0, 1)
    for right in (-1, 0, 1)
    if (down, right) != (0, 0)
}
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Road:
    """Score of the class by share of imputed pixels.

    Attributes:
        fractions: Shares of imputed pixels, shape ``(F,)``.
        most: Score without the most relevant pixels, shape ``(B, F)``; should be small.
        least: Score without the least relevant pixels, shape ``(B, F)``; should be large.
    """

    fractions: Tensor
    most: Tensor
    least: Tensor

    @property
    def gap(self) -> Tensor:
        """Mean of ``least - most``, shape ``(B,)``; 0 for a random order of pixels, large is good."""
        return (self.least - self.most).mean(dim=1)


def road(
    model: Explainable,
    images: Images,
    explanation: Maps,
    target: Target = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    noise: float = 0.01,
    score: str = "probability",
    seed: int = 0,
    batch_size: int = 16,
) -> Road:
    """Compute the scores of the class with the most and with the least relevant pixels imputed.

    The paper reports accuracy; here each image has a score, which allows intervals over images.

    Args:
        model: Any model of vitrail, or a trained model.
        images: As for :func:`vitrail.explain.explain`.
        explanation: An explanation, or maps ``(B, H, W)`` by stream.
        target: The class; by default that of the explanation, else the predicted class.
        fractions: Shares of pixels to impute, above 0 and below 1.
        noise: Standard deviation of the noise of imputed pixels, in units of the normalised image.
        score: As for :func:`vitrail.explain.metrics.faithfulness.deletion`.
        seed: Seed of the noise and of the order of tied pixels.
        batch_size: Batch size.

    Raises:
        ConfigError: A setting out of range, or a map of no stream of the model.
        ShapeError: A map of another size than its images.

    Source: Rong et al. 2022, arXiv:2202.00449, sections 4.2 and 4.3.
    """
    check_score(score)
    if not fractions or not all(0 < fraction < 1 for fraction in fractions):
        raise ConfigError(f"fractions must be above 0 and below 1, got {tuple(fractions)}")
    with prepared(model, images, target_of(explanation, target)) as (network, inputs, classes):
        assert classes is not None, "by_class is True"
        maps = maps_of(network, inputs, explanation)
        names = [stream.name for stream in network.streams]
        rows = []
        for part in in_batches(len(classes), batch_size):
            batch = slice_inputs(inputs, part)
            ranks = {name: rank_pixels(one[part], seed) for name, one in maps.items()}
            columns = []
            for most in (True, False):
                for fraction in fractions:
                    changed = list(batch)
                    for i, (name, x) in enumerate(zip(names, batch, strict=False)):
                        if x is None or name not in ranks:
                            continue
                        count = round(fraction * ranks[name][0].numel())
                        rank = ranks[name] if most else ranks[name][0].numel() - 1 - ranks[name]
                        changed[i] = impute(x, rank < count, noise, seed)
                    columns.append(score_class(network, changed, classes[part], score))
            rows.append(torch.stack(columns, dim=1))
    most_first, least_first = torch.cat(rows).chunk(2, dim=1)
    return Road(torch.tensor(fractions, device=most_first.device), most_first, least_first)


def impute(images: Tensor, removed: Tensor, noise: float = 0.01, seed: int = 0) -> Tensor:
    """Replace removed pixels by the weighted mean of their neighbours, plus noise.

    Args:
        images: Shape ``(B, C, H, W)``.
        removed: Pixels to replace, bool, shape ``(B, H, W)``; not all of an image.
        noise: Standard deviation of the noise, at least 0.
        seed: Seed of the noise, the same for every image.

    Raises:
        ConfigError: All pixels of an image are removed, or ``noise`` is below 0.
        ShapeError: ``removed`` has another shape than the images.
    """
    if not 0 <= noise < math.inf:
        raise ConfigError(f"noise must be a finite number of at least 0, got {noise!r}")
    if images.ndim != 4 or removed.shape != (len(images), *images.shape[2:]):
        raise ShapeError(
            f"removed must be (B, H, W) for images (B, C, H, W), got {tuple(removed.shape)} and {tuple(images.shape)}"
        )
    if removed.flatten(1).all(dim=1).any():
        raise ConfigError("all pixels of an image are removed, and none is left to impute from; lower the fraction")
    filled = images.clone()
    added = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed)) * noise
    added = added.to(images.device, images.dtype)
    for image, out, holes in zip(images, filled, removed, strict=True):
        if not holes.any():
            continue
        values = _solve(image.detach().double().cpu().numpy(), holes.cpu().numpy())
        out[:, holes] = torch.from_numpy(values).to(images.device, images.dtype) + added[:, holes]
    return filled


def _solve(image: npt.NDArray[np.float64], holes: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Solve for the values of the holes, ``(C, holes)``: each is the weighted mean of its neighbours."""
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import splu

    height, width = holes.shape
    count = int(holes.sum())
    index = np.full(holes.shape, -1)
    index[holes] = np.arange(count)
    rows, columns = np.nonzero(holes)
    own = np.arange(count)
    total, known = np.zeros(count), np.zeros((count, len(image)))
    entries = []
    for (down, right), weight in _NEIGHBOURS.items():
        row, column = rows + down, columns + right
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        total[inside] += weight
        at, row, column = own[inside], row[inside], column[inside]
        other = index[row, column]
        hole = other >= 0
        entries.append((at[hole], other[hole], np.full(int(hole.sum()), -weight)))
        known[at[~hole]] += weight * image[:, row[~hole], column[~hole]].T
    entries.append((own, own, total))
    first, second, weights = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    matrix = coo_array((weights, (first, second)), shape=(count, count)).tocsc()
    # Symmetric and positive definite: this column ordering keeps the factors sparse.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    solved: npt.NDArray[np.float64] = factors.solve(known).T
    return solved
