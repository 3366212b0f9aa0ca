"""Learned structure of models: the pictures that ``vitrail explain --structure`` wrote into the run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from vitrail.analyze.structure import read_index
from vitrail.figures.picture import Picture, embed_written
from vitrail.outputs import STRUCTURE_FILE
from vitrail.report.evaluated import Section, Subject


def structures(subjects: Sequence[Subject], out: Path) -> list[Section]:
    """Show the structures of runs whose weights have not changed since.

    Args:
        subjects: Runs, one each.
        out: The page.

    Raises:
        RunError: A picture that is missing or damaged.
    """
    shown: list[tuple[Picture, Figure | None]] = []
    words = []
    for subject in subjects:
        run = subject.parts[0].run
        index = read_index(run.structure / STRUCTURE_FILE)
        if index is None:
            continue
        if not run.made_with(index.get("weights")):
            words.append(
                f"The structures of {subject.label} are of other weights than it holds now; "
                f"`vitrail explain {run} --structure all` renews them."
            )
            continue
        for name, entry in index["structures"].items():
            picture = Picture(
                f"structure_{subject.label}_{name}", entry["title"], f"{subject.label}: {entry['caption']}"
            )
            picture.alt = f"{entry['title']} of {subject.label}"
            shown.append((embed_written(picture, run.structure / f"{name}.png", entry["width"], out.parent), None))
    return [Section("What the model learned", words, shown)] if words or shown else []
