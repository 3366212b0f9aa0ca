"""``vitrail.export``: write a trained run as one file of an engine, shown to decide like the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.config.data import DataConfig
from vitrail.data.dataset import Batch, ImageData
from vitrail.deploy.export.artefact import check_out, describe_model, new_export, write_check, write_record
from vitrail.deploy.export.convert import convert, trace
from vitrail.deploy.export.graph import ExportGraph
from vitrail.deploy.export.stored import as_photographs, stored_pixels
from vitrail.deploy.exported import to_inputs
from vitrail.engines.base import Arrays
from vitrail.engines.load import ENGINES, Export, difference, load_export
from vitrail.errors import ConfigError, DataError, RunError
from vitrail.machine import processor
from vitrail.runs.folder import RunFolder
from vitrail.runs.images import open_images
from vitrail.runs.trained import TrainedModel, load_classifier

PRECISIONS = ("fp32", "bf16")
INCLUDE = ("embedding", "heatmap")
# Largest difference of logits in float32, as a share of their scale.
EQUAL = 1e-4
# Number of check images, and images of a batch.
_CHECK_IMAGES, _BATCH = 4, 32


def export(
    run: str | Path | RunFolder,
    data: DataConfig,
    *,
    out: str | Path | None = None,
    format: str = "openvino",
    precision: str = "fp32",
    include: Sequence[str] = ("embedding",),
    threads: int | None = None,
) -> tuple[Export, dict[str, Any]]:
    """Export a trained run, and compare it with the run on the validation images.

    Args:
        run: The run folder.
        data: Data settings of the run's recipe.
        out: Folder of the export; ``export`` in the run folder by default. An earlier export there is replaced.
        format: "openvino", "onnx" or "torch".
        precision: "fp32" or "bf16".
        include: Outputs besides logits and probabilities, of :data:`INCLUDE`.
        threads: Number of threads of the engine; all cores by default.

    Returns:
        The loaded export, and the comparison: images, largest difference of logits as a share of their scale, and
        images with another class.

    Raises:
        ConfigError: An unknown format or precision, or one that does not run on this processor.
        DataError: Images that are missing or unreadable.
        RunError: The run is not trained, or the export decides otherwise.
    """
    run = run if isinstance(run, RunFolder) else RunFolder.open(run)
    _check_choice("--format", format, ENGINES)
    _check_choice("--precision", precision, PRECISIONS)
    for name in include:
        _check_choice("--include", name, INCLUDE)
    out = run.export if out is None else Path(out)
    check_out(out)
    trained = load_classifier(run)
    images = open_images(run, trained.card, data, verb="export").data
    indices = _gate_images(images)
    stored, no_photographs = stored_pixels(trained.card, data, images)
    graph = ExportGraph(trained, pixel_types(images, indices), stored, include)
    facts = describe_model(graph, data, format, precision, no_photographs)
    with new_export(out) as folder:
        convert(trace(graph), graph, format, folder, facts)
        engine, file = ENGINES[format]
        unchecked = Export(folder, facts, engine(folder / file, precision, threads))
        compared = compare(trained, unchecked, images, indices)
        if precision == "fp32" and (compared["difference"] > EQUAL or compared["other_classes"]):
            raise RunError(
                f"the {format} export differs from {run}: logits by {compared['difference']:.2g} of their scale (limit "
                f"{EQUAL:g}), other classes on {compared['other_classes']} of {compared['images']} images; nothing was "
                "written: take another --format"
            )
        batch = images.batch(images.evenly_spaced("val", _CHECK_IMAGES))
        checks = {"resized": to_inputs(facts, batch)}
        if stored:
            checks["photographs"] = as_photographs(stored, batch)
        write_check(folder, unchecked, checks)
        write_record(folder, facts, {"processor": processor(), "compared": compared})
    return load_export(out, threads), compared


def pixel_types(images: ImageData, indices: list[int]) -> dict[str, torch.dtype]:
    """Return the type in which the source gives the pixels of each stream; float32 where some have no data."""
    first = images.source.read(indices[:1])
    return {name: torch.float32 if images.source.has_no_data else x.dtype for name, x in first.items()}


def compare(trained: TrainedModel, export: Export, images: ImageData, indices: list[int]) -> dict[str, Any]:
    """Compare the decisions of an export with those of its run, image by image.

    Args:
        trained: The run's model.
        export: The export.
        images: Images of the run.
        indices: Which of them.

    Returns:
        Number of images, the largest difference of logits as a share of their scale, and the images with another
        class (multi-label: another set of labels).
    """
    wanted, found = [], []
    for batch, outputs in run_batches(export, images, indices):
        wanted.append(trained.classify(batch)[0].numpy())
        found.append(outputs["logits"])
    reference, logits = np.concatenate(wanted), np.concatenate(found)
    if trained.card.multi_label:
        others = ((reference > 0) != (logits > 0)).any(axis=1)
    else:
        others = reference.argmax(axis=1) != logits.argmax(axis=1)
    return {
        "images": len(reference),
        "difference": difference(logits, reference),
        "other_classes": int(others.sum()),
    }


def run_batches(export: Export, images: ImageData, indices: list[int]) -> Iterator[tuple[Batch, Arrays]]:
    """Run images through an export, batch by batch."""
    for batch in images.batches(indices, _BATCH):
        yield batch, export.run(to_inputs(export.record, batch))


def _gate_images(images: ImageData) -> list[int]:
    """Return the validation images, which were not trained on.

    Raises:
        DataError: There are none.
    """
    if not images.splits.get("val"):
        raise DataError("the run has no validation images, on which the export is compared with it")
    return images.indices("val")


def _check_choice(option: str, value: str, known: Any) -> None:
    if value not in known:
        raise ConfigError(f"{option} must be one of {', '.join(known)}, got {value!r}")
