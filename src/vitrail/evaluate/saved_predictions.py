"""Measures of saved predictions: metrics, curves, calibration, conformal sets, selective prediction, mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitrail.bootstrap import Bootstrap, Interval
from vitrail.config.data import DataConfig
from vitrail.errors import RunError, plural
from vitrail.evaluate.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    calibration_summary,
    confidences_of,
    reliability_table,
    temperature_report,
)
from vitrail.evaluate.conformal import conformal_report
from vitrail.evaluate.confusion import clustered, confusion_table, normalized_by_row
from vitrail.evaluate.curves import rank_curves, true_and_scores
from vitrail.evaluate.groups import groups_of_predictions
from vitrail.evaluate.metrics import (
    Floats,
    Ints,
    add_intervals,
    classification_intervals,
    classification_metrics,
    interval_of_units,
    log_odds,
    per_class_table,
)
from vitrail.evaluate.mistakes import mistakes_table
from vitrail.evaluate.multi_label import multi_label_intervals, multi_label_metrics, multi_label_table
from vitrail.evaluate.selective import confidence_and_correct, risk_coverage, selective_summary, thinned
from vitrail.files import write_text
from vitrail.runs.folder import EvaluationFiles, RunFolder

# What metrics.json repeats of the origin of predictions.
ORIGIN = ("split", "tta", "data", "unreadable", "weights", "trained_on", "chosen_on")


@dataclass(frozen=True)
class Intervals:
    """Settings of confidence intervals.

    Attributes:
        groups: ``wanted`` of :func:`vitrail.evaluate.groups.groups_of_predictions`.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
    """

    groups: str | None = None
    resamples: int = 2000
    seed: int = 0

    def bootstrap(self, table: pd.DataFrame, data: DataConfig | None) -> Bootstrap | None:
        """Set up the bootstrap for saved predictions; None for a single image.

        Raises:
            DataError: All images are in one group that was set explicitly, or some have no group.
            ConfigError: A setting is out of range.
        """
        groups = groups_of_predictions(table, self.groups, data)
        if self.groups is None and groups is not None and len(set(groups)) < 2:
            groups = None  # no inference over groups; metrics.json records that images are the unit
        return Bootstrap(len(table), groups, self.resamples, self.seed) if len(table) > 1 else None


@dataclass(frozen=True)
class SavedPredictions:
    """Predictions of a run folder.

    Attributes:
        name: Name of the split or of the other data.
        table: Path, target, logits and, if any, group of each image.
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.
        classes: Class names.
    """

    name: str
    table: pd.DataFrame
    logits: Floats
    targets: Ints
    classes: tuple[str, ...]

    @classmethod
    def read(cls, run: RunFolder, name: str) -> SavedPredictions:
        """Read predictions by name.

        Raises:
            RunError: They are missing or damaged.
        """
        classes = tuple(run.read_json(run.card)["classes"])
        table = run.read_predictions(name)
        lacking = [column for column in ("path", "target", "logits") if column not in table]
        if lacking or len(table) == 0:
            raise RunError(f"{run.predictions(name)} holds no {', '.join(lacking) or 'images'}; evaluate the run again")
        logits = np.stack(table["logits"].tolist()).astype(np.float32)
        targets = np.stack(table["target"].tolist()).astype(np.int64)
        if logits.shape[1] != len(classes):
            raise RunError(
                f"{run.predictions(name)} holds {plural(logits.shape[1], 'logit')} per image, the model has "
                f"{plural(len(classes), 'class')}; evaluate the run again"
            )
        return cls(name, table, logits, targets, classes)

    @property
    def multi_label(self) -> bool:
        """Whether targets are multi-label."""
        return self.targets.ndim == 2


@dataclass(frozen=True)
class HeldOut:
    """Predictions for calibration.

    Attributes:
        saved: Predictions of the validation split; None where they are unavailable.
        reason: Reason and remedy where they are unavailable.
    """

    saved: SavedPredictions | None
    reason: str = ""


def is_current(run: RunFolder, name: str, **origin: Any) -> bool:
    """Return whether predictions of this name and origin are saved for the current weights of the run."""
    if not run.predictions(name).is_file() or not run.embeddings(name).is_file():
        return False
    attributes = run.origin_of_predictions(name)
    return run.made_with(attributes.get("weights")) and all(attributes.get(k) == v for k, v in origin.items())


@dataclass(frozen=True)
class Averaged:
    """Views that predictions average over.

    Attributes:
        tta: Test-time augmentation.
        clips: Views and crops of each video, where they differ from those of the run's recipe.
    """

    tta: str = "none"
    clips: tuple[int, int] | None = None

    @property
    def suffix(self) -> str:
        """End of the name of such predictions: results over other views are kept beside those of the run."""
        clips = "" if self.clips is None else "-{}x{}".format(*self.clips)
        return clips if self.tta == "none" else f"{clips}-{self.tta}"

    @property
    def options(self) -> str:
        """Options of `vitrail evaluate`, each after a space."""
        clips = "" if self.clips is None else " --data.video.views {} --data.video.crops {}".format(*self.clips)
        return clips if self.tta == "none" else f"{clips} --tta {self.tta}"


def calibration_predictions(
    run: RunFolder, name: str, averaged: Averaged, views: Mapping[str, Any] | None = None
) -> HeldOut:
    """Find saved predictions of the validation split for calibration; never the evaluated images themselves.

    Args:
        run: The run.
        name: Name of the evaluated predictions.
        averaged: Views and crops that those predictions are averaged over.
        views: Views of each video that they record.
    """
    wanted = f"val{averaged.suffix}"
    if name == wanted:
        return HeldOut(
            None, "the evaluated images are the validation images; calibration needs a test split besides them"
        )
    if not run.predictions(wanted).is_file():
        remedy = f"`vitrail evaluate {run} --split val{averaged.options}` computes them"
        return HeldOut(
            None,
            f"there are no predictions of a validation split; {remedy}; where the data has none, only a run that is "
            "trained with validation images has them",
        )
    if not is_current(run, wanted, views=views):
        return HeldOut(
            None,
            f"the predictions of {wanted} are of other weights or views; `vitrail evaluate {run}{averaged.options}` "
            "renews them",
        )
    return HeldOut(SavedPredictions.read(run, wanted))


def measure_saved(
    saved: SavedPredictions, held_out: HeldOut, files: EvaluationFiles, bootstrap: Bootstrap | None
) -> dict[str, Any]:
    """Compute all measures of predictions, write their tables, and return the content of metrics.json.

    Args:
        saved: The predictions.
        held_out: Predictions for calibration.
        files: Files of the evaluation.
        bootstrap: Settings of the bootstrap; without it only accuracy has an interval.

    Raises:
        DataError: Some logits are not finite.
    """
    metrics, per_class, intervals = _measures(saved, bootstrap)
    if bootstrap is not None and bootstrap.groups is not None:
        _group_accuracy(metrics, intervals["accuracy"], bootstrap)
    write_text(files.per_class, per_class.to_csv(index=False))
    true, scores = true_and_scores(saved.logits, saved.targets)
    curves, areas = rank_curves(true, scores, saved.classes)
    write_text(files.curves, curves.to_csv(index=False))
    metrics |= areas
    if not saved.multi_label:
        counts = confusion_table(saved.logits, saved.targets, saved.classes)
        write_text(files.confusion, counts.to_csv())
        write_text(files.confusion_shares, normalized_by_row(counts).to_csv())
        write_text(files.confusion_clustered, clustered(counts).to_csv())
    mistakes = mistakes_table(saved.table["path"].tolist(), saved.logits, saved.targets, saved.classes)
    written = mistakes.to_csv(index=False)
    if files.mistakes.is_file() and files.mistakes.read_text(encoding="utf-8") != written:
        files.mistakes_sheet.unlink(missing_ok=True)  # it shows other mistakes
    write_text(files.mistakes, written)
    curve = risk_coverage(*confidence_and_correct(saved.logits, saved.targets))
    write_text(files.selective, thinned(curve).to_csv(index=False))
    metrics["intervals"] = {
        **({} if bootstrap is None else bootstrap.describe()),
        "measures": {name: None if pair is None else list(pair) for name, pair in intervals.items()},
    }
    return {
        **metrics,
        **_clip_accuracy(saved.table, bootstrap),
        "calibration": _calibrate(saved, held_out, files),
        "conformal": _conform(saved, held_out, files),
        "selective": selective_summary(curve),
    }


def _measures(
    saved: SavedPredictions, bootstrap: Bootstrap | None
) -> tuple[dict[str, Any], pd.DataFrame, dict[str, Interval | None]]:
    logits, targets, classes = saved.logits, saved.targets, saved.classes
    overall: dict[str, Interval | None] = {}
    if saved.multi_label:
        metrics = multi_label_metrics(logits, targets, classes)
        table = multi_label_table(logits, targets, classes)
        if bootstrap is not None:
            overall, each = multi_label_intervals(logits, targets, bootstrap)
            table = add_intervals(table, each)
    else:
        odds = log_odds(logits)  # shared: a second for 1,000 classes
        metrics = classification_metrics(logits, targets, classes, odds)
        table = per_class_table(logits, targets, classes, odds)
        if bootstrap is not None:
            overall, each = classification_intervals(logits, targets, classes, bootstrap, odds)
            table = add_intervals(table, each)
    return metrics, table, overall


def _group_accuracy(metrics: dict[str, Any], interval: Interval | None, bootstrap: Bootstrap) -> None:
    """Replace the accuracy's interval by that over groups: Wilson's assumes independent images."""
    metrics["accuracy_low"], metrics["accuracy_high"] = interval or interval_of_units(metrics["accuracy"], bootstrap)


def _clip_accuracy(table: pd.DataFrame, bootstrap: Bootstrap | None) -> dict[str, Any]:
    """Compute the accuracy of single views of videos, where logits are means over several.

    The interval is over videos, or their groups: views of a video are not independent samples.
    """
    if "clips_correct" not in table:
        return {}
    correct = table["clips_correct"].to_numpy(dtype=np.float64)
    accuracy = float(correct.mean())
    low, high = (None, None) if bootstrap is None else bootstrap.mean(correct) or interval_of_units(accuracy, bootstrap)
    return {"clips": {"accuracy": accuracy, "low": low, "high": high, **(table.attrs.get("views") or {})}}


def _calibrate(saved: SavedPredictions, held_out: HeldOut, files: EvaluationFiles) -> dict[str, Any]:
    """Write calibration.json and reliability.csv; return a summary."""
    logits, targets = saved.logits, saved.targets
    before = calibration_summary(logits, targets)
    temperature: dict[str, Any] | None = None
    scaled = {"as it is": logits.astype(np.float64)}
    reason = held_out.reason
    if held_out.saved is not None:
        other = held_out.saved
        temperature = temperature_report(logits, targets, (other.logits, other.targets), other.name)
        if temperature is not None:
            scaled["temperature"] = logits.astype(np.float64) / temperature["temperature"]
        else:
            reason = (
                f"no temperature between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g} minimises the log-loss of the "
                f"{plural(len(other.logits), 'image')} of {other.name} (all are classified correctly, or the logits "
                "carry no information); more validation images may have one"
            )
    tables = []
    for name, values in scaled.items():
        claims = confidences_of(values, targets)
        for bins, adaptive in (("equal width", False), ("equal count", True)):
            table = reliability_table(claims, adaptive=adaptive)
            table.insert(0, "bins", bins)
            table.insert(0, "logits", name)
            tables.append(table)
    write_text(files.reliability, pd.concat(tables).to_csv(index=False))
    content = {"name": saved.name, **before, "temperature": temperature, "why_no_temperature": reason or None}
    RunFolder.write_json(files.calibration, content)
    summary: dict[str, Any] = {key: before[key] for key in ("ece", "ece_adaptive", "ece_of_chance_95")}
    summary["temperature"] = None if temperature is None else temperature["temperature"]
    summary["ece_after"] = None if temperature is None else temperature["after"]["ece"]
    summary["nll_after"] = None if temperature is None else temperature["after"]["nll"]
    summary["why_no_temperature"] = reason or None
    return summary


def _numbers_of_groups(*tables: pd.DataFrame) -> tuple[int, int] | None:
    """Count the groups of two tables of predictions; None without groups, or with common ones."""
    if any("group" not in table or table["group"].isna().any() or (table["group"] == "").any() for table in tables):
        return None
    first, second = (set(table["group"].astype(str)) for table in tables)
    return None if first & second else (len(first), len(second))


def _conform(saved: SavedPredictions, held_out: HeldOut, files: EvaluationFiles) -> Any:
    """Write conformal.json; return a summary."""
    reason = "conformal sets need single-label images" if saved.multi_label else held_out.reason
    if saved.multi_label or held_out.saved is None:
        RunFolder.write_json(files.conformal, {"name": saved.name, "sets": None, "why": reason})
        return {"sets": None, "why": reason}
    other = held_out.saved
    report = conformal_report(
        saved.logits, saved.targets, saved.classes, (other.logits, other.targets), other.name,
        groups=_numbers_of_groups(other.table, saved.table),
    )  # fmt: skip
    RunFolder.write_json(files.conformal, {"name": saved.name, **report})
    keys = ("method", "wanted", "coverage", "coverage_low", "coverage_high", "mean_size", "empty", "unreliable")
    return {**report, "sets": [{key: row[key] for key in keys} for row in report["sets"]]}


def evaluate_saved(
    run: RunFolder,
    data: DataConfig | None = None,
    *,
    split: str | None = None,
    tta: str = "none",
    intervals: Intervals | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Evaluate saved predictions, without reading weights or images.

    Args:
        run: An evaluated run.
        data: Data settings of the run, for groups by a column of its table.
        split: Name of the predictions: "test", "val", "train" or that of other data. By default the first available of
            test, val and train.
        tta: Test-time augmentation of the predictions.
        intervals: Settings of the intervals.

    Returns:
        Folder of the results, and the overall measures.

    Raises:
        RunError: The predictions are missing, damaged, of other weights, or labels of points.
        DataError: Some logits are not finite, or some images have no group.
    """
    if run.per_point:
        raise RunError(f"--from-predictions measures classes of whole inputs, and {run} labels points; leave it out")
    averaged = Averaged(tta)
    suffix = averaged.suffix
    available = run.saved_predictions()
    names = [f"{split}{suffix}"] if split is not None else [f"{s}{suffix}" for s in ("test", "val", "train")]
    found = [name for name in names if name in available]
    if not found:
        known = f"; saved are {', '.join(available)}" if available else ""
        raise RunError(
            f"{run} holds no predictions of {' or '.join(names)}{known}; leave out --from-predictions to compute them"
        )
    if not run.made_with(run.origin_of_predictions(found[0]).get("weights")):
        raise RunError(
            f"{run.predictions(found[0])} is of other weights than {run} holds now; leave out --from-predictions"
        )
    saved = SavedPredictions.read(run, found[0])
    origin = saved.table.attrs
    known_folders = run.evaluations()
    folder = known_folders.get(saved.name, run.evaluation_of(saved.name, primary=saved.name == "test"))
    files = EvaluationFiles(folder)
    intervals = intervals or Intervals()
    held_out = calibration_predictions(run, saved.name, averaged, origin.get("views"))
    metrics = measure_saved(saved, held_out, files, intervals.bootstrap(saved.table, data))
    metrics |= origin_of(saved)
    earlier = run.read_json(files.metrics) if files.metrics.is_file() else {}
    if "efficiency" in earlier and earlier.get("weights") == metrics["weights"]:
        metrics |= {key: earlier[key] for key in ("seen_in_pretraining", "efficiency") if key in earlier}
    run.write_json(files.metrics, metrics)
    return folder, metrics


def origin_of(saved: SavedPredictions) -> dict[str, Any]:
    """Describe the origin of predictions for metrics.json."""
    return {"name": saved.name, **{key: saved.table.attrs.get(key) for key in ORIGIN}}
