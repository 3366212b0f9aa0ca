"""Faithfulness of methods on a run's images, and localisation where masks are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitrail.analyze.explanations import Settings
from vitrail.data.dataset import ImageData
from vitrail.data.sources.base import unwrap_source
from vitrail.data.sources.synthetic_leaves import SyntheticLeavesSource
from vitrail.runs.trained import TrainedModel

if TYPE_CHECKING:
    import pandas as pd

# Indices of images -> stream -> masks, shape (B, H, W), bool.
Masks = Callable[[list[int]], dict[str, Tensor]]


def own_masks(data: ImageData) -> Masks | None:
    """Get the masks of synthetic leaves; None for other sources.

    A stream's mask covers the symptoms visible in its bands: early stress has an empty mask in red, green and blue.
    """
    source = unwrap_source(data.source)
    if not isinstance(source, SyntheticLeavesSource):
        return None
    streams = data.source.bands
    return lambda indices: {name: data.crop(source.masks(indices, bands)) for name, bands in streams.items()}


def measure_methods(
    trained: TrainedModel,
    data: ImageData,
    indices: Sequence[int],
    methods: Settings,
    *,
    target: int | None = None,
    masks: Masks | None = None,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Measure methods beside a random map and a centred blob, with one batch in memory at a time.

    Args:
        trained: The model.
        data: The images.
        indices: Indices into the data.
        methods: Method -> its settings.
        target: Index of the class; the predicted one of each image by default.
        masks: Relevant pixels of each stream.
        batch_size: Images in a batch.

    Returns:
        As :func:`vitrail.explain.compare_methods`: a row for each measure and method, with 95 % intervals.
    """
    import pandas as pd

    from vitrail.explain import compare_methods, score_methods

    parts = []
    done = 0
    score = "independent" if trained.card.multi_label else "probability"
    for batch in data.batches(list(indices), batch_size):
        inputs = trained.inputs(batch)
        rows = batch["index"].tolist()
        known = None if masks is None else masks(rows)
        scores = score_methods(
            trained.model,
            inputs,
            {name: (name, settings) for name, settings in methods.items()},
            masks=known,
            target=target,
            score=score,
            batch_size=batch_size,
        )
        parts.append(scores.assign(image=scores["image"] + done))
        done += len(rows)
    table: pd.DataFrame = compare_methods(pd.concat(parts, ignore_index=True))
    return table


def describe_counts(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Format a table of :func:`measure_methods` for a terminal: a row a method, a column a measure."""
    measures = list(dict.fromkeys(table["measure"]))
    better = dict(zip(table["measure"], table["better"], strict=True))
    cells = {
        (row["method"], row["measure"]): f"{row['mean']:.3g} ({row['low']:.3g} to {row['high']:.3g})"
        for _, row in table.iterrows()
    }
    header = ["method", *(f"{name} ({better[name]} is better)" for name in measures)]
    return header, [[m, *(cells[m, name] for name in measures)] for m in dict.fromkeys(table["method"])]


def stack_masks(read: Callable[[int], Tensor], streams: Iterable[str]) -> Masks:
    """Read masks one by one, the same for every stream."""
    return lambda indices: dict.fromkeys(streams, torch.stack([read(index) for index in indices]))
