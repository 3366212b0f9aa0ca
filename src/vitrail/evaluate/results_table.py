"""One row a run: what it is, how good, how fast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vitrail.errors import RunError
from vitrail.runs.folder import RunFolder

RESULT_COLUMNS = (
    "model",
    "parameters",
    "gmacs",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "f1_macro",
    "train_images_per_second",
    "inference_images_per_second",
)


def results_table(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """The runs side by side, from what they recorded.

    Args:
        runs: Evaluated runs.

    Returns:
        The columns of ``RESULT_COLUMNS``; ``model`` is the run folder's name. Training speed is the median epoch's.

    Raises:
        RunError: A run that has not been trained or evaluated.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        metrics = read_evaluation(run)[1]
        curves = run.read_metrics()
        lacking = [key for key in ("name", "images", "efficiency", "accuracy", "f1_macro") if key not in metrics]
        if lacking or "train_images_per_second" not in curves:
            what = ", ".join(lacking) or "train_images_per_second"
            raise RunError(f"{run} was written by another program or version (no {what}); evaluate or train it again")
        efficiency = metrics["efficiency"]
        speeds = curves["train_images_per_second"]
        # The first epoch pays for warming up, where there are others to take.
        train_speed = float(speeds.iloc[1:].median() if len(speeds) > 1 else speeds.median())
        rows.append(
            {
                "model": run.name,
                "parameters": efficiency["parameters"],
                "gmacs": round(efficiency["gmacs"], 6),
                **{key: round(metrics[key], 4) for key in ("accuracy", "accuracy_low", "accuracy_high", "f1_macro")},
                "train_images_per_second": round(train_speed, 1),
                "inference_images_per_second": round(efficiency["inference_images_per_second"], 1),
            }
        )
    return pd.DataFrame(rows, columns=list(RESULT_COLUMNS))


def read_evaluation(run: RunFolder) -> tuple[Path, dict[str, Any]]:
    """The evaluation that speaks for a run, or another where there is none: its folder and overall measures.

    Raises:
        RunError: The run has not been evaluated, or with other weights than it holds now.
    """
    folders = run.evaluations()
    if not folders:
        raise RunError(f"{run} has not been evaluated; `vitrail evaluate {run}` does it")
    folder = next(iter(folders.values()))
    return folder, run.read_measures(folder)
