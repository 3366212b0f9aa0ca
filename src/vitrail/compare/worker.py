"""Execute one run of a suite in a process of its own: ``python -m vitrail.compare.worker RECIPE VIEWS``."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from vitrail.config.load import load_recipe
from vitrail.config.schema import PRETRAINING, Recipe
from vitrail.errors import VitrailError
from vitrail.machine import keep_large_buffers
from vitrail.models.registry import find_family
from vitrail.runs.folder import EvaluationFiles, RunFolder


def run_recipe(recipe: Recipe, tta: str = "none") -> RunFolder:
    """Train or resume a run and evaluate it; finished parts are skipped.

    Args:
        recipe: Resolved recipe with its run folder.
        tta: Test-time augmentation of an evaluation in addition to the one without.

    Returns:
        The run folder.

    Raises:
        VitrailError: Training or evaluation failed.
    """
    from vitrail.evaluate.run import evaluate
    from vitrail.train.fit import pretrain, train

    run = RunFolder(recipe.run_dir)
    if not run.finished:
        started = run.recipe.is_file()
        if not started:
            run.remove_leftovers()  # of a process that was killed before its first checkpoint
        (pretrain if recipe.task.name in PRETRAINING else train)(recipe, resume=started)
    if recipe.task.name in PRETRAINING:
        return run
    top = EvaluationFiles(run.evaluation_of("", primary=True)).metrics
    if not top.is_file() or not run.predictions(run.read_json(top)["name"]).is_file():
        evaluate(run, recipe.data)
    if tta != "none":
        evaluate(run, recipe.data, tta=tta)
    return run


def main(argv: list[str]) -> int:
    """Execute a recipe.

    Args:
        argv: File of the recipe, and test-time augmentation.
    """
    keep_large_buffers()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        recipe = load_recipe(Path(argv[0]), settings_of=lambda name: find_family(name)[0].config, recorded=True)
        run = run_recipe(recipe, argv[1])
    except VitrailError as error:
        print(f"vitrail: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"vitrail: {error}", file=sys.stderr)
        return 130
    print(f"done: {run}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
