"""Evaluating a run on a split of its own data or on other images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.config.schema import DataConfig
from vitrail.data.dataset import ImageData, open_data
from vitrail.errors import DataError
from vitrail.evaluate.efficiency import measure_efficiency
from vitrail.evaluate.metrics import classification_metrics, confusion_table, per_class_table
from vitrail.evaluate.several_labels import several_labels_metrics, several_labels_table
from vitrail.files import write_text
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import TrainedModel, choose_device, load_classifier


def evaluate(
    run: RunFolder,
    data: DataConfig,
    *,
    split: str | None = None,
    other: bool = False,
    device: str = "auto",
    tta: str = "none",
) -> tuple[Path, dict[str, Any]]:
    """Predict a split, measure the predictions, and write both into the run folder.

    Args:
        run: A trained run.
        data: The images: the run's own config, or another.
        split: "test", "val" or "train". When not given: the test split, or the validation split where there is
            none; of other data all images, where they are not split.
        other: Whether ``data`` is not what the run was trained on; its results then get a name of their own.
        device: "auto", "cpu", "cuda", ...
        tta: Test-time augmentation: "none", "mirror", "flips", "turns" or "crops"; its results get a name of their own.

    Returns:
        The folder with the results, and the overall measures.

    Raises:
        RunError: The run folder lacks a file or holds a damaged one.
        DataError: Images that are missing, unreadable or of unknown classes, or no such split.
    """
    trained = load_classifier(run).to(choose_device(device))
    # Images are brought to the model exactly as they were in training.
    card = trained.card
    config = dataclasses.replace(data, resize=card.resize, color=card.color, spectral=card.spectral)
    images = open_data(config, card.img_size, card.classes, split=not other)
    if (images.source.targets.ndim == 2) != card.several_labels:
        wanted = "several labels an image" if card.several_labels else "one label an image"
        raise DataError(f"the run was trained with {wanted}, the data is of the other kind; see data.label_separator")
    trained_on = {name: stream.bands for name, stream in card.streams.items()}
    if images.source.bands != trained_on:
        raise DataError(
            f"the run was trained on the bands {_describe(trained_on)}, the data has {_describe(images.source.bands)}"
        )
    default = next(name for name in ("test", "val", "all", "train") if name in images.splits)
    chosen = split or default
    name = _name_of_other(data.path, chosen) if other and data.path else chosen
    if tta != "none":
        name += f"-{tta}"
    _predict(run, trained, images, chosen, name, tta)
    folder = run.evaluation_of(name, primary=not other and chosen == default and tta == "none")
    metrics = measure(run, name, folder)
    metrics["name"], metrics["split"], metrics["tta"] = name, chosen, tta
    metrics["data"] = {"source": config.source, "path": config.path}
    metrics["unreadable"] = [path for path, _ in images.source.left_out]
    metrics["efficiency"] = measure_efficiency(trained)
    run.write_json(folder / "metrics.json", metrics)
    return folder, metrics


def _describe(bands: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{stream}: {', '.join(names)}" for stream, names in bands.items())


def _name_of_other(path: str, split: str) -> str:
    """A name of its own for each folder of other images: two folders may be called the same."""
    place = Path(path).resolve()
    code = hashlib.sha256(str(place).encode()).hexdigest()[:6]
    return f"other-{place.name}-{code}" + ("" if split == "all" else f"-{split}")


def _predict(run: RunFolder, trained: TrainedModel, images: ImageData, split: str, name: str, tta: str) -> None:
    logits: list[torch.Tensor] = []
    embeddings: list[torch.Tensor] = []
    order: list[int] = []
    for batch in images.loader(split):
        output, embedding = trained.classify(batch, tta)
        logits.append(output.cpu())
        embeddings.append(embedding.cpu())
        order += batch["index"].tolist()
    run.write_predictions(
        name,
        order,
        [images.source.keys[i] for i in order],
        [images.source.targets[i].tolist() for i in order],
        torch.cat(logits).numpy(),
        torch.cat(embeddings).numpy(),
    )


def measure(run: RunFolder, name: str, folder: Path) -> dict[str, Any]:
    """Measure the saved predictions of that name, without the model; write tables into ``folder``, return the rest.

    Raises:
        RunError: There are no predictions of that name.
    """
    card = run.read_json(run.card)
    classes = card["classes"]
    table = run.read_predictions(name)
    logits = np.stack(table["logits"].tolist()).astype(np.float32)
    if card.get("label_separator") is not None:
        several = np.stack(table["target"].tolist()).astype(np.int64)
        write_text(folder / "per_class.csv", several_labels_table(logits, several, classes).to_csv(index=False))
        return several_labels_metrics(logits, several, classes)
    targets = table["target"].to_numpy(dtype=np.int64)
    write_text(folder / "per_class.csv", per_class_table(logits, targets, classes).to_csv(index=False))
    write_text(folder / "confusion.csv", confusion_table(logits, targets, classes).to_csv())
    return classification_metrics(logits, targets, classes)
