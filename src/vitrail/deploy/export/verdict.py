"""Verdicts of an export's gate: the record in export.json, and the printed table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["passed", "refused", "not tested", "not built"]


@dataclass(frozen=True)
class Similarity:
    """Similarity of an output beside the logits to the original's.

    Attributes:
        output: "embedding", or "heatmap of STREAM".
        measure: "cosine" or "rank correlation" (Spearman), of each image.
        median: Median over the gate images.
        worst: Smallest value.
        least: Value from which an image's outputs count as alike.
        misses: Images below.
        share_low: Lower bound of the share of images that are alike.
        difference: Largest difference, relative to the original's largest value.
    """

    output: str
    measure: str
    median: float
    worst: float
    least: float
    misses: int
    share_low: float
    difference: float


@dataclass(frozen=True)
class Photographs:
    """Comparison of an fp32 candidate with the run on image files that are decoded in full and resized in the graph.

    Attributes:
        images: Number of images.
        misses: Images with another decision than the original's.
        difference: Median over the images of the largest difference of logits, relative to the original's largest one.
    """

    images: int
    misses: int
    difference: float


@dataclass(frozen=True)
class Verdict:
    """Verdict of the gate about a candidate; numbers are None where they were not measured.

    Attributes:
        status: "passed", "refused", "not tested" or "not built".
        reason: The evidence of a pass, or the cause of another status.
        images: Number of gate images.
        misses: Images with another decision than the original's, of any label if multi-label.
        agreement: Share of images with the same decision.
        agreement_low: Its one-sided lower bound.
        agreement_high: Its one-sided upper bound.
        missing: Further images without a miss that would show the agreement; 0 if shown, None if it is lower.
        labelled: Number of gate images with labels.
        losses: Images that only the original classifies correctly; if multi-label in the label, or in all labels
            together, with the largest bound.
        gains: Images that only the candidate classifies correctly.
        drop: Drop in accuracy, ``(losses - gains) / labelled``.
        drop_high: Its one-sided upper bound.
        precision_drop: Drop in mean average precision; multi-label only.
        precision_drop_high: Its upper bound, which holds in simulations.
        precision_note: Reason why it was not tested, or not for some labels; empty where it was.
        rarest_label: Label with the fewest positives, of those that have some.
        rarest_positives: Its number of positives.
        missing_positives: Further positives of this label, all ranked alike, that would show the limit; 0 if enough.
        logit_difference: Largest difference of logits, relative to the original's largest one.
        similarities: Cosine of the embeddings and rank correlation of the heatmaps, with their limits.
        photographs: Verdict on photographs, of fp32 candidates whose other numbers come from pixels at the model's
            size; None without files.
    """

    status: Status
    reason: str
    images: int = 0
    misses: int | None = None
    agreement: float | None = None
    agreement_low: float | None = None
    agreement_high: float | None = None
    missing: int | None = None
    labelled: int = 0
    losses: int | None = None
    gains: int | None = None
    drop: float | None = None
    drop_high: float | None = None
    precision_drop: float | None = None
    precision_drop_high: float | None = None
    precision_note: str = ""
    rarest_label: str = ""
    rarest_positives: int | None = None
    missing_positives: int | None = None
    logit_difference: float | None = None
    similarities: tuple[Similarity, ...] = ()
    photographs: Photographs | None = None


@dataclass(frozen=True)
class Result:
    """A candidate's row of the gate's table.

    Attributes:
        name: Name of the candidate, such as "openvino bf16".
        images_per_second: Measured speed; None if it was not built.
        chosen: Whether it is the one to write.
        verdict: Verdict.
    """

    name: str
    images_per_second: float | None
    chosen: bool
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """Convert to plain dictionaries, for export.json; an infinite difference becomes null."""
        plain = dataclasses.asdict(self)
        verdict = plain["verdict"]
        verdict["similarities"] = list(verdict["similarities"])
        for record in (verdict, *verdict["similarities"], verdict["photographs"] or {}):
            record.update({k: None for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)})
        return plain


def gate_table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Format the gate's table.

    Args:
        results: Rows.

    Returns:
        Header, and a list of cells for each row: candidate, images/s, agreement with its lower bound, drop in accuracy
        with its upper bound, status, and the evidence or the cause. Bounds are rounded to the safe side; "-": unknown.
    """
    header = ["candidate", "images/s", "agreement", "drop in accuracy", "gate", "why"]
    return header, [_cells(result) for result in results]


def _cells(result: Result) -> list[str]:
    v = result.verdict
    agreement = drop = "-"
    if v.agreement is not None and v.agreement_low is not None:
        agreement = f"{percent(v.agreement)} (at least {percent_at_least(v.agreement_low)})"
    if v.drop is not None and v.drop_high is not None:
        drop = f"{percent(v.drop)} (at most {percent_at_most(v.drop_high)})"
    speed = "-" if result.images_per_second is None else f"{result.images_per_second:.1f}"
    status = "passed, chosen" if result.chosen else v.status
    return [result.name, speed, agreement, drop, status, v.reason]


def percent(share: float) -> str:
    """Format a share with one decimal: "99.5 %"; two where one decimal would round to 100 % or 0 %."""
    text = f"{100 * share:.1f}"
    hides = share not in (0, 1) and text in ("100.0", "0.0", "-0.0")
    return f"{100 * share:.2f} %" if hides else f"{text} %"


def percent_at_least(share: float) -> str:
    """Format a lower bound, rounded down to one decimal."""
    return f"{math.floor(1000 * share + 1e-9) / 10:.1f} %"


def percent_at_most(share: float) -> str:
    """Format an upper bound, rounded up to one decimal."""
    return f"{math.ceil(1000 * share - 1e-9) / 10:.1f} %"
