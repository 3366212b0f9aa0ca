"""Example images of an evaluated run, with the maps that explain them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from vitrail.data.dataset import ImageData
from vitrail.explain.capture.record import first_tiles
from vitrail.explain.interface import explain
from vitrail.explain.methods.maps import upsample
from vitrail.explain.methods.registry import METHODS
from vitrail.explain.methods.token_maps import lacks_learned_tokens, token_maps
from vitrail.figures.clouds import show_inputs
from vitrail.figures.film_strip import flat_maps
from vitrail.layers.shapes import product
from vitrail.models.modality import POINTS
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import TrainedModel

# Images of a page.
_MOST_EXAMPLES = 10
# Methods side by side: a few seconds for a small model.
_PAGE_METHODS = ("rollout", "gradient_rollout", "attribution", "gradcam", "integrated_gradients")


@dataclass(frozen=True)
class Examples:
    """A few images of one run, with the predictions of its model.

    Attributes:
        images: Displayable images, shape ``(n, H, W)`` or ``(n, H, W, 3)``, in 0..1.
        titles: True class, and the predicted one where it differs.
        inputs: The model's, normalised, each of shape ``(n, C, H, W)``.
        indices: Indices into the data.
    """

    images: npt.NDArray[Any]
    titles: list[str]
    inputs: tuple[Tensor, ...]
    indices: list[int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        height, width = self.images.shape[1:3]
        return height, width


def choose_examples(run: RunFolder, trained: TrainedModel, data: ImageData, split: str) -> Examples:
    """Choose the first images of each class of a split.

    Args:
        run: The evaluated run.
        trained: Its model.
        data: Its images.
        split: Name of the split.
    """
    predictions = run.read_predictions(split)
    if trained.card.multi_label:
        chosen = predictions.sort_values("index")
    else:
        per_class = max(1, _MOST_EXAMPLES // len(trained.card.classes))
        chosen = predictions.groupby("target", sort=True).head(per_class).sort_values(["target", "index"])
    chosen = chosen.head(_MOST_EXAMPLES)
    indices = data.source.indices_of(list(chosen["path"]))
    streams = data.load(indices)
    titles = []
    for target, logits in zip(chosen["target"], chosen["logits"], strict=True):
        true, predicted = true_and_predicted(trained, target, logits)
        titles.append(true if true == predicted else f"{true}\npredicted: {predicted}")
    return Examples(show_inputs(streams, data.source.bands), titles, trained.normalize(streams), indices)


def in_turns(predictions: pd.DataFrame, multi_label: bool) -> pd.DataFrame:
    """Order predictions by path, the first of each class before the second of each; multi-label ones by path alone.

    Args:
        predictions: Table with the columns ``path`` and ``target``.
        multi_label: Whether the targets are multi-label.
    """
    ordered = predictions.sort_values("path", kind="stable")
    if multi_label:
        return ordered
    turn = ordered.groupby("target").cumcount()
    return ordered.assign(turn=turn).sort_values(["turn", "target"], kind="stable").drop(columns="turn")


def true_and_predicted(trained: TrainedModel, target: Any, logits: Any) -> tuple[str, str]:
    """Name the true and the predicted class, or the labels of a multi-label image."""
    classes = trained.card.classes
    if not trained.card.multi_label:
        return classes[target], classes[int(np.argmax(logits))]
    chosen = (np.asarray(target) > 0, np.asarray(logits) >= 0)
    true, predicted = (", ".join(classes[i] for i in np.flatnonzero(rows)) or "no label" for rows in chosen)
    return true, predicted


def rollout_refusal(trained: TrainedModel) -> str | None:
    """State why rollout does not support a model; None where it does."""
    if trained.model.modality == POINTS:
        return "pages do not draw it over point clouds; `vitrail explain` does"
    return METHODS["rollout"].refusal(trained.model)


def rollout_maps(trained: TrainedModel, examples: Examples) -> dict[str, npt.NDArray[Any]]:
    """Compute each stream's rollout at the images' size, in multiples of an even spread: ``(n, H, W)``."""
    found = explain(trained.model, examples.inputs, "rollout")
    return {
        # Maps of a stream with another size are resized to the image.
        name: upsample(flat_maps(stream.map) * stream.tokens[0].numel(), examples.size).numpy()
        for name, stream in found.items()
    }


def choose_methods(trained: TrainedModel) -> tuple[list[str], list[str]]:
    """Choose the methods of a page that support a model; and the reasons for the others."""
    chosen, refused = [], []
    for name in _PAGE_METHODS:
        if name not in METHODS or not METHODS[name].takes(trained.model.modality):
            continue
        refusal = METHODS[name].refusal(trained.model)
        if refusal is None:
            chosen.append(name)
        else:
            refused.append(f"{name} ({refusal})")
    return chosen, refused


def learned_token_maps(trained: TrainedModel, examples: Examples) -> npt.NDArray[Any] | None:
    """Compute the selection maps of learned tokens, in multiples of an even spread: ``(n, tokens, H, W)``.

    Returns:
        None for a model without TokenLearner.
    """
    if lacks_learned_tokens(trained.model) is not None:
        return None
    maps = token_maps(trained.model, *examples.inputs)
    n, tokens, *grid = maps.shape
    first = trained.model.streams[0]
    tiles, size = first_tiles(trained.model, first.name), first.size_of(examples.inputs[0])
    whole = upsample(maps.flatten(0, 1) * product(grid), size, tiles)
    array: npt.NDArray[Any] = flat_maps(whole).numpy()
    return array.reshape(n, tokens, *examples.size)
