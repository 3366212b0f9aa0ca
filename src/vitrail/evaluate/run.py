"""Evaluate a run on a split of its own data or on other images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitrail.bench.efficiency import measure_efficiency
from vitrail.config.data import DataConfig
from vitrail.data.augment.directions import warn_mirrored
from vitrail.data.augment.test_time import TURNED
from vitrail.data.dataset import ImageData
from vitrail.data.groups import groups_of
from vitrail.data.split_checks import divided_groups
from vitrail.data.video.sampling import average_views
from vitrail.errors import DataError, VitrailError
from vitrail.evaluate.metrics import is_correct
from vitrail.evaluate.parts import draw_parts, measure_parts, predict_parts
from vitrail.evaluate.saved_predictions import (
    ORIGIN,
    Averaged,
    HeldOut,
    Intervals,
    SavedPredictions,
    calibration_predictions,
    is_current,
    measure_saved,
    origin_of,
)
from vitrail.figures.write import write_figure
from vitrail.models.modality import VIDEO, check_need
from vitrail.runs.folder import EvaluationFiles, RunFolder
from vitrail.runs.images import RunImages, open_images
from vitrail.runs.trained import ModelCard, TrainedModel, choose_device, load_classifier
from vitrail.runs.training_images import count_pretraining_images

# Name of results on images some of which belong to the run.
_MIXED = "mixed"
# Clouds of parts.png.
_SHOWN = 8
# Prefix of the name of results on images that are not a split of the run.
OTHER = "other"


@dataclass(frozen=True)
class Evaluated:
    """An evaluation: a run, images and the folder of the results.

    Attributes:
        run: The run.
        trained: Its model.
        opened: The images, and which of them belong to the run.
        split: Split of the images.
        name: Name of the results.
        averaged: Views that logits are averaged over, beyond the run's own.
        folder: Folder of the results.
    """

    run: RunFolder
    trained: TrainedModel
    opened: RunImages
    split: str
    name: str
    averaged: Averaged
    folder: Path

    @property
    def tta(self) -> str:
        """Test-time augmentation."""
        return self.averaged.tta

    @property
    def images(self) -> ImageData:
        """The images."""
        return self.opened.data

    @property
    def of_others(self) -> bool:
        """Whether the images are not a split of the run."""
        return not self.opened.is_own_split(self.split)

    @property
    def files(self) -> EvaluationFiles:
        """Files of the results."""
        return EvaluationFiles(self.folder)


def evaluate(
    run: RunFolder,
    data: DataConfig,
    *,
    split: str | None = None,
    device: str = "auto",
    tta: str = "none",
    own: DataConfig | None = None,
    intervals: Intervals | None = None,
    memory: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Predict a split, compute all measures, and write both into the run folder.

    The validation split is predicted too, for calibration.

    Args:
        run: A trained run.
        data: Data settings of the images: the run's own, or others.
        split: "test", "val", "train", or "new" for images that do not belong to the run. By default the test split,
            else the validation split; for other data, all images.
        device: "auto", "cpu", "cuda", ...
        tta: Test-time augmentation: "none", "mirror", "flips", "turns" or "crops"; of point clouds "up" or "so3", each
            turned once at random, about z or any way.
        own: Data settings of the run's recipe, if ``data`` differs. The run's images are recognised by content and keep
            their split.
        intervals: Settings of the intervals.
        memory: Whether to measure peak memory too, which takes seconds.

    Returns:
        Folder of the results, and the overall measures.

    Raises:
        RunError: A file of the run folder is missing or damaged.
        DataError: Images are missing, unreadable or of unknown classes, or the split does not exist.
    """
    evaluated = open_evaluation(run, data, split=split, own=own, device=device, tta=tta)
    metrics = measure(evaluated, data, own or data, intervals or Intervals(), memory)
    return evaluated.folder, metrics


def open_evaluation(
    run: RunFolder,
    data: DataConfig,
    *,
    split: str | None = None,
    own: DataConfig | None = None,
    device: str = "auto",
    tta: str = "none",
) -> Evaluated:
    """Open the model and the images of an evaluation; arguments and errors as in :func:`evaluate`."""
    trained = load_classifier(run).to(choose_device(device))
    if tta != "none":
        option = f"evaluate --tta {tta}" if tta in TURNED else "evaluate --tta"
        check_need(option, trained.card.modality, trained.card.name)
    if trained.card.modality is VIDEO:
        warn_mirrored(tta, trained.card.classes)
    averaged = Averaged(tta, other_views(trained.card, data, own or data))
    opened = open_images(run, trained.card, data, own)
    chosen = split or opened.default_split()
    opened.data.indices(chosen)
    own_split = opened.is_own_split(chosen)
    suffix = _MIXED if opened.mixed and chosen == "all" else chosen
    name = chosen if own_split or not data.path else name_of_other(data.path, suffix)
    name += averaged.suffix
    folder = run.evaluation_of(name, primary=own_split and chosen == opened.primary_split() and not averaged.suffix)
    return Evaluated(run, trained, opened, chosen, name, averaged, folder)


def other_views(card: ModelCard, data: DataConfig, own: DataConfig) -> tuple[int, int] | None:
    """Return views and crops of each video where they differ from those of the run's recipe; None where they do not.

    Args:
        card: Model card of the run.
        data: Data settings of the evaluated images.
        own: Data settings of the run's recipe.

    Raises:
        ConfigError: They differ for a run whose inputs are not clips.
    """
    views, recipe = ((config.video.views, config.video.crops) for config in (data, own))
    if views == recipe:
        return None
    check_need("evaluate --data.video.views/crops", card.modality, card.name)
    return views


def name_of_other(path: str, split: str, prefix: str = OTHER) -> str:
    """Name the results on other images, with a hash of their path: folders may share a name."""
    resolved = Path(path).resolve()
    digest = hashlib.sha256(str(resolved).encode()).hexdigest()[:6]
    return f"{prefix}-{resolved.name}-{digest}" + ("" if split == "all" else f"-{split}")


def measure(
    evaluated: Evaluated, data: DataConfig, own: DataConfig, intervals: Intervals, memory: bool = False
) -> dict[str, Any]:
    """Predict, compute all measures, write them, and return the overall ones.

    Args:
        evaluated: The evaluation.
        data: Data settings of the evaluated images.
        own: Data settings of the run.
        intervals: Settings of the intervals.
        memory: Whether to measure peak memory.

    Raises:
        DataError: An image is unreadable or has no group.
    """
    run, trained, tta = evaluated.run, evaluated.trained, evaluated.tta
    if trained.card.per_point:
        return _measure_parts(evaluated, data, intervals, memory)
    predict(run, trained, evaluated.images, evaluated.split, evaluated.name, tta)
    saved = SavedPredictions.read(run, evaluated.name)
    metrics = measure_saved(saved, _held_out(evaluated, own), evaluated.files, intervals.bootstrap(saved.table, data))
    metrics |= origin_of(saved)
    metrics["seen_in_pretraining"] = count_pretraining_images(run, evaluated.images, evaluated.split)
    metrics["efficiency"] = measure_efficiency(trained, memory_of=run.path if memory else None)
    _write_records(evaluated, metrics)
    return metrics


def _measure_parts(evaluated: Evaluated, data: DataConfig, intervals: Intervals, memory: bool) -> dict[str, Any]:
    """Measure labels of points, write predictions, tables and metrics.json, and return the content of the last."""
    run, trained, images, files = evaluated.run, evaluated.trained, evaluated.images, evaluated.files
    names = trained.card.classes
    table = predict_parts(trained, images, evaluated.split, evaluated.tta)
    order, groups = table["index"].to_list(), _groups(images)
    own_groups = None if groups is None else [groups[i] for i in order]
    origin = _origin(run, images, evaluated.split, evaluated.tta, order)
    paths, parts, predicted = (table[name].to_list() for name in ("path", "parts", "predicted"))
    run.write_part_predictions(evaluated.name, order, paths, parts, predicted, own_groups, origin)
    bootstrap = intervals.bootstrap(table if own_groups is None else table.assign(group=own_groups), data)
    metrics = {
        "name": evaluated.name,
        **{key: origin[key] for key in ORIGIN},
        **measure_parts(table, names, files, bootstrap),
        "intervals": {} if bootstrap is None else bootstrap.describe(),
        "seen_in_pretraining": count_pretraining_images(run, images, evaluated.split),
        "efficiency": measure_efficiency(trained, memory_of=run.path if memory else None),
    }
    write_figure(draw_parts(images, table.head(_SHOWN), names), files.parts_sheet, 110)
    _write_records(evaluated, metrics)
    return metrics


def _write_records(evaluated: Evaluated, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json, and the record of the run's own data where these are evaluated."""
    run, found = evaluated.run, evaluated.images.recognition
    delete_stale_results(run, evaluated.files)
    run.write_json(evaluated.files.metrics, metrics)
    if not evaluated.of_others and (not evaluated.opened.moved or found is None or not found.num_missing):
        run.write_json(run.balance, _describe_data(evaluated.images))


def _describe_data(images: ImageData) -> dict[str, Any]:
    """Describe the run's own data for the report, without reading pixels."""
    return {
        "source": images.config.source,
        "path": images.config.path,
        **images.identity(),
        "splits": {split: len(own) for split, own in images.splits.items()},
        "balance": images.balance(),
        "several_labels": images.source.targets.ndim == 2,
        "groups": dict(zip(("divided", "number"), divided_groups(images), strict=True)),
        "unreadable": [list(pair) for pair in images.source.left_out],
    }


def _held_out(evaluated: Evaluated, own: DataConfig) -> HeldOut:
    """Return the validation split's predictions over the same views, computed if they are missing."""
    run, averaged, images = evaluated.run, evaluated.averaged, evaluated.images
    name, views = f"val{averaged.suffix}", _views(evaluated.images)
    saved = partial(calibration_predictions, run, evaluated.name, averaged, views)
    if evaluated.name == name:
        return saved()
    if not evaluated.opened.is_own_split("val") or "val" not in images.splits:
        if is_current(run, name, views=views) or not evaluated.opened.moved:
            return saved()
        if averaged.clips is not None:
            own = own.changed(dict(zip(("video.views", "video.crops"), averaged.clips, strict=True)))
        try:
            images = open_images(run, evaluated.trained.card, own).data
        except VitrailError as error:
            # An evaluation on other images does not need those of the run.
            return HeldOut(None, f"the run's own images cannot be opened ({error})")
    if "val" in images.splits and not is_current(run, name, views=views, **images.identity()):
        predict(run, evaluated.trained, images, "val", name, averaged.tta)
    return saved()


def predict(run: RunFolder, trained: TrainedModel, images: ImageData, split: str, name: str, tta: str) -> None:
    """Compute and save logits and embeddings of a split; of videos their means over all views.

    Raises:
        DataError: An image is unreadable.
    """
    logits: list[torch.Tensor] = []
    embeddings: list[torch.Tensor] = []
    order: list[int] = []
    clips: list[float] = []
    views = _views(images)
    for batch in images.loader(split):
        output, embedding = (x.cpu() for x in trained.classify(batch, tta))
        count = len(batch["index"])
        if views is not None:
            targets = batch["target"].numpy().repeat(len(output) // count, axis=0)
            clips += is_correct(output.numpy(), targets).reshape(count, -1).mean(axis=1).tolist()
        logits.append(average_views(output, count))
        embeddings.append(average_views(embedding, count))
        order += batch["index"].tolist()
    groups = _groups(images)
    run.write_predictions(
        name,
        order,
        [images.source.keys[i] for i in order],
        [images.source.targets[i].tolist() for i in order],
        torch.cat(logits).numpy(),
        torch.cat(embeddings).numpy(),
        None if groups is None else [groups[i] for i in order],
        _origin(run, images, split, tta, order),
        clips or None,
    )


def _origin(run: RunFolder, images: ImageData, split: str, tta: str, order: list[int]) -> dict[str, Any]:
    """Describe data and weights of predictions, whose images have these indices."""
    counts = None if images.recognition is None else images.recognition.counts(order)
    return {
        "split": split,
        "tta": tta,
        "views": _views(images),
        "data": images.config.form(),
        "unreadable": [path for path, _ in images.source.left_out],
        "weights": run.weights_hash(),
        "trained_on": None if counts is None else counts["train"],
        "chosen_on": None if counts is None else counts["val"],
        **images.identity(),
    }


def _views(images: ImageData) -> dict[str, Any] | None:
    """Describe the views that outputs are averaged over; None where an input has one alone."""
    video = images.config.video
    return {"views": video.views, "crops": video.crops, "fps": video.fps} if images.source.views > 1 else None


def _groups(images: ImageData) -> list[str] | None:
    """Determine groups of images: from the source, the grouped split, or the blocks of a scene."""
    source, config = images.source, images.config
    if source.scene is not None:
        block = source.scene.block
        return ["-".join(str(int(x) // block) for x in corner) for corner in source.scene.corners]
    if source.groups is not None:
        return [str(group) for group in source.groups]
    if config.split in ("auto", "grouped") and config.splitting.group is not None:
        try:
            return groups_of(source, config.splitting.group)
        except DataError:
            return None  # other images may have other names; metrics.json records that intervals are over images
    return None


def delete_stale_results(run: RunFolder, files: EvaluationFiles) -> None:
    """Delete robustness and out-of-distribution results of earlier weights of the run."""
    known = run.read_json(files.robustness) if files.robustness.is_file() else {}
    kept = {name: part for name, part in known.items() if run.made_with(part.get("weights"))}
    for name in set(known) - set(kept):
        files.of_the_model[name].unlink(missing_ok=True)
    if kept != known:
        run.write_json(files.robustness, kept)
    if files.ood.is_file() and not run.made_with(run.read_json(files.ood).get("weights")):
        files.ood.unlink()
