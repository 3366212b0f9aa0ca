"""Final comparison of the written export with its run, on test images that no choice has used."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.bootstrap import Bootstrap, Doubles
from vitrail.deploy.export.bounds import LEVEL, agreement_bound, drop_bound
from vitrail.deploy.export.gate import Floats, GateImages, Outputs
from vitrail.deploy.export.mean_precision import mean_precisions
from vitrail.deploy.export.verdict import percent, percent_at_least
from vitrail.evaluate.metrics import accuracy_interval

# Value, and the two ends of its interval.
Estimate = tuple[float, float, float]
_UNKNOWN: Estimate = (float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class FinalTable:
    """Comparison on the run's test images.

    Attributes:
        images: Number of images.
        available: Number of test images of the run.
        metric: "accuracy", or "mean average precision" if multi-label.
        original: The run's value, with a 95 % interval.
        export: The export's.
        difference: Export minus original on the same images, with a 95 % interval.
        losses: Images that only the original classifies correctly; None if multi-label.
        gains: Images that only the export classifies correctly; None if multi-label.
        agreement: Share of images with the same decision (for every label if multi-label).
        agreement_low: Its one-sided lower bound.
    """

    images: int
    available: int
    metric: str
    original: Estimate
    export: Estimate
    difference: Estimate
    losses: int | None
    gains: int | None
    agreement: float
    agreement_low: float

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values; numbers that are not known become null."""
        plain = dataclasses.asdict(self)
        return {key: _known(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    def lines(self) -> tuple[list[str], list[list[str]]]:
        """Format the table: header, and rows of cells."""
        header = ["test images", count_of(self.images, self.available), "95 % interval"]
        rows = [
            [f"{self.metric}, {name}", *_cells(values, signed)]
            for name, values, signed in (
                ("run", self.original, False),
                ("export", self.export, False),
                ("export minus run", self.difference, True),
            )
        ]
        return header, [
            *rows,
            ["same decisions", percent(self.agreement), f"at least {percent_at_least(self.agreement_low)}"],
        ]


def count_of(images: int, available: int) -> str:
    """Format a number of images, with that of all of them where it is smaller."""
    return f"{images:,}" if images == available else f"{images:,} of {available:,}"


def _known(values: Estimate) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _cells(values: Estimate, signed: bool) -> list[str]:
    value, low, high = ("-" if math.isnan(x) else f"{x:+.4f}" if signed else f"{x:.4f}" for x in values)
    return [value, "-" if "-" in (low, high) else f"{low} to {high}"]


def compare_on_test(gate: GateImages, outputs: Outputs, available: int | None = None) -> FinalTable:
    """Compare an export with its run.

    Accuracies have Wilson's intervals; their difference has exact bounds from paired decisions, of 97.5 % on each side.
    The mean average precision has intervals by the bootstrap of images; none where most resamples lack the positives of
    a label.

    Args:
        gate: Test images, all labelled, with the run's outputs.
        outputs: The export's.
        available: Number of all test images; that of ``gate`` by default.
    """
    n = len(gate.targets)
    available = n if available is None else available
    misses = int(gate.changed(outputs.logits).sum())
    same = (1 - misses / n, agreement_bound(n, misses, LEVEL))
    if gate.multi_label:
        return FinalTable(n, available, "mean average precision", *_mean_precisions(gate, outputs), None, None, *same)
    first_correct, second_correct = (_correct(gate, logits) for logits in (gate.original.logits, outputs.logits))
    losses, gains = int((first_correct & ~second_correct).sum()), int((~first_correct & second_correct).sum())
    each = (1 + LEVEL) / 2
    low, high = -drop_bound(n, losses, gains, each), drop_bound(n, gains, losses, each)
    values = [(float(x.mean()), *accuracy_interval(int(x.sum()), n)) for x in (first_correct, second_correct)]
    return FinalTable(
        n, available, "accuracy", values[0], values[1], ((gains - losses) / n, low, high), losses, gains, *same
    )


def _mean_precisions(gate: GateImages, outputs: Outputs) -> tuple[Estimate, Estimate, Estimate]:
    if len(gate.targets) < 2:  # no interval
        return _UNKNOWN, _UNKNOWN, _UNKNOWN
    bootstrap = Bootstrap(len(gate.targets), confidence=LEVEL)
    found = mean_precisions(gate.targets > 0, [gate.original.logits, outputs.logits], bootstrap)
    if found is None:
        return _UNKNOWN, _UNKNOWN, _UNKNOWN
    (first, second), resampled = found

    def estimate(value: float, values: Doubles) -> Estimate:
        if 2 * np.isfinite(values).sum() < len(values):  # most resamples lack the positives of a label
            return float(value), float("nan"), float("nan")
        return (float(value), *(bootstrap.interval(values) or (float(value), float(value))))

    return (
        estimate(first, resampled[0]),
        estimate(second, resampled[1]),
        estimate(second - first, resampled[1] - resampled[0]),
    )


def _correct(gate: GateImages, logits: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    correct: np.ndarray[Any, np.dtype[np.bool_]] = logits.argmax(axis=1) == gate.targets
    return correct
