"""Measures of saved predictions on a page: calibration, selective prediction, sets, classes, cost, other images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitrail.analyze.evaluated import Evaluation
from vitrail.errors import plural
from vitrail.evaluate.confusion import most_confused
from vitrail.evaluate.selective import COVERAGES
from vitrail.figures import evaluation as draw
from vitrail.figures.picture import Picture
from vitrail.figures.tables import Column, Table, is_nothing
from vitrail.report.evaluated import Section, Subject, mean_of, names_of, several, who
from vitrail.runs.folder import EvaluationFiles

# Between 0 and 1: where curves of several runs are averaged.
_GRID = np.linspace(0.01, 1, 100)
_SIDES = ("as it is", "temperature")
_EMPTY_SETS = (
    "A set may be empty: for such an image no class is as likely as the threshold asks, which says that the image is "
    "unlike those of the validation split. Where the true class is found more often than promised, empty sets are how "
    "the coverage comes down to the promise."
)


def calibration(subjects: Sequence[Subject]) -> list[Section]:
    """Show reliability diagrams and calibration errors, before and after temperature scaling.

    Args:
        subjects: Runs or variants side by side; those without calibration are left out.

    Returns:
        The section, or nothing where there is none to show.
    """
    bins: dict[str, dict[str, pd.DataFrame]] = {}
    rows, there = [], []
    for subject in subjects:
        pooled = _pooled(subject)
        contents = subject.each(lambda part: part.content(part.files.calibration))
        if pooled is None or contents is None:
            continue
        there.append(subject)
        bins[subject.label] = pooled
        rows.append({"name": subject.label, **_calibration_row(contents)})
    if not rows:
        return []
    titles = [
        f"{row['name']}\nECE {row['ece']:.3f}" + ("" if row["ece_after"] is None else f", after {row['ece_after']:.3f}")
        for row in rows
    ]
    alone = [part for subject in there for part in subject.parts if len(subject.parts) == 1]
    whys = [
        f"{part.run.name}: no temperature, {why}."
        for part in alone
        if (why := part.metrics.get("calibration", {}).get("why_no_temperature"))
    ]
    pooling = " The bins of a variant's runs are pooled." if any(len(s.parts) > 1 for s in there) else ""
    caption = (
        "Reliability: accuracy of the predictions of each confidence; on the diagonal the two are equal. "
        "Larger marks are of more images, the gray bars show the number of images. "
        f"From reliability.csv and calibration.json of {names_of(there)}.{pooling}"
    )
    alt = "Reliability diagrams; " + "; ".join(title.replace("\n", ": ") for title in titles)
    table = Table(
        "calibration",
        "Calibration errors. One up to the error of chance, which 95 of 100 calibrated models of these confidences "
        f"stay below, says nothing against the model. Runs: {names_of(there)}.{several(there)}",
        pd.DataFrame(rows),
        [who(subjects), Column("ece", "ECE"), Column("ece_of_chance_95", "of chance, up to"),
         Column("ece_adaptive", "adaptive ECE"), Column("nll", "log-loss"), Column("brier", "Brier"),
         Column("mean_confidence", "mean confidence"), Column("temperature", "temperature", "number"),
         Column("ece_after", "ECE after"), Column("nll_after", "log-loss after"),
         Column("fitted_on", "fitted on", "text")],
    )  # fmt: skip
    figure = draw.reliability(bins, titles)
    return [Section("Calibration", whys, [(Picture("calibration", "Calibration", caption, alt), figure)], [table])]


def _pooled(subject: Subject) -> dict[str, pd.DataFrame] | None:
    """Pool the images of all runs in bins of equal width, by the scores that all of them have."""
    columns = ("logits", "bins", "low", "high", "count", "confidence", "accuracy")
    tables = subject.each(lambda part: part.table(part.files.reliability, *columns))
    if tables is None:
        return None
    result = {}
    for side in _SIDES:
        found = [t[(t["logits"] == side) & (t["bins"] == "equal width")].reset_index(drop=True) for t in tables]
        if any(len(table) == 0 for table in found):
            continue
        pooled = found[0][["low", "high"]].copy()
        pooled["count"] = sum(table["count"] for table in found)
        for name in ("confidence", "accuracy"):
            whole = sum((table["count"] * table[name]).fillna(0) for table in found)
            pooled[name] = whole / pooled["count"].where(pooled["count"] > 0)
        result[side] = pooled
    return result or None


def _calibration_row(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: mean_of([content.get(name) for content in contents])
        for name in ("ece", "ece_of_chance_95", "ece_adaptive", "nll", "brier", "mean_confidence")
    }
    scaled = [content["temperature"] for content in contents]
    row |= {"temperature": None, "ece_after": None, "nll_after": None, "brier_after": None, "fitted_on": None}
    if all(scaled):
        row["temperature"] = mean_of([found["temperature"] for found in scaled])
        for name in ("ece", "nll", "brier"):
            row[f"{name}_after"] = mean_of([found["after"][name] for found in scaled])
        row["fitted_on"] = f"{scaled[0]['images']} of {scaled[0]['fitted_on']}"
    return row


def selective(subjects: Sequence[Subject]) -> list[Section]:
    """Show risk against coverage.

    Args:
        subjects: Runs or variants side by side.
    """
    curves: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
    rows, there = [], []
    for subject in subjects:
        tables = subject.each(lambda part: part.table(part.files.selective, "coverage", "risk"))
        shorts = subject.each(lambda part: part.metrics.get("selective"))
        if tables is None or shorts is None:
            continue
        there.append(subject)
        if len(tables) == 1:
            curves[subject.label] = tables[0]["coverage"].to_numpy(), tables[0]["risk"].to_numpy()
        else:
            risks = [np.interp(_GRID, table["coverage"], table["risk"]) for table in tables]
            curves[subject.label] = _GRID, np.mean(risks, axis=0)
        row: dict[str, Any] = {"name": subject.label}
        row |= {name: mean_of([short[name] for short in shorts]) for name in ("aurc", "e_aurc")}
        for asked in zip(*(short["accuracy_at"] for short in shorts), strict=True):
            # Of few images a share is a little more than what was asked for.
            row[f"at_{_nearest(asked[0]['coverage'])}"] = mean_of([at["accuracy"] for at in asked])
        rows.append(row)
    if not rows:
        return []
    frame = pd.DataFrame(rows)
    caption = (
        "Error rate (risk) among the most confident predictions, against their share of the images (coverage); the "
        "model abstains on the others. From selective.csv of "
        f"{names_of(there)}.{several(there)}"
    )
    ats = [str(name) for name in frame if str(name).startswith("at_")]
    last = ats[-1]
    alt = f"Risk against coverage; accuracy at {last.removeprefix('at_')} % coverage: " + "; ".join(
        f"{row['name']} {row[last]:.1%}" for row in rows
    )
    table = Table(
        "selective",
        "Accuracy at several coverages; AURC is the mean risk over all coverages, E-AURC what of it a "
        f"perfect order would save. Runs: {names_of(there)}.{several(there)}",
        frame,
        [who(subjects), Column("aurc", "AURC", "error"), Column("e_aurc", "E-AURC", "error"),
         *(Column(name, f"at {name.removeprefix('at_')} % coverage") for name in ats)],
    )  # fmt: skip
    picture = Picture("selective", "Selective prediction", caption, alt)
    return [Section(picture.title, [], [(picture, draw.risk_coverage(curves))], [table])]


def _nearest(coverage: float) -> int:
    return round(100 * max(asked for asked in COVERAGES if asked <= coverage + 1e-9))


def prediction_sets(subjects: Sequence[Subject]) -> list[Section]:
    """Show coverage and size of prediction sets.

    Args:
        subjects: Runs or variants side by side; those without sets are left out.
    """
    rows, there, words = [], [], []
    sizes: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    for subject in subjects:
        contents = subject.each(_sets_of)
        if contents is None:
            continue
        there.append(subject)
        if found_out := [content["unreliable"] for content in contents if content.get("unreliable")]:
            runs = "" if len(contents) == 1 else f" (in {len(found_out)} of {plural(len(contents), 'run')})"
            words.append(f"The prediction sets of {subject.label} are unreliable{runs}: {found_out[0]}.")
        for found in zip(*(content["sets"] for content in contents), strict=True):
            one = found[0]
            rows.append(
                {
                    "name": subject.label, "method": one["method"].upper(), "wanted": one["wanted"],
                    **{n: mean_of([x[n] for x in found]) for n in ("coverage", "mean_size")},
                    # Wilson's interval is of one run's images.
                    "coverage_low": one["coverage_low"] if len(found) == 1 else None,
                    "coverage_high": one["coverage_high"] if len(found) == 1 else None,
                    "calibrated_on": f"{contents[0]['images']} of {contents[0]['calibrated_on']}",
                }
            )  # fmt: skip
            if one["wanted"] == contents[0]["sets"][0]["wanted"]:
                sizes.setdefault(one["method"], {})[subject.label] = _shares([x["sizes"] for x in found])
    if not rows:
        return []
    wanted = rows[0]["wanted"]
    caption = (
        f"How many classes a set needs that should hold the true one {wanted:.0%} of the time: LAC's are the smallest, "
        f"APS' treat hard images better. From conformal.json of {names_of(there)}.{several(there)}"
    )
    alt = "Sizes of prediction sets; " + "; ".join(
        f"{r['name']} {r['method']}: {r['mean_size']:.2f} classes, {r['coverage']:.1%} hold the true one"
        for r in rows
        if r["wanted"] == wanted
    )
    table = Table(
        "prediction_sets",
        f"Coverage and size of the sets. Runs: {names_of(there)}.{several(there)}",
        pd.DataFrame(rows),
        [who(subjects), Column("method", "method", "text"), Column("wanted", "wanted"),
         Column("coverage", "holds the true class", "share", "coverage_low", "coverage_high"),
         Column("mean_size", "mean size", "number"), Column("calibrated_on", "calibrated on", "text")],
    )  # fmt: skip
    if any(shares[0] > 0 for of_runs in sizes.values() for shares in of_runs.values()):
        # Of a set's size 0 a reader asks first.
        words.append(_EMPTY_SETS)
    picture = Picture("prediction_sets", "Prediction sets", caption, alt)
    return [Section(picture.title, words, [(picture, draw.set_sizes(sizes))], [table])]


def _sets_of(part: Evaluation) -> dict[str, Any] | None:
    content = part.content(part.files.conformal)
    return content if content and content.get("sets") else None


def _shares(sizes: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    whole = np.zeros(max(map(len, sizes)))
    for counts in sizes:
        whole[: len(counts)] += np.asarray(counts) / sum(counts) / len(sizes)
    return whole


def classes(subjects: Sequence[Subject]) -> list[Section]:
    """Tabulate each class of each run, with intervals; the weakest first.

    Args:
        subjects: Runs, one each.
    """
    tables, there = [], []
    for subject in subjects:
        table = subject.parts[0].table(subject.parts[0].files.per_class, "class", "f1", "images")
        if table is not None:
            there.append(subject)
            tables.append(table.assign(name=subject.label))
    if not tables:
        return []
    frame = pd.concat(tables).sort_values("f1", kind="stable")
    columns = [Column("class", "class", "text"), *([who(subjects)] if len(there) > 1 else []),
               Column("images", "images", "count"),
               *(Column(name, heading, "share", f"{name}_low", f"{name}_high") for name, heading in
                 (("precision", "precision"), ("recall", "recall"), ("f1", "F1"), ("roc_auc", "ROC-AUC"),
                  ("average_precision", "average precision")))]  # fmt: skip
    caption = f"Each class with 95 % intervals, the weakest first. From per_class.csv of {names_of(there)}."
    return [Section("Classes", [], [], [Table("per_class", caption, frame, columns, most=40), *_confused(there)])]


def _confused(subjects: Sequence[Subject]) -> list[Table]:
    """Tabulate the pairs of classes confused most often, which a large confusion matrix does not name."""
    found = [
        most_confused(subject.parts[0].confusion(), most=100).assign(name=subject.label)
        for subject in subjects
        if subject.parts[0].files.confusion.is_file()
    ]
    frame = pd.concat(found) if found else pd.DataFrame()
    if frame.empty:
        return []
    frame = frame.sort_values("count", ascending=False, kind="stable")
    columns = [*([who(subjects)] if len(subjects) > 1 else []), Column("true", "true class", "text"),
               Column("predicted", "predicted as", "text"), Column("count", "images", "count"),
               Column("share", "of the true class")]  # fmt: skip
    caption = f"Classes confused most often. From confusion.csv of {names_of(subjects)}."
    return [Table("confused", caption, frame, columns, most=20)]


def cost(subjects: Sequence[Subject]) -> list[Section]:
    """Show parameters, multiply-adds, throughput, latency and memory.

    Args:
        subjects: Runs or variants side by side; those whose latency was not measured are left out of the figure.
    """
    rows, there = [], []
    for subject in subjects:
        found = subject.each(lambda part: part.metrics.get("efficiency"))
        if found is None:
            continue
        there.append(subject)
        row: dict[str, Any] = {"name": subject.label}
        for name in ("parameters", "gmacs", "inference_images_per_second", "batch_size", "memory_mb"):
            row[name] = _median([x.get(name) for x in found])
        for name in ("p50", "p90", "p99"):
            row[name] = _median([x.get("latency_ms", {}).get(name) for x in found])
        row["device"] = ", ".join(dict.fromkeys(str(x.get("device", "")) for x in found))
        rows.append(row)
    timed = [row for row in rows if not is_nothing(row["p50"])]
    if not timed:
        return []
    whose = [subject for subject in there if subject.label in {row["name"] for row in timed}]
    over = " Medians over the runs of a variant." if any(len(s.parts) > 1 for s in there) else ""
    caption = (
        f"Milliseconds of one image alone: the median, and from it to the 99th percentile. From metrics.json of "
        f"{names_of(whose)}, each on the machine it was evaluated on.{over}"
    )
    alt = "Latency of one image; " + "; ".join(
        f"{r['name']}: {r['p50']:.3g} ms, 99 of 100 below {r['p99']:.3g} ms" for r in timed
    )
    table = Table(
        "efficiency",
        f"Cost of the forward pass: images a second in batches, milliseconds of one image alone (percentiles). Runs: "
        f"{names_of(there)}.{over}",
        pd.DataFrame(rows),
        [who(subjects), Column("parameters", "parameters", "count"),
         Column("gmacs", "G multiply-adds", "number"), Column("inference_images_per_second", "images/s", "count"),
         Column("batch_size", "batch", "count"), Column("p50", "p50, ms", "number"), Column("p90", "p90, ms", "number"),
         Column("p99", "p99, ms", "number"), Column("memory_mb", "most memory, MiB", "count"),
         Column("device", "device", "text")],
    )  # fmt: skip
    figure = draw.spans([(r["name"], r["p50"], r["p50"], r["p99"]) for r in timed], "milliseconds an image")
    return [Section("Efficiency", [], [(Picture("latency", "Latency", caption, alt), figure)], [table])]


def _median(values: Sequence[Any]) -> float | None:
    return None if any(map(is_nothing, values)) else float(np.median(values))


def others(subjects: Sequence[Subject]) -> list[Section]:
    """List other evaluations of the same weights: other splits, other images, test-time augmentation.

    Args:
        subjects: Runs, one each.
    """
    rows, there = [], []
    for subject in subjects:
        (part,) = subject.parts
        found = part.run.evaluations()
        for name, folder in found.items():
            metrics = part.run.read_json(EvaluationFiles(folder).metrics)
            if name == part.metrics["name"] or not part.of_these_weights(metrics):
                continue
            rows.append(
                {
                    "name": subject.label, "on": name, "augmentation": metrics.get("tta") or "none",
                    "path": (metrics.get("data") or {}).get("path"),
                    **{key: metrics.get(key) for key in ("images", "accuracy", "accuracy_low", "accuracy_high")},
                    **{key: metrics.get(key) for key in ("f1_macro", "map", "miou", "miou_low", "miou_high")},
                    "ece": (metrics.get("calibration") or {}).get("ece"),
                }
            )  # fmt: skip
            there.append(subject)
    if not rows:
        return []
    table = Table(
        "other_evaluations",
        "The same weights on other splits, on other images, over several views of each image, or rotated once at "
        "random. Runs: "
        + ", ".join(dict.fromkeys(subject.label for subject in there)) + ".",
        pd.DataFrame(rows),
        [who(subjects), Column("on", "evaluated on", "text"), Column("augmentation", "views", "text"),
         Column("images", "images", "count"), Column("accuracy", "accuracy", "share", "accuracy_low", "accuracy_high"),
         Column("f1_macro", "macro F1"), Column("map", "mAP"), Column("miou", "mIoU", "share", "miou_low", "miou_high"),
         Column("ece", "ECE"), Column("path", "path", "text")],
    )  # fmt: skip
    return [Section("Other evaluations", [], [], [table])]
