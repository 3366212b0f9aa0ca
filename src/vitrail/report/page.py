"""The report: one self-contained page, from run folders alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from vitrail import __version__
from vitrail.config.load import dump_recipe
from vitrail.config.schema import Recipe
from vitrail.data.dataset import ImageData
from vitrail.errors import ConfigError, DataError, RunError
from vitrail.evaluate.table import read_evaluation, results_table
from vitrail.files import replacing, write_text
from vitrail.report import figures, pictures
from vitrail.report.explanations import explain_images
from vitrail.report.heatmaps import RANK, Cell, draw_cells, explained_cells, maps_of
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import TrainedModel, load_trained

_HEADINGS = {
    "model": "model",
    "parameters": "parameters",
    "gmacs": "G multiply-adds",
    "accuracy": "accuracy (95 % interval)",
    "f1_macro": "macro F1",
    "train_images_per_second": "training images/s",
    "inference_images_per_second": "inference images/s",
}


@dataclass
class Picture:
    """A figure on the page.

    Attributes:
        name: Of its files in the figures folder.
        title: Heading.
        caption: What it shows and which runs it came from.
        alt: For those who cannot see it.
        data_uri: The image itself.
        problem: Why there is no image, where there is none.
    """

    name: str
    title: str
    caption: str
    alt: str = ""
    data_uri: str = ""
    problem: str = ""


@dataclass
class _Run:
    folder: RunFolder
    recipe: Recipe
    evaluation: Path
    metrics: dict[str, Any]
    label: str = ""
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the evaluated images: a split, or other data."""
        return str(self.metrics["name"])


def write_report(
    runs: Sequence[RunFolder], out: Path, read_recipe: Callable[[Path], Recipe], title: str = "vitrail report"
) -> Path:
    """Write the page of one or several evaluated runs, and its figures as PNG and SVG beside it.

    Args:
        runs: The runs, in the order in which to show them.
        out: The page; figures go into ``figures/`` beside it.
        read_recipe: Reads a run's recipe.
        title: Of the page.

    Returns:
        ``out``.

    Raises:
        RunError: A run that has not been trained or evaluated, or a file that cannot be read or written.
        ConfigError: No run, or the same name twice.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) != len(names):
        raise ConfigError(f"a report needs runs with different folder names, got {', '.join(names) or 'none'}")
    loaded = []
    for run in runs:
        evaluation, metrics = read_evaluation(run)
        environment = run.read_json(run.environment)
        loaded.append(_Run(run, read_recipe(run.recipe), evaluation, metrics, run.name, environment))
    table = results_table(runs)
    folder = out.parent / "figures"
    shown = [_convergence(loaded), _confusion(loaded), *_feature_spaces(loaded), *_explanations(loaded)]
    finished = [finish_picture(picture, figure, folder) for picture, figure in shown]
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("vitrail.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html.j2")
    text = template.render(
        title=title,
        version=__version__,
        summary=_summary(table, loaded),
        columns=_HEADINGS,
        rows=_format_rows(table),
        pictures=finished,
        runs=[
            {
                "name": run.label,
                "path": str(run.folder.path),
                "recipe": dump_recipe(run.recipe),
                "environment": {k: v for k, v in run.environment.items() if k != "resumed_from"},
            }
            for run in loaded
        ],
    )
    write_text(out, text)
    return out


def _summary(table: pd.DataFrame, runs: list[_Run]) -> list[str]:
    """The result in words; no run is called better than another without a test that says so."""
    sentences = []
    for run, (_, row) in zip(runs, table.iterrows(), strict=True):
        sentences.append(
            f"{run.label}: {row['accuracy']:.1%} of {run.metrics['images']} {_split_name(run)} images right "
            + ("in all their labels " if "map" in run.metrics else "")
            + f"(95 % interval {row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}), "
            f"{row['parameters']:,} parameters."
        )
    return sentences


def _split_name(run: _Run) -> str:
    return {"val": "validation", "train": "training"}.get(run.name, run.name)


def _format_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "model": str(row["model"]),
            "parameters": f"{row['parameters']:,}",
            "gmacs": f"{row['gmacs']:.3g}",
            "accuracy": f"{row['accuracy']:.4f} ({row['accuracy_low']:.4f} to {row['accuracy_high']:.4f})",
            "f1_macro": f"{row['f1_macro']:.4f}",
            "train_images_per_second": f"{row['train_images_per_second']:,.0f}",
            "inference_images_per_second": f"{row['inference_images_per_second']:,.0f}",
        }
        for _, row in table.iterrows()
    ]


def _convergence(runs: list[_Run]) -> tuple[Picture, Figure]:
    figure = figures.convergence({run.label: run.folder.read_metrics() for run in runs})
    return Picture(
        "convergence",
        "Convergence",
        f"Cross-entropy and accuracy by epoch, from metrics.csv of {_names(runs)}. The training loss is smoothed "
        "where the recipe says so and measured on augmented images while the weights still move; "
        "the validation loss is neither.",
        "Curves of loss and accuracy by epoch for training and validation",
    ), figure


def _several_labels(run: _Run) -> bool:
    return run.folder.read_json(run.folder.card).get("label_separator") is not None


def _confusion(runs: list[_Run]) -> tuple[Picture, Figure | None]:
    runs = [run for run in runs if not _several_labels(run)]
    if not runs:
        problem = "Not drawn: where an image has several labels, none of them is taken for another."
        return Picture("confusion", "Confusion matrices", "", problem=problem), None
    tables = {run.label: pd.read_csv(run.folder.require(run.evaluation / "confusion.csv"), index_col=0) for run in runs}
    return Picture(
        "confusion",
        "Confusion matrices",
        f"Counts on the images of {_names_with_splits(runs)}; the colour is the share of the true class.",
        "Confusion matrix of each run",
    ), figures.confusion(tables)


def _feature_spaces(runs: list[_Run]) -> list[tuple[Picture, Figure | None]]:
    """One figure for the runs of the same classes: a colour means the same in all of its panels."""
    groups: dict[tuple[str, ...], list[_Run]] = {}
    for run in runs:
        if _several_labels(run):
            problem = "Not drawn: a point has one colour, and images have several labels."
            return [(Picture("features", "Feature space", "", problem=problem), None)]
        groups.setdefault(tuple(run.folder.read_json(run.folder.card)["classes"]), []).append(run)
    result: list[tuple[Picture, Figure | None]] = []
    for number, (classes, group) in enumerate(groups.items(), start=1):
        picture = Picture(
            f"features{'' if number == 1 else f'_{number}'}",
            "Feature space",
            f"t-SNE of what the classifier sees of the images of {_names_with_splits(group)}. "
            "Distances between far groups mean little in t-SNE.",
            "Images as points in the plane, coloured by class",
        )
        points: dict[str, tuple[Any, Any]] = {}
        for run in group:
            embeddings = run.folder.read_embeddings(run.name)
            targets = run.folder.read_predictions(run.name)["target"].to_numpy()
            if len(embeddings) != len(targets):
                raise RunError(
                    f"{run.folder}: {len(embeddings)} embeddings for {len(targets)} predictions; evaluate it again"
                )
            if len(targets) >= pictures.FEWEST_POINTS:
                layout, rows = pictures.embed_in_plane(embeddings)
                points[run.label] = (layout, targets[rows])
        if points:
            result.append((picture, figures.feature_space(points, classes)))
        else:
            picture.problem = f"Not drawn: t-SNE needs at least {pictures.FEWEST_POINTS} images."
            result.append((picture, None))
    return result


def _explanations(runs: list[_Run]) -> list[tuple[Picture, Figure | None]]:
    result: list[tuple[Picture, Figure | None]] = []
    for run in runs:
        trained = load_trained(run.folder)
        what = f"What {run.label} attends to"
        try:
            data = pictures.open_evaluated_images(trained, run.recipe.data, run.metrics["data"])
            examples = pictures.choose_examples(run.folder, trained, data, run.name)
            maps = pictures.rollout_maps(trained, examples)
        except DataError as error:
            result.append((Picture(f"attention_{run.label}", what, "", problem=f"Not drawn: {error}."), None))
            continue
        picture = Picture(
            f"attention_{run.label}",
            what,
            f"Attention rollout of {run.label} on {_split_name(run)} images, relative to an even spread over the image "
            "(Abnar & Zuidema 2020)."
            + (" A row for each stream; both are laid over the image." if len(maps) > 1 else ""),
            "Images with attention rollout laid over them",
        )
        named = {run.label: maps["image"]} if len(maps) == 1 else {f"{run.label}\n{s}": m for s, m in maps.items()}
        result.append((picture, figures.attention(examples.images, named, examples.titles)))
        compared = _compared(run, trained, data, examples)
        if compared is not None:
            result.append(compared)
        if getattr(trained.model, "token_learners", None):
            tokens = pictures.learned_token_maps(trained, examples)
            picture = Picture(
                f"tokens_{run.label}",
                f"What each learned token of {run.label} looks at",
                f"Selection weights of {run.label}'s TokenLearner, relative to an even spread (Ryoo et al. 2021)."
                + (" Only the first eight tokens are drawn." if tokens.shape[1] > 8 else ""),
                "Images with the selection map of each learned token laid over them",
            )
            rows = slice(0, 5)
            result.append(
                (
                    picture,
                    figures.learned_tokens(examples.images[rows], tokens[rows, :8], examples.titles[rows]),
                )
            )
    return result


def _compared(
    run: _Run, trained: TrainedModel, data: ImageData, examples: pictures.Examples
) -> tuple[Picture, Figure] | None:
    """A few of the examples by several methods; None where there is but one."""
    methods, refused = pictures.choose_methods(trained)
    if len(methods) < 2:
        return None
    # The examples are in the order of their classes.
    chosen = examples.indices[:: max(1, len(examples.indices) // pictures.COMPARED)][: pictures.COMPARED]
    cells: list[list[Cell | None]] = []
    labels: list[str] = []
    for seen in explain_images(trained, data, chosen, {name: {} for name in methods}):
        maps = {method: maps_of(explanation, seen.row) for method, explanation in seen.explanations.items()}
        titles = {"": "image", **{name: name for name in maps}} if not cells else {"": "", **dict.fromkeys(maps, "")}
        rows, streams = explained_cells(seen.pictures, maps, titles)
        cells += rows
        labels += [f"{seen.told()}\n{stream}".strip() for stream in streams]
    picture = Picture(
        f"methods_{run.label}",
        f"What {run.label} looks at, by several methods",
        f"{len(chosen)} of these images, by each method in the same way: by rank of its values, with a "
        "line around the tenth of the image with the largest; those that explain a class explain the predicted one. "
        "That a map looks right does not show that it is: `vitrail explain --measure` measures that."
        + (f" Not for this model: {'; '.join(refused)}." if refused else ""),
        "Images beside what several methods say that the model looked at",
    )
    return picture, draw_cells(cells, labels, RANK)


def _names_with_splits(runs: list[_Run]) -> str:
    return ", ".join(f"{run.label} ({_split_name(run)})" for run in runs)


def _names(runs: list[_Run]) -> str:
    return ", ".join(run.label for run in runs)


def finish_picture(picture: Picture, figure: Figure | None, folder: Path) -> Picture:
    """Write a figure as PNG and SVG, and put it into its picture; without a figure there is nothing to do.

    Args:
        picture: What it is.
        figure: The figure.
        folder: Where the files go.
    """
    if figure is None:
        return picture
    for kind in ("svg", "png"):
        buffer = io.BytesIO()
        figure.savefig(
            buffer,
            format=kind,
            dpi=150,
            bbox_inches="tight",
            metadata={"Date": None} if kind == "svg" else None,
        )
        with replacing(folder / f"{picture.name}.{kind}") as temporary:
            temporary.write_bytes(buffer.getvalue())
        if kind == "png":
            picture.data_uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return picture
