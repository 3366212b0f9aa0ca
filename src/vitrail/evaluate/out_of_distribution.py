"""Telling images of another kind from those that a model knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from vitrail.errors import DataError
from vitrail.evaluate.bootstrap import Bootstrap, Doubles, Interval
from vitrail.evaluate.bootstrap_measures import Ranker
from vitrail.evaluate.metrics import Floats, Ints

_NEIGHBOURS = 50


@dataclass(frozen=True)
class ModelOutputs:
    """What a model says of some images.

    Attributes:
        logits: Shape ``(N, K)``.
        embeddings: What the classifier saw, shape ``(N, C)``.
    """

    logits: Floats
    embeddings: Floats


def in_distribution_scores(seen: ModelOutputs, train: ModelOutputs, targets: Ints) -> dict[str, Doubles]:
    """How familiar each image is, by several scores; higher is more so.

    "msp": the largest probability (Hendrycks & Gimpel 2017, arXiv:1610.02136). "max_logit": the largest logit
    (Hendrycks et al. 2022, arXiv:1911.11132). "energy": the logarithm of the sum of exponential logits (Liu et al.
    2020, arXiv:2010.03759; with several labels an image the sum over labels of log(1 + exp), Wang et al. 2021,
    arXiv:2111.12797). "mahalanobis": minus the squared distance of the embedding to the nearest class's mean over the
    training images, by the covariance that the classes share (Lee et al. 2018, arXiv:1807.03888; shrunk as Ledoit &
    Wolf 2004 do, because there may be fewer images than dimensions; with several labels an image there is one mean).
    "knn": minus the distance of the embedding, scaled to length 1, to its k-th nearest training image (Sun et al.
    2022, arXiv:2204.06507).

    Args:
        seen: The images.
        train: The training images.
        targets: Their classes ``(n,)``, or labels ``(n, K)``.

    Returns:
        Shape ``(N,)`` each.

    Raises:
        DataError: Embeddings of another width.
    """
    if seen.embeddings.shape[1] != train.embeddings.shape[1]:
        raise DataError(
            f"embeddings of {seen.embeddings.shape[1]} and {train.embeddings.shape[1]} numbers cannot be compared; "
            "evaluate the run again"
        )
    wide = seen.logits.astype(np.float64)
    several = targets.ndim == 2
    return {
        "msp": (expit(wide) if several else softmax(wide, axis=1)).max(axis=1),
        "max_logit": wide.max(axis=1),
        "energy": np.logaddexp(0, wide).sum(axis=1) if several else logsumexp(wide, axis=1),
        "mahalanobis": _mahalanobis(
            seen.embeddings, train.embeddings, np.zeros(len(targets), int) if several else targets
        ),
        "knn": _neighbours(seen.embeddings, train.embeddings),
    }


def num_neighbours(images: int) -> int:
    """The k of the nearest neighbours: 50, or of few training images a tenth."""
    return max(1, min(_NEIGHBOURS, images // 10))


def _mahalanobis(x: Floats, train: Floats, targets: Ints) -> Doubles:
    train = train.astype(np.float64)
    means = np.stack([train[targets == k].mean(axis=0) for k in np.unique(targets)])
    centered = train - means[np.searchsorted(np.unique(targets), targets)]
    precision = LedoitWolf(assume_centered=True).fit(centered).precision_
    distances = []
    for mean in means:
        away = x.astype(np.float64) - mean
        distances.append(((away @ precision) * away).sum(axis=1))
    nearest: Doubles = -np.min(distances, axis=0)
    return nearest


def _neighbours(x: Floats, train: Floats) -> Doubles:
    k = num_neighbours(len(train))
    index = NearestNeighbors(n_neighbors=k).fit(_to_length_one(train))
    distance, _ = index.kneighbors(_to_length_one(x))
    farthest: Doubles = -distance[:, -1]
    return farthest


def _to_length_one(x: Floats) -> Doubles:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    scaled: Doubles = x.astype(np.float64) / np.maximum(length, 1e-12)
    return scaled


def separation(known: Doubles, other: Doubles, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """How well a score tells images apart.

    Args:
        known: Scores of images of the kind that the model knows, shape ``(n,)``; higher is more familiar.
        other: Of others, shape ``(m,)``.
        resamples: Of the interval's bootstrap.
        seed: Of the bootstrap.

    Returns:
        ``auroc`` (0.5: not at all) with its 95 % bootstrap interval ``auroc_low`` and ``auroc_high`` (None where no
        resample differs); ``fpr_at_95_tpr``, the share of others that pass where 95 % of the known ones pass;
        ``average_precision_known`` and ``average_precision_other``.
    """
    scores = np.concatenate([known, other])
    positive = np.arange(len(scores)) < len(known)
    rank = Ranker(positive, scores)
    interval = _interval(rank, positive, resamples, seed) if min(len(known), len(other)) > 1 else None
    # The highest bar that 95 % of the known images clear.
    bar = np.sort(known)[len(known) - int(np.ceil(0.95 * len(known) - 1e-9))]
    return {
        "auroc": float(roc_auc_score(positive, scores)),
        "auroc_low": None if interval is None else interval[0],
        "auroc_high": None if interval is None else interval[1],
        "fpr_at_95_tpr": float((other >= bar).mean()),
        "average_precision_known": float(average_precision_score(positive, scores)),
        "average_precision_other": float(average_precision_score(~positive, -scores)),
    }


def _interval(rank: Ranker, positive: npt.NDArray[np.bool_], resamples: int, seed: int) -> Interval | None:
    """Of the area, known and other images drawn apart: how many there are of each was not left to chance."""
    n = len(positive)
    drawing = Bootstrap(n, None, resamples, seed)
    parts = [Bootstrap(int(own.sum()), None, resamples, seed + i) for i, own in enumerate((positive, ~positive))]
    areas = []
    for pair in zip(*(part.weights(at_a_time=max(1, 4_000_000 // n)) for part in parts), strict=True):
        weights = np.empty((n, pair[0].shape[1]), np.float32)
        weights[positive], weights[~positive] = pair
        areas.append(rank(weights)[0])
    return drawing.interval(np.concatenate(areas))


def ood_report(
    known: ModelOutputs, other: ModelOutputs, train: ModelOutputs, targets: Ints, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Each score of :func:`in_distribution_scores` with its :func:`separation`.

    Args:
        known: Images of the kind that the model knows; not the ones it was trained on.
        other: Images of another kind.
        train: The training images.
        targets: Their classes ``(n,)``, or labels ``(n, K)``.
        resamples: Of the intervals' bootstrap.
        seed: Of the bootstrap.
    """
    of_known, of_other = (in_distribution_scores(seen, train, targets) for seen in (known, other))
    return {
        "images_known": len(known.logits),
        "images_other": len(other.logits),
        "images_train": len(train.logits),
        "neighbours": num_neighbours(len(train.logits)),
        "scores": {name: separation(of_known[name], of_other[name], resamples, seed) for name in of_known},
    }


def check_outputs(logits: npt.NDArray[np.float32], embeddings: npt.NDArray[np.float32], name: str) -> ModelOutputs:
    """Predictions and embeddings of the same images.

    Raises:
        DataError: Another number of them, or numbers that are none.
    """
    if len(logits) != len(embeddings):
        raise DataError(f"{name}: {len(embeddings)} embeddings for {len(logits)} predictions; evaluate the run again")
    if not (np.isfinite(logits).all() and np.isfinite(embeddings).all()):
        raise DataError(f"{name}: some logits or embeddings are no numbers; nothing can be told from them")
    return ModelOutputs(logits, embeddings)
