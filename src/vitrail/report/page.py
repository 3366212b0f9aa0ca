"""The report: one self-contained page, from run folders alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vitrail.analyze.evaluated import Evaluation, OpenedRuns
from vitrail.analyze.examples import Examples, choose_examples, learned_token_maps, rollout_maps, rollout_refusal
from vitrail.analyze.mistakes import draw_mistakes
from vitrail.analyze.side_by_side import SideBySide, methods_side_by_side
from vitrail.config.data import DataConfig
from vitrail.config.schema import Recipe
from vitrail.errors import ConfigError, DataError, plural
from vitrail.evaluate.results_table import read_evaluation, results_table
from vitrail.figures.attention import attention, learned_tokens
from vitrail.figures.heatmaps import RANK, draw_cells
from vitrail.figures.picture import Picture
from vitrail.figures.tables import Column, Table
from vitrail.figures.training import convergence
from vitrail.models.modality import VIDEO, describe_unmet
from vitrail.report import measured
from vitrail.report.curves import ranking
from vitrail.report.data import data_sections
from vitrail.report.evaluated import (
    CONFUSION,
    LoadedRun,
    Section,
    Subject,
    draw_confusion,
    interval_of,
    mixed_up,
    names_with_splits,
    no_confusion,
    sections_of,
)
from vitrail.report.export import exports
from vitrail.report.parts import write_parts_report
from vitrail.report.players import players
from vitrail.report.robust import robustness
from vitrail.report.run_brief import run_brief
from vitrail.report.run_facts import read_facts
from vitrail.report.side_by_side import (
    EXPLANATIONS,
    FEATURES,
    MISTAKES,
    check_without,
    feature_spaces,
)
from vitrail.report.structure import structures
from vitrail.report.write import check_page, write_page
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import TrainedModel

# Mistakes shown: as many as a phone shows legibly.
_MISTAKES = 12
_RESULTS = (
    Column("model", "model", "text"),
    Column("parameters", "parameters", "count"),
    Column("gmacs", "G multiply-adds", "number"),
    Column("accuracy", "accuracy (95 % interval)", "error", "accuracy_low", "accuracy_high"),
    Column("f1_macro", "macro F1", "error"),
    Column("train_images_per_second", "training images/s", "count"),
    Column("inference_images_per_second", "inference images/s", "count"),
)


def write_report(
    runs: Sequence[RunFolder],
    out: Path,
    read_recipe: Callable[[Path], Recipe],
    title: str = "",
    without: Sequence[str] = (),
    read_moved: Callable[[Path], DataConfig] | None = None,
) -> Path:
    """Write the page of one or several evaluated runs; beside it the same as Markdown, its figures, its tables as CSV.

    Args:
        runs: The runs, in the order in which to show them.
        out: The page, ``NAME.html``; ``NAME.md`` is written beside it. Figures go into ``figures/``, tables into
            ``tables/``; of a page of another name than report into folders of its own.
        read_recipe: Reads a run's recipe.
        title: Title of the page; the names of the runs when not given.
        without: Sections to leave out, of "features", "explanations" and "mistakes", which take seconds each.
        read_moved: Reads the data of a run's recipe where it lies now; where the recipe says when not given.

    Returns:
        ``out``.

    Raises:
        RunError: A run that has not been trained or evaluated, or not with the weights that it holds; a file that
            cannot be read or written.
        ConfigError: No run, the same name twice, runs that label points beside others, a page that is not called
            ``NAME.html``, or another section.
    """
    check_page(out)
    check_without(without)
    names = [run.name for run in runs]
    if not runs or len(set(names)) != len(names):
        raise ConfigError(f"a report needs runs with different folder names, got {', '.join(names) or 'none'}")
    loaded = [_read(run, read_recipe) for run in runs]
    if any(run.part.run.per_point for run in loaded):
        return write_parts_report(loaded, out, OpenedRuns(read_recipe, read_moved), title or _names(loaded), without)
    table = results_table(runs)
    subjects = [Subject(run.label, [run.part]) for run in loaded]
    opened = OpenedRuns(read_recipe, read_moved)
    sections = [
        _results(table, loaded),
        *data_sections(subjects, opened.pictures),
        *sections_of([_convergence(loaded), _confusion(loaded)]),
        *measured.classes(subjects),
        *ranking(subjects),
        *measured.calibration(subjects),
        *measured.selective(subjects),
        *measured.prediction_sets(subjects),
        *([] if MISTAKES in without else sections_of(_mistakes(loaded, opened))),
        *robustness(subjects),
        *measured.cost(subjects),
        *exports(subjects),
        *measured.others(subjects),
        *structures(subjects, out),
        *([] if FEATURES in without else feature_spaces(subjects)),
        *([] if EXPLANATIONS in without else _clips(loaded, opened, out)),
        *([] if EXPLANATIONS in without else sections_of(_explanations(loaded, opened))),
    ]
    brief = run_brief([read_facts(run.part, run.recipe, run.label) for run in loaded])
    return write_page(
        out,
        title or _names(loaded),
        brief,
        sections,
        "page.html.j2",
        {"runs": [run.details() for run in loaded], "facts": _facts(loaded)},
        inputs=[run.modality for run in runs],
        names=[name for run in runs for name in run.own_names],
    )


def _read(run: RunFolder, read_recipe: Callable[[Path], Recipe]) -> LoadedRun:
    part = Evaluation.read(run, read_evaluation(run)[0])
    return LoadedRun(run, read_recipe(run.recipe), part, run.name, run.read_json(run.environment))


def _results(table: pd.DataFrame, runs: list[LoadedRun]) -> Section:
    caption = (
        f"From metrics.json and metrics.csv of {names_with_splits(runs)}. Multiply-adds of one image; speeds as "
        "measured on the machine named under each run; that two intervals overlap or not is not a test of a difference"
    )
    return Section("Summary", _summary(table, runs), tables=[Table("results", caption + ".", table, _RESULTS)])


def _mistakes(runs: list[LoadedRun], opened: OpenedRuns) -> list[tuple[Picture, Figure | None]]:
    """Show the most confident mistakes of each run as images; nothing where a run made none."""
    result: list[tuple[Picture, Figure | None]] = []
    for run in runs:
        table = run.part.mistakes()
        if table is None or len(table) == 0:
            continue
        picture = Picture(f"mistakes_{run.label}", f"Confident mistakes of {run.label}", "")
        try:
            figure = draw_mistakes(opened.images(run.part), table, most=_MISTAKES)
        except DataError as error:
            picture.problem = f"Not drawn: {error}."
            result.append((picture, None))
            continue
        shown = table.head(_MISTAKES)
        picture.caption = (
            f"The incorrect predictions of highest confidence on {run.split_name} images: mislabelled images, or a "
            "weakness of the model. From mistakes.csv."
        )
        picture.alt = "Incorrect predictions: " + "; ".join(
            f"{row.true} predicted as {row.predicted}, {row.confidence:.0%}" for row in shown.itertuples(index=False)
        )
        result.append((picture, figure))
    return result


def _summary(table: pd.DataFrame, runs: list[LoadedRun]) -> list[str]:
    """State the result in words; no run is called better than another without a test that says so."""
    sentences = []
    for run, (_, row) in zip(runs, table.iterrows(), strict=True):
        sentences.append(
            f"{run.label}: {row['accuracy']:.1%} of {plural(run.metrics['images'], f'{run.split_name} image')} correct "
            + ("in all their labels " if "map" in run.metrics else "")
            + f"(95 % interval {row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}), "
            f"{row['parameters']:,} parameters."
        )
    return sentences


def _facts(runs: list[LoadedRun]) -> list[dict[str, str]]:
    """List the main facts, where the page is of one run."""
    if len(runs) > 1:
        return []
    metrics = runs[0].metrics
    intervals = metrics.get("intervals", {}).get("measures", {})

    share = "all labels correct" if "map" in metrics else "accuracy"
    note = interval_of(metrics["accuracy_low"], metrics["accuracy_high"])
    facts = [{"name": share, "value": f"{metrics['accuracy']:.3f}", "note": note}]
    if (clips := metrics.get("clips")) is not None:
        note = f"{share} averages {clips['views']} x {plural(clips['crops'], 'clip')} of each video"
        facts.append({"name": f"{share} of single clips", "value": f"{clips['accuracy']:.3f}", "note": note})
    for key, name in (("map", "mean average precision"), ("f1_macro", "macro F1")):
        if metrics.get(key) is not None:
            note = interval_of(*(intervals.get(key) or (None, None)))
            facts.append({"name": name, "value": f"{metrics[key]:.3f}", "note": note})
    if (found := metrics.get("calibration")) is not None:
        after = found.get("ece_after")
        note = "" if after is None else f"{after:.3f} after temperature"
        facts.append({"name": "calibration error", "value": f"{found['ece']:.3f}", "note": note})
    efficiency = metrics["efficiency"]
    facts.append(
        {
            "name": "images a second", "value": f"{efficiency['inference_images_per_second']:,.0f}",
            "note": f"{efficiency.get('device', '')}, in batches".removeprefix(", "),
        }
    )  # fmt: skip
    parameters = efficiency["parameters"]
    told = f"{parameters / 1e6:.3g} M" if parameters >= 1e6 else f"{parameters:,}"
    facts.append({"name": "parameters", "value": told, "note": f"{efficiency['gmacs']:.3g} G multiply-adds"})
    return facts


def _convergence(runs: list[LoadedRun]) -> tuple[Picture, Figure]:
    figure = convergence({run.label: run.folder.read_metrics() for run in runs})
    return Picture(
        "convergence",
        "Convergence",
        f"Cross-entropy and accuracy by epoch, from metrics.csv of {_names(runs)}. The training loss is smoothed "
        "where the recipe says so and measured on augmented images while the weights still move; "
        "the validation loss is neither.",
        "Curves of loss and accuracy by epoch for training and validation",
    ), figure


def _confusion(runs: list[LoadedRun]) -> tuple[Picture, Figure | None]:
    runs = [run for run in runs if not run.part.multi_label]
    if not runs:
        return no_confusion()
    tables = {run.label: run.part.confusion() for run in runs}
    return Picture(
        "confusion",
        CONFUSION,
        f"Images of {names_with_splits(runs)}: counts, and per cent of the true class with classes that are often "
        "confused side by side. The colour is the share of the true class. From confusion.csv.",
        "Confusion matrix of each run; " + "; ".join(f"{name}: {mixed_up(table)}" for name, table in tables.items()),
    ), draw_confusion(tables)


def _clips(runs: list[LoadedRun], opened: OpenedRuns, out: Path) -> list[Section]:
    return [players(run.label, run.part, opened, out) for run in runs if run.folder.modality is VIDEO]


def _explanations(runs: list[LoadedRun], opened: OpenedRuns) -> list[tuple[Picture, Figure | None]]:
    result: list[tuple[Picture, Figure | None]] = []
    for run in runs:
        trained = opened.trained(run.part)
        title = f"What {run.label} attends to"
        try:
            data = opened.images(run.part)
            examples = choose_examples(run.folder, trained, data, run.name)
        except DataError as error:
            result.append((Picture(f"attention_{run.label}", title, "", problem=f"Not drawn: {error}."), None))
            continue
        if trained.card.modality is not VIDEO:  # clips move: see the players
            result.append(_rollouts(run, trained, examples, title))
        if (methods := methods_side_by_side(trained, data, examples)) is not None:
            result.append(_compared(run, methods))
        if (tokens := learned_token_maps(trained, examples)) is not None:
            picture = Picture(
                f"tokens_{run.label}",
                f"What each learned token of {run.label} attends to",
                f"Selection weights of {run.label}'s TokenLearner, relative to an even spread (Ryoo et al. 2021)."
                + (" Only the first eight tokens are drawn." if tokens.shape[1] > 8 else ""),
                "Images with the selection map of each learned token laid over them",
            )
            figure = learned_tokens(examples.images[:5], tokens[:5, :8], examples.titles[:5])
            result.append((picture, figure))
    return result


def _rollouts(run: LoadedRun, trained: TrainedModel, examples: Examples, title: str) -> tuple[Picture, Figure | None]:
    """Draw the attention rollout of each example, a row for each stream."""
    if (refusal := rollout_refusal(trained)) is not None:
        problem = f"No attention rollout: {refusal}."
        return Picture(f"attention_{run.label}", title, "", problem=problem), None
    maps = rollout_maps(trained, examples)
    picture = Picture(
        f"attention_{run.label}",
        title,
        f"Attention rollout of {run.label} on {run.split_name} images, relative to an even spread over the image "
        "(Abnar & Zuidema 2020)." + (" A row for each stream; both are laid over the image." if len(maps) > 1 else ""),
        "Images with attention rollout laid over them",
    )
    named = {run.label if len(maps) == 1 else f"{run.label}\n{stream}": found for stream, found in maps.items()}
    return picture, attention(examples.images, named, examples.titles)


def _compared(run: LoadedRun, found: SideBySide) -> tuple[Picture, Figure]:
    """Draw a few of the examples by several methods."""
    unmeasured = describe_unmet("explain --measure", run.folder.modality, "")
    picture = Picture(
        f"methods_{run.label}",
        f"What {run.label} looks at, by several methods",
        f"{found.images} of these images, by each method in the same way: by rank of its values, with a "
        "line around the top 10 % of its pixels; those that explain a class explain the predicted one. "
        "A plausible map need not be faithful"
        + ("." if unmeasured else ": `vitrail explain --measure` measures that.")
        + (f" Not for this model: {'; '.join(found.problems)}." if found.problems else ""),
        "Images beside the attributions of several methods",
    )
    return picture, draw_cells(found.cells, found.labels, RANK)


def _names(runs: list[LoadedRun]) -> str:
    return ", ".join(run.label for run in runs)
