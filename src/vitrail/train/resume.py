"""A run that goes on: what may differ from its beginning, and whether anything is left to do."""

from __future__ import annotations

import sys
from typing import Any

from vitrail.config.data import PATH_SETTINGS
from vitrail.config.load import load_recipe
from vitrail.config.schema import Recipe
from vitrail.errors import ConfigError, DataError, RunError
from vitrail.models.registry import find_family
from vitrail.runs.folder import RunFolder
from vitrail.train.callbacks.early_stopping import waited

# What may differ when a run goes on; that the files are the same is checked on the files themselves.
# Checkpoints are whole whatever the strategy.
_MAY_CHANGE = {
    "trainer.max_epochs", "trainer.early_stopping_patience", "trainer.accelerator", "trainer.devices",
    "trainer.strategy", "data.num_workers", "data.cache", "data.check_copies", "data.path",
    "model.weights", "run.dir", "run.overwrite", "run.tensorboard",
    "run.explain_images", "run.explain_every", "run.explain_method",
}  # fmt: skip
# Files that may lie elsewhere, where the run has recorded what they held.
_BY_CONTENT = {"data.spectral_path", "data.statistics", "data.labels"}
# Files whose content is that of the images and their labels.
_IN_IMAGES = {"data.path", "data.spectral_path", "data.labels"}


def recipe_of(run: RunFolder) -> Recipe:
    """The recipe in a run's folder."""
    return load_recipe(run.recipe, settings_of=lambda name: find_family(name)[0].config)


def trained_epochs(run: RunFolder) -> int:
    """How many epochs have a row of metrics."""
    return len(run.read_metrics()) if run.metrics.is_file() else 0


def refuse_lost_checkpoint(run: RunFolder) -> None:
    """Refuse a run that came further than its first epoch and has no checkpoint: to start over is for the user to say.

    A kill in the first epoch may leave a row of metrics, and no checkpoint yet.

    Raises:
        RunError: The checkpoint is lost.
    """
    if run.last_checkpoint.is_file():
        return
    trained = trained_epochs(run)
    if trained > 1 or run.finished:
        raise RunError(
            f"cannot resume {run}: it has trained {trained} epochs and lacks "
            f"{run.last_checkpoint.relative_to(run.path)}, from which it would go on; restore that, or start over with "
            "--run.overwrite true in place of --resume"
        )


def refuse_changes(recipe: Recipe, run: RunFolder) -> None:
    """Refuse settings in which a run cannot differ from its beginning.

    Args:
        recipe: What was asked for, "auto" replaced by what the run began with.
        run: The run.

    Raises:
        ConfigError: Such a setting; the message gives both values.
    """
    if recipe.run.overwrite:
        raise ConfigError("--resume goes on with a run and run.overwrite true deletes it; leave one of them out")
    begun = recipe_of(run)
    trained = trained_epochs(run)
    if recipe.trainer.max_epochs < trained:
        raise ConfigError(
            f"cannot resume {run} with trainer.max_epochs = {recipe.trainer.max_epochs}: {trained} epochs are trained"
        )
    recorded = run.read_json(run.environment).get("inputs", {}) if run.environment.is_file() else {}
    places = {f"data.{name}" for name in PATH_SETTINGS} if run.images.is_file() else set()
    free = _MAY_CHANGE | (_BY_CONTENT & recorded.keys()) | places
    before = begun.to_dict()
    for part, values in recipe.to_dict().items():
        for key in [key for key in {**values, **before[part]} if f"{part}.{key}" not in free]:
            if values.get(key) != before[part].get(key):
                raise ConfigError(
                    f"cannot resume {run} with {part}.{key} = {values.get(key)!r}: it began with "
                    f"{before[part].get(key)!r}; leave it, or train into another --run.dir"
                )
    if recipe.trainer.progressive_sizes and recipe.trainer.max_epochs != begun.trainer.max_epochs:
        raise ConfigError(
            f"cannot resume {run} with trainer.max_epochs = {recipe.trainer.max_epochs}: it began with "
            f"{begun.trainer.max_epochs}, over which trainer.progressive_sizes are spread; leave it, or train into "
            "another --run.dir"
        )


def refuse_other_inputs(run: RunFolder, environment: dict[str, Any]) -> None:
    """Refuse to go on with other images, statistics, labels or weights; report other code.

    Args:
        run: The run.
        environment: Of this process, as it would be recorded.

    Raises:
        DataError: Other images, or another content of a file.
    """
    before = run.read_json(run.environment)
    images = before.get("images")
    if images is not None:
        _refuse_other_images(run, images, environment["images"])
    then, now = before.get("inputs", environment["inputs"]), environment["inputs"]
    for name in [*then, *(name for name in now if name not in then)]:
        if name in _IN_IMAGES and "listing" in (images or {}):
            continue  # compared image by image, wherever they lie and however they are listed
        if name == "model.weights" and name not in now:
            continue  # they are in the checkpoint
        if then.get(name) != now.get(name):
            raise DataError(
                f"cannot resume {run}: what {name} names holds something else than when the run began; restore it, or "
                "train into another --run.dir"
            )
    if before.get("code", environment["code"]) != environment["code"]:
        print(
            f"{run} began with other code of vitrail ({_code_of(before)}) than it goes on with "
            f"({_code_of(environment)}); it may not end as it would have",
            file=sys.stderr,
        )


def _refuse_other_images(run: RunFolder, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Contents, classes and splits must be those of the beginning; of earlier versions, names in place of contents."""
    key = "fingerprint" if "listing" in before else "listing"
    if before["number"] != now["number"] or before["fingerprint"] != now[key]:
        raise DataError(
            f"cannot resume {run}: its images, classes or splits have changed since it began "
            f"({before['number']} images then, {now['number']} now); restore them, name their new place with "
            "--data.path, or start anew"
        )


def nothing_left(recipe: Recipe, run: RunFolder) -> str | None:
    """Why a run has nothing left to train; None where it has.

    Args:
        recipe: What was asked for, with settings that may change.
        run: The run.
    """
    if not run.finished:
        return None
    rows, trainer = run.read_metrics(), recipe.trainer
    if len(rows) >= trainer.max_epochs:
        return f"all {len(rows)} epochs are trained"
    monitor, patience = trainer.early_stopping_monitor, trainer.early_stopping_patience
    if patience and monitor in rows and waited(rows[monitor], monitor) >= patience:
        return (
            f"{monitor} has not improved for {patience} epoch{'s' * (patience > 1)} (trainer.early_stopping_patience)"
        )
    if trainer.max_minutes and len(rows) < recipe_of(run).trainer.max_epochs:
        stopped = recipe_of(run).trainer.early_stopping_patience
        if not stopped or waited(rows[monitor], monitor) < stopped:
            return f"its {trainer.max_minutes:g} minutes are over (trainer.max_minutes)"
    return None


def _code_of(environment: dict[str, Any]) -> str:
    commit = environment.get("git_commit")
    told = f"version {environment.get('vitrail')}"
    if commit is not None:
        told += f", commit {commit[:12]}" + (" with changes" if environment.get("git_changes") else "")
    return told
