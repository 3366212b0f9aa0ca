"""The gate of an export: whether a candidate is shown to decide like the original model.

Candidates in fp32 pass by numerical equality, those of reduced precision by exact confidence bounds. Nothing passes
because images are few: the verdict then gives the number of missing images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from vitrail.bootstrap import Doubles
from vitrail.deploy.export.bounds import LEVEL, agreement_bound, agreement_limit, drop_bound, images_needed, shows_drop
from vitrail.deploy.export.mean_precision import bound_precision_drop
from vitrail.deploy.export.verdict import Photographs, Similarity, Verdict, percent, percent_at_least, percent_at_most
from vitrail.errors import ConfigError, DataError, count_of, plural

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

Criterion = Literal["equality", "agreement", "drop"]
UNLABELLED = -1


@dataclass(frozen=True)
class Limits:
    """Limits of the gate.

    Attributes:
        agreement: Least agreement of decisions with the original's, of all labels of an image if multi-label.
        max_drop: Largest drop in accuracy; if multi-label of each label, of all labels of an image together, and of the
            mean average precision.
        tolerance: Largest difference of outputs that count as equal, relative to the original's largest value.
        heatmap_correlation: Spearman correlation above which heatmaps of an image count as alike.
        embedding_cosine: Cosine above which embeddings of an image count as alike.
        photographs: Largest median difference of logits, relative to their largest value, on image files that the graph
            resizes. Of two ViTs on photographs: below 0.0001; 0.006 and 0.017 by a resize without antialiasing, 0.03
            where images are squashed instead of cropped, 0.4 and 0.6 with bands in reverse.
        alike: Least share of images whose heatmaps, or embeddings, are alike.
        level: Confidence level of each bound.

    Raises:
        ConfigError: A limit is out of range.
    """

    agreement: float = 0.99
    max_drop: float = 0.01
    tolerance: float = 1e-4
    heatmap_correlation: float = 0.9
    embedding_cosine: float = 0.98
    photographs: float = 0.005
    alike: float = 0.95
    level: float = LEVEL

    def __post_init__(self) -> None:
        """Check."""
        for name in ("agreement", "max_drop", "alike"):
            if not 0 < getattr(self, name) < 1:
                value = getattr(self, name)
                raise ConfigError(f"{name} must be between 0 and 1, both excluded, got {value}; 1 cannot be shown")


@dataclass(frozen=True)
class Outputs:
    """Outputs for the gate images.

    Attributes:
        logits: Shape ``(N, K)``; of labels of points ``(N, points, K)``, 0 where there is no point.
        embedding: Shape ``(N, C)``, or of points ``(N, points, C)``; None where the export does not include it.
        heatmaps: Heatmaps by stream, shape ``(N, h, w)``; empty where the export does not include them.
    """

    logits: Floats
    embedding: Floats | None = None
    heatmaps: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def extra(self) -> dict[str, Floats]:
        """Outputs beside the logits, by name."""
        embedding = {} if self.embedding is None else {"embedding": self.embedding}
        return embedding | {f"heatmap of {stream}": x for stream, x in self.heatmaps.items()}


@dataclass(frozen=True)
class GateImages:
    """Images that the original was not trained on, with its outputs.

    Attributes:
        original: Outputs of the original model.
        targets: Classes ``(N,)``, labels ``(N, K)`` if multi-label, or parts of points ``(N, points)``; -1
            (:data:`UNLABELLED`) where unknown.
        classes: Names of the classes or labels, for messages; their indices where it is empty.

    Raises:
        DataError: Targets for another number of images.
    """

    original: Outputs
    targets: Ints
    classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check."""
        if len(self.targets) != len(self.original.logits):
            raise DataError(
                f"{plural(len(self.targets), 'target')} for {plural(len(self.original.logits), 'gate image')}"
            )

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return self.targets.ndim == 2 and not self.of_points

    @property
    def of_points(self) -> bool:
        """Whether points are labelled: a cloud's decision is that of all its points."""
        return self.original.logits.ndim == 3

    @property
    def labelled(self) -> Bools:
        """Whether the target of each image is known, shape ``(N,)``; none of clouds, whose points have targets."""
        if self.of_points:
            return np.zeros(len(self.targets), dtype=np.bool_)
        known: Bools = (self.targets.reshape(len(self.targets), -1) != UNLABELLED).all(axis=1)
        return known

    def decisions(self, logits: Floats) -> Ints:
        """Compute decisions ``(N, D)``: the class (D = 1), each label at a probability of 0.5 (D = K), each point."""
        if self.of_points:
            parts: Ints = logits.argmax(axis=2)
            return parts
        return (logits >= 0).astype(np.int64) if self.multi_label else logits.argmax(axis=1, keepdims=True)

    def changed(self, logits: Floats, rows: Sequence[int] | None = None) -> Bools:
        """Return whether the decision for each image, or for some, is another than the original's, of any label."""
        original = self.original.logits if rows is None else self.original.logits[list(rows)]
        changed: Bools = (self.decisions(original) != self.decisions(logits)).any(axis=1)
        return changed


def judge(
    gate: GateImages, outputs: Outputs, criterion: Criterion = "agreement", limits: Limits | None = None
) -> Verdict:
    """Compare a candidate with the original on the gate images.

    "equality" (fp32): all outputs equal up to the tolerance, and all decisions. "agreement" (reduced precision): lower
    bound of the agreement, upper bound of the drop. "drop" (a changed computation, such as merged tokens): the latter.
    All criteria also require the embeddings and heatmaps to be alike.

    Multi-label: an image's decision is that of all its labels, which agrees if all do. The drop is bounded in each
    label, and in the share of images with all labels correct; the one with the largest bound is reported. No correction
    is needed, since the candidate passes only if all hold (intersection-union test), and the bounds stay exact. The
    drop of the mean average precision has no exact bound, but one that holds in simulations:
    :func:`~vitrail.deploy.export.mean_precision.bound_precision_drop`. Without labels it is unknown: "drop" is refused,
    and the reason of "agreement" names what was not tested.

    The drop is at most the share of changed decisions. Where ``1 - agreement <= max_drop``, a shown agreement shows
    the drop too, so that unlabelled images serve; the labelled ones must not have a larger drop. Otherwise the paired
    bound (:func:`~vitrail.deploy.export.bounds.drop_bound`) decides.

    Args:
        gate: Gate images.
        outputs: Outputs of the candidate for them.
        criterion: Criterion.
        limits: Limits; the defaults if None.

    Raises:
        DataError: Outputs of another shape than the original's, or the original has no finite logits.
    """
    limits = limits or Limits()
    original = gate.original
    _check_outputs(original, outputs)
    if not len(outputs.logits):
        return Verdict("refused", "there are no gate images; give some with --images")
    numbers = [*outputs.extra.values(), outputs.logits]
    if not all(np.isfinite(x).all() for x in numbers):
        return Verdict("refused", "some outputs are infinite or NaN", images=len(outputs.logits))
    verdict = _compare_decisions(gate, outputs, limits)
    if criterion == "equality":
        reasons = _unequal(original, outputs, verdict, limits)
    else:
        reasons = [
            *(_agreement_not_shown(verdict, limits) if criterion == "agreement" else []),
            *_drop_not_shown(verdict, limits, criterion),
            *(reason for s in verdict.similarities for reason in _unlike(s, verdict.images, limits)),
        ]
    if reasons:
        return dataclasses.replace(verdict, status="refused", reason="; ".join(reasons))
    return dataclasses.replace(verdict, status="passed", reason=_evidence(verdict, limits, criterion))


def judge_photographs(
    gate: GateImages, rows: Sequence[int], in_full: Floats, logits: Floats, verdict: Verdict, limits: Limits
) -> Verdict:
    """Compare an fp32 candidate that passed with the original on encoded images, decoded in full as by other programs.

    The resize in the graph differs by a level in some pixels, so that logits are close but not equal: those of the
    typical image must be. A mistaken crop, filter, order of bands, range or normalisation moves those of most images.
    Decisions are compared with those of the pipeline, whose JPEG decoder differs by fractions of a level: the candidate
    is refused where their agreement is shown to be below the limit.

    Args:
        gate: Gate images.
        rows: Indices of the compared images.
        in_full: The original's logits for them, decoded in full and resized by the pipeline.
        logits: The candidate's logits for them, resized in the graph.
        verdict: The candidate's verdict.
        limits: Limits.
    """
    misses = int(gate.changed(logits, rows).sum())
    scale = float(np.abs(gate.original.logits).max(initial=0)) or 1.0
    each = np.abs(in_full.astype(np.float64) - logits).reshape(len(rows), -1).max(axis=1)
    away = float(np.median(each)) / scale
    found = dataclasses.replace(verdict, photographs=Photographs(len(rows), misses, away))
    of = f"{plural(len(rows), 'image')} as other programs read them"
    if not away <= limits.photographs:
        reason = (
            f"logits typically differ by {away:.1e} of their scale on {of}, at most {limits.photographs:g} is alike"
        )
    elif agreement_limit(len(rows), misses, limits.level) < limits.agreement:
        reason = f"decisions agree for {len(rows) - misses:,} of {of}, {percent(limits.agreement)} is asked"
    else:
        return dataclasses.replace(found, reason=f"{verdict.reason}; {len(rows) - misses:,} of {of}")
    return dataclasses.replace(found, status="refused", reason=reason)


def _check_outputs(original: Outputs, outputs: Outputs) -> None:
    if not np.isfinite(original.logits).all():
        raise DataError("some logits of the original model are infinite or NaN; check the run")
    pairs = {"logits": (original.logits, outputs.logits)}
    for name, x in original.extra.items():
        if name not in outputs.extra:
            raise DataError(f"the candidate has no {name}, the original has")
        pairs[name] = (x, outputs.extra[name])
    for name, (one, other) in pairs.items():
        if one.shape != other.shape:
            raise DataError(f"{name} of the candidate has shape {other.shape}, of the original {one.shape}")


def _compare_decisions(gate: GateImages, outputs: Outputs, limits: Limits) -> Verdict:
    """Count changed decisions, losses and gains; of multi-label outputs those of the label with the largest bound."""
    n, level = len(outputs.logits), limits.level
    misses = int(gate.changed(outputs.logits).sum())
    labelled = gate.labelled
    targets = gate.targets.reshape(n, -1)[labelled]
    correct, still = (_with_all_labels(gate.decisions(x.logits)[labelled] == targets) for x in (gate.original, outputs))
    losses, gains = (correct & ~still).sum(axis=0), (~correct & still).sum(axis=0)
    known = int(labelled.sum())
    counts = {(int(a), int(b)) for a, b in zip(losses, gains, strict=True)}
    allowed = (1 - limits.agreement) * n + 1e-9
    bound, lost, gained = max((drop_bound(known, a, b, level), a, b) for a, b in counts)
    return Verdict(
        "refused",
        "",
        images=n,
        misses=misses,
        agreement=1 - misses / n,
        agreement_low=agreement_bound(n, misses, level),
        agreement_high=agreement_limit(n, misses, level),
        missing=max(0, images_needed(limits.agreement, misses, level) - n) if misses <= allowed else None,
        labelled=known,
        losses=lost,
        gains=gained,
        drop=(lost - gained) / known if known else None,
        drop_high=bound if known else None,
        **(_compare_precision(gate, outputs, limits) if gate.multi_label else {}),
        logit_difference=_difference(gate.original.logits, outputs.logits),
        similarities=_similarities(gate.original, outputs, limits),
    )


def _with_all_labels(correct: Bools) -> Bools:
    """Append to each label's column, whether a decision is correct, that of all labels together."""
    return np.concatenate([correct, correct.all(axis=1, keepdims=True)], axis=1)


def _compare_precision(gate: GateImages, outputs: Outputs, limits: Limits) -> dict[str, Any]:
    """Compute the fields of a multi-label verdict about the mean average precision."""
    targets = gate.targets[gate.labelled] > 0
    original, other = (x.logits[gate.labelled] for x in (gate.original, outputs))
    found = bound_precision_drop(targets, original, other, limits.level)
    if found is None:
        why = "no label has positives among the gate images" if len(targets) else "no gate image has a label"
        return {"precision_note": f"mean average precision not tested: {why}"}
    name = gate.classes[found.rarest] if gate.classes else str(found.rarest)
    absent = targets.shape[1] - found.labels
    return {
        "precision_drop": found.value,
        "precision_drop_high": found.high,
        "precision_note": f"mean average precision not tested for {plural(absent, 'label')} without positives"
        if absent
        else "",
        "rarest_label": name,
        "rarest_positives": found.positives,
        "missing_positives": found.missing(limits.max_drop, limits.level),
    }


def _difference(one: Floats, other: Floats) -> float:
    """Compute the largest difference, relative to the largest value of the first."""
    scale = float(np.abs(one).max(initial=0))
    away = float(np.abs(one.astype(np.float64) - other).max(initial=0))
    return away / scale if scale > 0 else (0.0 if away == 0 else float("inf"))


def _similarities(original: Outputs, outputs: Outputs, limits: Limits) -> tuple[Similarity, ...]:
    found = []
    for name, x in original.extra.items():
        other = outputs.extra[name]
        if name == "embedding":
            values, measure, least = cosines(x, other), "cosine", limits.embedding_cosine
        else:
            values, measure, least = rank_correlations(x, other), "rank correlation", limits.heatmap_correlation
        misses = int((values < least).sum())
        found.append(
            Similarity(
                output=name,
                measure=measure,
                median=float(np.median(values)),
                worst=float(values.min()),
                least=least,
                misses=misses,
                share_low=agreement_bound(len(values), misses, limits.level),
                difference=_difference(x, other),
            )
        )
    return tuple(found)


def rank_correlations(one: Floats, other: Floats) -> Doubles:
    """Compute Spearman's correlation of each image's heatmaps.

    Args:
        one: Shape ``(N, h, w)``.
        other: The same shape.

    Returns:
        Shape ``(N,)``: 1 where both maps are constant, 0 where one is.
    """
    ranks = [rankdata(x.reshape(len(x), -1), axis=1) for x in (one, other)]
    first, second = (x - x.mean(axis=1, keepdims=True) for x in ranks)
    return _cosine(first, second)


def cosines(one: Floats, other: Floats) -> Doubles:
    """Compute the cosine of each image's embeddings, shape ``(N, ...)`` each; 1 where both are zero, 0 where one is."""
    return _cosine(*(x.reshape(len(x), -1).astype(np.float64) for x in (one, other)))


def _cosine(first: Doubles, second: Doubles) -> Doubles:
    lengths = [np.linalg.norm(x, axis=1) for x in (first, second)]
    product = lengths[0] * lengths[1]
    cosine: Doubles = (first * second).sum(axis=1) / np.where(product > 0, product, 1)
    return np.where((lengths[0] == 0) & (lengths[1] == 0), 1.0, cosine)


def _unequal(original: Outputs, outputs: Outputs, verdict: Verdict, limits: Limits) -> list[str]:
    differences = {"logits": verdict.logit_difference or 0.0} | {s.output: s.difference for s in verdict.similarities}
    reasons = [
        f"{name} differ by {x:.1e} of their scale, at most {limits.tolerance:.0e} is equal"
        for name, x in differences.items()
        if not x <= limits.tolerance
    ]
    if verdict.misses:
        reasons.append(count_of(verdict.misses, verdict.images, "decision", "differs", "differ"))
    return reasons


def _agreement_not_shown(verdict: Verdict, limits: Limits) -> list[str]:
    if verdict.agreement_low is not None and verdict.agreement_low >= limits.agreement:
        return []
    return [_too_few("decisions agree", verdict.images, verdict.misses or 0, limits.agreement, limits.level)]


def _too_few(what: str, n: int, misses: int, share: float, level: float) -> str:
    """Describe why images do not show a share: by the misses, or by their number."""
    if n and 1 - misses / n < share:
        return f"{what} for {percent(1 - misses / n)} of {plural(n, 'image')}, {percent(share)} is asked"
    more = images_needed(share, misses, level) - n
    shown = percent_at_least(agreement_bound(n, misses, level))
    besides = "a miss" if misses == 0 else "another miss"
    return (
        f"{what} for {n - misses:,} of {plural(n, 'image')}, which shows {shown}; {percent(share)} needs {more:,} more "
        f"without {besides} (--images)"
    )


def implied(limits: Limits) -> bool:
    """Test whether a shown agreement shows the limit of the drop too."""
    return 1 - limits.agreement <= limits.max_drop + 1e-12


def _drop_not_shown(verdict: Verdict, limits: Limits, criterion: Criterion) -> list[str]:
    reasons = []
    most = limits.max_drop
    if verdict.drop is not None and verdict.drop > most:
        on = plural(verdict.labelled, "labelled image")
        reasons.append(f"accuracy drops by {percent(verdict.drop)} on {on}, {percent(most)} is allowed")
    elif not (criterion == "agreement" and implied(limits)):
        if verdict.drop_high is None:
            reasons.append("no gate image has a label, the drop in accuracy is unknown")
        elif verdict.drop_high > most:
            reasons.append(_drop_too_uncertain(verdict, limits))
    if verdict.precision_drop_high is not None and verdict.precision_drop_high > most:
        reasons.append(_precision_too_uncertain(verdict, limits))
    elif criterion == "drop" and verdict.precision_drop_high is None and verdict.precision_note:
        reasons.append(verdict.precision_note)
    return reasons


def _precision_too_uncertain(verdict: Verdict, limits: Limits) -> str:
    high = percent_at_most(verdict.precision_drop_high or 0.0)
    reason = f"mean average precision drops by up to {high}, {percent(limits.max_drop)} is allowed"
    if not verdict.missing_positives:
        return reason
    return (
        f"{reason}; label {verdict.rarest_label!r} has {plural(verdict.rarest_positives or 0, 'positive')}, at least "
        f"{verdict.missing_positives:,} more are needed among the validation images"
    )


def missing_labels(verdict: Verdict, limits: Limits) -> int:
    """Estimate (to 1 %) how many further labelled images, all decided alike, would show the limit of the drop."""
    losses, gains = verdict.losses or 0, verdict.gains or 0
    low, high = verdict.labelled, images_needed(1 - limits.max_drop, losses + gains, limits.level)
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        shown = shows_drop(middle, losses, gains, limits.max_drop, limits.level)
        low, high = (low, middle) if shown else (middle, high)
    return high - verdict.labelled


def _drop_too_uncertain(verdict: Verdict, limits: Limits) -> str:
    return (
        f"{plural(verdict.labelled, 'labelled image')} ({verdict.losses} lost, {verdict.gains} gained): the drop is at "
        f"most {percent_at_most(verdict.drop_high or 0.0)}; {percent(limits.max_drop)} needs about "
        f"{missing_labels(verdict, limits):,} more without a difference"
    )


def _unlike(s: Similarity, n: int, limits: Limits) -> list[str]:
    if s.share_low >= limits.alike:
        return []
    return [_too_few(f"{s.output} has a {s.measure} of at least {s.least}", n, s.misses, limits.alike, limits.level)]


def _evidence(verdict: Verdict, limits: Limits, criterion: Criterion) -> str:
    if criterion == "equality":
        return (
            f"outputs equal within {limits.tolerance:.0e} of their scale, all decisions of "
            f"{plural(verdict.images, 'image')} equal"
        )
    parts = []
    if criterion == "agreement":
        same = verdict.images - (verdict.misses or 0)
        parts.append(f"decisions agree for {same:,} of {plural(verdict.images, 'image')}")
    by_agreement = criterion == "agreement" and implied(limits)
    if by_agreement and (verdict.drop_high is None or verdict.drop_high > limits.max_drop):
        parts.append(f"which bounds the drop by {percent(limits.max_drop)} too")
    else:
        parts.append(f"accuracy drops by at most {percent_at_most(verdict.drop_high or 0.0)}")
    evidence = ", ".join(parts)
    return f"{evidence}; {verdict.precision_note}" if verdict.precision_note else evidence
