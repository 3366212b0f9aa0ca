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
from vitrail.evaluate.parts import PartCounts, resampled_miou

# Value, and the two ends of its interval.
Estimate = tuple[float, float, float]
_UNKNOWN: Estimate = (float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class FinalTable:
    """Comparison on the run's test images.

    Attributes:
        images: Number of images.
        available: Number of test images of the run.
        metric: "accuracy", "mean average precision" if multi-label, or "mIoU" of labels of points.
        original: The run's value, with a 95 % interval.
        export: The export's.
        difference: Export minus original on the same images, with a 95 % interval.
        losses: Images that only the original classifies correctly; None if multi-label, and of labels of points.
        gains: Images that only the export classifies correctly; None likewise.
        agreement: Share of images with the same decision (for every label if multi-label, of every point).
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
    a label. So has the mean intersection over union of labels of points.

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
    if gate.of_points:
        return FinalTable(n, available, "mIoU", *_mious(gate, outputs), None, None, *same)
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
    (first, second), (one, other) = found
    return _estimates(bootstrap, (first, one), (second, other))


def _mious(gate: GateImages, outputs: Outputs) -> tuple[Estimate, Estimate, Estimate]:
    known = gate.targets >= 0
    rows = np.flatnonzero(known.any(axis=1))
    if len(rows) < 2:  # no interval
        return _UNKNOWN, _UNKNOWN, _UNKNOWN
    bootstrap = Bootstrap(len(rows), confidence=LEVEL)
    found = []
    for logits in (gate.original.logits, outputs.logits):
        true, predicted = ([x[i][known[i]] for i in rows] for x in (gate.targets, gate.decisions(logits)))
        found.append(resampled_miou(PartCounts.of(true, predicted, logits.shape[2]), bootstrap))
    return _estimates(bootstrap, *found)


def _estimates(
    bootstrap: Bootstrap, first: tuple[float, Doubles], second: tuple[float, Doubles]
) -> tuple[Estimate, Estimate, Estimate]:
    """Return run, export and their difference with intervals, from each value and its resamples."""

    def estimate(value: float, values: Doubles) -> Estimate:
        if 2 * np.isfinite(values).sum() < len(values):  # most resamples lack a label or a part
            return float(value), float("nan"), float("nan")
        return (float(value), *(bootstrap.interval(values) or (float(value), float(value))))

    return estimate(*first), estimate(*second), estimate(second[0] - first[0], second[1] - first[1])


def _correct(gate: GateImages, logits: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    correct: np.ndarray[Any, np.dtype[np.bool_]] = logits.argmax(axis=1) == gate.targets
    return correct
