"""The page of a suite: one self-contained file, from the suite's tables and the run folders that they name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vitrail.errors import RunError
from vitrail.report import figures, measured, suite_figures
from vitrail.report.curves import ranking
from vitrail.report.evaluated import Part, Section, Subject
from vitrail.report.picture import Picture
from vitrail.report.robust import robustness
from vitrail.report.write import check_page, write_page
from vitrail.runs.folder import RunFolder
from vitrail.runs.suite import SuiteFolder

_SUMMARY = {
    "variant": "variant", "runs": "runs", "mean": "{metric}", "low": "from", "high": "to", "parameters": "parameters",
    "gmacs": "G multiply-adds", "milliseconds_per_image": "ms an image", "training_seconds": "training, s",
}  # fmt: skip
_PAIRS = {
    "statement": "statement", "a": "a", "b": "b", "difference": "a minus b", "low": "from", "high": "to", "p": "p",
    "p_holm": "corrected p", "runs_needed": "runs needed", "cohens_dz": "d_z over runs", "odds_ratio": "odds ratio",
    "p_mcnemar": "p, McNemar", "p_sign_flip_images": "p, sign flips", "why": "why not",
}  # fmt: skip
_RUNS = {
    "variant": "variant", "seed": "seed", "fold": "fold", "run": "folder", "images": "test images",
    "epochs": "epochs", "best_epoch": "best epoch", "training_seconds": "training, s", "device": "device",
    "vitrail": "vitrail", "git_commit": "commit", "finished": "finished",
}  # fmt: skip
_TEXTS = ("variant", "a", "b", "statement", "why", "run", "device", "git_commit", "finished", "vitrail")


def write_suite_report(folder: SuiteFolder, out: Path | None = None) -> Path:
    """Write the page of a suite; beside it the same as Markdown, its figures, and what was measured as CSV.

    Args:
        folder: The suite's folder.
        out: The page; report.html in the folder when not given.

    Returns:
        The page.

    Raises:
        RunError: A table or a run folder that is missing or damaged.
    """
    out = folder.report if out is None else out
    check_page(out)
    facts = folder.read_facts()
    results, summary, pairs = (folder.read_table(f) for f in (folder.results, folder.summary, folder.pairs))
    found = _measured(results) if len(results) else []
    shown = _pictures(facts, results, summary, pairs) if len(results) else []
    sections = [*(Section(picture.title, [], [(picture, figure)]) for picture, figure in shown), *found]
    metric = facts["metric_name"]
    level = f"{1 - facts['alpha']:.0%}"
    tables = [
        ("Variants", _table(summary, _SUMMARY, metric, facts["unit"]),
         f"Mean over runs and its 95 % interval over seeds, {_unit(facts)}; median times as measured on the machine "
         "named under Runs"),
        ("Comparisons", _table(pairs, _PAIRS, metric, facts["unit"]),
         f"Difference of a and b, {'in percentage points' if facts['unit'] == 100 else 'in nats'}, with its {level} "
         "interval; runs needed: of each variant, to show a "
         "difference of this size 4 times in 5"),
    ]  # fmt: skip
    more = {
        "about": facts["about"],
        "incomplete": _incomplete(facts),
        "sentences": facts["sentences"],
        "method": facts["method"],
        "failures": facts["failures"],
        "tables": [(title, table, f"{caption}.") for title, table, caption in tables if table["rows"]],
        "base": f"All begin with {facts['recipe']}, at the seeds {', '.join(map(str, facts['seeds']))}"
        + ("." if facts["folds"] is None else f", in {facts['folds']} folds."),
        "variants": [{"name": v["name"], "told": _told(v["changes"])} for v in facts["variants"]],
        "listed": _table(results, _RUNS, metric, 1),
    }
    return write_page(out, facts["title"], sections, "suite.html.j2", more, folder.read_text())


def _measured(results: pd.DataFrame) -> list[Section]:
    """What the evaluations of each variant's runs measured, as far as all of its runs have it."""
    subjects = []
    for name, rows in results.groupby("variant", sort=False):
        parts = [
            Part.read(RunFolder(path), _evaluation(path, on))
            for path, on in zip(rows["run"], rows["evaluated_on"], strict=True)
        ]
        subjects.append(Subject(str(name), parts, "variant"))
    return [
        *ranking(subjects),
        *measured.calibration(subjects),
        *measured.refusing(subjects),
        *measured.prediction_sets(subjects),
        *robustness(subjects),
        *measured.cost(subjects),
    ]


def _evaluation(path: str, evaluated: str) -> Path:
    run = RunFolder(path)
    if not run.path.is_dir():
        raise RunError(
            f"there is no run folder {run}, seen from here; write the page in the folder where the suite was carried "
            "out, or carry it out again"
        )
    folders = run.evaluations()
    if evaluated not in folders:
        raise RunError(f"{run} has no evaluation {evaluated!r} any more; `vitrail compare` makes it again")
    return folders[evaluated]


def _pictures(
    facts: Mapping[str, Any], results: pd.DataFrame, summary: pd.DataFrame, pairs: pd.DataFrame
) -> list[tuple[Picture, Figure | None]]:
    metric, unit = facts["metric_name"], facts["unit"]
    axis = f"{metric}, percentage points" if unit == 100 else metric
    runs_of = {str(name): [Path(p) for p in rows["run"]] for name, rows in results.groupby("variant", sort=False)}
    told = "; ".join(f"{name}: {', '.join(p.name for p in paths)}" for name, paths in runs_of.items())
    pictures: list[tuple[Picture, Figure | None]] = []
    if len(pairs):
        kind = "Ablation" if facts["against"] else "Differences"
        caption = (
            f"Difference in {metric}, with the interval of each comparison before correction. From pairs.csv; runs: "
            f"{told}."
        )
        alt = "; ".join(
            f"{r['a']} minus {r['b']}: {unit * r['difference']:.3g}, {r['statement']}" for r in pairs.to_dict("records")
        )
        figure = suite_figures.differences(pairs, axis, unit)
        pictures.append((Picture(kind.lower(), kind, caption, f"Differences in {axis}: {alt}"), figure))
    column = facts["curve"]
    caption = (
        f"Validation loss and {column.removeprefix('val_').replace('_', ' ')} by epoch: mean over the runs of a "
        f"variant, with a 95 % band of that mean where there are several. From metrics.csv of the runs: {told}."
    )
    curves = {name: [RunFolder(path).read_metrics() for path in paths] for name, paths in runs_of.items()}
    alt = "; ".join(f"{n}: at most {max(t[column].max() for t in tables):.3g}" for n, tables in curves.items())
    picture = Picture("convergence", "Convergence", caption, f"Curves of each variant by epoch; {alt}")
    pictures.append((picture, suite_figures.convergence_bands(curves, column)))
    caption = (
        f"{metric.capitalize()} against the time of one image (in batches, as measured) and against the number of "
        f"parameters; vertical lines are 95 % intervals over seeds. From summary.csv; runs: {told}."
    )
    alt = "; ".join(
        f"{r['variant']}: {r['mean']:.3g} at {r['milliseconds_per_image']:.3g} ms and {r['parameters']:,} parameters"
        for r in summary.to_dict("records")
    )
    figure = suite_figures.pareto(summary, metric, facts["higher_is_better"])
    pictures.append((Picture("pareto", "Accuracy against cost" if metric == "accuracy" else "Result against cost",
                             caption, alt), figure))  # fmt: skip
    pictures.append(_confusion(results, runs_of))
    return pictures


def _confusion(results: pd.DataFrame, runs_of: Mapping[str, list[Path]]) -> tuple[Picture, Figure | None]:
    """Counts of all runs of a variant, added up."""
    title = "Confusion matrices"
    tables: dict[str, pd.DataFrame] = {}
    for name, rows in results.groupby("variant", sort=False):
        added: pd.DataFrame | None = None
        for path, evaluated in zip(rows["run"], rows["evaluated_on"], strict=True):
            part = Part.read(RunFolder(path), _evaluation(path, evaluated))
            if not part.files.confusion.is_file():
                problem = "Not drawn: where an image has several labels, none of them is taken for another."
                return Picture("confusion", title, "", problem=problem), None
            counts = part.confusion()
            added = counts if added is None else added + counts
        assert added is not None, "a variant with a row has a run"
        tables[str(name)] = added
    told = "; ".join(f"{name}: {', '.join(p.name for p in paths)}" for name, paths in runs_of.items())
    caption = (
        f"Counts on the test images, added up over the runs of each variant: {told}. The colour is the share of the "
        "true class."
    )
    right = {name: int(np.trace(table.to_numpy())) for name, table in tables.items()}
    alt = "; ".join(f"{name}: {right[name]} of {table.to_numpy().sum()} right" for name, table in tables.items())
    return Picture("confusion", title, caption, f"Confusion matrix of each variant; {alt}"), figures.confusion(tables)


def _incomplete(facts: Mapping[str, Any]) -> str:
    missing = facts["runs_planned"] - facts["runs_done"]
    if not missing:
        return ""
    return f"{facts['runs_done']} of {facts['runs_planned']} runs are done; what follows is from these alone."


def _unit(facts: Mapping[str, Any]) -> str:
    return "in per cent" if facts["unit"] == 100 else "in nats"


def _told(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in changes.items()) or "the recipe as it is"


def _table(table: pd.DataFrame, columns: Mapping[str, str], metric: str, unit: float) -> dict[str, Any]:
    names = [name for name in columns if name in table and table[name].notna().any()]
    header = [{"text": columns[n].format(metric=metric), "kind": "text" if n in _TEXTS else ""} for n in names]
    rows = [[_cell(name, row[name], unit) for name in names] for row in table.to_dict("records")]
    return {"header": header, "rows": rows}


def _cell(name: str, value: Any, unit: float) -> dict[str, Any]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return {"text": "", "sort": "", "kind": ""}
    if name in _TEXTS:
        kind = {"statement": "text" if value == "not shown" else "text shown", "why": "text long"}.get(name, "text")
        return {"text": str(value), "sort": None, "kind": kind}
    number = float(value)
    if name in ("mean", "low", "high", "difference"):
        text = f"{unit * number:.2f}" if unit == 100 else f"{number:.4f}"
    elif name in ("parameters", "runs", "runs_needed", "images", "epochs", "seed", "fold", "best_epoch"):
        text = f"{number:,.0f}"
    elif math.isinf(number):
        text = "∞"
    elif name.startswith("p") and number < 0.0001:
        text = "< 0.0001"
    else:
        text = f"{number:.3g}"
    return {"text": text, "sort": repr(number) if math.isfinite(number) else "1e308", "kind": ""}
