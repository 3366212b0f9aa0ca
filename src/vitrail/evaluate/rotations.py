"""Accuracy on rotated point clouds, and how far a rotation changes the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.data.dataset import Batch
from vitrail.data.points.rotations import TURNS, rotate_clouds
from vitrail.errors import ConfigError
from vitrail.evaluate.robustness import accuracies, record_part
from vitrail.evaluate.run import Evaluated
from vitrail.evaluate.saved_predictions import Intervals
from vitrail.models.modality import check_need

# Names of rotations in the tables of the field.
SHORT = {"none": "as is", "up": "z", "so3": "SO(3)"}


def measure_rotations(
    evaluated: Evaluated,
    data: DataConfig | None,
    trained_on: str,
    *,
    intervals: Intervals | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure accuracy on upright clouds, rotated about z and rotated freely (SO(3)); write rotations.csv.

    Each cloud is rotated once, by a rotation that depends on the seed and its number alone.

    Args:
        evaluated: An evaluation with saved predictions.
        data: Data settings, for groups.
        trained_on: Rotations of the training clouds, ``data.points.turn``.
        intervals: Settings of the intervals.
        sample: Number of clouds, evenly spaced over the split; all by default.
        seed: Seed of the rotations.

    Returns:
        ``rotations`` (of training / of this row, as "z/SO(3)"), ``images``, ``accuracy``, ``low``, ``high``, and the
        columns of :func:`~vitrail.evaluate.robustness.paired_drops`; ``attrs["deviation"]`` is the largest change of a
        logit by a rotation, over the range of the logits.

    Raises:
        ConfigError: A model that takes no point clouds, a sample below 1, or clouds that are rotated already.
    """
    trained = evaluated.trained
    check_need("evaluate --rotations", trained.card.modality, trained.card.name)
    if evaluated.tta != "none":
        raise ConfigError(f"--rotations cannot be combined with --tta {evaluated.tta}; omit one of them")
    unturned: dict[bytes, Tensor] = {}
    deviations, extent = [0.0], [0.0]

    def turned(turn: str) -> Callable[[Batch], Tensor]:
        def classify(batch: Batch) -> Tensor:
            key = batch["index"].numpy().tobytes()
            points = rotate_clouds(batch["points"], batch["index"].tolist(), turn, seed)
            logits = trained.classify({**batch, "points": points})[0]
            if turn == "none":
                unturned.clear()
                unturned[key] = logits
                extent[0] = max(extent[0], float(logits.max() - logits.min()))
            else:
                deviations[0] = max(deviations[0], float((logits - unturned[key]).abs().max()))
            return logits

        return classify

    cases: dict[tuple[Any, ...], Callable[[Batch], Tensor]] = {
        (f"{SHORT[trained_on]}/{SHORT[turn]}",): turned(turn) for turn in TURNS
    }
    table = accuracies(evaluated, data, cases, ("rotations",), intervals, sample, "rotations", paired=True)
    table.attrs["deviation"] = deviations[0] / max(extent[0], 1e-12)
    summary = {
        "seed": seed,
        "deviation_of_logits": table.attrs["deviation"],
        "of_each": dict(zip(table["rotations"], table["accuracy"].astype(float), strict=True)),
    }
    record_part(evaluated, "rotations", table, summary)
    return table
