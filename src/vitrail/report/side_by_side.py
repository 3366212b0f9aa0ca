"""What several models make of the same images, side by side: where they put them, and what they look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from vitrail.analyze import examples as pictures
from vitrail.analyze.explanations import Seen, explain_images
from vitrail.config.data import DataConfig
from vitrail.config.schema import Recipe
from vitrail.data.dataset import ImageData
from vitrail.errors import ConfigError, DataError, RunError
from vitrail.explain.methods.registry import METHODS
from vitrail.figures import confusion as figures
from vitrail.figures.display import as_pictures
from vitrail.figures.heatmaps import EVEN, Cell, draw_cells, in_even_spreads, maps_of
from vitrail.figures.picture import Picture, shorten
from vitrail.report.data import Look
from vitrail.report.evaluated import Part, Section, Subject
from vitrail.report.features import separation
from vitrail.runs.trained import TrainedModel, load_trained

# What a reader takes in, and what takes seconds and not minutes.
_MOST_MODELS = 8
_MOST_IMAGES = 6
_MOST_POINTS = 1000
_MOST_LETTERS = 18
_METHOD = "rollout"

# Sections that take time, and that a page can do without.
FEATURES, EXPLANATIONS, MISTAKES = "features", "explanations", "mistakes"
OPTIONAL = (FEATURES, EXPLANATIONS, MISTAKES)


def check_without(names: Sequence[str]) -> None:
    """Refuse to leave out what is on no page.

    Raises:
        ConfigError: An unknown name.
    """
    for name in names:
        if name not in OPTIONAL:
            raise ConfigError(f"--without {name}: a page can do without {', '.join(OPTIONAL)}")


class Shelf:
    """The models and images of evaluated runs, opened when they are needed; images of a run once.

    Args:
        read_recipe: Reads a run's recipe.
        read_moved: Reads the data of a recipe where it lies now; where the recipe says when not given.
    """

    def __init__(
        self, read_recipe: Callable[[Path], Recipe], read_moved: Callable[[Path], DataConfig] | None = None
    ) -> None:
        self._read_recipe, self._read_moved = read_recipe, read_moved
        self._images: dict[Path, ImageData] = {}
        # One model at a time: those of a suite together may not fit.
        self._model: tuple[Path, TrainedModel] | None = None

    def trained(self, part: Part) -> TrainedModel:
        """A run's model.

        Raises:
            RunError: It has none, or a damaged one.
        """
        if self._model is None or self._model[0] != part.run.path:
            self._model = part.run.path, load_trained(part.run)
        return self._model[1]

    def images(self, part: Part) -> ImageData:
        """The images that a run was evaluated on, prepared as in training.

        Raises:
            DataError: They cannot be opened.
        """
        if part.run.path not in self._images:
            own: DataConfig = self._read_recipe(part.run.recipe).data
            now = own if self._read_moved is None else self._read_moved(part.run.recipe)
            self._images[part.run.path] = pictures.open_evaluated_images(
                part.run, self.trained(part).card, own, now, part.metrics
            )
        return self._images[part.run.path]

    def look(self, part: Part) -> Look:
        """What shows images of a run by what they are called."""

        def shown(keys: Sequence[str]) -> list[npt.NDArray[Any]]:
            data = self.images(part)
            streams = data.load(pictures.places_of(data, keys))
            return list(as_pictures(streams["image"], data.source.bands["image"]))

        return shown


def feature_spaces(subjects: Sequence[Subject]) -> list[Section]:
    """t-SNE of what the classifier of each sees of its images: one figure for those of the same classes.

    Args:
        subjects: What is shown side by side; of a variant its first run.

    Raises:
        RunError: Embeddings that are missing, damaged or of other predictions.
    """
    title = "Feature space"
    groups: dict[tuple[str, ...], list[Subject]] = {}
    for subject in subjects:
        card = subject.parts[0].run.read_json(subject.parts[0].run.card)
        if card.get("label_separator") is not None:
            problem = "Not drawn: a point has one colour, and images have several labels."
            return [Section(title, [], [(Picture("features", title, "", problem=problem), None)])]
        groups.setdefault(tuple(card["classes"]), []).append(subject)
    shown: list[tuple[Picture, Figure | None]] = []
    for number, (classes, group) in enumerate(groups.items(), start=1):
        drawn, told = _one_of_each(group)
        points, words = {}, []
        for label, part in drawn:
            embeddings, targets = _embeddings(part)
            if len(targets) < pictures.FEWEST_POINTS:
                continue
            layout, rows = pictures.embed_in_plane(embeddings, _MOST_POINTS)
            silhouette, neighbours = separation(embeddings[rows], targets[rows])
            measured = "" if neighbours is None else f"\nsilhouette {silhouette:.2f}, neighbours {neighbours:.1%}"
            points[f"{label}{measured}"] = (layout, targets[rows])
            words.append(f"{label}{measured}".replace("\n", ": "))
        picture = Picture(
            "features" + ("" if number == 1 else f"_{number}"),
            title,
            f"t-SNE of what the classifier sees of {told}: at most {_MOST_POINTS:,} images each. Distances between "
            "far groups mean little in t-SNE. Above each, before anything is laid out: how well its classes hold "
            "together (mean silhouette, -1 to 1) and the share of images whose nearest neighbours are of their class.",
            f"Images as points in the plane, coloured by class; {'; '.join(words)}",
        )
        if points:
            shown.append((picture, figures.feature_space(points, classes)))
        else:
            picture.problem = f"Not drawn: t-SNE needs at least {pictures.FEWEST_POINTS} images."
            shown.append((picture, None))
    return [Section(title, [], shown)]


def _embeddings(part: Part) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    name = str(part.metrics["name"])
    embeddings = part.run.read_embeddings(name)
    targets = part.run.read_predictions(name)["target"].to_numpy()
    if len(embeddings) != len(targets):
        raise RunError(f"{part.run}: {len(embeddings)} embeddings for {len(targets)} predictions; evaluate it again")
    return embeddings, targets


def _one_of_each(subjects: Sequence[Subject], models: bool = False) -> tuple[list[tuple[str, Part]], str]:
    """The first run of each, those that are the same together; and which they are, for a caption.

    Args:
        subjects: What is shown side by side.
        models: Whether two evaluations of one model are the same.
    """
    drawn: dict[tuple[Path, str], tuple[list[str], Part]] = {}
    for subject in subjects:
        part = subject.parts[0]
        key = part.run.path, "" if models else str(part.metrics["name"])
        drawn.setdefault(key, ([], part))[0].append(subject.label)
    result = [(", ".join(labels), part) for labels, part in drawn.values()]
    told = "; ".join(_named(label, part) for label, part in result[:_MOST_MODELS])
    first = "the first run of " if any(len(subject.parts) > 1 for subject in subjects) else ""
    more = f" (the first {_MOST_MODELS} of {len(result)})" if len(result) > _MOST_MODELS else ""
    return result[:_MOST_MODELS], f"{first}{told}{more}"


def _named(label: str, part: Part) -> str:
    on = part.metrics["name"]
    return f"{label} ({on})" if label == part.run.name else f"{label}: {part.run.name} ({on})"


def explained(subjects: Sequence[Subject], shelf: Shelf) -> list[Section]:
    """Attention rollout of the same few images through each model, all on one scale.

    Args:
        subjects: Variants that were tested on the same images; of each its first run.
        shelf: Opens models and images.
    """
    title = "What the variants look at"
    drawn, told = _one_of_each(subjects, models=True)
    cells: list[list[Cell | None]] = []
    labels: list[str] = []
    problems: list[str] = []
    keys: list[str] = []
    images = 0
    for label, part in drawn:
        try:
            trained, data = shelf.trained(part), shelf.images(part)
            refusal = METHODS[_METHOD].refusal(trained.model)
            if refusal is not None:
                problems.append(f"{label}: {refusal}.")
                continue
            keys = keys or _chosen(part, trained)
            seen = list(explain_images(trained, data, pictures.places_of(data, keys), {_METHOD: {}}))
        except (DataError, RunError) as error:
            problems.append(f"{label} is not drawn: {error}.")
            continue
        if not cells:
            cells.append([Cell(_picture(one), title=shorten(one.true, _MOST_LETTERS)) for one in seen])
            labels.append("image")
            images = len(seen)
        rows, names = _rows(seen, label)
        cells += rows
        labels += names
    if not cells:
        return [Section(title, problems)]
    caption = (
        f"Attention rollout (Abnar & Zuidema 2020) of the same {images} test images through {told}, in multiples of an "
        "even spread over the image, all on one scale; a line encloses the tenth with the largest values. Above each "
        "the prediction. A row for each stream where a model has several. That two maps differ does not show that "
        "one of them is faithful: `vitrail explain --measure` measures that."
    )
    alt = f"{images} images, and below them what {', '.join(label for label, _ in drawn)} looked at"
    picture = Picture("explanations", title, caption, alt)
    return [Section(title, problems, [(picture, draw_cells(cells, labels, EVEN))])]


def _chosen(part: Part, trained: TrainedModel) -> list[str]:
    """The first image of each class, then the second of each, by their names."""
    table = part.run.read_predictions(str(part.metrics["name"])).sort_values(["path"])
    if trained.card.multi_label:
        return list(table["path"].head(_MOST_IMAGES))
    turn = table.groupby("target").cumcount()
    chosen = table.assign(turn=turn).sort_values(["turn", "target"], kind="stable").head(_MOST_IMAGES)
    return list(chosen.sort_values(["target", "turn"], kind="stable")["path"])


def _rows(seen: Sequence[Seen], label: str) -> tuple[list[list[Cell | None]], list[str]]:
    """A row for each stream of a model: its map over the image, and above it what the model said."""
    streams = list(maps_of(seen[0].explanations[_METHOD], seen[0].row))
    rows: list[list[Cell | None]] = []
    labels = []
    for number, stream in enumerate(streams):
        row: list[Cell | None] = []
        for one in seen:
            heat = in_even_spreads(maps_of(one.explanations[_METHOD], one.row)[stream])
            said = ""
            if number == 0 and one.predicted:
                mark = "" if not one.true or one.true == one.predicted else "predicted: "
                said = f"{mark}{shorten(one.predicted, _MOST_LETTERS)} {one.probability:.0%}"
            row.append(Cell(one.pictures.get(stream, _picture(one)), heat, METHODS[_METHOD].signed, said))
        rows.append(row)
        name = label.replace(", ", ",\n")
        labels.append(name if len(streams) == 1 else f"{name}\n{stream}")
    return rows, labels


def _picture(one: Seen) -> npt.NDArray[Any]:
    return next(iter(one.pictures.values()))
