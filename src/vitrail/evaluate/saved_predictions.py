"""What saved predictions tell, without the model: measures, calibration, sets, selection, mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitrail.config.data import DataConfig
from vitrail.errors import RunError
from vitrail.evaluate.bootstrap import Bootstrap, Interval
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
    accuracy_interval,
    add_intervals,
    classification_intervals,
    classification_metrics,
    log_odds,
    per_class_table,
)
from vitrail.evaluate.mistakes import mistakes_table
from vitrail.evaluate.multi_label import multi_label_intervals, multi_label_metrics, multi_label_table
from vitrail.evaluate.selective import confidence_and_correct, risk_coverage, selective_summary, thinned
from vitrail.files import write_text
from vitrail.runs.folder import EvaluationFiles, RunFolder


@dataclass(frozen=True)
class Intervals:
    """How intervals are made.

    Attributes:
        groups: What makes a group, as :func:`vitrail.evaluate.groups.groups_of_predictions` takes it.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """

    groups: str | None = None
    resamples: int = 2000
    seed: int = 0

    def bootstrap(self, table: pd.DataFrame, data: DataConfig | None) -> Bootstrap | None:
        """How the images of saved predictions are drawn anew; None for a single image.

        Raises:
            DataError: All images are in one group that was asked for, or some in none.
            ConfigError: Settings out of range.
        """
        groups = groups_of_predictions(table, self.groups, data)
        if self.groups is None and groups is not None and len(set(groups)) < 2:
            groups = None  # one group tells nothing about others; metrics.json says that images were drawn
        return Bootstrap(len(table), groups, self.resamples, self.seed) if len(table) > 1 else None


@dataclass(frozen=True)
class SavedPredictions:
    """Predictions that were saved.

    Attributes:
        name: Of the split, or of other data.
        table: Path, target and logits of each image, its group where there are any.
        logits: Shape ``(N, K)``.
        targets: Classes ``(N,)``, or labels ``(N, K)``.
        classes: Names.
    """

    name: str
    table: pd.DataFrame
    logits: Floats
    targets: Ints
    classes: tuple[str, ...]

    @classmethod
    def read(cls, run: RunFolder, name: str) -> SavedPredictions:
        """Read them.

        Raises:
            RunError: There are none of that name, or they are damaged.
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
                f"{run.predictions(name)} holds {logits.shape[1]} logits an image and the model knows {len(classes)} "
                "classes; evaluate the run again"
            )
        return cls(name, table, logits, targets, classes)

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return self.targets.ndim == 2


@dataclass(frozen=True)
class HeldOut:
    """What calibration is done on.

    Attributes:
        saved: Predictions of the validation split; None where there is none to calibrate on.
        why: The reason where there is none, and what to do about it.
    """

    saved: SavedPredictions | None
    why: str = ""


def is_current(run: RunFolder, name: str, **origin: Any) -> bool:
    """Whether predictions of that name were saved, with the weights that the run has now and from that origin."""
    if not run.predictions(name).is_file() or not run.embeddings(name).is_file():
        return False
    attributes = run.origin_of_predictions(name)
    return run.made_with(attributes.get("weights")) and all(attributes.get(k) == v for k, v in origin.items())


def calibration_predictions(run: RunFolder, name: str, split: str, tta: str) -> HeldOut:
    """The saved predictions that those of ``name`` may be calibrated on: the validation split's, and never their own.

    Args:
        run: The run.
        name: What is evaluated.
        split: The split that it is.
        tta: The test-time augmentation that it was predicted with.
    """
    suffix = "" if tta == "none" else f"-{tta}"
    if name == f"val{suffix}":
        return HeldOut(
            None, "these are the validation images themselves; a data set with a test split leaves them to calibrate on"
        )
    wanted = f"val{suffix}"
    if not run.predictions(wanted).is_file():
        remedy = f"`vitrail evaluate {run} --split val{'' if tta == 'none' else f' --tta {tta}'}` makes them"
        return HeldOut(
            None,
            f"there are no predictions of a validation split; {remedy}, and where the data has none, "
            "data.val_fraction or a folder val sets images apart before training",
        )
    if not is_current(run, wanted):
        return HeldOut(None, f"the predictions of {wanted} are not of these weights; evaluate the run with the model")
    return HeldOut(SavedPredictions.read(run, wanted))


def measure_saved(
    saved: SavedPredictions, held_out: HeldOut, files: EvaluationFiles, bootstrap: Bootstrap | None
) -> dict[str, Any]:
    """Measure predictions, write the tables into an evaluation's folder, and return what metrics.json is to say.

    Args:
        saved: The predictions.
        held_out: What to calibrate on.
        files: Where to write.
        bootstrap: How to draw images anew; no intervals but accuracy's when not given.

    Raises:
        DataError: Logits that are not finite.
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
        files.mistakes_sheet.unlink(missing_ok=True)  # it shows others
    write_text(files.mistakes, written)
    curve = risk_coverage(*confidence_and_correct(saved.logits, saved.targets))
    write_text(files.selective, thinned(curve).to_csv(index=False))
    metrics["intervals"] = {
        **({} if bootstrap is None else bootstrap.describe()),
        "measures": {name: None if pair is None else list(pair) for name, pair in intervals.items()},
    }
    return {
        **metrics,
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
        odds = log_odds(logits)  # takes a second for 1,000 classes
        metrics = classification_metrics(logits, targets, classes, odds)
        table = per_class_table(logits, targets, classes, odds)
        if bootstrap is not None:
            overall, each = classification_intervals(logits, targets, classes, bootstrap, odds)
            table = add_intervals(table, each)
    return metrics, table, overall


def _group_accuracy(metrics: dict[str, Any], interval: Interval | None, bootstrap: Bootstrap) -> None:
    """Accuracy's own interval where images belong together: Wilson's takes them for independent."""
    if interval is None:  # all right, or all wrong: groups are all that was seen
        n = bootstrap.units
        interval = accuracy_interval(round(metrics["accuracy"] * n), n, bootstrap.confidence)
    metrics["accuracy_low"], metrics["accuracy_high"] = interval


def _calibrate(saved: SavedPredictions, held_out: HeldOut, files: EvaluationFiles) -> dict[str, Any]:
    """Write calibration.json and reliability.csv; give the short of it."""
    logits, targets = saved.logits, saved.targets
    before = calibration_summary(logits, targets)
    temperature: dict[str, Any] | None = None
    scaled = {"as it is": logits.astype(np.float64)}
    why = held_out.why
    if held_out.saved is not None:
        other = held_out.saved
        temperature = temperature_report(logits, targets, (other.logits, other.targets), other.name)
        if temperature is not None:
            scaled["temperature"] = logits.astype(np.float64) / temperature["temperature"]
        else:
            why = (
                f"no temperature between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g} minimises the log-loss of the "
                f"{len(other.logits)} images of {other.name} (all are classified correctly, or the logits carry no "
                "information); more validation images may have one"
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
    content = {"name": saved.name, **before, "temperature": temperature, "why_no_temperature": why or None}
    RunFolder.write_json(files.calibration, content)
    short: dict[str, Any] = {key: before[key] for key in ("ece", "ece_adaptive", "ece_of_chance_95")}
    short["temperature"] = None if temperature is None else temperature["temperature"]
    short["ece_after"] = None if temperature is None else temperature["after"]["ece"]
    short["nll_after"] = None if temperature is None else temperature["after"]["nll"]
    short["why_no_temperature"] = why or None
    return short


def _numbers_of_groups(*tables: pd.DataFrame) -> tuple[int, int] | None:
    """Groups in either of two tables of predictions; None where images are not in groups, or share some."""
    if any("group" not in table or table["group"].isna().any() or (table["group"] == "").any() for table in tables):
        return None
    first, second = (set(table["group"].astype(str)) for table in tables)
    return None if first & second else (len(first), len(second))


def _conform(saved: SavedPredictions, held_out: HeldOut, files: EvaluationFiles) -> Any:
    """Write conformal.json; give the short of it."""
    why = "sets are of classes that exclude each other" if saved.multi_label else held_out.why
    if saved.multi_label or held_out.saved is None:
        RunFolder.write_json(files.conformal, {"name": saved.name, "sets": None, "why": why})
        return {"sets": None, "why": why}
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
    """Measure predictions that an earlier evaluation saved; no weights and no images are read.

    Args:
        run: A run that was evaluated.
        data: What it was trained on; only a table's columns are looked at, for groups.
        split: Name of the predictions: "test", "val", "train" or that of other data. The first there is of test, val
            and train when not given.
        tta: The test-time augmentation that they were made with.
        intervals: How intervals are made.

    Returns:
        The folder with the results, and the overall measures.

    Raises:
        RunError: There are no such predictions, they are damaged, or of other weights than the run holds.
        DataError: Logits that are not finite, or images without a group.
    """
    suffix = "" if tta == "none" else f"-{tta}"
    there = run.saved_predictions()
    names = [f"{split}{suffix}"] if split is not None else [f"{s}{suffix}" for s in ("test", "val", "train")]
    found = [name for name in names if name in there]
    if not found:
        known = f"; there are {', '.join(there)}" if there else ""
        raise RunError(
            f"{run} holds no predictions of {' or '.join(names)}{known}; without --from-predictions they are made"
        )
    if not run.made_with(run.origin_of_predictions(found[0]).get("weights")):
        raise RunError(
            f"{run.predictions(found[0])} was not made with the weights that {run} holds now; leave out "
            "--from-predictions"
        )
    saved = SavedPredictions.read(run, found[0])
    origin = saved.table.attrs
    known_folders = run.evaluations()
    folder = known_folders.get(saved.name, run.evaluation_of(saved.name, primary=saved.name == "test"))
    files = EvaluationFiles(folder)
    intervals = intervals or Intervals()
    chosen = str(origin.get("split", saved.name))
    held_out = calibration_predictions(run, saved.name, chosen, tta)
    metrics = measure_saved(saved, held_out, files, intervals.bootstrap(saved.table, data))
    metrics |= origin_of(saved)
    earlier = run.read_json(files.metrics) if files.metrics.is_file() else {}
    if "efficiency" in earlier and earlier.get("weights") == metrics["weights"]:
        metrics |= {key: earlier[key] for key in ("seen_in_pretraining", "efficiency") if key in earlier}
    run.write_json(files.metrics, metrics)
    return folder, metrics


def origin_of(saved: SavedPredictions) -> dict[str, Any]:
    """What metrics.json says of where predictions are from."""
    origin = saved.table.attrs
    keys = ("split", "tta", "data", "unreadable", "weights", "trained_on", "chosen_on")
    return {"name": saved.name, **{key: origin.get(key) for key in keys}}
