"""Part segmentation: intersection over union of each part, with intervals over clouds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from vitrail.bootstrap import Bootstrap, Interval
from vitrail.data.dataset import ImageData
from vitrail.errors import DataError, plural
from vitrail.evaluate.image_scores import jackknife
from vitrail.figures.clouds import parts_figure
from vitrail.files import write_text
from vitrail.runs.folder import EvaluationFiles
from vitrail.runs.trained import Classifier

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PartCounts:
    """Points of each cloud, or of each pool of clouds, and part.

    Attributes:
        both: Points of a part that are labelled as such, shape ``(M, K)``.
        true: Points of a part, shape ``(M, K)``.
        predicted: Points labelled as such, shape ``(M, K)``.
    """

    both: npt.NDArray[Any]
    true: npt.NDArray[Any]
    predicted: npt.NDArray[Any]

    @classmethod
    def of(cls, true: Sequence[Ints], predicted: Sequence[Ints], num_parts: int) -> PartCounts:
        """Count the points of clouds by their true and predicted parts, shape ``(N,)`` each."""
        return cls(
            np.stack([np.bincount(a[a == b], minlength=num_parts) for a, b in zip(true, predicted, strict=True)]),
            np.stack([np.bincount(a, minlength=num_parts) for a in true]),
            np.stack([np.bincount(b, minlength=num_parts) for b in predicted]),
        )

    @property
    def union(self) -> npt.NDArray[Any]:
        """Points that are of a part or labelled as such, shape ``(M, K)``."""
        union: npt.NDArray[Any] = self.true + self.predicted - self.both
        return union

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether any point is of each part, shape ``(K,)``."""
        found: npt.NDArray[np.bool_] = self.true.sum(axis=0) > 0
        return found

    def pooled(self, weights: npt.NDArray[Any] | None = None) -> PartCounts:
        """Add up the points of all clouds.

        Args:
            weights: Weight of each cloud in each of r pools, shape ``(M, r)``; one pool of all clouds by default.

        Returns:
            Counts of shape ``(r, K)``.
        """
        if weights is None:
            weights = np.ones((len(self.true), 1))
        return PartCounts(*(weights.T @ own.astype(np.float64) for own in (self.both, self.true, self.predicted)))

    def without_each(self) -> PartCounts:
        """Add up the points of all clouds but one; counts of shape ``(M, K)``, a row for each left-out cloud."""
        return PartCounts(*(own.sum(axis=0) - own for own in (self.both, self.true, self.predicted)))

    def accuracies(self) -> npt.NDArray[np.float64]:
        """Compute the share of correct points of each row, shape ``(M,)``; NaN without labelled points."""
        return _ratio(self.both.sum(axis=1), self.true.sum(axis=1))

    def ious(self) -> npt.NDArray[np.float64]:
        """Compute the intersection over union of each row and part, shape ``(M, K)``; NaN where no point is of it."""
        return _ratio(self.both, np.where(self.true > 0, self.union, 0))

    def mious(self, parts: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Compute the mean intersection over union of each row, shape ``(M,)``.

        Args:
            parts: Parts that the mean is over, shape ``(K,)``, the same for all rows: those with points in the whole
                test set (:attr:`present`). A row without a point of one of them has NaN.
        """
        found: npt.NDArray[np.float64] = self.ious()[:, parts].mean(axis=1)
        return found

    def of_clouds(self) -> npt.NDArray[np.float64]:
        """Compute the mean intersection over union of each cloud, over the parts that occur or are predicted.

        It is NaN for a cloud without labelled points.
        """
        there = self.union > 0
        shares = np.where(there, self.both / np.maximum(self.union, 1), 0.0)
        return _ratio(shares.sum(axis=1), there.sum(axis=1))


def _ratio(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Divide; NaN where the denominator is 0."""
    missing = np.full(np.shape(denominator), np.nan)
    found: npt.NDArray[np.float64] = np.divide(numerator, denominator, out=missing, where=denominator > 0)
    return found


@dataclass(frozen=True)
class PointLabels:
    """Parts of the points of one cloud.

    Attributes:
        predicted: Predicted part of each point, shape ``(N,)``; -1 where there is no point.
        true: Its true part, -1 without a label; None where the cloud has none.
        names: Names of the parts.
    """

    predicted: Ints
    true: Ints | None
    names: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Count the points that are predicted as each part, the most frequent part first."""
        counts = np.bincount(self.predicted[self.predicted >= 0], minlength=len(self.names))
        return {self.names[i]: int(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i]}

    def accuracy(self) -> float | None:
        """Compute the share of labelled points whose part is correct; None without labels."""
        if self.true is None or not (known := self.true >= 0).any():
            return None
        return float((self.true == self.predicted)[known].mean())

    def describe(self) -> str:
        """State the most frequent parts, and how many labels are correct."""
        whole = max(1, int((self.predicted >= 0).sum()))
        text = ", ".join(f"{name} {number / whole:.0%}" for name, number in list(self.counts().items())[:3])
        accuracy = self.accuracy()
        return text if accuracy is None else f"{text}; {accuracy:.0%} of labels correct"


def part_measures(counts: PartCounts, parts: Sequence[str], bootstrap: Bootstrap | None) -> dict[str, Any]:
    """Compute the measures of part segmentation.

    Args:
        counts: Points of each cloud and part.
        parts: Their names.
        bootstrap: Settings of the intervals, whose units are clouds or their groups; None for a single cloud.

    Returns:
        ``accuracy`` of all points, ``miou`` (mean over the parts that points are of, of the intersection over union of
        all points), ``miou_clouds`` (mean over clouds of :meth:`PartCounts.of_clouds`), each with ``_low`` and
        ``_high``, and ``parts``: name, ``points``, ``predicted`` points, ``iou``, ``low`` and ``high`` of each. A part
        that no point is of has no intersection over union, whether it is predicted or not. Every resample measures the
        mean over the same parts; resamples without a point of one of them are left out of the interval.
    """
    of_clouds = counts.of_clouds()[:, None]
    labelled = ~np.isnan(of_clouds)

    def measure(weights: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Compute accuracy, both means and the value of each part of weighted clouds ``(M, r)``: ``(3 + K, r)``."""
        pooled = counts.pooled(weights)
        mean_of_clouds = _ratio(np.where(labelled, of_clouds, 0.0).T @ weights, labelled.T @ weights)
        return np.stack([pooled.accuracies(), pooled.mious(counts.present), *mean_of_clouds, *pooled.ious().T])

    values = measure(np.ones((len(counts.true), 1)))[:, 0]
    intervals: list[Interval | None] = [None] * len(values)
    if bootstrap is not None:
        resampled = np.concatenate([measure(weights) for weights in bootstrap.weights()], axis=1)
        intervals = [bootstrap.interval(row) for row in resampled]
    found: dict[str, Any] = {}
    names = ("accuracy", "miou", "miou_clouds")
    for name, value, interval in zip(names, values, intervals, strict=False):
        low, high = interval or (None, None)
        found |= {name: float(value), f"{name}_low": low, f"{name}_high": high}
    found["parts"] = [
        {
            "part": name,
            "points": int(count),
            "predicted": int(labelled_as),
            "iou": None if np.isnan(value) else float(value),
            "low": None if interval is None else interval[0],
            "high": None if interval is None else interval[1],
        }
        for name, count, labelled_as, value, interval in zip(
            parts, counts.true.sum(axis=0), counts.predicted.sum(axis=0), values[3:], intervals[3:], strict=True
        )
    ]
    return found


def predicted_only(measures: Mapping[str, Any]) -> str | None:
    """State the parts that points are labelled as and no labelled point is of; None without such parts.

    Args:
        measures: Result of :func:`part_measures`.
    """
    # Evaluations of earlier versions did not record the predicted points.
    rows = [row for row in measures["parts"] if not row["points"] and row.get("predicted")]
    if not rows:
        return None
    named = ", ".join(f"{row['part']} ({plural(row['predicted'], 'point')})" for row in rows)
    return f"labelled as a part that no measured point is of, which counts in no mean over parts: {named}"


def cloud_scores(measure: str, counts: PartCounts) -> npt.NDArray[np.float64]:
    """Compute the contribution of each cloud to a measure, shape ``(M,)``; their mean is the measure.

    Of "miou_clouds" that is the mean intersection over union of the cloud; of "miou" and "accuracy", which pool the
    points of all clouds, the jackknife pseudo-value. "miou" is always over the parts of all clouds. Without a cloud
    that has the only points of a part it is not defined, as in the bootstrap; such a cloud has the measure itself as
    its contribution, and so does not add to the variance.

    Args:
        measure: A key of :data:`~vitrail.evaluate.image_scores.PART_SCORES`.
        counts: Points of clouds that have labelled points.
    """
    if measure == "miou_clouds":
        return counts.of_clouds()

    def measured(pools: PartCounts) -> npt.NDArray[np.float64]:
        return pools.accuracies() if measure == "accuracy" else pools.mious(counts.present)

    return jackknife(float(measured(counts.pooled())[0]), measured(counts.without_each()))


def resampled_miou(counts: PartCounts, bootstrap: Bootstrap) -> tuple[float, npt.NDArray[np.float64]]:
    """Compute the mean intersection over union of all points, and that of each resample of the clouds."""
    resampled = [counts.pooled(weights).mious(counts.present) for weights in bootstrap.weights()]
    return float(counts.pooled().mious(counts.present)[0]), np.concatenate(resampled)


def constant_counts(counts: PartCounts) -> PartCounts:
    """Count the points as if all had the part that is most frequent in truth."""
    part = int(counts.true.sum(axis=0).argmax())
    chosen = np.eye(counts.true.shape[1], dtype=np.int64)[part]
    return PartCounts(counts.true * chosen, counts.true, counts.true.sum(axis=1, keepdims=True) * chosen)


def count_table(table: pd.DataFrame, num_parts: int) -> PartCounts:
    """Count the points of saved predictions (:meth:`vitrail.runs.folder.RunFolder.write_part_predictions`)."""
    known = [parts >= 0 for parts in table["parts"]]
    true, predicted = (
        [labels[own] for labels, own in zip(table[name], known, strict=True)] for name in ("parts", "predicted")
    )
    return PartCounts.of(true, predicted, num_parts)


def confusion_of_parts(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Count the labelled points of saved predictions by true part (rows) and predicted part (columns)."""
    true, predicted = (np.concatenate(table[name].to_list()) for name in ("parts", "predicted"))
    known = true >= 0
    pairs = true[known] * len(names) + predicted[known]
    counts = np.bincount(pairs, minlength=len(names) ** 2).reshape(len(names), len(names))
    return pd.DataFrame(counts, index=pd.Index(names, name="true"), columns=list(names))


def predict_parts(trained: Classifier, clouds: ImageData, split: str, tta: str = "none") -> pd.DataFrame:
    """Label the points of a split.

    Args:
        trained: A run or an export that labels points.
        clouds: Clouds with labels of points.
        split: Their split.
        tta: Test-time augmentation.

    Returns:
        A row for each cloud: ``index``, ``path``, and the parts of its points by the model's numbers, ``parts`` and
        ``predicted``, ``(N,)`` each; -1 for a point without a label, and where there is no point.

    Raises:
        DataError: No point of the split has a label, or parts that the run does not know.
    """
    source = clouds.config.source
    if not clouds.source.parts:
        raise DataError(f"data.source {source} has no labels of points; data.points.part names their column")
    number = trained.card.part_numbers(clouds.source.parts)
    rows: list[dict[str, Any]] = []
    for batch in clouds.loader(split):
        labels = trained.classify(batch, tta)[0].argmax(dim=-1).cpu()
        labels[batch["points"][..., 0].isnan()] = -1
        for index, own, part in zip(batch["index"].tolist(), labels.numpy(), batch["parts"].numpy(), strict=True):
            rows.append({"index": index, "path": clouds.source.keys[index], "parts": number[part], "predicted": own})
    table = pd.DataFrame(rows)
    if not any((parts >= 0).any() for parts in table["parts"]):
        raise DataError(f"split {split} of data.source {source} has no point with a label; add some")
    return table


def measure_parts(
    table: pd.DataFrame, names: Sequence[str], files: EvaluationFiles, bootstrap: Bootstrap | None
) -> dict[str, Any]:
    """Measure predicted labels of points; writes parts.csv, clouds.csv and confusion.csv.

    Args:
        table: Result of :func:`predict_parts`.
        names: Names of the parts.
        files: Files of the evaluation.
        bootstrap: Settings of the intervals over clouds or their groups.

    Returns:
        The measures of :func:`part_measures`, the number of clouds ("images") and of labelled points.
    """
    counts = count_table(table, len(names))
    measures = part_measures(counts, names, bootstrap)
    clouds = table[["index", "path"]].assign(
        points=counts.true.sum(axis=1),
        accuracy=counts.accuracies(),
        miou=counts.of_clouds(),
    )
    write_text(files.parts, pd.DataFrame(measures["parts"]).to_csv(index=False))
    write_text(files.clouds, clouds.to_csv(index=False))
    write_text(files.confusion, confusion_of_parts(table, names).to_csv())
    return {**measures, "images": len(table), "points": int(counts.true.sum())}


def draw_parts(clouds: ImageData, table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Draw the true and the predicted parts of clouds.

    Args:
        clouds: The evaluated clouds, which may have changed since.
        table: Rows of :func:`predict_parts`, at least one.
        names: Names of the parts.

    Raises:
        DataError: A cloud is missing.
    """
    points = clouds.load(clouds.source.indices_of(table["path"].to_list()))["points"].numpy()
    real = [labels >= 0 for labels in table["predicted"]]
    measured = count_table(table, len(names)).of_clouds()
    figures = ["no labels" if np.isnan(miou) else f"mIoU {miou:.2f}" for miou in measured]
    return parts_figure(
        [cloud[own] for cloud, own in zip(points, real, strict=True)],
        (
            [parts[own] for parts, own in zip(table["parts"], real, strict=True)],
            [labels[own] for labels, own in zip(table["predicted"], real, strict=True)],
        ),
        names,
        [f"{key}: {figure}" for key, figure in zip(table["path"], figures, strict=True)],
    )
