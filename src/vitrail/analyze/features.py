"""Feature spaces of runs: the features of a layer, class separation, and layouts in two dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrail.config.data import DataConfig
from vitrail.data.dataset import ImageData
from vitrail.errors import ConfigError, DataError, RunError, closest, plural
from vitrail.evaluate.saved_predictions import is_current
from vitrail.explain.structure.features import EMBEDDING, layer_features
from vitrail.extras import import_extra
from vitrail.runs.folder import RunFolder
from vitrail.runs.images import describe_training_images, open_images
from vitrail.runs.trained import TrainedModel, load_trained
from vitrail.tasks.representation import knn_predict

Array = npt.NDArray[Any]

_FOLDS = 5
_BATCH = 64
# Fewer points have no neighbourhoods to lay out.
FEWEST_POINTS = 5


@dataclass(frozen=True)
class Space:
    """Features of images in one layer of a run.

    Attributes:
        label: The run.
        layer: The layer.
        split: Split of the images.
        data: The images.
        indices: Indices into the data, length N.
        features: Shape ``(N, C)``.
        lines: Warnings about the images.
    """

    label: str
    layer: str
    split: str
    data: ImageData
    indices: list[int]
    features: npt.NDArray[np.float32]
    lines: tuple[str, ...] = ()

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """Class of each image."""
        return self.data.source.targets[self.indices]

    @property
    def keys(self) -> list[str]:
        """Key of each image."""
        return [self.data.source.keys[i] for i in self.indices]


def open_space(
    run: RunFolder, data: DataConfig, own: DataConfig | None = None, *, owner: RunFolder | None = None,
    split: str | None = None, layer: str = EMBEDDING, most: int = 2000, device: str = "cpu",
) -> Space:  # fmt: skip
    """Read the features of images from the run's evaluation, or compute them.

    Args:
        run: A trained run, with classes or pre-trained.
        data: The images: the run's own, or another run's of the same bands.
        own: Data of the recipe of the images' run, where the paths may have changed since.
        owner: Run of the images; ``run`` by default.
        split: Split of the images; "test" by default, "val" without test images.
        layer: Layer of the model; the input of its classifier by default.
        most: Largest number of images, evenly spaced.
        device: Device of the computation.

    Raises:
        ConfigError: An unknown layer, or multi-label images.
        DataError: Missing images, images without labels, of other bands, or too few.
    """
    trained = load_trained(run)
    card = trained.card
    other = owner is not None and owner.path.resolve() != run.path.resolve()
    opened = open_images(owner if owner is not None and other else run, card, data, own, verb="features")
    images, lines = opened.data, list(opened.lines)
    if other and (line := describe_training_images(run, images)) is not None:
        lines.append(line)
    if not images.source.classes:
        raise DataError(
            f"{run} was trained on images without labels, so there is nothing to colour points by; --data-of RUN takes "
            "the images of a run that has them"
        )
    if images.source.targets.ndim == 2:
        raise ConfigError(f"{run}: a point has one colour, and its images are multi-label")
    split = split or opened.default_split()
    chosen = images.evenly_spaced(split, most)
    if len(chosen) < FEWEST_POINTS:
        raise DataError(f"{split} has {plural(len(chosen), 'image')}; a layout needs at least {FEWEST_POINTS}")
    stored = not other and layer == EMBEDDING and opened.is_own_split(split) and not card.per_point
    features = _stored(run, images, split, chosen) if stored else None
    if features is None:
        features = _compute(trained.to(device), images, chosen, layer)
    return Space(run.name, layer, split, images, chosen, features, tuple(lines))


def _stored(run: RunFolder, images: ImageData, split: str, chosen: list[int]) -> npt.NDArray[np.float32] | None:
    """Read the features from an evaluation of these images by the run's present weights."""
    if not is_current(run, split, **images.identity()):
        return None
    rows = {key: row for row, key in enumerate(run.read_predictions(split)["path"])}
    embeddings = run.read_embeddings(split)
    keys = [images.source.keys[i] for i in chosen]
    if len(embeddings) != len(rows) or any(key not in rows for key in keys):
        return None
    return embeddings[[rows[key] for key in keys]]


def _compute(trained: TrainedModel, images: ImageData, chosen: list[int], layer: str) -> npt.NDArray[np.float32]:
    parts = []
    for batch in images.batches(chosen, _BATCH):
        parts.append(layer_features(trained.model, trained.inputs(batch), layer).cpu().numpy())
    return np.concatenate(parts)


def read_embeddings(run: RunFolder, name: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Read the embeddings of an evaluation, shape ``(N, C)``, and the class of each image, shape ``(N,)``.

    Args:
        run: The run.
        name: Name of the evaluation.

    Raises:
        RunError: Embeddings that are missing, damaged or of other predictions.
    """
    embeddings = run.read_embeddings(name)
    targets = run.read_predictions(name)["target"].to_numpy()
    if len(embeddings) != len(targets):
        raise RunError(
            f"{run}: {plural(len(embeddings), 'embedding')} for {plural(len(targets), 'prediction')}; evaluate it again"
        )
    return embeddings, targets


def separation(features: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> tuple[float | None, float | None]:
    """Measure how well features separate classes, by cosine distance.

    Args:
        features: Shape ``(N, C)``.
        targets: Class of each, shape ``(N,)``.

    Returns:
        The mean silhouette, -1 to 1, and the accuracy of nearest neighbours in a stratified five-fold
        cross-validation (fewer folds where a class has fewer images); None for both where a class has one image only.

    Source: Rousseeuw 1987, J. Comput. Appl. Math. 20, 53-65; Wu et al. 2018, arXiv:1805.01978, section 3.4.
    """
    from sklearn.metrics import silhouette_score
    from sklearn.model_selection import StratifiedKFold

    counts = np.unique(targets, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 2:
        return None, None
    predicted = np.empty_like(targets)
    parts = StratifiedKFold(min(_FOLDS, int(counts.min())), shuffle=True, random_state=0)
    for train, test in parts.split(features, targets):
        predicted[test] = knn_predict(features[train], targets[train], features[test])
    silhouette = float(silhouette_score(features, targets, metric="cosine"))
    return silhouette, float((predicted == targets).mean())


def embed_in_plane(embeddings: npt.NDArray[np.float32], most: int = 2000) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Lay out embeddings in two dimensions by t-SNE.

    Args:
        embeddings: Shape ``(N, C)``.
        most: Largest number of points, evenly spaced.

    Returns:
        Positions ``(n, 2)`` and their rows ``(n,)``.

    Source: van der Maaten & Hinton 2008, JMLR 9, 2579-2605.
    """
    from sklearn.manifold import TSNE

    rows = np.unique(np.linspace(0, len(embeddings) - 1, min(most, len(embeddings))).astype(int))
    perplexity = min(30.0, max(1.0, (len(rows) - 1) / 3))
    layout = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(embeddings[rows])
    return layout, rows


def _tsne(features: Array) -> Array:
    return embed_in_plane(features, most=len(features))[0]


def _pca(features: Array) -> Array:
    from sklearn.decomposition import PCA

    layout: Array = PCA(2, random_state=0).fit_transform(features)
    return layout


def _umap(features: Array) -> Array:
    umap = import_extra("umap", "umap")
    neighbors = min(15, len(features) - 1)
    layout: Array = umap.UMAP(n_neighbors=neighbors, metric="cosine", random_state=0).fit_transform(features)
    return layout


# Name -> its title, and the function that computes it.
LAYOUTS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "tsne": ("t-SNE", _tsne),
    "pca": ("PCA", _pca),
    "umap": ("UMAP", _umap),
}


def check_layouts(names: Sequence[str]) -> None:
    """Validate the names of layouts.

    Raises:
        ConfigError: An unknown layout, or one named twice.
        VitrailError: A layout whose package is not installed; the message names the extra.
    """
    for name in names:
        if name not in LAYOUTS:
            raise ConfigError(f"no layout {name!r}{closest(name, LAYOUTS)}")
        if names.count(name) > 1:
            raise ConfigError(f"the layout {name} is named twice; keep one of them")
    if "umap" in names:
        import_extra("umap", "umap")
