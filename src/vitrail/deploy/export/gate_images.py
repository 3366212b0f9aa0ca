"""Images that the gate compares an export with its run on, and the outputs of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vitrail.config.data import DataConfig
from vitrail.data.dataset import Batch, ImageData
from vitrail.deploy.export.gate import UNLABELLED, GateImages, Outputs
from vitrail.deploy.export.photographs import encoded_source, run_photographs
from vitrail.deploy.export.stored import Stored
from vitrail.deploy.images import open_files
from vitrail.engines.base import Arrays
from vitrail.engines.inputs import to_inputs
from vitrail.engines.load import Export
from vitrail.errors import DataError
from vitrail.explain.methods.rollout import attention_rollout
from vitrail.runs.folder import RunFolder
from vitrail.runs.images import read_image_record
from vitrail.runs.trained import TrainedModel

_BATCH = 32


@dataclass(frozen=True)
class Selection:
    """Images of a source.

    Attributes:
        images: The source.
        indices: Indices into the source.
        labelled: Whether their targets count.
    """

    images: ImageData
    indices: list[int]
    labelled: bool

    def batches(self) -> Iterator[Batch]:
        """Iterate over batches, in order."""
        return self.images.batches(self.indices, _BATCH)


def select_gate_images(
    run: RunFolder, trained: TrainedModel, data: DataConfig, own: ImageData, more: Sequence[str | Path]
) -> tuple[list[Selection], int]:
    """Select the validation images, and those of further files that the run does not know.

    Args:
        run: The run.
        trained: Its model.
        data: Its data settings.
        own: Its images.
        more: Files and folders of further images, without labels.

    Returns:
        The images, and how many of the further ones are left out because the run was made from them.
    """
    selected = [Selection(own, own.splits["val"], labelled=True)] if own.splits.get("val") else []
    if not more:
        return selected, 0
    images = open_files(trained.card, data, more)
    known = read_image_record(run)
    rows = np.full(len(images.source), -1) if known is None else known.recognise(images.source).rows
    fresh = [int(i) for i in np.flatnonzero(rows < 0)]
    return [*selected, Selection(images, fresh, labelled=False)], len(rows) - len(fresh)


def original_outputs(trained: TrainedModel, selected: Sequence[Selection], include: Sequence[str]) -> GateImages:
    """Compute the outputs of the run.

    Args:
        trained: The run's model.
        selected: The gate images.
        include: Outputs of the export besides logits and probabilities.

    Raises:
        DataError: There are no images.
    """
    if not any(own.indices for own in selected):
        raise DataError("the run has no validation images, on which an export is compared with it; give --images DIR")
    logits, embeddings, targets = [], [], []
    heatmaps: dict[str, list[np.ndarray]] = {}
    for own in selected:
        for batch in own.batches():
            values, embedding = _classify(trained, batch)
            logits.append(values)
            embeddings.append(embedding)
            targets.append(_targets(trained, own, batch))
            if "heatmap" in include:
                rollout = attention_rollout(trained.model, *trained.inputs(batch))
                for name, one in rollout.by_stream(trained.model).items():
                    heatmaps.setdefault(name, []).append(one.map.numpy())
    maps = {name: np.concatenate(parts) for name, parts in heatmaps.items()}
    embedding_rows = np.concatenate(embeddings) if "embedding" in include else None
    outputs = Outputs(np.concatenate(logits), embedding_rows, maps)
    return GateImages(outputs, np.concatenate(targets), trained.card.classes)


def _classify(trained: TrainedModel, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Compute logits and embeddings of a batch; 0 where a cloud has no point, as in an export."""
    logits, embedding = trained.classify(batch)
    if trained.card.per_point:
        logits, embedding = logits.nan_to_num(0.0), embedding.nan_to_num(0.0)
    return logits.numpy(), embedding.numpy()


def _targets(trained: TrainedModel, own: Selection, batch: Batch) -> np.ndarray:
    """Return the targets of a batch, of clouds whose points are labelled the part of each; -1 where unknown."""
    card, source, count = trained.card, own.images.source, len(batch["index"])
    if card.per_point:
        if own.labelled and "parts" in batch:
            parts: np.ndarray = card.part_numbers(source.parts)[batch["parts"].numpy()]
            return parts
        return np.full((count, batch["points"].shape[1]), UNLABELLED, dtype=np.int64)
    if own.labelled:
        known: np.ndarray = source.targets[batch["index"].numpy()].astype(np.int64)
        return known
    return np.full((count, len(card.classes)) if card.multi_label else count, UNLABELLED, dtype=np.int64)


def export_outputs(
    export: Export,
    selected: Sequence[Selection],
    names: Sequence[str],
    stored: Mapping[str, Stored] | None = None,
) -> Arrays:
    """Compute the logits and other outputs of an export for the gate images.

    Args:
        export: The export.
        selected: The gate images.
        names: Names of the other outputs.
        stored: Stored form of the photographs: encoded ones are then decoded in full and given at their own size, as
            by another program. By default all are given at the model's size, as the pipeline resizes them.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("logits", *names)}
    for own in selected:
        source = encoded_source(own.images)
        batches: Iterable[Arrays]
        if stored and source is not None:
            batches = run_photographs(export, source, stored, own.indices)
        else:
            batches = (export.run(to_inputs(export.record, batch)) for batch in own.batches())
        for outputs in batches:
            for name, rows in parts.items():
                rows.append(outputs[name])
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def count_images(selected: Sequence[Selection]) -> int:
    """Count the images."""
    return sum(len(own.indices) for own in selected)


def spread(selected: Sequence[Selection], most: int) -> list[Selection]:
    """Select images at even distances, so many at most."""
    total = count_images(selected)
    if total <= most:
        return list(selected)
    wanted = {i * total // most for i in range(most)}
    found, start = [], 0
    for own in selected:
        indices = [index for i, index in enumerate(own.indices, start) if i in wanted]
        found.append(Selection(own.images, indices, own.labelled))
        start += len(own.indices)
    return found


def spread_encoded(selected: Sequence[Selection], most: int) -> tuple[list[Selection], list[int]]:
    """Select encoded images at even distances; also return their rows among all images."""
    encoded = [own for own in selected if encoded_source(own.images) is not None]
    found = spread(encoded, most)
    wanted = {id(own): set(few.indices) for own, few in zip(encoded, found, strict=True)}
    rows: list[int] = []
    start = 0
    for own in selected:
        rows += [row for row, index in enumerate(own.indices, start) if index in wanted.get(id(own), ())]
        start += len(own.indices)
    return found, rows


def logits_in_full(trained: TrainedModel, selected: Sequence[Selection]) -> np.ndarray:
    """Compute the run's logits of encoded images, decoded in full and resized by the pipeline."""
    parts = []
    for own in selected:
        source = encoded_source(own.images)
        assert source is not None, "selected by spread_encoded"
        with source.in_full():
            parts += [_classify(trained, batch)[0] for batch in own.batches()]
    return np.concatenate(parts)


def embed(trained: TrainedModel, images: ImageData, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the embeddings of images, shape ``(n, C)``; also return their targets."""
    rows = [trained.classify(batch)[1].numpy() for batch in images.batches(indices, _BATCH)]
    return np.concatenate(rows), images.source.targets[indices]


def pixel_types(images: ImageData, index: int) -> dict[str, torch.dtype]:
    """Return the type in which the source gives the pixels of each stream; float32 where some have no data."""
    first = images.source.read([index])
    return {name: torch.float32 if images.source.has_no_data else x.dtype for name, x in first.items()}
