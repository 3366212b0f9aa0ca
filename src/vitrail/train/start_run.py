"""The run folder when a run starts, resumes and finishes."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from vitrail.config.load import dump_recipe
from vitrail.config.schema import Recipe
from vitrail.data.dataset import ImageData
from vitrail.data.split_checks import describe_split, describe_steps
from vitrail.errors import plural
from vitrail.files import write_text
from vitrail.models.modality import MODALITIES, reword
from vitrail.runs.folder import RunFolder
from vitrail.runs.images import write_image_record
from vitrail.runs.input_hashes import input_hashes
from vitrail.runs.training_images import count_pretraining_images, describe_pretraining_images, record_training_images
from vitrail.train.checks import describe_warmup
from vitrail.train.copies import describe_copies
from vitrail.train.environment import describe_environment
from vitrail.train.resume import check_inputs
from vitrail.train.teacher import teacher_hash


def start_run(recipe: Recipe, run: RunFolder, data: ImageData, reasons: Mapping[str, str], resume: bool) -> None:
    """Make or reopen the run folder and write the recipe, the environment and the records of the images into it.

    Args:
        recipe: The recipe, with every "auto" resolved.
        run: The run folder.
        data: The images.
        reasons: Setting -> its value and reason, recorded in environment.json.
        resume: Whether the run continues.

    Raises:
        DataError: The run continues with other images, labels or statistics.
        RunError: The folder is taken or cannot be written.
    """
    environment = describe_environment(recipe.run.seed)
    environment.update(reasons)
    environment["images"] = {"number": len(data.source), **data.identity()}
    environment["inputs"] = input_hashes(recipe.data, recipe.model.weights)
    if recipe.task.teacher is not None and (code := teacher_hash(recipe.task.teacher)) is not None:
        environment["inputs"]["task.teacher"] = code
    if resume:
        run.remove_leftovers()
        if run.environment.is_file():
            check_inputs(run, environment)
            environment["resumed_from"] = run.read_json(run.environment)
    else:
        RunFolder.create(run.path, overwrite=recipe.run.overwrite)
    resolved = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, dir=recipe.run_dir, overwrite=False))
    write_text(run.recipe, dump_recipe(resolved))
    run.write_json(run.environment, environment)
    if not (resume and run.images.is_file()):
        write_image_record(run, data)
    if not resume or not run.seen.is_file():
        record_training_images(run, data, recipe.model.weights)
    _report_images(recipe, run, data, resume)


def finish_run(run: RunFolder) -> None:
    """Record the time at which the run finished."""
    finished = {"finished": datetime.now(UTC).isoformat(timespec="seconds")}
    run.write_json(run.environment, {**run.read_json(run.environment), **finished})


def _report_images(recipe: Recipe, run: RunFolder, data: ImageData, resume: bool) -> None:
    """Print facts about the splits, and list the unreadable files."""
    modality, names = MODALITIES[data.source.first], (str(run), *data.source.classes)
    for split in ("val", "test"):
        if split in data.splits and (
            line := describe_pretraining_images(
                count_pretraining_images(run, data, split), len(data.splits[split]), split
            )
        ):
            print(f"warning: {reword(line, modality, names=names)}", file=sys.stderr)
    # A resumed run has reported copies and warm-up.
    warmup = describe_warmup(recipe.trainer)
    of_start = [] if resume else [*describe_copies(data, shlex.quote(str(run.recipe))), *([warmup] if warmup else [])]
    for line in [*describe_split(data), *describe_steps(data), *of_start]:
        print(reword(line, modality, names=names), file=sys.stderr)
    if data.source.left_out:
        run.write_unreadable(data.source.left_out)
        print(
            f"{plural(len(data.source.left_out), 'file is', 'files are')} left out, unreadable: {run.unreadable}",
            file=sys.stderr,
        )
