"""Explanations side by side: several models, or several methods, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from vitrail.analyze.evaluated import Evaluation, OpenedRuns
from vitrail.analyze.examples import Examples, choose_methods, in_turns, rollout_refusal
from vitrail.analyze.explained import Explained
from vitrail.analyze.explanations import explain_images, panels_of
from vitrail.data.dataset import ImageData
from vitrail.errors import DataError, RunError
from vitrail.explain.methods.registry import METHODS
from vitrail.figures.heatmaps import Cell, in_even_spreads
from vitrail.figures.picture import shorten
from vitrail.models.modality import IMAGE
from vitrail.runs.trained import TrainedModel

_MOST_IMAGES = 6
_MOST_LETTERS = 18
_METHOD = "rollout"
# Examples that are explained by several methods: a few seconds for a small model.
_COMPARED, _COMPARED_CLIPS = 4, 2


@dataclass
class SideBySide:
    """Panels for :func:`vitrail.figures.heatmaps.draw_cells`.

    Attributes:
        cells: Row by row.
        labels: One for each row.
        images: Number of images.
        problems: Reasons for missing models or methods.
    """

    cells: list[list[Cell | None]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    images: int = 0
    problems: list[str] = field(default_factory=list)


def models_side_by_side(models: Sequence[tuple[str, Evaluation]], opened: OpenedRuns) -> SideBySide:
    """Compute the attention rollout of several models on the same images, in multiples of an even spread.

    Args:
        models: Label and evaluation of each; the first model that can be explained chooses the images.
        opened: Opens models and images.
    """
    found = SideBySide()
    keys: list[str] = []
    for label, evaluation in models:
        try:
            trained, data = opened.trained(evaluation), opened.images(evaluation)
            refusal = rollout_refusal(trained)
            if refusal is not None:
                found.problems.append(f"{label}: {refusal}.")
                continue
            keys = keys or _choose(evaluation, trained)
            explained = list(explain_images(trained, data, data.source.indices_of(keys), {_METHOD: {}}))
        except (DataError, RunError) as error:
            found.problems.append(f"{label} is not drawn: {error}.")
            continue
        if not found.cells:
            found.cells.append([Cell(_picture(one), title=shorten(one.true, _MOST_LETTERS)) for one in explained])
            found.labels.append("image")
            found.images = len(explained)
        _add_rows(found, explained, label)
    return found


def _choose(evaluation: Evaluation, trained: TrainedModel) -> list[str]:
    """Choose the first image of each class, then the second of each, by their keys."""
    multi_label = trained.card.multi_label
    chosen = in_turns(evaluation.run.read_predictions(evaluation.name), multi_label).head(_MOST_IMAGES)
    return list((chosen if multi_label else chosen.sort_values("target", kind="stable"))["path"])


def _add_rows(found: SideBySide, explained: Sequence[Explained], label: str) -> None:
    """Add a row for each stream of a model: maps over the images, with the predictions as titles."""
    streams = list(explained[0].explanations[_METHOD])
    for number, stream in enumerate(streams):
        row: list[Cell | None] = []
        for one in explained:
            heat = in_even_spreads(one.maps(_METHOD)[stream])
            title = ""
            if number == 0 and one.predicted:
                mark = "" if not one.true or one.true == one.predicted else "predicted: "
                title = f"{mark}{shorten(one.predicted, _MOST_LETTERS)} {one.probability:.0%}"
            row.append(Cell(one.pictures.get(stream, _picture(one)), heat, METHODS[_METHOD].signed, title))
        found.cells.append(row)
        name = label.replace(", ", ",\n")
        found.labels.append(name if len(streams) == 1 else f"{name}\n{stream}")


def _picture(one: Explained) -> npt.NDArray[Any]:
    return next(iter(one.pictures.values()))


def methods_side_by_side(trained: TrainedModel, data: ImageData, examples: Examples) -> SideBySide | None:
    """Explain a few examples by several methods, by rank; None for other inputs, or one method.

    Args:
        trained: The model.
        data: Its images.
        examples: Examples in the order of their classes.
    """
    methods, problems = choose_methods(trained)
    if len(methods) < 2 or not data.source.is_image:
        return None
    most = _COMPARED if trained.card.modality is IMAGE else _COMPARED_CLIPS
    chosen = examples.indices[:: max(1, len(examples.indices) // most)][:most]
    found = SideBySide(images=len(chosen), problems=problems)
    for one in explain_images(trained, data, chosen, {name: {} for name in methods}):
        named = {name: name for name in methods}
        if one.frames is not None:
            # A row for each method, with its name.
            rows, labels = panels_of(one, named | {"": one.prediction()})
        else:
            titles = dict.fromkeys(methods, "") | {"": ""} if found.cells else named | {"": "image"}
            rows, streams = panels_of(one, titles)
            labels = [f"{one.prediction()}\n{stream}".strip() for stream in streams]
        found.cells += rows
        found.labels += labels
    return found
