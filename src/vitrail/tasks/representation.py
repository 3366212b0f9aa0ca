"""What a model has learned without labels: how well classes can be told apart, and how its features are spread."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

# The features have collapsed where their spread is less than this share of what it was before training ...
COLLAPSED_SHARE = 0.1
# ... or RankMe about their mean is below this: they lie on one line. It takes some images to tell.
COLLAPSED_RANK = 1.05
_LEAST_IMAGES = 16


def rank_me(features: Tensor) -> float:
    """Effective number of dimensions of features: e to the entropy of their singular values.

    Args:
        features: Shape ``(N, C)``.

    Returns:
        From 1 (all on one line through zero) to the smaller of N and C.

    Source: Garrido et al. 2023, arXiv:2210.02885, equation 1.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + 1e-7
    return float((-(shares * shares.log()).sum()).exp())


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of the features of two views of an image, on the unit sphere: 0 to 4, less is better.

    Args:
        first: Features of one view of each image, shape ``(N, C)``.
        second: Those of the other.

    Source: Wang & Isola 2020, arXiv:2005.10242, equation for L_align with alpha = 2.
    """
    a, b = F.normalize(first.double(), dim=1), F.normalize(second.double(), dim=1)
    return float((a - b).square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """Logarithm of the mean of e to -2 times the squared distance of two images, on the unit sphere.

    Args:
        features: One row an image, shape ``(N, C)``, at least two.

    Returns:
        0 where all features are alike, and near -4 where they are spread evenly over a sphere of many dimensions; less
        is better.

    Source: Wang & Isola 2020, arXiv:2005.10242, equation for L_uniform with t = 2.
    """
    unit = F.normalize(features.double(), dim=1)
    return float(torch.pdist(unit).square().mul(-2).exp().mean().log())


def spread(features: Tensor) -> float:
    """Mean deviation of the features' numbers on the unit sphere, times the square root of their number.

    Args:
        features: Shape ``(N, C)``.

    Returns:
        0 where all images have the same features, about 1 where they are spread evenly.

    Source: Chen & He 2021, arXiv:2011.10566, section 4.1.
    """
    unit = F.normalize(features.double(), dim=1)
    return float(unit.std(dim=0, unbiased=False).mean() * unit.shape[1] ** 0.5)


def collapse(features: Tensor, first_spread: float) -> str | None:
    """Whether training has made features say next to nothing about which image they are of.

    The rule: their :func:`spread` is less than a tenth of what it was before training (all images have nearly the same
    features; a random network may begin with little spread), or RankMe of the features less their mean is below 1.05
    (they differ along one line only). Fewer than 16 images are not judged.

    Args:
        features: Shape ``(N, C)``.
        first_spread: Of the features before training.

    Returns:
        What is the matter; None where nothing is.
    """
    if len(features) < _LEAST_IMAGES:
        return None
    found = spread(features)
    if found < COLLAPSED_SHARE * first_spread:
        return (
            f"all images have nearly the same features (their spread is {found:.2g}, before training it was "
            f"{first_spread:.2g})"
        )
    rank = rank_me(features - features.mean(dim=0))
    if rank < COLLAPSED_RANK:
        return f"all features differ along one line only (RankMe about their mean is {rank:.3f})"
    return None


def knn_predict(train: Array, labels: Labels, test: Array, neighbours: int = 20) -> Labels:
    """Classes by the vote of the most alike labelled images.

    Args:
        train: Features of labelled images, shape ``(N, C)``.
        labels: Their classes, shape ``(N,)``.
        test: Features of others, shape ``(M, C)``.
        neighbours: How many vote, each with its cosine as weight; all where there are fewer.

    Returns:
        Shape ``(M,)``.

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4 (weighted by e to the cosine over 0.07).
    """
    from sklearn.neighbors import KNeighborsClassifier

    def weights(distances: Array) -> Array:
        # scikit-learn's cosine distance is one minus the cosine.
        result: Array = np.exp((1 - distances) / 0.07)
        return result

    vote = KNeighborsClassifier(min(neighbours, len(train)), weights=weights, metric="cosine", algorithm="brute")
    found: Labels = vote.fit(train, labels).predict(test)
    return found


def probe_predict(train: Array, labels: Labels, test: Array) -> Labels:
    """Classes by a logistic regression on features of deviation 1.

    Args:
        train: Features of labelled images, shape ``(N, C)``.
        labels: Their classes, shape ``(N,)``; at least two.
        test: Features of others, shape ``(M, C)``.

    Returns:
        Shape ``(M,)``.

    Source: the linear evaluation of Chen et al. 2020, arXiv:2002.05709, section 2.1, solved to the end.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    with warnings.catch_warnings():
        # A probe that watches training need not be exact to the last digit.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found: Labels = probe.fit(train, labels).predict(test)
    return found
