"""The page of a suite: one self-contained file, from the suite's tables and the run folders that they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from vitrail.analyze.evaluated import Evaluation, OpenedRuns
from vitrail.analyze.published import NOTE, published_points
from vitrail.catalogue import read_catalogue
from vitrail.config.data import DataConfig
from vitrail.config.schema import Recipe
from vitrail.errors import RunError, count_of, plural
from vitrail.figures.comparison import differences, pareto
from vitrail.figures.picture import Picture
from vitrail.figures.published import OWN, CostPoint, draw_published
from vitrail.figures.training import FEWEST_FOR_BAND, convergence_bands
from vitrail.report import measured
from vitrail.report.curves import ranking
from vitrail.report.data import data_sections
from vitrail.report.evaluated import CONFUSION, Section, Subject, draw_confusion, mixed_up, no_confusion
from vitrail.report.robust import robustness
from vitrail.report.side_by_side import EXPLANATIONS, FEATURES, check_without, explained, feature_spaces
from vitrail.report.suite_brief import suite_brief
from vitrail.report.write import check_page, write_page
from vitrail.runs.folder import RunFolder
from vitrail.runs.suite import SuiteFolder
from vitrail.runs.suite_columns import PAIRS, RUNS, SUMMARY, captions, suite_table, table_of_tests


def write_suite_report(
    folder: SuiteFolder,
    read_recipe: Callable[[Path], Recipe],
    out: Path | None = None,
    without: Sequence[str] = (),
    read_moved: Callable[[Path], DataConfig] | None = None,
) -> Path:
    """Write the page of a suite; beside it the same as Markdown, its figures, and the measurements as CSV.

    Args:
        folder: The suite's folder.
        read_recipe: Reads a run's recipe.
        out: The page; report.html in the folder when not given.
        without: Sections to leave out, of "features" and "explanations", which take seconds for each variant.
        read_moved: Reads the data of a run's recipe where it lies now; where the recipe says when not given.

    Returns:
        The page.

    Raises:
        RunError: A table or a run folder that is missing or damaged.
        ConfigError: A page that is not called ``NAME.html``, or another section to leave out.
    """
    out = folder.report if out is None else out
    check_page(out)
    check_without(without)
    facts = folder.read_facts()
    results, summary, pairs = (folder.read_table(f) for f in (folder.results, folder.summary, folder.pairs))
    subjects = _subjects(results) if len(results) else []
    found = _measured(subjects, OpenedRuns(read_recipe, read_moved), without) if subjects else []
    shown = _pictures(facts, results, summary, pairs, subjects) if len(results) else []
    sections = [*(Section(picture.title, [], [(picture, figure)]) for picture, figure in shown), *found]
    metric = facts["metric_name"]
    unit, told = facts["unit"], captions(facts["unit"], facts["alpha"])
    tests = table_of_tests(summary, unit)
    tables = [
        *([] if tests is None else [tests]),
        suite_table("Variants", summary, SUMMARY, metric, unit, told[0]),
        suite_table("Comparisons", pairs, PAIRS, metric, unit, told[1]),
    ]
    tables = [table for table in tables if len(table.frame)]
    prose = {
        "incomplete": _incomplete(facts),
        "sentences": facts["sentences"],
        "method": facts["method"],
        "tables": tables,
        "base": f"All begin with {facts['recipe']}, at the seeds {', '.join(map(str, facts['seeds']))}"
        + ("." if facts["folds"] is None else f", in {plural(facts['folds'], 'fold')}."),
        "listed": suite_table("Runs", results, RUNS, metric, 1, told[2]),
    }
    titles = ["Summary", *(["Failed"] if facts["failures"] else []), *(table.name for table in tables)]
    more = {
        "about": facts["about"],
        "failures": facts["failures"],
        "variants": [{"name": v["name"], "told": _told(v["changes"])} for v in facts["variants"]],
        "before": [(title.lower(), title) for title in titles],
        "after": [("what", "What the variants are"), ("runs", "Runs")],
    }
    evaluated = (subjects[0].parts[0].metrics.get("data") or {}) if subjects else {}
    data = str(evaluated.get("path") or evaluated.get("source") or "")
    brief = suite_brief(facts, results, summary, pairs, data)
    runs = [part.run for subject in subjects for part in subject.parts]
    inputs = [run.modality for run in runs]
    names = [facts["title"], facts["about"], *(variant["name"] for variant in facts["variants"])]
    names += [name for run in runs for name in run.own_names]
    lead = folder.read_text()
    return write_page(out, facts["title"], brief, sections, "suite.html.j2", more, lead, inputs, names, prose)


def _subjects(results: pd.DataFrame) -> list[Subject]:
    """Return each variant with its runs."""
    subjects = []
    for name, rows in results.groupby("variant", sort=False):
        parts = [
            Evaluation.read(RunFolder(path), _evaluation(path, on))
            for path, on in zip(rows["run"], rows["evaluated_on"], strict=True)
        ]
        subjects.append(Subject(str(name), parts, "variant"))
    return subjects


def _measured(subjects: Sequence[Subject], opened: OpenedRuns, without: Sequence[str]) -> list[Section]:
    """Collect the measurements of each variant's runs, as far as all of its runs have them."""
    of_parts = subjects[0].parts[0].run.per_point
    return [
        *ranking(subjects),
        *measured.calibration(subjects),
        *measured.selective(subjects),
        *measured.prediction_sets(subjects),
        *robustness(subjects),
        *measured.cost(subjects),
        *([] if FEATURES in without or of_parts else feature_spaces(subjects)),
        *([] if EXPLANATIONS in without or of_parts else explained(subjects, opened)),
        *data_sections(subjects, opened.pictures),
    ]


def _evaluation(path: str, evaluated: str) -> Path:
    run = RunFolder(path)
    if not run.path.is_dir():
        raise RunError(
            f"there is no run folder {run}, seen from here; write the page in the folder where the suite ran, or "
            "run it again"
        )
    folders = run.evaluations()
    if evaluated not in folders:
        raise RunError(f"{run} has no evaluation {evaluated!r} any more; `vitrail compare` makes it again")
    return folders[evaluated]


def _pictures(
    facts: Mapping[str, Any],
    results: pd.DataFrame,
    summary: pd.DataFrame,
    pairs: pd.DataFrame,
    subjects: Sequence[Subject],
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
        figure = differences(pairs, axis, unit)
        pictures.append((Picture(kind.lower(), kind, caption, f"Differences in {axis}: {alt}"), figure))
    column, name = facts["curve"], facts["curve_name"]
    caption = (
        f"Validation loss and {name} by epoch: mean over the runs of a variant, with a 95 % band of that mean from "
        f"{FEWEST_FOR_BAND} runs on, and the single runs below that. From metrics.csv of the runs: {told}."
    )
    curves = {name: [RunFolder(path).read_metrics() for path in paths] for name, paths in runs_of.items()}
    alt = "; ".join(f"{n}: at most {max(t[column].max() for t in tables):.3g}" for n, tables in curves.items())
    picture = Picture("convergence", "Convergence", caption, f"Curves of each variant by epoch; {alt}")
    pictures.append((picture, convergence_bands(curves, column, name)))
    beginning = metric if metric == "mIoU" else metric[0].upper() + metric[1:]
    caption = (
        f"{beginning} against the time of one image (in batches, as measured) and against "
        f"the number of parameters; vertical lines are 95 % intervals over seeds. From summary.csv; runs: {told}."
    )
    alt = "; ".join(
        f"{r['variant']}: {r['mean']:.3g} at {r['milliseconds_per_image']:.3g} ms and {r['parameters']:,} parameters"
        for r in summary.to_dict("records")
    )
    figure = pareto(summary, metric, facts["higher_is_better"])
    pictures.append((Picture("pareto", "Accuracy against cost" if metric == "accuracy" else "Result against cost",
                             caption, alt), figure))  # fmt: skip
    if metric == "accuracy" and not subjects[0].parts[0].run.per_point:
        pictures.append(_beside_published(summary))
    pictures.append(_confusion(subjects, told))
    return pictures


def _beside_published(summary: pd.DataFrame) -> tuple[Picture, Figure]:
    """Draw the means of the variants beside the published results of the catalogue."""
    own = [
        CostPoint(
            row["variant"], "", OWN, 100 * row["mean"], 1e9 * row["gmacs"], row["parameters"],
            1000 / row["milliseconds_per_image"], "summary.csv",
        )
        for row in summary.to_dict("records")
    ]  # fmt: skip
    published = published_points(list(read_catalogue().variants.values()))
    caption = (
        "Means of the variants (stars) beside published results of ImageNet-1k by pre-training. The images differ: the "
        "chart compares cost, not accuracy. From summary.csv and the catalogue (`vitrail models --chart`)."
    )
    alt = "; ".join(f"{point.name}: {point.top1:.3g} % at {point.parameters:,} parameters" for point in own)
    return Picture("published", "Beside published results", caption, alt), draw_published([*published, *own], NOTE)


def _confusion(subjects: Sequence[Subject], runs: str) -> tuple[Picture, Figure | None]:
    """Add up the counts of all runs of each variant."""
    tables: dict[str, pd.DataFrame] = {}
    for subject in subjects:
        if not all(part.files.confusion.is_file() for part in subject.parts):
            return no_confusion()
        first, *others = (part.confusion() for part in subject.parts)
        tables[subject.label] = sum(others, start=first)
    what, kind = ("Labelled points", "part") if subjects[0].parts[0].run.per_point else ("Test images", "class")
    caption = (
        f"{what}, added up over the runs of each variant: {runs}. Counts, and per cent of the true {kind} with "
        f"those that are often confused side by side; the colour is the share of the true {kind}. From "
        "confusion.csv of each."
    )
    alt = "; ".join(f"{name}: {mixed_up(table)}" for name, table in tables.items())
    figure = draw_confusion(tables)
    return Picture("confusion", CONFUSION, caption, f"Confusion matrix of each variant; {alt}"), figure


def _incomplete(facts: Mapping[str, Any]) -> str:
    missing = facts["runs_planned"] - facts["runs_done"]
    if not missing:
        return ""
    done = count_of(facts["runs_done"], facts["runs_planned"], "run", "is", "are")
    return f"{done} done; what follows is from these alone."


def _told(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in changes.items()) or "the recipe as it is"
