"""Folders that vitrail writes, and how they are recognised where they lie among images."""

from __future__ import annotations

from collections.abc import Collection

RECIPE_FILE = "recipe.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.csv"
CHECKPOINTS = "checkpoints"
EXPLANATIONS_FILE = "explanations.json"
STRUCTURE_FILE = "structure.json"

# What a figure says of itself, so that it is known where it lies among images.
FIGURE_METADATA = {"Software": "vitrail"}
FIGURE_MARK = b"Software\0vitrail"
SVG_METADATA = {"Date": None, "Creator": "vitrail"}
SVG_MARK = b"<dc:title>vitrail</dc:title>"

# One name of the first set beside one of the second make a folder one of ours.
_MARKS: tuple[tuple[frozenset[str], frozenset[str]], ...] = (
    # A run folder.
    (
        frozenset({RECIPE_FILE}),
        frozenset({ENVIRONMENT_FILE, METRICS_FILE, CHECKPOINTS, "model.json", "model.safetensors"}),
    ),
    # `vitrail explain --out`.
    (frozenset({EXPLANATIONS_FILE}), frozenset({"panels", "overlays", "maps"})),
    # A suite, and the folder of `vitrail demo`.
    (frozenset({"results.csv"}), frozenset({"suite.md", "summary.csv", "report.html"})),
    # An export.
    (frozenset({"export.json"}), frozenset({"check.npz"})),
)


def is_output_folder(names: Collection[str]) -> bool:
    """Return whether a folder was written by vitrail: a run, a suite, explanations, an export.

    Args:
        names: Names of the files and folders directly in it.
    """
    found = set(names)
    return any(found & first and found & second for first, second in _MARKS)
