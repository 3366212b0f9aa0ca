"""The page of runs that label points: intersection over union and confusion of parts, best and worst clouds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from vitrail.analyze.cloud_explanations import values_of_points
from vitrail.analyze.evaluated import OpenedRuns
from vitrail.analyze.explanations import explain_images
from vitrail.errors import ConfigError, DataError, plural
from vitrail.evaluate.parts import count_table, draw_parts, predicted_only
from vitrail.evaluate.results_table import results_table
from vitrail.explain.methods.registry import default_method
from vitrail.figures.cloud_page import TRUE
from vitrail.figures.clouds import turntable_figure
from vitrail.figures.picture import Picture
from vitrail.figures.tables import Column, Table
from vitrail.figures.training import convergence
from vitrail.report import measured
from vitrail.report.brief import Answer, listed, per_hundred, per_hundred_between
from vitrail.report.data import data_sections, read_known
from vitrail.report.evaluated import (
    CONFUSION,
    LoadedRun,
    Section,
    Subject,
    draw_confusion,
    interval_of,
    mixed_up,
    names_with_splits,
    sections_of,
    who,
)
from vitrail.report.export import exports
from vitrail.report.run_brief import QUESTIONS
from vitrail.report.side_by_side import EXPLANATIONS, MISTAKES
from vitrail.report.structure import structures
from vitrail.report.write import write_page

# Clouds of the lowest and of the highest mean intersection over union; clouds that are explained, and how.
_WORST, _BEST, _EXPLAINED = 5, 3, 3
_CAM = "gradcam"
# A part is weak below this intersection over union; fewer clouds leave figures rough.
_WEAK_IOU, _FEW_CLOUDS = 0.3, 100
_RESULTS = (
    Column("model", "model", "text"),
    Column("parameters", "parameters", "count"),
    Column("gmacs", "G multiply-adds", "number"),
    Column("miou", "mIoU (95 % interval)", "share", "miou_low", "miou_high"),
    Column("miou_clouds", "mean mIoU of a point cloud", "share", "miou_clouds_low", "miou_clouds_high"),
    Column("accuracy", "accuracy of points", "share", "accuracy_low", "accuracy_high"),
    Column("train_images_per_second", "training images/s", "count"),
    Column("inference_images_per_second", "inference images/s", "count"),
)
_MEASURES = tuple(f"{name}{end}" for name in ("miou", "miou_clouds", "accuracy") for end in ("", "_low", "_high"))


def write_parts_report(
    runs: Sequence[LoadedRun], out: Path, opened: OpenedRuns, title: str, without: Sequence[str]
) -> Path:
    """Write the page of runs that label points; arguments as of :func:`vitrail.report.page.write_report`.

    Args:
        runs: The runs.
        out: The page.
        opened: Opens models and clouds.
        title: Title of the page.
        without: Sections to leave out; "mistakes" are the worst and best clouds.

    Raises:
        ConfigError: Runs that label whole clouds beside those that label points.
    """
    others = [run.label for run in runs if not run.part.run.per_point]
    if others:
        raise ConfigError(
            f"{', '.join(others)} label{'s' * (len(others) == 1)} whole inputs and the other runs points, which no "
            "page compares; write a page for each kind"
        )
    subjects = [Subject(run.label, [run.part]) for run in runs]
    sections = [
        _results(runs),
        *data_sections(subjects, opened.pictures),
        *sections_of([_convergence(runs), _confusion(runs)]),
        _parts(runs),
        *([] if MISTAKES in without else sections_of([_clouds(run, opened) for run in runs])),
        *measured.cost(subjects),
        *exports(subjects),
        *measured.others(subjects),
        *structures(subjects, out),
        *([] if EXPLANATIONS in without else sections_of([_explanations(run, opened) for run in runs])),
    ]
    brief = [
        Answer(QUESTIONS[0], [_named(run, runs, _what_was_trained(run)) for run in runs]),
        Answer(QUESTIONS[1], [_named(run, runs, _how_good(run)) for run in runs]),
        Answer(QUESTIONS[2], [_named(run, runs, line) for run in runs for line in _cautions(run)]),
    ]
    return write_page(
        out,
        title,
        brief,
        sections,
        "page.html.j2",
        {"runs": [run.details() for run in runs], "facts": _facts(runs)},
        inputs=[run.folder.modality for run in runs],
        names=[name for run in runs for name in run.folder.own_names],
    )


def _results(runs: Sequence[LoadedRun]) -> Section:
    table = results_table([run.folder for run in runs], _MEASURES)
    caption = (
        f"From metrics.json and metrics.csv of {names_with_splits(runs)}. mIoU: the mean over the parts that occur of "
        "the intersection over union of the points of all point clouds; the mean mIoU of a point cloud takes its own "
        "parts alone. Intervals are over point clouds; that two intervals overlap or not is not a test of a difference."
    )
    return Section("Summary", [_how_good(run) for run in runs], tables=[Table("results", caption, table, _RESULTS)])


def _convergence(runs: Sequence[LoadedRun]) -> tuple[Picture, Figure]:
    figure = convergence({run.label: run.folder.read_metrics() for run in runs}, "miou", "mIoU (validation)")
    return Picture(
        "convergence",
        "Convergence",
        f"Cross-entropy of points and mIoU by epoch, from metrics.csv of {', '.join(run.label for run in runs)}. The "
        "training loss is measured on augmented point clouds while the weights still move.",
        "Curves of the loss for training and validation, and of the validation mIoU, by epoch",
    ), figure


def _confusion(runs: Sequence[LoadedRun]) -> tuple[Picture, Figure]:
    tables = {run.label: run.part.confusion() for run in runs}
    return Picture(
        "confusion",
        CONFUSION,
        f"Labelled points of {names_with_splits(runs)}: counts, and per cent of the true part with parts that are "
        "often confused side by side. The colour is the share of the true part. From confusion.csv.",
        "Confusion matrix of the parts; " + "; ".join(f"{name}: {mixed_up(table)}" for name, table in tables.items()),
    ), draw_confusion(tables)


def _parts(runs: Sequence[LoadedRun]) -> Section:
    frame = pd.concat([pd.DataFrame(run.metrics["parts"]).assign(name=run.label) for run in runs])
    frame = frame.astype({name: float for name in ("iou", "low", "high")}).sort_values("iou", kind="stable")
    several = [who([Subject(run.label, [run.part]) for run in runs])] if len(runs) > 1 else []
    columns = [Column("part", "part", "text"), *several, Column("points", "points", "count"),
               Column("iou", "IoU", "share", "low", "high")]  # fmt: skip
    caption = f"Intersection over union of each part, the weakest first. From parts.csv of {names_with_splits(runs)}."
    return Section("Parts", [], [], [Table("parts", caption, frame, columns, most=60)])


def _clouds(run: LoadedRun, opened: OpenedRuns) -> tuple[Picture, Figure | None]:
    """Draw the clouds of the lowest and of the highest mean intersection over union."""
    picture = Picture(f"clouds_{run.label}", f"Worst and best labels of {run.label}", "")
    names = tuple(run.folder.read_json(run.folder.card)["classes"])
    table = run.folder.read_predictions(run.name)
    table = table.assign(miou=count_table(table, len(names)).of_clouds()).dropna(subset="miou")
    table = table.sort_values(["miou", "path"], kind="stable")
    chosen = table if len(table) <= _WORST + _BEST else pd.concat([table.head(_WORST), table.tail(_BEST)])
    try:
        figure = draw_parts(opened.images(run.part), chosen, names)
    except DataError as error:
        picture.problem = f"Not drawn: {error}."
        return picture, None
    picture.caption = (
        f"Point clouds of {run.split_name} by rising mIoU: the {plural(min(_WORST, len(chosen)), 'worst point cloud')} "
        "first, then the best ones; true parts at the left, predicted ones at the right, from two directions."
    )
    picture.alt = "Clouds coloured by true and predicted parts; " + "; ".join(
        f"{row.path}: mIoU {row.miou:.2f}" for row in chosen.itertuples(index=False)
    )
    return picture, figure


def _explanations(run: LoadedRun, opened: OpenedRuns) -> tuple[Picture, Figure | None]:
    """Draw the parts of a few clouds beside the explanations of the part with the most points."""
    picture = Picture(f"explanations_{run.label}", f"What {run.label} looks at", "")
    trained = opened.trained(run.part)
    methods, names = list(dict.fromkeys([default_method(trained.model), _CAM])), trained.card.classes
    settings: dict[str, dict[str, Any]] = {method: {} for method in methods}
    try:
        data = opened.images(run.part)
        indices = data.source.indices_of(run.folder.read_predictions(run.name)["path"].to_list())
        # The first cloud of each class.
        first = dict(reversed([(data.source.targets[i].tobytes(), i) for i in indices]))
        explained = list(explain_images(trained, data, sorted(first.values())[:_EXPLAINED], settings))
    except DataError as error:
        picture.problem = f"Not drawn: {error}."
        return picture, None
    clouds, values, titles = [], [], []
    for seen in explained:
        cloud = seen.pictures["points"]
        for kind, own in values_of_points(seen, cloud).items():
            if kind == TRUE:
                continue
            part = seen.target(kind, names) if kind in methods else None
            clouds.append(cloud)
            values.append(own)
            titles.append(seen.caption() if kind not in methods else kind if part is None else f"{kind}, for {part}")
    picture.caption = (
        f"Predicted parts of {plural(len(explained), 'point cloud')} of {run.split_name}, and the points that the part "
        f"with the most of them relies on, by {listed(methods)}: the colour is the rank of the point's value. A "
        "plausible map need not be faithful."
    )
    picture.alt = f"Clouds from several sides, coloured by predicted part and by {listed(methods)}"
    return picture, turntable_figure(clouds, values, titles, 4, names)


def _facts(runs: Sequence[LoadedRun]) -> list[dict[str, str]]:
    """List the main figures, where the page is of one run."""
    if len(runs) > 1:
        return []
    metrics = runs[0].metrics
    names = {"miou": "mIoU", "miou_clouds": "mean mIoU of a point cloud", "accuracy": "accuracy of points"}
    facts = [
        {
            "name": told,
            "value": f"{metrics[name]:.3f}",
            "note": interval_of(metrics[f"{name}_low"], metrics[f"{name}_high"]),
        }
        for name, told in names.items()
    ]
    efficiency = metrics["efficiency"]
    rate = f"{efficiency['inference_images_per_second']:,.0f}"
    facts.append({"name": "point clouds a second", "value": rate, "note": f"{efficiency['device']}, in batches"})
    note = f"{efficiency['gmacs']:.3g} G multiply-adds"
    facts.append({"name": "parameters", "value": f"{efficiency['parameters']:,}", "note": note})
    return facts


def _named(run: LoadedRun, runs: Sequence[LoadedRun], line: str) -> str:
    return line if len(runs) == 1 else f"{run.label}: {line}"


def _what_was_trained(run: LoadedRun) -> str:
    known = read_known(run.part)
    splits = {} if known is None else known.record["splits"]
    names = [row["part"] for row in run.metrics["parts"]]
    data = run.recipe.data.path or run.recipe.data.source
    on = f"{plural(splits['train'], 'point cloud')} of {data}" if splits.get("train") else f"point clouds of {data}"
    chosen = f"; {plural(splits['val'], 'further point cloud')} chose the best epoch" if splits.get("val") else ""
    begin = f", starting from the pre-trained weights {run.recipe.model.weights}" if run.recipe.model.weights else ""
    return (
        f"A model ({run.recipe.model.name}) was trained on {on} to label points by {plural(len(names), 'part')} "
        f"({listed(names)}){begin}{chosen}."
    )


def _how_good(run: LoadedRun) -> str:
    metrics = run.metrics
    share = per_hundred(metrics["accuracy"], f"points of {plural(metrics['images'], f'{run.split_name} point cloud')}")
    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    interval = "" if low is None else f" ({per_hundred_between(low, high)}, with 95 % confidence)"
    miou = interval_of(metrics["miou_low"], metrics["miou_high"])
    return (
        f"{share[0].upper()}{share[1:]} are labelled correctly{interval}. The mean intersection over union of the "
        f"parts is {metrics['miou']:.3f}" + (f" ({miou})." if miou else ".")
    )


def _cautions(run: LoadedRun) -> list[str]:
    """List the limits of the result, the most urgent first."""
    metrics, known = run.metrics, read_known(run.part)
    lines = []
    if "finished" not in run.environment:
        lines.append("Training did not come to its end: the model is that of the best epoch so far.")
    if metrics["split"] in ("train", "val"):
        what = "trained on" if metrics["split"] == "train" else "used to choose the best epoch"
        lines.append(f"The measured point clouds were {what}: on new ones it may do worse.")
    elif metrics["trained_on"] or metrics["chosen_on"]:
        number = (metrics["trained_on"] or 0) + (metrics["chosen_on"] or 0)
        lines.append(
            f"{number:,} of the measured point clouds were used in training: the result is not on unseen ones."
        )
    if known is not None and known.stale:
        lines.append("The data has changed since training.")
    weak = [row for row in metrics["parts"] if row["iou"] is not None and row["iou"] < _WEAK_IOU]
    if weak:
        weak.sort(key=lambda row: float(row["iou"]))
        named = [f"{row['part']} (IoU {row['iou']:.2f})" for row in weak]
        lines.append(f"Weak parts: {listed(named)}.")
    absent = [row["part"] for row in metrics["parts"] if not row["points"]]
    if absent:
        lines.append(f"No measured point is of {listed(absent)}.")
    if stray := predicted_only(metrics):
        lines.append(f"Points were {stray}.")
    if metrics["images"] < _FEW_CLOUDS:
        lines.append(f"Only {plural(metrics['images'], 'point cloud')} were measured: the figures are rough.")
    return lines or ["Nothing in the records speaks against the result."]
