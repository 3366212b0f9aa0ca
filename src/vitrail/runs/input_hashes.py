"""The files that a run's result depends on, told apart by what they hold and not by their names."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from vitrail.config.data import DataConfig
from vitrail.data.listing import list_files
from vitrail.weights.hashes import tensors_hash
from vitrail.weights.hub import HUB_PREFIX
from vitrail.weights.locations import find_weights

# A file up to this size is read whole; of a larger one, and of the files in a folder, samples of so many bytes.
_WHOLE, _SAMPLE = 1 << 28, 1 << 16
# How many samples there are of a large file, and how many files of a folder are sampled.
_SAMPLES = 200
# Settings of the data that name files or folders.
_OF_DATA = ("path", "spectral_path", "statistics", "labels")


def input_hashes(data: DataConfig, weights: str | None = None) -> dict[str, str]:
    """Hash the files that a recipe names.

    A file counts by its bytes (beyond 256 MB by its size and 200 samples); weights by the values of their tensors; a
    folder by the names and sizes of the images in it, and by the beginnings and ends of 200 of them. Data sets and
    weights of the hub, and what is not there, have no code.

    Args:
        data: The part ``data`` of a recipe.
        weights: ``model.weights``, where they count.

    Returns:
        Name of the setting -> 16 hexadecimal digits.

    Raises:
        DataError: A file in a folder of images whose name is not UTF-8.
        WeightsError: A folder in the place of weights that holds none.
        OSError: A file that cannot be read.
    """
    codes = {}
    for name in _OF_DATA:
        value = getattr(data, name)
        if isinstance(value, str) and os.path.exists(value):
            path = Path(value)
            codes[f"data.{name}"] = _file_hash(path) if path.is_file() else _folder_hash(path)
    if weights is not None and not weights.startswith(HUB_PREFIX) and os.path.exists(weights):
        codes["model.weights"] = weights_hash(weights)
    return codes


def weights_hash(weights: str) -> str:
    """Hash the weights that a path leads to, by the values of their tensors.

    Args:
        weights: As ``model.weights`` names them.

    Raises:
        WeightsError: There are none.
    """
    codes = [tensors_hash(file) for file in find_weights(weights).files]
    return codes[0] if len(codes) == 1 else hashlib.sha256(" ".join(codes).encode()).hexdigest()[:16]


def _file_hash(path: Path) -> str:
    code = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        code.update(str(size).encode())
        for start in np.linspace(0, size - _SAMPLE, _SAMPLES).astype(np.int64):
            file.seek(int(start))
            code.update(file.read(_SAMPLE))
    return code.hexdigest()[:16]


def _folder_hash(folder: Path) -> str:
    code = hashlib.sha256()
    files = list_files(folder) or sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    sampled = set(np.linspace(0, len(files) - 1, min(_SAMPLES, len(files))).astype(int).tolist())
    for i, path in enumerate(files):
        if not path.is_file():
            continue  # a link that leads nowhere is a fault for the data's own reader
        size = path.stat().st_size
        code.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        if i in sampled:
            with path.open("rb") as file:
                code.update(file.read(_SAMPLE))
                if size > _SAMPLE:
                    file.seek(max(_SAMPLE, size - _SAMPLE))
                    code.update(file.read())
    return code.hexdigest()[:16]
