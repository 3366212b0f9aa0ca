"""Out-of-distribution detection: scores of images, and how well they separate two sets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from vitrail.bootstrap import Bootstrap, Doubles, Interval
from vitrail.config.data import DataConfig
from vitrail.data.sources.opening import SOURCES
from vitrail.errors import ConfigError, DataError, closest, plural
from vitrail.evaluate.bootstrap_measures import Ranker
from vitrail.evaluate.metrics import Floats, Ints
from vitrail.evaluate.run import Evaluated, name_of_other, predict
from vitrail.evaluate.saved_predictions import Intervals, SavedPredictions, is_current
from vitrail.runs.folder import RunFolder
from vitrail.runs.images import open_images, open_prepared

_NEIGHBOURS = 50


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of a model for some images.

    Attributes:
        logits: Shape ``(N, K)``.
        embeddings: Pre-logit features, shape ``(N, C)``.
    """

    logits: Floats
    embeddings: Floats


def in_distribution_scores(outputs: ModelOutputs, train: ModelOutputs, targets: Ints) -> dict[str, Doubles]:
    """Compute scores that are higher for in-distribution images.

    "msp": maximum softmax probability (Hendrycks & Gimpel 2017, arXiv:1610.02136). "max_logit": maximum logit
    (Hendrycks et al. 2022, arXiv:1911.11132). "energy": log-sum-exp of the logits (Liu et al. 2020, arXiv:2010.03759;
    multi-label: sum of log(1 + exp), Wang et al. 2021, arXiv:2111.12797). "mahalanobis": minus the squared Mahalanobis
    distance of the embedding to the nearest class mean, with the shared covariance (Lee et al. 2018, arXiv:1807.03888;
    Ledoit & Wolf's 2004 shrinkage, because there may be fewer images than dimensions; multi-label: one mean). "knn":
    minus the distance of the normalised embedding to its k-th nearest training image (Sun et al. 2022,
    arXiv:2204.06507).

    Args:
        outputs: Outputs for N images.
        train: Outputs for the training images.
        targets: Classes ``(n,)`` or labels ``(n, K)`` of the training images.

    Returns:
        Shape ``(N,)`` each.

    Raises:
        DataError: Embeddings have different dimensions.
    """
    if outputs.embeddings.shape[1] != train.embeddings.shape[1]:
        raise DataError(
            f"embeddings of {outputs.embeddings.shape[1]} and {train.embeddings.shape[1]} dimensions cannot be "
            "compared; evaluate the run again"
        )
    wide = outputs.logits.astype(np.float64)
    multi_label = targets.ndim == 2
    return {
        "msp": (expit(wide) if multi_label else softmax(wide, axis=1)).max(axis=1),
        "max_logit": wide.max(axis=1),
        "energy": np.logaddexp(0, wide).sum(axis=1) if multi_label else logsumexp(wide, axis=1),
        "mahalanobis": -fit_mahalanobis(train.embeddings, targets).distances(outputs.embeddings),
        "knn": _neighbours(outputs.embeddings, train.embeddings),
    }


def num_neighbours(images: int) -> int:
    """Choose k of the k-NN score: 50, or a tenth of fewer than 500 training images."""
    return max(1, min(_NEIGHBOURS, images // 10))


@dataclass(frozen=True)
class Mahalanobis:
    """Class means of embeddings and their shared covariance.

    Attributes:
        means: Shape ``(M, C)``, one for each class with images; a single one if multi-label.
        precision: Inverse of the covariance, shape ``(C, C)``.
    """

    means: Doubles
    precision: Doubles

    def distances(self, embeddings: Floats) -> Doubles:
        """Compute squared distances ``(N,)`` of embeddings ``(N, C)`` to the nearest mean."""
        found = []
        for mean in self.means:
            away = embeddings.astype(np.float64) - mean
            found.append(((away @ self.precision) * away).sum(axis=1))
        nearest: Doubles = np.min(found, axis=0)
        return nearest


def fit_mahalanobis(embeddings: Floats, targets: Ints) -> Mahalanobis:
    """Fit class means and the shared covariance, with Ledoit & Wolf's shrinkage.

    Args:
        embeddings: Embeddings of the training images, shape ``(n, C)``.
        targets: Their classes ``(n,)``, or labels ``(n, K)``.
    """
    train = embeddings.astype(np.float64)
    classes, index = np.unique(np.zeros(len(targets), int) if targets.ndim == 2 else targets, return_inverse=True)
    means = np.stack([train[index == k].mean(axis=0) for k in range(len(classes))])
    return Mahalanobis(means, LedoitWolf(assume_centered=True).fit(train - means[index]).precision_)


def _neighbours(x: Floats, train: Floats) -> Doubles:
    k = num_neighbours(len(train))
    index = NearestNeighbors(n_neighbors=k).fit(_unit_length(train))
    distance, _ = index.kneighbors(_unit_length(x))
    farthest: Doubles = -distance[:, -1]
    return farthest


def _unit_length(x: Floats) -> Doubles:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    scaled: Doubles = x.astype(np.float64) / np.maximum(length, 1e-12)
    return scaled


def separation(known: Doubles, other: Doubles, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Measure how well a score separates in-distribution from out-of-distribution images.

    Args:
        known: Scores of in-distribution images, shape ``(n,)``.
        other: Scores of out-of-distribution images, shape ``(m,)``.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        ``auroc`` with its 95 % bootstrap interval ``auroc_low`` and ``auroc_high`` (None where resamples do not vary);
        ``fpr_at_95_tpr`` (in-distribution images are the positives); ``average_precision_known`` and
        ``average_precision_other``.
    """
    scores = np.concatenate([known, other])
    positive = np.arange(len(scores)) < len(known)
    rank = Ranker(positive, scores)
    interval = _interval(rank, positive, resamples, seed) if min(len(known), len(other)) > 1 else None
    # Highest threshold with a true positive rate of at least 95 %.
    threshold = np.sort(known)[len(known) - int(np.ceil(0.95 * len(known) - 1e-9))]
    return {
        "auroc": float(roc_auc_score(positive, scores)),
        "auroc_low": None if interval is None else interval[0],
        "auroc_high": None if interval is None else interval[1],
        "fpr_at_95_tpr": float((other >= threshold).mean()),
        "average_precision_known": float(average_precision_score(positive, scores)),
        "average_precision_other": float(average_precision_score(~positive, -scores)),
    }


def _interval(rank: Ranker, positive: npt.NDArray[np.bool_], resamples: int, seed: int) -> Interval | None:
    """Compute the stratified bootstrap interval of the AUROC: both sets are resampled at their own sizes."""
    n = len(positive)
    parts = [Bootstrap(int(own.sum()), None, resamples, seed + i) for i, own in enumerate((positive, ~positive))]
    areas = []
    for pair in zip(*(part.weights(at_a_time=max(1, 4_000_000 // n)) for part in parts), strict=True):
        weights = np.empty((n, pair[0].shape[1]), np.float32)
        weights[positive], weights[~positive] = pair
        areas.append(rank(weights)[0])
    return Bootstrap(n, None, resamples, seed).interval(np.concatenate(areas))


def ood_report(
    known: ModelOutputs, other: ModelOutputs, train: ModelOutputs, targets: Ints, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Compute the :func:`separation` of each score of :func:`in_distribution_scores`.

    Args:
        known: Outputs for in-distribution images that were not trained on.
        other: Outputs for out-of-distribution images.
        train: Outputs for the training images.
        targets: Classes ``(n,)`` or labels ``(n, K)`` of the training images.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
    """
    of_known, of_other = (in_distribution_scores(outputs, train, targets) for outputs in (known, other))
    return {
        "images_known": len(known.logits),
        "images_other": len(other.logits),
        "images_train": len(train.logits),
        "neighbours": num_neighbours(len(train.logits)),
        "scores": {name: separation(of_known[name], of_other[name], resamples, seed) for name in of_known},
    }


def check_outputs(logits: npt.NDArray[np.float32], embeddings: npt.NDArray[np.float32], name: str) -> ModelOutputs:
    """Validate logits and embeddings of the same images.

    Raises:
        DataError: Different numbers of rows, or values that are not finite.
    """
    if len(logits) != len(embeddings):
        raise DataError(
            f"{name}: {plural(len(embeddings), 'embedding')} for {plural(len(logits), 'prediction')}; evaluate it again"
        )
    if not (np.isfinite(logits).all() and np.isfinite(embeddings).all()):
        raise DataError(f"{name}: some logits or embeddings are infinite or NaN; evaluate the run again")
    return ModelOutputs(logits, embeddings)


def measure_ood(
    evaluated: Evaluated,
    own: DataConfig,
    path: str,
    *,
    source: str = "unlabelled",
    spectral_path: str | None = None,
    intervals: Intervals | None = None,
) -> dict[str, Any]:
    """Measure the separation of the evaluated images from other images; writes ood.json.

    Missing predictions are computed, also those of the training images, which the embedding scores are fitted on.

    Args:
        evaluated: An evaluation with saved predictions.
        own: Data settings of the run.
        path: The out-of-distribution images.
        source: A ``data.source``; "unlabelled" is a folder of images at any depth. Labels are ignored.
        spectral_path: Folder with the spectral files, for models with two streams.
        intervals: Settings of the intervals.

    Returns:
        Content of ood.json: ``known``, ``other``, ``path``, ``weights``, numbers of images, and ``scores``.

    Raises:
        ConfigError: Unknown source.
        DataError: Images are unreadable or have other bands, or training images are missing.
    """
    if source not in SOURCES or not SOURCES[source]:
        kinds = [name for name, has_path in SOURCES.items() if has_path]
        raise ConfigError(f"--ood-source must be a data.source with a path, got {source!r}{closest(source, kinds)}")
    run, trained = evaluated.run, evaluated.trained
    # Settings of the run's own listing and split do not apply to other images.
    config = own.changed(
        {
            "source": source,
            "path": path,
            "spectral.path": spectral_path,
            "table.label_separator": None,
            "split": "stratified",
            "splitting.group": None,
            "table.group_column": None,
            "splitting.group_pattern": None,
            "table.split_column": None,
            "classes.label_pattern": None,
            "classes.names": None,
            "classes.values": None,
            "splitting.fold": None,
            "classes.label_fraction": 1.0,
        }
    )
    try:
        others = open_prepared(trained.card, config, split=False, labelled=False)
    except DataError as error:
        raise DataError(f"--ood {path}: {error}") from error
    every = dataclasses.replace(others, splits={"all": list(range(len(others.source)))})
    suffix = evaluated.averaged.suffix
    name = name_of_other(path, "all", "ood") + suffix
    predict(run, trained, every, "all", name, evaluated.tta)
    train = f"train{suffix}"
    images = evaluated.images
    if not evaluated.opened.is_own_split("train") or "train" not in images.splits:
        images = open_images(run, trained.card, own).data
    if not is_current(run, train, **images.identity()):
        predict(run, trained, images, "train", train, evaluated.tta)
    intervals = intervals or Intervals()
    targets = np.stack(run.read_predictions(train)["target"].tolist()).astype(np.int64)
    known, other, training = (_read_outputs(run, saved) for saved in (evaluated.name, name, train))
    report = ood_report(known, other, training, targets, intervals.resamples, intervals.seed)
    report = {
        "known": evaluated.name, "other": name, "source": source, "path": path, "weights": run.weights_hash(), **report,
    }  # fmt: skip
    run.write_json(evaluated.files.ood, report)
    return report


def _read_outputs(run: RunFolder, name: str) -> ModelOutputs:
    return check_outputs(SavedPredictions.read(run, name).logits, run.read_embeddings(name), name)
