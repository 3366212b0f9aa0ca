"""Classifying image files with a trained run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vitrail.data.images import BANDS, inspect_image, list_files, read_image
from vitrail.data.sources.edges import edges
from vitrail.errors import ConfigError, DataError
from vitrail.runs.trained import ModelCard, TrainedModel


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """The files named, and those in the folders named, each once and in order.

    Hidden files are passed over inside folders; everything else is taken to be an image.

    Raises:
        DataError: A path that does not exist, or a folder without files.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = list_files(path)
            if not files:
                raise DataError(f"the folder {path} holds no files")
            found.update(dict.fromkeys(files))
        elif path.is_file():
            found[path] = None
        else:
            raise DataError(f"no file or folder at {path}")
    return list(found)


def predict_files(
    trained: TrainedModel,
    files: Sequence[Path],
    *,
    top_k: int = 5,
    batch_size: int = 32,
    convert: bool = False,
    tta: str = "none",
) -> pd.DataFrame:
    """Classify image files.

    Args:
        trained: The model.
        files: Images of any size; they are brought to the model's size as in training.
        top_k: Most likely classes to give; the number of classes where there are fewer.
        batch_size: Images a pass.
        convert: Convert images of other bands instead of refusing them.
        tta: Test-time augmentation, as :meth:`TrainedModel.classify` has it.

    Returns:
        A row a file: ``path``, ``class``, ``probability``, and ``class_2``, ``probability_2``, ... up to ``k``. Of a
        run with several labels an image also ``labels``, those of a probability of one half and more, after the path.

    Raises:
        ConfigError: ``top_k`` or ``batch_size`` below 1, or a run that takes other bands than pictures have.
        DataError: Files that are no images or have other bands; all that are no images are counted.
    """
    for name, value in (("top_k", top_k), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    card = trained.card
    _refuse_other_inputs(card)
    _refuse_unreadable(files)
    k = min(top_k, len(card.classes))
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), batch_size):
            chunk = files[start : start + batch_size]
            images = list(pool.map(lambda f: read_image(f, card.color, card.img_size, card.resize, convert), chunk))
            batch = {"image": torch.stack(images).float().div_(255.0)}
            if card.spectral == "edges":
                batch["spectral"] = edges(batch["image"])
            probabilities = card.probabilities(trained.classify(batch, tta)[0])
            values, indices = probabilities.topk(k)
            for file, p, v, i in zip(chunk, probabilities.tolist(), values.tolist(), indices.tolist(), strict=True):
                row = {"path": str(file)}
                if card.label_separator is not None:
                    there = [name for name, share in zip(card.classes, p, strict=True) if share >= 0.5]
                    row["labels"] = card.label_separator.join(there)
                rows.append({**row, **dict(_ranked(v, [card.classes[n] for n in i]))})
    return pd.DataFrame(rows)


def _refuse_other_inputs(card: ModelCard) -> None:
    """Pictures alone hold neither other bands nor a second sensor's."""
    bands = card.streams["image"].bands
    if bands != BANDS[card.color]:
        raise ConfigError(
            f"the run takes the bands {', '.join(bands)}, picture files have {', '.join(BANDS[card.color])}; "
            "measure it on such images with `vitrail evaluate`"
        )
    if "spectral" in card.streams and card.spectral == "none":
        raise ConfigError(
            f"the run takes a second stream ({', '.join(card.streams['spectral'].bands)}), which picture files do not "
            "bring; measure it with `vitrail evaluate`"
        )


def _ranked(values: list[float], names: list[str]) -> Iterator[tuple[str, Any]]:
    for rank, (value, name) in enumerate(zip(values, names, strict=True), start=1):
        suffix = "" if rank == 1 else f"_{rank}"
        yield f"class{suffix}", name
        yield f"probability{suffix}", round(value, 6)


def _refuse_unreadable(files: Sequence[Path]) -> None:
    problems: list[str] = []
    for file in files:
        try:
            inspect_image(file)
        except DataError as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        raise DataError(
            f"{len(problems)} of {len(files)} files are no images that can be read; the first: {problems[0]}"
        )
