"""Classify image files with a trained run or an export."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from torch import Tensor

from vitrail.data.dataset import ImageData
from vitrail.errors import ConfigError
from vitrail.runs.trained import Classifier, ModelCard


def predict_files(
    classifier: Classifier,
    images: ImageData,
    *,
    top_k: int = 5,
    batch_size: int = 32,
    tta: str = "none",
) -> pd.DataFrame:
    """Classify image files.

    Args:
        classifier: The trained run or the export.
        images: Images from :func:`vitrail.deploy.open_files`.
        top_k: Number of most likely classes, at most the number of classes.
        batch_size: Batch size.
        tta: Test-time augmentation; see :meth:`TrainedModel.classify`.

    Returns:
        One row per file: ``path``, ``class``, ``probability``, ``class_2``, ``probability_2``, ... up to ``top_k``. For
        a multi-label run also ``labels`` after the path: all labels with a probability of at least 0.5.

    Raises:
        ConfigError: ``top_k`` or ``batch_size`` below 1.
    """
    for name, value in (("top_k", top_k), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    rows: list[dict[str, Any]] = []
    for batch in images.batches(images.indices("all"), batch_size):
        files = [images.source.keys[i] for i in batch["index"].tolist()]
        classes = describe_classes(classifier.card, classifier.classify(batch, tta)[0], top_k)
        rows += [{"path": file, **row} for file, row in zip(files, classes, strict=True)]
    return pd.DataFrame(rows)


def describe_classes(card: ModelCard, logits: Tensor, top_k: int) -> list[dict[str, Any]]:
    """Rank the classes of each row of logits, as columns of :func:`predict_files`.

    Args:
        card: Model card of the run.
        logits: Shape ``(N, K)``.
        top_k: Number of most likely classes, at most the number of classes.
    """
    probabilities = card.probabilities(logits)
    values, indices = probabilities.topk(min(top_k, len(card.classes)))
    rows: list[dict[str, Any]] = []
    for p, v, i in zip(probabilities.tolist(), values.tolist(), indices.tolist(), strict=True):
        row: dict[str, Any] = {}
        if card.label_separator is not None:
            there = [name for name, share in zip(card.classes, p, strict=True) if share >= 0.5]
            row["labels"] = card.label_separator.join(there)
        rows.append({**row, **dict(_ranked(v, [card.classes[n] for n in i]))})
    return rows


def _ranked(values: list[float], names: list[str]) -> Iterator[tuple[str, Any]]:
    for rank, (value, name) in enumerate(zip(values, names, strict=True), start=1):
        suffix = "" if rank == 1 else f"_{rank}"
        yield f"class{suffix}", name
        yield f"probability{suffix}", round(value, 6)
