"""The data behind a report's pictures: embeddings laid out in the plane, images with what a model looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.data.dataset import ImageData
from vitrail.errors import DataError
from vitrail.evaluate.run import OTHER
from vitrail.explain.capture.record import first_stride
from vitrail.explain.interface import explain
from vitrail.explain.methods.maps import upsample
from vitrail.explain.methods.registry import METHODS
from vitrail.explain.methods.token_maps import token_maps
from vitrail.figures.display import as_pictures
from vitrail.runs.folder import RunFolder
from vitrail.runs.images import as_recorded, has_other_paths, open_images, open_prepared
from vitrail.runs.trained import ModelCard, TrainedModel

# Fewer points than these have no neighbourhoods to lay out.
FEWEST_POINTS = 5
# Of the examples, those that are explained by several methods, and by which: a few seconds for a small model.
COMPARED = 4
_PAGE_METHODS = ("rollout", "gradient_rollout", "attribution", "gradcam", "integrated_gradients")


def embed_in_plane(embeddings: npt.NDArray[np.float32], most: int = 2000) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """t-SNE of embeddings.

    Args:
        embeddings: Shape ``(N, C)``.
        most: Points to lay out; more are thinned evenly.

    Returns:
        Positions ``(n, 2)`` and the rows they belong to ``(n,)``.

    Source: van der Maaten & Hinton 2008, JMLR 9, 2579-2605.
    """
    from sklearn.manifold import TSNE

    rows = np.unique(np.linspace(0, len(embeddings) - 1, min(most, len(embeddings))).astype(int))
    perplexity = min(30.0, max(1.0, (len(rows) - 1) / 3))
    layout = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(embeddings[rows])
    return layout, rows


@dataclass(frozen=True)
class Examples:
    """A few images of one run, and what the run's model made of them.

    Attributes:
        images: For display, shape ``(n, H, W)`` or ``(n, H, W, 3)``, in 0..1.
        titles: True class, and the predicted one where it differs.
        inputs: The model's, normalised, each of shape ``(n, C, H, W)``.
        indices: Their numbers in the data.
    """

    images: npt.NDArray[Any]
    titles: list[str]
    inputs: tuple[Tensor, ...]
    indices: list[int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.inputs[0].shape[2], self.inputs[0].shape[3]


def open_evaluated_images(
    run: RunFolder, card: ModelCard, own: DataConfig, now: DataConfig, metrics: Mapping[str, Any]
) -> ImageData:
    """The images that were evaluated, prepared as in training, by the names that the evaluation has for them.

    Args:
        run: The run.
        card: Of its model.
        own: What its recipe says of its data.
        now: The same, where the data lies now.
        metrics: What the evaluation recorded, of which data among it.

    Raises:
        DataError: They cannot be opened.
    """
    form: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in metrics["data"].items()}
    there = dataclasses.replace(own, **form)
    if str(metrics.get("name", "")).startswith(OTHER):
        return open_prepared(card, there, split=False)
    if not has_other_paths(now, own):
        now = there  # where the evaluation found them
    opened = open_images(run, card, now, own, verb="report").data
    return opened if not has_other_paths(now, there) else as_recorded(opened)


def choose_examples(run: RunFolder, trained: TrainedModel, data: ImageData, split: str, most: int = 10) -> Examples:
    """The first image of each class in a split; several of each where there are few classes.

    Args:
        run: The evaluated run.
        trained: Its model.
        data: Its images.
        split: Which.
        most: How many.
    """
    predictions = run.read_predictions(split)
    if trained.card.multi_label:
        chosen = predictions.sort_values("index").head(most)
    else:
        per_class = max(1, most // len(trained.card.classes))
        chosen = predictions.groupby("target", sort=True).head(per_class).sort_values(["target", "index"]).head(most)
    indices = places_of(data, list(chosen["path"]))
    streams = data.load(indices)
    titles = []
    for target, logits in zip(chosen["target"], chosen["logits"], strict=True):
        true, said = _in_words(trained, target, logits)
        titles.append(true if true == said else f"{true}\npredicted: {said}")
    return Examples(
        as_pictures(streams["image"], data.source.bands["image"]), titles, trained.normalize(streams), indices
    )


def places_of(data: ImageData, keys: Sequence[str]) -> list[int]:
    """Numbers of images by what they are called.

    Raises:
        DataError: One is not there any more.
    """
    places = {key: i for i, key in enumerate(data.source.keys)}
    gone = [key for key in keys if key not in places]
    if gone:
        raise DataError(f"{gone[0]} was evaluated and is not among the images any more")
    return [places[key] for key in keys]


def _in_words(trained: TrainedModel, target: Any, logits: Any) -> tuple[str, str]:
    """The true and the predicted class or labels."""
    classes = trained.card.classes
    if not trained.card.multi_label:
        return classes[target], classes[int(np.argmax(logits))]
    chosen = (np.asarray(target) > 0, np.asarray(logits) >= 0)
    true, said = (", ".join(classes[i] for i in np.flatnonzero(rows)) or "no label" for rows in chosen)
    return true, said


def rollout_maps(trained: TrainedModel, examples: Examples) -> dict[str, npt.NDArray[Any]]:
    """Rollout of each example for each stream, at the images' size, in multiples of an even spread, ``(n, H, W)``."""
    found = explain(trained.model, examples.inputs, "rollout")
    return {
        # Streams of a size of their own are laid over the image too.
        name: upsample(stream.map * stream.tokens[0].numel(), examples.size).numpy()
        for name, stream in found.items()
    }


def choose_methods(trained: TrainedModel) -> tuple[list[str], list[str]]:
    """Those of a page's methods that a model can have, and why it cannot have the others."""
    chosen, refused = [], []
    for name in _PAGE_METHODS:
        if name not in METHODS:
            continue
        refusal = METHODS[name].refusal(trained.model)
        if refusal is None:
            chosen.append(name)
        else:
            refused.append(f"{name} ({refusal})")
    return chosen, refused


def learned_token_maps(trained: TrainedModel, examples: Examples) -> npt.NDArray[Any]:
    """Selection maps of each example's learned tokens, in multiples of an even spread, ``(n, tokens, H, W)``."""
    maps = token_maps(trained.model, *examples.inputs)
    n, tokens, h, w = maps.shape
    stride = first_stride(trained.model, trained.model.streams[0].name)
    array: npt.NDArray[Any] = upsample(maps.flatten(0, 1) * (h * w), examples.size, stride).numpy()
    return array.reshape(n, tokens, *examples.size)
