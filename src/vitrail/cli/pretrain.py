"""``vitrail pretrain``: a recipe, settings on the command line, or both; labels are not needed."""

from __future__ import annotations

from vitrail.cli.next_steps import print_next
from vitrail.cli.recipes import read_recipe_arguments
from vitrail.errors import plural


def main(argv: list[str]) -> int:
    """Pre-train.

    Args:
        argv: Arguments after the verb.
    """
    recipe, options = read_recipe_arguments(
        "vitrail pretrain",
        "Pre-train a model without labels (--task.name simclr, mae, or simmim of images alone) and write a run folder.",
        argv,
        flags={"--resume": "go on from the run folder's last checkpoint"},
    )
    if recipe is None:
        return 0
    from vitrail.models.modality import VIDEO
    from vitrail.train.environment import is_first_process
    from vitrail.train.fit import pretrain

    run = pretrain(recipe, resume="--resume" in options)
    if not is_first_process():
        return 0
    metrics = run.read_metrics()
    last = metrics.iloc[-1]
    names = {"val_loss": "validation loss", "knn_accuracy": "nearest neighbours", "probe_accuracy": "linear probe",
            "rank_me": "RankMe"}  # fmt: skip
    values = "".join(f", {what} {last[name]:.4f}" for name, what in names.items() if name in metrics)
    print(
        f"{run}: {plural(len(metrics), 'epoch')} of {recipe.task.name}; training loss {last['train_loss']:.4f}{values}"
    )
    source = "videos" if run.modality is VIDEO else "folder"
    print_next(["vitrail", "train", "--model.weights", run, "--data.source", source, "--data.path", "DIR"])
    return 0
