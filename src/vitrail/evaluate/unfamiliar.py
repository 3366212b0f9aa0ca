"""A run beside images of another kind: does it notice?"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vitrail.config.data import DataConfig
from vitrail.data.sources.opening import SOURCES
from vitrail.errors import ConfigError, DataError, closest
from vitrail.evaluate.out_of_distribution import ModelOutputs, check_outputs, ood_report
from vitrail.evaluate.run import Evaluated, name_of_other, predict
from vitrail.evaluate.saved_predictions import Intervals, SavedPredictions, is_current
from vitrail.runs.folder import RunFolder
from vitrail.runs.images import open_images, open_prepared


def measure_ood(
    evaluated: Evaluated,
    own: DataConfig,
    path: str,
    *,
    source: str = "unlabelled",
    spectral_path: str | None = None,
    intervals: Intervals | None = None,
) -> dict[str, Any]:
    """Compare the evaluated images with others by out-of-distribution scores; writes ood.json.

    Both are predicted where their predictions are not saved yet, and so are the training images, which the scores of
    embeddings are fitted to.

    Args:
        evaluated: An evaluation whose predictions are saved.
        own: What the run was trained on.
        path: The other images.
        source: What kind of data they are; "unlabelled" is a folder of images at any depth. Labels do not matter.
        spectral_path: Of two streams: the folder with the second files.
        intervals: How intervals are made.

    Returns:
        What ood.json says: ``known``, ``other``, ``path``, ``weights``, how many images of each, and ``scores``.

    Raises:
        ConfigError: An unknown source, or the data that is evaluated.
        DataError: Images that cannot be read, are of other bands, or training images that are not there.
    """
    if source not in SOURCES or not SOURCES[source]:
        kinds = [name for name, place in SOURCES.items() if place]
        raise ConfigError(f"--ood-source must be a kind of data with a path, got {source!r}{closest(source, kinds)}")
    run, trained = evaluated.run, evaluated.trained
    # What belongs to the run's own images and not to the model says nothing about these.
    config = dataclasses.replace(
        own,
        source=source,
        path=path,
        spectral_path=spectral_path,
        label_separator=None,
        split="stratified",
        group=None,
        group_column=None,
        group_pattern=None,
        split_column=None,
        label_pattern=None,
        class_names=None,
        label_values=None,
        fold=None,
        label_fraction=1.0,
    )
    try:
        others = open_prepared(trained.card, config, split=False, labelled=False)
    except DataError as error:
        raise DataError(f"--ood {path}: {error}") from error
    every = dataclasses.replace(others, splits={"all": list(range(len(others.source)))})
    suffix = "" if evaluated.tta == "none" else f"-{evaluated.tta}"
    name = name_of_other(path, "all", "ood") + suffix
    predict(run, trained, every, "all", name, evaluated.tta)
    train = f"train{suffix}"
    images = evaluated.images
    if not evaluated.opened.is_own_split("train") or "train" not in images.splits:
        images = open_images(run, trained.card, own).data
    if not is_current(run, train, **images.identity()):
        predict(run, trained, images, "train", train, evaluated.tta)
    intervals = intervals or Intervals()
    targets = np.stack(run.read_predictions(train)["target"].tolist()).astype(np.int64)
    report = ood_report(
        _seen(run, evaluated.name), _seen(run, name), _seen(run, train), targets, intervals.resamples, intervals.seed
    )
    report = {
        "known": evaluated.name, "other": name, "source": source, "path": path, "weights": run.weights_hash(), **report,
    }  # fmt: skip
    run.write_json(evaluated.files.ood, report)
    return report


def _seen(run: RunFolder, name: str) -> ModelOutputs:
    return check_outputs(SavedPredictions.read(run, name).logits, run.read_embeddings(name), name)
