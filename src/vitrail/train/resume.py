"""Resuming a run: settings and inputs that may differ from its start, and whether it is finished."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitrail.config.data import PATH_SETTINGS
from vitrail.config.load import load_recipe
from vitrail.config.renamed import rename
from vitrail.config.schema import PRETRAINING, Recipe, flat_settings
from vitrail.errors import ConfigError, DataError, RunError, plural
from vitrail.models.registry import find_family
from vitrail.runs.folder import RunFolder
from vitrail.train.auto.resolve import resolve_from_run
from vitrail.train.callbacks.early_stopping import waited
from vitrail.train.environment import is_first_process

# Settings that may change when a run is resumed; the files themselves are compared by content.
# A checkpoint holds the whole model under every strategy.
_MAY_CHANGE = {
    "trainer.max_epochs", "trainer.early_stopping_patience", "trainer.accelerator", "trainer.devices",
    "trainer.strategy", "data.loader.num_workers", "data.loader.cache", "data.splitting.check_copies", "data.path",
    "model.weights", "task.teacher", "run.dir", "run.overwrite", "run.tensorboard",
    "run.explain_images", "run.explain_every", "run.explain_method",
}  # fmt: skip
# Files that may be moved if the run has recorded their content.
_BY_CONTENT = {"data.spectral.path", "data.values.statistics", "data.arrays.labels"}
# Files that hold the images and their labels.
_IN_IMAGES = {"data.path", "data.spectral.path", "data.arrays.labels"}


def resume_settings(recipe: Recipe, run: RunFolder, resume: bool) -> Recipe:
    """Resolve a recipe by the run that it continues or joins.

    Args:
        recipe: The recipe.
        run: The run folder.
        resume: Whether the run continues; otherwise this process joins the one that started it.

    Returns:
        The recipe, with "auto" as the run started.

    Raises:
        ConfigError: A setting that cannot change within a run.
        RunError: No run folder, or a run without its checkpoint.
    """
    if resume:
        RunFolder.open(run.path)  # raises without a run folder
        _check_checkpoint(run)
    if not run.recipe.is_file():
        return recipe
    begun = recipe_of(run)
    recipe = resolve_from_run(recipe, begun)
    if resume:
        _check_changes(recipe, begun, run)
    return recipe


def is_finished(recipe: Recipe, run: RunFolder) -> bool:
    """Return whether a run has nothing left to train, and print why."""
    reason = _nothing_left(recipe, run)
    if reason is not None and is_first_process():
        print(f"{run} is finished: {reason}; nothing is changed")
    return reason is not None


def find_checkpoint(run: RunFolder) -> Path | None:
    """Find the checkpoint to resume from; None before the first epoch has ended."""
    return run.last_checkpoint if run.last_checkpoint.is_file() else None


def recipe_of(run: RunFolder) -> Recipe:
    """Load the recipe in a run folder."""
    return load_recipe(run.recipe, settings_of=lambda name: find_family(name)[0].config, recorded=True)


def describe_interruption(recipe: Recipe, run: RunFolder) -> str:
    """Describe how far an interrupted run has come, with the command that continues it."""
    if find_checkpoint(run) is None:
        return "interrupted before the first checkpoint; nothing to resume"
    verb = "pretrain" if recipe.task.name in PRETRAINING else "train"
    return (
        f"interrupted after epoch {run.trained_epochs()} of {recipe.trainer.max_epochs}; continue with "
        f"`vitrail {verb} {shlex.quote(str(run.recipe))} --resume`"
    )


@contextlib.contextmanager
def opening_images() -> Iterator[None]:
    """Describe an interruption while images are opened."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            "interrupted while the images were opened, before training; nothing is lost: run the same command again"
        ) from error


def _check_checkpoint(run: RunFolder) -> None:
    """Check that a run beyond its first epoch has a checkpoint; only the user may decide to start over.

    A run that is killed in its first epoch may have a row of metrics and no checkpoint yet.

    Raises:
        RunError: The checkpoint is lost.
    """
    if run.last_checkpoint.is_file():
        return
    trained = run.trained_epochs()
    if trained > 1 or run.finished:
        raise RunError(
            f"cannot resume {run}: it has trained {plural(trained, 'epoch')} and lacks "
            f"{run.last_checkpoint.relative_to(run.path)}, from which it would go on; restore that, or start over with "
            "--run.overwrite true in place of --resume"
        )


def _check_changes(recipe: Recipe, begun: Recipe, run: RunFolder) -> None:
    """Check that only settings differ that may change within a run.

    Args:
        recipe: The recipe, with "auto" as the run started.
        begun: The recipe of the run.
        run: The run.

    Raises:
        ConfigError: Another setting differs; the message gives both values.
    """
    if recipe.run.overwrite:
        raise ConfigError("--resume goes on with a run and run.overwrite true deletes it; leave one of them out")
    trained = run.trained_epochs()
    if recipe.trainer.max_epochs < trained:
        raise ConfigError(
            f"cannot resume {run} with trainer.max_epochs = {recipe.trainer.max_epochs}: "
            f"{plural(trained, 'epoch is', 'epochs are')} trained"
        )
    recorded = run.read_json(run.environment).get("inputs", {}) if run.environment.is_file() else {}
    paths = {f"data.{name}" for name in PATH_SETTINGS} if run.images.is_file() else set()
    free = _MAY_CHANGE | (_BY_CONTENT & {rename(name) for name in recorded}) | paths
    before, now = flat_settings(begun), flat_settings(recipe)
    for name in [name for name in {**now, **before} if name not in free]:
        if now.get(name) != before.get(name):
            raise ConfigError(
                f"cannot resume {run} with {name} = {now.get(name)!r}: it began with {before.get(name)!r}; leave it, "
                "or train into another --run.dir"
            )
    if recipe.trainer.progressive_sizes and recipe.trainer.max_epochs != begun.trainer.max_epochs:
        raise ConfigError(
            f"cannot resume {run} with trainer.max_epochs = {recipe.trainer.max_epochs}: it began with "
            f"{begun.trainer.max_epochs}, over which trainer.progressive_sizes are spread; leave it, or train into "
            "another --run.dir"
        )


def check_inputs(run: RunFolder, environment: dict[str, Any]) -> None:
    """Check that images, statistics, labels and weights are those of the run's start; report changed code.

    Args:
        run: The run.
        environment: Environment of this process, as environment.json records it.

    Raises:
        DataError: Images or the content of a file differ.
    """
    before = run.read_json(run.environment)
    images = before.get("images")
    if images is not None:
        _check_images(run, images, environment["images"])
    now = environment["inputs"]
    then = {rename(name): digest for name, digest in before.get("inputs", now).items()}
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


def _check_images(run: RunFolder, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare contents, classes and splits; names instead of contents for runs of earlier versions."""
    key = "fingerprint" if "listing" in before else "listing"
    if before["number"] != now["number"] or before["fingerprint"] != now[key]:
        raise DataError(
            f"cannot resume {run}: its images, classes or splits have changed since it began "
            f"({plural(before['number'], 'image')} then, {now['number']} now); restore them, name their new place with "
            "--data.path, or start again with --run.overwrite true"
        )


def _nothing_left(recipe: Recipe, run: RunFolder) -> str | None:
    """State why a run is finished; None if it is not."""
    if not run.finished:
        return None
    rows, trainer = run.read_metrics(), recipe.trainer
    if len(rows) >= trainer.max_epochs:
        return "its only epoch is trained" if len(rows) == 1 else f"all {len(rows):,} epochs are trained"
    monitor, patience = trainer.early_stopping_monitor, trainer.early_stopping_patience
    if patience and monitor in rows and waited(rows[monitor], monitor) >= patience:
        return (
            f"{monitor} has not improved for {patience} epoch{'s' * (patience > 1)} (trainer.early_stopping_patience)"
        )
    begun = recipe_of(run).trainer
    if trainer.max_minutes and len(rows) < begun.max_epochs:
        stopped = begun.early_stopping_patience
        if not stopped or waited(rows[monitor], monitor) < stopped:
            return f"its {trainer.max_minutes:g} minutes are over (trainer.max_minutes)"
    return None


def _code_of(environment: dict[str, Any]) -> str:
    commit = environment.get("git_commit")
    text = f"version {environment.get('vitrail')}"
    if commit is not None:
        text += f", commit {commit[:12]}" + (" with changes" if environment.get("git_changes") else "")
    return text
