"""Sections that show several models side by side: feature spaces and attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from vitrail.analyze.evaluated import Evaluation, OpenedRuns
from vitrail.analyze.features import FEWEST_POINTS, embed_in_plane, read_embeddings, separation
from vitrail.analyze.side_by_side import models_side_by_side
from vitrail.errors import ConfigError, plural
from vitrail.figures.feature_space import feature_space
from vitrail.figures.heatmaps import EVEN, draw_cells
from vitrail.figures.picture import Picture
from vitrail.report.evaluated import Section, Subject

# Limits that keep figures readable and the computation below a minute.
_MOST_MODELS = 8
_MOST_POINTS = 1000

# Sections that take seconds for each run.
FEATURES, EXPLANATIONS, MISTAKES = "features", "explanations", "mistakes"
OPTIONAL = (FEATURES, EXPLANATIONS, MISTAKES)


def check_without(names: Sequence[str]) -> None:
    """Validate the names of sections to leave out.

    Raises:
        ConfigError: An unknown name.
    """
    for name in names:
        if name not in OPTIONAL:
            raise ConfigError(f"--without {name}: a page can do without {', '.join(OPTIONAL)}")


def feature_spaces(subjects: Sequence[Subject]) -> list[Section]:
    """Draw t-SNE of the inputs of each classifier: one figure for all runs of the same classes.

    Args:
        subjects: Runs, or variants, of which the first run is drawn.

    Raises:
        RunError: Embeddings that are missing, damaged or of other predictions.
    """
    title = "Feature space"
    groups: dict[tuple[str, ...], list[Subject]] = {}
    for subject in subjects:
        card = subject.parts[0].run.read_json(subject.parts[0].run.card)
        if card.get("label_separator") is not None:
            problem = "Not drawn: a point has one colour, and images are multi-label."
            return [Section(title, [], [(Picture("features", title, "", problem=problem), None)])]
        groups.setdefault(tuple(card["classes"]), []).append(subject)
    shown: list[tuple[Picture, Figure | None]] = []
    for number, (classes, group) in enumerate(groups.items(), start=1):
        drawn, names = _one_of_each(group)
        points, words = {}, []
        for label, part in drawn:
            embeddings, targets = read_embeddings(part.run, part.name)
            if len(targets) < FEWEST_POINTS:
                continue
            layout, rows = embed_in_plane(embeddings, _MOST_POINTS)
            silhouette, neighbours = separation(embeddings[rows], targets[rows])
            measured = "" if neighbours is None else f"\nsilhouette {silhouette:.2f}, neighbours {neighbours:.1%}"
            points[f"{label}{measured}"] = (layout, targets[rows])
            words.append(f"{label}{measured}".replace("\n", ": "))
        picture = Picture(
            "features" + ("" if number == 1 else f"_{number}"),
            title,
            f"t-SNE of the classifier's inputs of {names}: at most {_MOST_POINTS:,} images each. Distances between "
            "far groups mean little in t-SNE. Above each, before anything is laid out: how well its classes hold "
            "together (mean silhouette, -1 to 1) and the share of images whose nearest neighbours are of their class.",
            f"Images as points in the plane, coloured by class; {'; '.join(words)}",
        )
        if points:
            shown.append((picture, feature_space(points, classes)))
        else:
            picture.problem = f"Not drawn: t-SNE needs at least {FEWEST_POINTS} images."
            shown.append((picture, None))
    return [Section(title, [], shown)]


def _one_of_each(subjects: Sequence[Subject], models: bool = False) -> tuple[list[tuple[str, Evaluation]], str]:
    """Choose the first run of each subject, equal ones once; and list them for a caption.

    Args:
        subjects: Runs or variants.
        models: Whether two evaluations of one model are equal.
    """
    drawn: dict[tuple[Path, str], tuple[list[str], Evaluation]] = {}
    for subject in subjects:
        part = subject.parts[0]
        key = part.run.path, "" if models else part.name
        drawn.setdefault(key, ([], part))[0].append(subject.label)
    result = [(", ".join(labels), part) for labels, part in drawn.values()]
    names = "; ".join(_named(label, part) for label, part in result[:_MOST_MODELS])
    first = "the first run of " if any(len(subject.parts) > 1 for subject in subjects) else ""
    more = f" (the first {_MOST_MODELS} of {len(result)})" if len(result) > _MOST_MODELS else ""
    return result[:_MOST_MODELS], f"{first}{names}{more}"


def _named(label: str, part: Evaluation) -> str:
    on = f"({part.name})"
    return f"{label} {on}" if label == part.run.name else f"{label}: {part.run.name} {on}"


def explained(subjects: Sequence[Subject], opened: OpenedRuns) -> list[Section]:
    """Draw the attention rollout of the same few images through each model, all on one scale.

    Args:
        subjects: Variants that were tested on the same images; the first run of each is drawn.
        opened: Opens models and images.
    """
    title = "What the variants look at"
    drawn, names = _one_of_each(subjects, models=True)
    found = models_side_by_side(drawn, opened)
    if not found.cells:
        return [Section(title, found.problems)]
    caption = (
        f"Attention rollout (Abnar & Zuidema 2020) of the same {plural(found.images, 'test image')} through {names}, "
        "in multiples of an even spread over the image, all on one scale; a line encloses the top 10 % of the "
        "pixels. Above each the prediction. A row for each stream where a model has several. That two maps differ does "
        "not show that one of them is faithful: `vitrail explain --measure` measures that."
    )
    alt = f"{plural(found.images, 'image')}, and below what {', '.join(label for label, _ in drawn)} looked at"
    picture = Picture("explanations", title, caption, alt)
    return [Section(title, found.problems, [(picture, draw_cells(found.cells, found.labels, EVEN))])]
