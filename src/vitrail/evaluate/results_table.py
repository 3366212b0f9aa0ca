"""Table of runs: model, accuracy and speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vitrail.errors import RunError
from vitrail.runs.folder import RunFolder

_OF_CLASSES = ("accuracy", "accuracy_low", "accuracy_high", "f1_macro")


def results_table(runs: Sequence[RunFolder], measures: Sequence[str] = _OF_CLASSES) -> pd.DataFrame:
    """Tabulate evaluated runs, one row each.

    Args:
        runs: Evaluated runs.
        measures: Columns from metrics.json.

    Returns:
        ``model`` (the name of the run folder), ``parameters``, ``gmacs``, the measures, ``train_images_per_second``
        (of the median epoch) and ``inference_images_per_second``.

    Raises:
        RunError: A run is not trained or not evaluated.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        metrics = read_evaluation(run)[1]
        curves = run.read_metrics()
        lacking = [key for key in ("name", "images", "efficiency", *measures) if key not in metrics]
        if lacking or "train_images_per_second" not in curves:
            what = ", ".join(lacking) or "train_images_per_second"
            raise RunError(f"{run} was written by another program or version (no {what}); evaluate or train it again")
        efficiency = metrics["efficiency"]
        speeds = curves["train_images_per_second"]
        # The first epoch includes the warm-up.
        train_speed = float(speeds.iloc[1:].median() if len(speeds) > 1 else speeds.median())
        rows.append(
            {
                "model": run.name,
                "parameters": efficiency["parameters"],
                "gmacs": round(efficiency["gmacs"], 6),
                **{key: None if metrics[key] is None else round(metrics[key], 4) for key in measures},
                "train_images_per_second": round(train_speed, 1),
                "inference_images_per_second": round(efficiency["inference_images_per_second"], 1),
            }
        )
    return pd.DataFrame(rows)


def read_evaluation(run: RunFolder) -> tuple[Path, dict[str, Any]]:
    """Read the folder and overall measures of a run's primary evaluation, or of another where there is none.

    Raises:
        RunError: The run is not evaluated, or was evaluated with other weights.
    """
    folders = run.evaluations()
    if not folders:
        raise RunError(f"{run} has not been evaluated; `vitrail evaluate {run}` does it")
    folder = next(iter(folders.values()))
    return folder, run.read_measures(folder)
