"""ROAD: remove and debias. Pixels are taken away so that where they were cannot be seen.

Black or grey holes tell a model where pixels were removed. Here each removed pixel becomes the weighted mean of its
neighbours, solved for all removed pixels together, with a little noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.forwarding import check_score, in_batches, score_class, slice_inputs
from vitrail.explain.capture.prepare import Explainable, Images, Target, prepared
from vitrail.explain.metrics.scoring import Maps, maps_of, rank_pixels, target_of

# The authors' weights: a direct neighbour counts twice a diagonal one.
_NEIGHBOURS = {
    (down, right): 1 / 6 if 0 in (down, right) else 1 / 12
    for down in (-1, 0, 1)
    for right in (-1, 0, 1)
    if (down, right) != (0, 0)
}
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Road:
    """The class's score with pixels removed.

    Attributes:
        fractions: Share of the pixels that were removed, shape ``(F,)``.
        most: Score without the most relevant pixels, shape ``(B, F)``; should be small.
        least: Score without the least relevant pixels, shape ``(B, F)``; should be large.
    """

    fractions: Tensor
    most: Tensor
    least: Tensor

    @property
    def gap(self) -> Tensor:
        """Mean of ``least - most``, shape ``(B,)``: 0 for a map that orders pixels at random, large is good."""
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
    """Scores of the class without the most and without the least relevant pixels, imputed from what is left.

    The authors count how many images are still classified rightly; here each image keeps its score, so that intervals
    over images can be given.

    Args:
        model: Any model of vitrail.
        images: As for :func:`vitrail.explain.explain`.
        explanation: What is measured: an explanation, or maps ``(B, H, W)`` by stream.
        target: The class; that of the explanation, or the predicted one, where it is not given.
        fractions: Shares of pixels to remove, above 0 and below 1.
        noise: Standard deviation of what is added to imputed pixels, in units of the normalised image.
        score: As for :func:`vitrail.explain.metrics.faithfulness.deletion`.
        seed: Of the noise and of the order among equal pixels.
        batch_size: Images that run at once.

    Raises:
        ConfigError: A setting out of range, or a map that fits no stream.
        ShapeError: A map of another size than its images.

    Source: Rong et al. 2022, arXiv:2202.00449, sections 4.2 and 4.3.
    """
    check_score(score)
    if not fractions or not all(0 < fraction < 1 for fraction in fractions):
        raise ConfigError(f"fractions must lie above 0 and below 1, got {tuple(fractions)}")
    with prepared(model, images, target_of(explanation, target)) as (network, inputs, classes):
        assert classes is not None, "asked for by class"
        maps = maps_of(network, inputs, explanation)
        names = [stream.name for stream in network.streams]
        rows = []
        for part in in_batches(len(classes), batch_size):
            piece = slice_inputs(inputs, part)
            ranks = {name: rank_pixels(one[part], seed) for name, one in maps.items()}
            columns = []
            for most in (True, False):
                for fraction in fractions:
                    changed = list(piece)
                    for number, (name, x) in enumerate(zip(names, piece, strict=False)):
                        if x is None or name not in ranks:
                            continue
                        count = round(fraction * ranks[name][0].numel())
                        place = ranks[name] if most else ranks[name][0].numel() - 1 - ranks[name]
                        changed[number] = impute(x, place < count, noise, seed)
                    columns.append(score_class(network, changed, classes[part], score))
            rows.append(torch.stack(columns, dim=1))
    most_first, least_first = torch.cat(rows).chunk(2, dim=1)
    return Road(torch.tensor(fractions, device=most_first.device), most_first, least_first)


def impute(images: Tensor, removed: Tensor, noise: float = 0.01, seed: int = 0) -> Tensor:
    """Replace removed pixels by what their neighbours say.

    Args:
        images: Shape ``(B, C, H, W)``.
        removed: Which pixels to replace, shape ``(B, H, W)``; some must be left in each image.
        noise: Standard deviation of what is added to them.
        seed: Of the noise, which is the same for every image.

    Raises:
        ConfigError: An image of which nothing is left.
    """
    if removed.flatten(1).all(dim=1).any():
        raise ConfigError("an image of which all pixels are removed cannot be imputed; remove a smaller fraction")
    filled = images.clone()
    drawn = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed)) * noise
    drawn = drawn.to(images.device, images.dtype)
    for image, out, holes in zip(images, filled, removed, strict=True):
        if not holes.any():
            continue
        values = _solve(image.detach().double().cpu().numpy(), holes.cpu().numpy())
        out[:, holes] = torch.from_numpy(values).to(images.device, images.dtype) + drawn[:, holes]
    return filled


def _solve(image: npt.NDArray[np.float64], holes: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Values ``(C, holes)`` at which every hole is the weighted mean of the neighbours that it has."""
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import splu

    height, width = holes.shape
    count = int(holes.sum())
    number = np.full(holes.shape, -1)
    number[holes] = np.arange(count)
    rows, columns = np.nonzero(holes)
    own = np.arange(count)
    total, known = np.zeros(count), np.zeros((count, len(image)))
    entries = []
    for (down, right), weight in _NEIGHBOURS.items():
        row, column = rows + down, columns + right
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        total[inside] += weight
        at, row, column = own[inside], row[inside], column[inside]
        other = number[row, column]
        hole = other >= 0
        entries.append((at[hole], other[hole], np.full(int(hole.sum()), -weight)))
        known[at[~hole]] += weight * image[:, row[~hole], column[~hole]].T
    entries.append((own, own, total))
    first, second, weights = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    matrix = coo_array((weights, (first, second)), shape=(count, count)).tocsc()
    # Symmetric and positive definite: an order made for that keeps the factors sparse.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    solved: npt.NDArray[np.float64] = factors.solve(known).T
    return solved
