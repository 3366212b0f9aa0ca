"""Published results of variants and own runs, as points of one chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from vitrail.catalogue import Catalogue, Variant
from vitrail.errors import ConfigError, DataError
from vitrail.evaluate.results_table import results_table
from vitrail.figures.published import OWN, CostPoint
from vitrail.runs.folder import RunFolder

NOTE = "Published accuracies are of ImageNet-1k, as the papers give them, at the input size of the variant."
_COLUMNS = ("model", "mode", "images_per_second")


def published_points(variants: Sequence[Variant], speeds: Mapping[str, float] | None = None) -> list[CostPoint]:
    """Return a point for each published accuracy.

    Args:
        variants: Variants of the catalogue.
        speeds: Variant name -> measured images per second.
    """
    return [
        CostPoint(
            variant.name, variant.family, result.pretraining, result.top1, variant.multiply_adds, variant.parameters,
            (speeds or {}).get(variant.name), result.source,
        )
        for variant in variants
        for result in variant.results
    ]  # fmt: skip


def run_points(runs: Sequence[RunFolder], catalogue: Catalogue) -> list[CostPoint]:
    """Return a point for each evaluated run.

    Args:
        runs: The runs.
        catalogue: Names the family of a variant.

    Raises:
        RunError: A run that was not evaluated.
    """
    points = []
    for run, (_, row) in zip(runs, results_table(runs).iterrows(), strict=True):
        name = run.read_json(run.card)["name"]
        family = catalogue.variants[name].family if name in catalogue.variants else name
        cost = 1e9 * row["gmacs"], row["parameters"], row["inference_images_per_second"]
        points.append(CostPoint(run.name, family, OWN, 100 * row["accuracy"], *cost, str(run)))
    return points


def read_speeds(file: str | Path) -> dict[str, float]:
    """Read the forward throughput of each model from a table of ``vitrail bench --csv``, the highest of its rows.

    Raises:
        DataError: The file cannot be read.
        ConfigError: It is no such table.
    """
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    if not set(_COLUMNS) <= set(table.columns):
        raise ConfigError(f"--speeds {file} is not a table of `vitrail bench --csv` (columns {', '.join(_COLUMNS)})")
    rows = table[table["mode"] == "forward"]
    if "library" in rows:
        rows = rows[rows["library"] == "vitrail"]
    return {str(name): float(value) for name, value in rows.groupby("model")["images_per_second"].max().items()}


def as_table(points: Sequence[CostPoint]) -> pd.DataFrame:
    """Return the points as a table, one row each."""
    return pd.DataFrame([vars(point) for point in points])
