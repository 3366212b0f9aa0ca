"""Predictions of runs, paired by test image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitrail.compare.plan import Run
from vitrail.config.schema import Recipe
from vitrail.data.dataset import open_data
from vitrail.data.groups import groups_of
from vitrail.errors import DataError, RunError, plural
from vitrail.evaluate.constant_predictor import constant_logits
from vitrail.evaluate.image_scores import image_scores
from vitrail.evaluate.parts import cloud_scores, constant_counts, count_table
from vitrail.models.image_size import image_size
from vitrail.runs.folder import RunFolder

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TestedRun:
    """Predictions of one run, sorted by the keys of the images.

    Attributes:
        run: The run.
        images: Key of each image, length N.
        targets: Classes ``(N,)``, or labels ``(N, K)``; of clouds the part of each point.
        scores: Contribution of each image to the measure, shape ``(N,)``.
        correct: Whether each image is correct, shape ``(N,)``; None where its points are labelled.
        guess: Contribution of each image to the measure of the constant predictor, shape ``(N,)``.
        metrics: Overall measures of the evaluation.
    """

    run: Run
    images: tuple[str, ...]
    targets: npt.NDArray[np.int64]
    scores: Floats
    correct: npt.NDArray[np.bool_] | None
    guess: Floats
    metrics: dict[str, object]


def read_tested(run: Run, measure: str) -> TestedRun:
    """Read the predictions of a finished run.

    Args:
        run: The run.
        measure: A key of :data:`vitrail.evaluate.image_scores.SCORES`, or of ``PART_SCORES`` for labels of points.

    Raises:
        RunError: The run is not evaluated, or its predictions are unreadable.
    """
    metrics = run.evaluation()
    if metrics is None:
        raise RunError(f"{run.folder} has not been evaluated; `vitrail compare` does it")
    table = run.folder.read_predictions(metrics["name"]).sort_values(["path", "index"], kind="stable")
    if "parts" in table:
        return _read_parts(run, measure, table, metrics)
    logits = np.stack(table["logits"].tolist()).astype(np.float32)
    targets = np.stack(table["target"].tolist()).astype(np.int64)
    scores = image_scores(measure, logits, targets)
    correct = scores if measure == "accuracy" else image_scores("accuracy", logits, targets)
    guess = image_scores(measure, constant_logits(targets, logits.shape[1], measure == "nll"), targets)
    return TestedRun(run, tuple(map(str, table["path"])), targets, scores, correct > 0.5, guess, metrics)


def _read_parts(run: Run, measure: str, table: pd.DataFrame, metrics: dict[str, object]) -> TestedRun:
    """Read the predicted labels of points of a finished run; clouds without a label are left out."""
    table = table[[bool((parts >= 0).any()) for parts in table["parts"]]]
    counts = count_table(table, len(run.folder.read_json(run.folder.card)["classes"]))
    guess = cloud_scores(measure, constant_counts(counts))
    targets = np.stack(table["parts"].tolist()).astype(np.int64)
    return TestedRun(run, tuple(map(str, table["path"])), targets, cloud_scores(measure, counts), None, guess, metrics)


def check_same_images(first: TestedRun, other: TestedRun) -> None:
    """Check that predictions can be paired.

    Raises:
        DataError: Images or labels differ; the message names an image.
    """
    where = f"{first.run.label} ({first.run.folder}) and {other.run.label} ({other.run.folder})"
    if first.images != other.images:
        alone = sorted(set(first.images) ^ set(other.images))
        what = (
            f"{plural(len(alone), 'image is', 'images are')} in one of them only, {alone[0]!r} is the first"
            if alone
            else "their number"
        )
        raise DataError(
            f"{where} were tested on different images ({what}); paired statistics need the same ones: give the "
            "variants the same data and splits, or delete the runs from before the images changed"
        )
    if first.targets.shape != other.targets.shape and first.correct is None:
        raise DataError(
            f"{where} label {first.targets.shape[1]} and {plural(other.targets.shape[1], 'point')} of each cloud; give "
            "all variants the same model.num_points"
        )
    if first.targets.shape != other.targets.shape or (first.targets != other.targets).any():
        raise DataError(
            f"{where} were tested on the same images with different labels; delete the runs from before the labels "
            "changed"
        )


def _groups_by_recipe(recipe: Recipe) -> dict[str, str] | None:
    config = recipe.data
    if config.split not in ("auto", "grouped") and config.source not in ("arrays", "table"):
        return None
    images = open_data(config, image_size(recipe))
    config = images.config
    source = images.source
    if source.scene is not None:
        blocks = (source.scene.corners + source.scene.patch // 2) // source.scene.block
        return {key: f"{row} {column}" for key, (row, column) in zip(source.keys, blocks.tolist(), strict=True)}
    if config.split != "grouped":
        return None
    return dict(zip(source.keys, groups_of(source, config.splitting.group), strict=True))


def image_groups(tested: TestedRun) -> npt.NDArray[np.object_] | None:
    """Determine the group (or block of a scene) of each test image; None without groups.

    Args:
        tested: Predictions of a run.
    """
    table = tested.run.folder.read_predictions(str(tested.metrics["name"]))
    if "group" in table and table["group"].notna().all():
        return table.sort_values(["path", "index"], kind="stable")["group"].to_numpy(dtype=object)
    known = _groups_by_recipe(tested.run.recipe)
    return None if known is None else np.array([known[image] for image in tested.images], dtype=object)


def test_share(tested: TestedRun) -> float:
    """Compute the ratio of test to training images of a fold."""
    folder: RunFolder = tested.run.folder
    data = tested.run.recipe.data
    whole = int(folder.read_json(folder.environment)["images"]["number"])
    training = (whole - len(tested.images) - data.splitting.val_fraction * whole) * data.classes.label_fraction
    return len(tested.images) / max(training, 1.0)
