"""Evaluating a run on a split of its own data or on other images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitrail.bench.efficiency import measure_efficiency
from vitrail.config.data import DataConfig
from vitrail.data.dataset import ImageData
from vitrail.data.groups import groups_of
from vitrail.data.split_facts import divided_groups
from vitrail.errors import DataError, VitrailError
from vitrail.evaluate.saved_predictions import (
    HeldOut,
    Intervals,
    SavedPredictions,
    calibration_predictions,
    is_current,
    measure_saved,
    origin_of,
)
from vitrail.runs.folder import EvaluationFiles, RunFolder
from vitrail.runs.images import RunImages, open_images
from vitrail.runs.trained import TrainedModel, choose_device, load_classifier
from vitrail.runs.training_images import count_pretraining_images

# Of images of which the run knows some, all together: no test.
_MIXED = "mixed"
# Results on other images than a split of the run's own are called so, and by their folder.
OTHER = "other"


@dataclass(frozen=True)
class Evaluated:
    """A run together with the images that it is measured on.

    Attributes:
        run: The run.
        trained: Its model.
        opened: The images, and which of them are the run's own.
        split: Which of them.
        name: What the results are called.
        tta: Test-time augmentation.
        folder: Where the results are.
    """

    run: RunFolder
    trained: TrainedModel
    opened: RunImages
    split: str
    name: str
    tta: str
    folder: Path

    @property
    def images(self) -> ImageData:
        """The images."""
        return self.opened.data

    @property
    def of_others(self) -> bool:
        """Whether the result is not one on the run's own split."""
        return not self.opened.is_own_split(self.split)

    @property
    def files(self) -> EvaluationFiles:
        """The results' files."""
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
    """Predict a split, measure the predictions, and write both into the run folder.

    The validation split is predicted too where there is one, to calibrate on.

    Args:
        run: A trained run.
        data: The images: the run's own config, or another.
        split: "test", "val" or "train", or "new" for images that the run does not know among its own. When not given:
            the test split, or the validation split where there is none; of other data all images, where they are not
            split, and of data of which the run knows some all images.
        device: "auto", "cpu", "cuda", ...
        tta: Test-time augmentation: "none", "mirror", "flips", "turns" or "crops"; its results get a name of their own.
        own: What the run's recipe says, where ``data`` may lie elsewhere. The run's own images are recognised by their
            content and keep their split; results on other images get a name of their own.
        intervals: How intervals are made.
        memory: Measure the memory of a pass too, which takes seconds.

    Returns:
        The folder with the results, and the overall measures.

    Raises:
        RunError: The run folder lacks a file or holds a damaged one.
        DataError: Images that are missing, unreadable or of unknown classes, or no such split.
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
    """The model and the images of an evaluation; what the arguments are and what is raised, :func:`evaluate` says."""
    trained = load_classifier(run).to(choose_device(device))
    opened = open_images(run, trained.card, data, own)
    chosen = split or opened.default_split()
    opened.data.indices(chosen)
    speaks = opened.is_own_split(chosen)
    told = _MIXED if opened.mixed and chosen == "all" else chosen
    name = chosen if speaks or not data.path else name_of_other(data.path, told)
    if tta != "none":
        name += f"-{tta}"
    folder = run.evaluation_of(name, primary=speaks and chosen == opened.primary_split() and tta == "none")
    return Evaluated(run, trained, opened, chosen, name, tta, folder)


def name_of_other(path: str, split: str, what: str = OTHER) -> str:
    """A name of its own for each folder of other images: two folders may be called the same."""
    place = Path(path).resolve()
    code = hashlib.sha256(str(place).encode()).hexdigest()[:6]
    return f"{what}-{place.name}-{code}" + ("" if split == "all" else f"-{split}")


def measure(
    evaluated: Evaluated, data: DataConfig, own: DataConfig, intervals: Intervals, memory: bool = False
) -> dict[str, Any]:
    """Predict, measure and write; gives the overall measures.

    Args:
        evaluated: What is measured.
        data: Where its images are from.
        own: What the run was trained on.
        intervals: How intervals are made.
        memory: Whether to measure memory.

    Raises:
        DataError: An image that cannot be read, or that has no group.
    """
    run, trained, tta = evaluated.run, evaluated.trained, evaluated.tta
    predict(run, trained, evaluated.images, evaluated.split, evaluated.name, tta)
    saved = SavedPredictions.read(run, evaluated.name)
    metrics = measure_saved(saved, _held_out(evaluated, own), evaluated.files, intervals.bootstrap(saved.table, data))
    metrics |= origin_of(saved)
    metrics["seen_in_pretraining"] = count_pretraining_images(run, evaluated.images, evaluated.split)
    metrics["efficiency"] = measure_efficiency(trained, memory_of=run.path if memory else None)
    drop_what_is_of_other_weights(run, evaluated.files)
    run.write_json(evaluated.files.metrics, metrics)
    found = evaluated.images.recognition
    if not evaluated.of_others and (not evaluated.opened.moved or found is None or not found.lacking):
        run.write_json(run.balance, _describe_data(evaluated.images))
    return metrics


def _describe_data(images: ImageData) -> dict[str, Any]:
    """What a report says of a run's own data; no pixel is read for it."""
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
    """The validation split's predictions, made where they are not there."""
    run, tta, images = evaluated.run, evaluated.tta, evaluated.images
    name = "val" if tta == "none" else f"val-{tta}"
    if evaluated.name == name:
        return calibration_predictions(run, evaluated.name, evaluated.split, tta)
    if not evaluated.opened.is_own_split("val") or "val" not in images.splits:
        if is_current(run, name):
            return calibration_predictions(run, evaluated.name, evaluated.split, tta)
        if not evaluated.opened.moved:
            return calibration_predictions(run, evaluated.name, evaluated.split, tta)
        try:
            images = open_images(run, evaluated.trained.card, own).data
        except VitrailError as error:
            # The images that the run was trained on need not be here to measure it on others.
            return HeldOut(None, f"the run's own images cannot be opened ({error})")
    if "val" in images.splits and not is_current(run, name, **images.identity()):
        predict(run, evaluated.trained, images, "val", name, tta)
    return calibration_predictions(run, evaluated.name, evaluated.split, tta)


def predict(run: RunFolder, trained: TrainedModel, images: ImageData, split: str, name: str, tta: str) -> None:
    """Save what the model says of a split's images.

    Raises:
        DataError: An image that cannot be read.
    """
    logits: list[torch.Tensor] = []
    embeddings: list[torch.Tensor] = []
    order: list[int] = []
    for batch in images.loader(split):
        output, embedding = trained.classify(batch, tta)
        logits.append(output.cpu())
        embeddings.append(embedding.cpu())
        order += batch["index"].tolist()
    groups = _groups(images)
    counts = None if images.recognition is None else images.recognition.counts(order)
    run.write_predictions(
        name,
        order,
        [images.source.keys[i] for i in order],
        [images.source.targets[i].tolist() for i in order],
        torch.cat(logits).numpy(),
        torch.cat(embeddings).numpy(),
        None if groups is None else [groups[i] for i in order],
        {
            "split": split,
            "tta": tta,
            "data": images.config.form(),
            "unreadable": [path for path, _ in images.source.left_out],
            "weights": run.weights_hash(),
            "trained_on": None if counts is None else counts["train"],
            "chosen_on": None if counts is None else counts["val"],
            **images.identity(),
        },
    )


def _groups(images: ImageData) -> list[str] | None:
    """Which images belong together: as the source says, as the split was made, or by the blocks of a scene."""
    source, config = images.source, images.config
    if source.scene is not None:
        block = source.scene.block
        return ["-".join(str(int(x) // block) for x in corner) for corner in source.scene.corners]
    if source.groups is not None:
        return [str(group) for group in source.groups]
    if config.split in ("auto", "grouped") and config.group is not None:
        try:
            return groups_of(source, config.group)
        except DataError:
            return None  # other images may be called otherwise; then each is on its own, and metrics.json says so
    return None


def drop_what_is_of_other_weights(run: RunFolder, files: EvaluationFiles) -> None:
    """Remove results of an earlier training that nothing would tell from those of this one."""
    known = run.read_json(files.robustness) if files.robustness.is_file() else {}
    kept = {name: part for name, part in known.items() if run.made_with(part.get("weights"))}
    for name in set(known) - set(kept):
        files.of_the_model[name].unlink(missing_ok=True)
    if kept != known:
        run.write_json(files.robustness, kept)
    if files.ood.is_file() and not run.made_with(run.read_json(files.ood).get("weights")):
        files.ood.unlink()
