"""``vitrail train``: a recipe, settings on the command line, or both."""

from __future__ import annotations

from vitrail.cli.next_steps import print_next
from vitrail.cli.recipes import read_recipe_arguments
from vitrail.errors import plural


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
    from vitrail.train.callbacks.progress import METRICS, shown_metric
    from vitrail.train.environment import is_first_process
    from vitrail.train.fit import train

    run = train(recipe, resume="--resume" in options)
    if not is_first_process():
        return 0
    metrics = run.read_metrics()
    column = metrics[recipe.trainer.monitor]
    row = int(column.argmin() if recipe.trainer.monitor == "val_loss" else column.argmax())
    best = metrics.iloc[row].to_dict()
    name = shown_metric(recipe.trainer.monitor, best)
    assert name is not None, "training with labels measures one"
    print(
        f"{run}: {plural(len(metrics), 'epoch')}; best epoch {int(best['epoch']) + 1} with {METRICS[name]} "
        f"{best[name]:.4f} and validation loss {best['val_loss']:.4f}"
    )
    print_next(["vitrail", "evaluate", run])
    return 0
