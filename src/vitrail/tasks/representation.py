"""Quality of representations: linear probe, k-NN, rank, alignment, uniformity and collapse."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

# Features have collapsed if their spread is below this share of the spread before training ...
COLLAPSED_SHARE = 0.1
# ... or RankMe of the centred features is below this: they lie on one line.
COLLAPSED_RANK = 1.05
_MIN_IMAGES = 16


def rank_me(features: Tensor) -> float:
    """Compute RankMe, the effective rank of features: exp of the entropy of their singular values.

    Args:
        features: Shape ``(N, C)``.

    Returns:
        1 (all features on one line through 0) to ``min(N, C)``.

    Source: Garrido et al. 2023, arXiv:2210.02885, equation 1.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + 1e-7
    return float((-(shares * shares.log()).sum()).exp())


def alignment(first: Tensor, second: Tensor) -> float:
    """Compute the alignment: mean squared distance of two views on the unit sphere, 0 to 4, lower is better.

    Args:
        first: Features of one view of each image, shape ``(N, C)``.
        second: Features of the other view, shape ``(N, C)``.

    Source: Wang & Isola 2020, arXiv:2005.10242, equation for L_align with alpha = 2.
    """
    a, b = F.normalize(first.double(), dim=1), F.normalize(second.double(), dim=1)
    return float((a - b).square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """Compute the uniformity: log of the mean of ``exp(-2 * squared distance)`` over pairs on the unit sphere.

    Args:
        features: Shape ``(N, C)``, N at least 2.

    Returns:
        0 for identical features, about -4 for features spread evenly over a high-dimensional sphere; lower is better.

    Source: Wang & Isola 2020, arXiv:2005.10242, equation for L_uniform with t = 2.
    """
    unit = F.normalize(features.double(), dim=1)
    return float(torch.pdist(unit).square().mul(-2).exp().mean().log())


def spread(features: Tensor) -> float:
    """Compute the mean standard deviation of features on the unit sphere, times ``sqrt(C)``.

    Args:
        features: Shape ``(N, C)``.

    Returns:
        0 for identical features, about 1 for features spread evenly.

    Source: Chen & He 2021, arXiv:2011.10566, section 4.1.
    """
    unit = F.normalize(features.double(), dim=1)
    return float(unit.std(dim=0, unbiased=False).mean() * unit.shape[1] ** 0.5)


def collapse(features: Tensor, first_spread: float) -> str | None:
    """Detect collapsed features.

    Features have collapsed if their :func:`spread` is below a tenth of the spread before training, or RankMe of the
    centred features is below 1.05. Fewer than 16 images are not judged.

    Args:
        features: Shape ``(N, C)``.
        first_spread: Spread before training.

    Returns:
        A description of the collapse; None without collapse.
    """
    if len(features) < _MIN_IMAGES:
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
    """Classify by weighted k nearest neighbours with cosine similarity.

    Args:
        train: Features of the training images, shape ``(N, C)``.
        labels: Classes of the training images, shape ``(N,)``.
        test: Features of the test images, shape ``(M, C)``.
        neighbours: Number of neighbours, at most N.

    Returns:
        Predicted classes, shape ``(M,)``.

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4 (weights ``exp(cosine / 0.07)``).
    """
    from sklearn.neighbors import KNeighborsClassifier

    def weights(distances: Array) -> Array:
        # scikit-learn's cosine distance is 1 - cosine.
        result: Array = np.exp((1 - distances) / 0.07)
        return result

    vote = KNeighborsClassifier(min(neighbours, len(train)), weights=weights, metric="cosine", algorithm="brute")
    found: Labels = vote.fit(train, labels).predict(test)
    return found


def probe_predict(train: Array, labels: Labels, test: Array) -> Labels:
    """Classify by a linear probe: logistic regression on standardised features.

    Args:
        train: Features of the training images, shape ``(N, C)``.
        labels: Classes of the training images, shape ``(N,)``; at least two classes.
        test: Features of the test images, shape ``(M, C)``.

    Returns:
        Predicted classes, shape ``(M,)``.

    Source: linear evaluation: Chen et al. 2020, arXiv:2002.05709, section 2.1.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    with warnings.catch_warnings():
        # A probe that only monitors training need not converge to the last digit.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found: Labels = probe.fit(train, labels).predict(test)
    return found
