"""Clips on a page as players that work offline: correct and incorrect ones, beside the maps that explain them."""

from __future__ import annotations

from pathlib import Path

from vitrail.analyze.evaluated import Evaluation, OpenedRuns
from vitrail.analyze.players import Animated, animate_examples, choose_page_methods
from vitrail.errors import DataError
from vitrail.figures.animation import SLOW, write_animation
from vitrail.figures.picture import Picture, embed_animation
from vitrail.report.evaluated import Section
from vitrail.report.write import beside

# Bytes of an animation on a page; frames of a larger one are left out.
LARGEST = 700_000


def players(label: str, evaluation: Evaluation, opened: OpenedRuns, out: Path) -> Section:
    """Write clips of a run as animations, and embed them.

    Args:
        label: The run.
        evaluation: Its evaluation.
        opened: Opens the model and the clips.
        out: The page.
    """
    section = Section(f"Clips of {label}, and what it attends to")
    trained = opened.trained(evaluation)
    methods = choose_page_methods(trained)
    if not methods:
        section.words.append("No method of this page explains the model; `vitrail explain --methods` lists others.")
        return section
    try:
        found = animate_examples(evaluation, trained, opened.images(evaluation), methods)
    except DataError as error:
        section.words.append(f"Not drawn: {error}.")
        return section
    wrong = sum(not one.correct for one in found)
    section.words = [
        f"Each clip beside {' and '.join(methods)}; those that explain a class explain the predicted one. "
        "Predictions average the views of the evaluation; the clip and its maps are those of the middle. Colour runs "
        "from the smallest to the largest value of the clip. A plausible map need not be faithful.",
        "The most confident incorrect predictions come first." if wrong else "No prediction is incorrect.",
    ]
    for number, one in enumerate(found, start=1):
        section.shown.append((_player(f"clip_{label}_{number}", one, methods, out), None))
    return section


def _player(name: str, one: Animated, methods: list[str], out: Path) -> Picture:
    verdict = "correct" if one.correct else "incorrect"
    alt = f"{verdict}: clip beside {', '.join(methods)}"
    picture = Picture(name, one.prediction, f"{one.prediction}. {one.key}", alt)
    frames, rate = one.frames, SLOW
    while True:
        files = write_animation(frames, beside(out, "figures") / name, rate)
        if files[-1].stat().st_size <= LARGEST or len(frames) <= 2:
            return embed_animation(picture, files, frames, out.parent)
        frames, rate = frames[::2], rate / 2
