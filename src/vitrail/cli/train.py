"""``vitrail train``: a recipe, settings on the command line, or both."""

from __future__ import annotations

import sys

from vitrail.cli.recipes import read_recipe_arguments


def main(argv: list[str]) -> int:
    """Train.

    Args:
        argv: Arguments after the verb.
    """
    recipe, options = read_recipe_arguments(
        "vitrail train",
        "Train a model and write a run folder.",
        argv,
        flags={"--resume": "go on from the run folder's last checkpoint"},
    )
    if recipe is None:
        return 0
    from vitrail.train.fit import train

    run = train(recipe, resume="--resume" in options)
    metrics = run.read_metrics()
    best = metrics.loc[
        metrics["val_accuracy"].idxmax() if recipe.trainer.monitor == "val_accuracy" else metrics["val_loss"].idxmin()
    ]
    print(
        f"{run}: {len(metrics)} epochs; best epoch {int(best['epoch'])} with validation accuracy "
        f"{best['val_accuracy']:.4f} and loss {best['val_loss']:.4f}"
    )
    print(f"next: vitrail evaluate {run}", file=sys.stderr)
    return 0
