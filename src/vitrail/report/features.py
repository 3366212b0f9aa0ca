"""Where runs put images: embeddings laid out in the plane, runs side by side, as figures, tables and a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitrail.analyze.examples import FEWEST_POINTS, embed_in_plane
from vitrail.config.data import DataConfig
from vitrail.data.dataset import ImageData
from vitrail.errors import ConfigError, DataError, closest
from vitrail.evaluate.saved_predictions import is_current
from vitrail.explain.structure.features import EMBEDDING, layer_features
from vitrail.extras import import_extra
from vitrail.figures.anatomy.canvas import save
from vitrail.figures.confusion import class_colors, feature_space
from vitrail.figures.display import as_pictures, jpeg_uri
from vitrail.files import write_text
from vitrail.report.rendering import render
from vitrail.runs.folder import RunFolder
from vitrail.runs.images import describe_training_images, open_images
from vitrail.runs.trained import TrainedModel, load_trained
from vitrail.tasks.representation import knn_predict

Array = npt.NDArray[Any]

_FOLDS = 5
_BATCH = 64
_SIDE = 72


@dataclass(frozen=True)
class Space:
    """What one run's layer makes of some images.

    Attributes:
        label: The run.
        layer: The layer.
        split: Which of the data's images.
        data: The images.
        indices: Which of them, shape ``(N,)``.
        features: Shape ``(N, C)``.
        lines: Facts about the images that a reader must know.
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
        """What identifies each image."""
        return [self.data.source.keys[i] for i in self.indices]


def open_space(
    run: RunFolder, data: DataConfig, own: DataConfig | None = None, *, owner: RunFolder | None = None,
    split: str | None = None, layer: str = EMBEDDING, most: int = 2000, device: str = "cpu",
) -> Space:  # fmt: skip
    """What a run's layer makes of images: as its evaluation has stored it, or computed now.

    Args:
        run: A trained run, with classes or pre-trained.
        data: The images: the run's own, or another's of the same bands.
        own: What the recipe of the run whose images they are says, where they may lie elsewhere now.
        owner: The run whose images they are; ``run`` when not given.
        split: Which of them; "test", else "val".
        layer: Of the model; what its classifier sees when not given.
        most: Images at most, evenly spaced.
        device: Where to compute.

    Raises:
        ConfigError: An unknown layer, or images with several labels.
        DataError: Images that are missing, without labels, of other bands, or too few.
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
        raise ConfigError(f"{run}: a point has one colour, and its images have several labels")
    split = split or opened.default_split()
    chosen = images.evenly_spaced(split, most)
    if len(chosen) < FEWEST_POINTS:
        raise DataError(f"{split} has {len(chosen)} images; a layout needs at least {FEWEST_POINTS}")
    stored = not other and layer == EMBEDDING and opened.is_own_split(split)
    features = _stored(run, images, split, chosen) if stored else None
    if features is None:
        features = _compute(trained.to(device), images, chosen, layer)
    return Space(run.name, layer, split, images, chosen, features, tuple(lines))


def _stored(run: RunFolder, images: ImageData, split: str, chosen: list[int]) -> npt.NDArray[np.float32] | None:
    """The rows of an evaluation, where it is of these images and of the weights that the run holds now."""
    if not is_current(run, split, **images.identity()):
        return None
    places = {key: row for row, key in enumerate(run.read_predictions(split)["path"])}
    embeddings = run.read_embeddings(split)
    keys = [images.source.keys[i] for i in chosen]
    if len(embeddings) != len(places) or any(key not in places for key in keys):
        return None
    return embeddings[[places[key] for key in keys]]


def _compute(trained: TrainedModel, images: ImageData, chosen: list[int], layer: str) -> npt.NDArray[np.float32]:
    parts = []
    for batch in images.batches(chosen, _BATCH):
        inputs = trained.normalize({name: batch[name].to(trained.device) for name in trained.card.streams})
        parts.append(layer_features(trained.model, inputs, layer).cpu().numpy())
    return np.concatenate(parts)


def separation(features: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> tuple[float | None, float | None]:
    """How well classes can be told apart by features, by cosine distance, before anything is laid out in the plane.

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
    guesses = np.empty_like(targets)
    parts = StratifiedKFold(min(_FOLDS, int(counts.min())), shuffle=True, random_state=0)
    for known, asked in parts.split(features, targets):
        guesses[asked] = knn_predict(features[known], targets[known], features[asked])
    silhouette = float(silhouette_score(features, targets, metric="cosine"))
    return silhouette, float((guesses == targets).mean())


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


# Name -> what it is called in a title, and what makes it.
LAYOUTS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "tsne": ("t-SNE", _tsne),
    "pca": ("PCA", _pca),
    "umap": ("UMAP", _umap),
}


def check_layouts(names: Sequence[str]) -> None:
    """Refuse layouts that there are not.

    Raises:
        ConfigError: An unknown one, or one named twice.
        VitrailError: One whose package is not installed; the message names the extra.
    """
    for name in names:
        if name not in LAYOUTS:
            raise ConfigError(f"no layout {name!r}{closest(name, LAYOUTS)}")
        if names.count(name) > 1:
            raise ConfigError(f"the layout {name} is named twice; keep one of them")
    if "umap" in names:
        import_extra("umap", "umap")


def write_features(spaces: Sequence[Space], layouts: Sequence[str], out: Path) -> pd.DataFrame:
    """Lay the images of runs out side by side and write figures, tables and a page.

    ``LAYOUT.png`` and ``.svg``; ``features.csv`` (how well classes are told apart), ``coordinates.csv`` (every point);
    ``features.html``, which shows the image under the pointer and needs no network.

    Args:
        spaces: One for each run.
        layouts: Names of :data:`LAYOUTS`.
        out: The folder.

    Returns:
        The table of features.csv.

    Raises:
        ConfigError: Runs of other classes, or of the same name.
        RunError: A file that cannot be written.
    """
    classes = spaces[0].data.source.classes
    labels = [space.label for space in spaces]
    for space in spaces[1:]:
        if space.data.source.classes != classes:
            raise ConfigError(
                f"{spaces[0].label} has the classes {', '.join(classes)} and {space.label} has "
                f"{', '.join(space.data.source.classes)}: a colour must mean one thing; draw them one by one"
            )
    if len(set(labels)) != len(labels):
        raise ConfigError(f"runs side by side need different folder names, got {', '.join(labels)}")
    rows = []
    titles = {}
    for space in spaces:
        silhouette, accuracy = separation(space.features, space.targets)
        rows.append(
            {
                "run": space.label, "layer": space.layer, "split": space.split, "images": len(space.indices),
                "dimensions": space.features.shape[1], "silhouette": silhouette, "knn_accuracy": accuracy,
            }
        )  # fmt: skip
        told = "a class has one image" if accuracy is None else f"silhouette {silhouette:.2f}, kNN {accuracy:.1%}"
        titles[space.label] = f"{space.label}\n{told}"
    table = pd.DataFrame(rows)
    points = {name: [LAYOUTS[name][1](space.features) for space in spaces] for name in layouts}
    for name, placed in points.items():
        shown = {titles[s.label]: (xy, s.targets) for s, xy in zip(spaces, placed, strict=True)}
        save(feature_space(shown, classes), out, name)
    write_text(out / "features.csv", table.to_csv(index=False))
    write_text(out / "coordinates.csv", _coordinates(spaces, points).to_csv(index=False))
    write_text(out / "features.html", _page(spaces, points, titles))
    return table


def _coordinates(spaces: Sequence[Space], points: Mapping[str, Sequence[Array]]) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {
                "run": space.label, "layer": space.layer, "split": space.split, "layout": name,
                "index": space.indices, "path": space.keys,
                "class": [space.data.source.classes[i] for i in space.targets],
                "x": xy[:, 0], "y": xy[:, 1],
            }
        )
        for name, placed in points.items() for space, xy in zip(spaces, placed, strict=True)
    ]  # fmt: skip
    return pd.concat(parts)


def _page(spaces: Sequence[Space], points: Mapping[str, Sequence[Array]], titles: Mapping[str, str]) -> str:
    """The interactive page, self-contained."""
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs
    from plotly.subplots import make_subplots

    thumbnails: list[str] = []
    first: list[dict[int, int]] = []  # index -> number of its thumbnail
    for space in spaces:
        first.append({index: len(thumbnails) + i for i, index in enumerate(space.indices)})
        thumbnails += _thumbnails(space)
    classes = spaces[0].data.source.classes
    colors = class_colors(len(classes))
    headings = [
        f"{LAYOUTS[name][0]}: {titles[space.label].replace(chr(10), '<br>')}" for name in points for space in spaces
    ]
    figure = make_subplots(len(points), len(spaces), subplot_titles=headings, horizontal_spacing=0.03)
    for row, placed in enumerate(points.values(), start=1):
        for column, (space, xy) in enumerate(zip(spaces, placed, strict=True), start=1):
            for target, label in enumerate(classes):
                chosen = np.flatnonzero(space.targets == target)
                # Every class is in the legend once, also one that the first panel lacks.
                listed = row == 1 and column == 1
                figure.add_trace(
                    go.Scatter(
                        x=xy[chosen, 0] if len(chosen) else [None], y=xy[chosen, 1] if len(chosen) else [None],
                        mode="markers", name=label, legendgroup=label, showlegend=listed, hoverinfo="none",
                        marker={"color": colors[target], "size": 6, "symbol": target % 10},
                        customdata=[first[column - 1][space.indices[i]] for i in chosen],
                    ),
                    row=row, col=column,
                )  # fmt: skip
    figure.update_xaxes(showticklabels=False, zeroline=False)
    figure.update_yaxes(showticklabels=False, zeroline=False)
    figure.update_layout(
        height=560 * len(points), template="plotly_white", margin={"l": 10, "r": 10, "t": 90, "b": 10},
        legend={"itemsizing": "constant", "orientation": "h", "yanchor": "top", "y": -0.02}, dragmode="pan",
    )  # fmt: skip
    told = [
        {"path": key, "label": classes[int(target)], "run": space.label}
        for space in spaces
        for key, target in zip(space.keys, space.targets, strict=True)
    ]
    space = spaces[0]
    return render(
        "features.html.j2",
        "Feature space of " + ", ".join(s.label for s in spaces),
        brief=(),
        words={},
        told=f"What the layer {space.layer!r} makes of {len(space.indices)} {space.split} images.",
        library=get_plotlyjs(),
        figure=_for_script(figure.to_json()),
        images=_for_script(json.dumps({"thumbnails": thumbnails, "told": told})),
    )


def _for_script(text: str) -> str:
    """JSON that can stand inside a script element, whatever names it holds."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _thumbnails(space: Space) -> list[str]:
    result = []
    for start in range(0, len(space.indices), _BATCH):
        images = space.data.load(space.indices[start : start + _BATCH])["image"]
        for picture in as_pictures(images, space.data.source.bands["image"]):
            height, width = picture.shape[:2]
            scale = _SIDE / max(height, width)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            result.append(jpeg_uri(picture, size, quality=80))
    return result
