"""Hashes of the input files of a run, by content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from vitrail.config.data import FILE_SETTINGS, DataConfig
from vitrail.data.listing import list_files
from vitrail.weights.hashes import tensors_hash
from vitrail.weights.hub import HUB_PREFIX
from vitrail.weights.locations import find_weights

# Maximum size of a file that is hashed completely, and size of the samples of larger files and of files in folders.
_WHOLE, _SAMPLE = 1 << 28, 1 << 16
# Number of samples of a large file, and of sampled files of a folder.
_SAMPLES = 200


def input_hashes(data: DataConfig, weights: str | None = None) -> dict[str, str]:
    """Hash the files that a recipe names.

    Files are hashed by their bytes (above 256 MB by size and 200 samples), weights by the values of their tensors,
    folders by names and sizes of the images and by the beginnings and ends of 200 of them. Missing files, and data sets
    and weights of the hub, have no hash.

    Args:
        data: Data settings.
        weights: ``model.weights``, if it counts.

    Returns:
        Name of the setting -> 16 hexadecimal digits.

    Raises:
        DataError: The name of a file in a folder of images is not UTF-8.
        WeightsError: ``weights`` is a folder without weights.
        OSError: A file is unreadable.
    """
    hashes = {}
    for name in FILE_SETTINGS:
        value = data.setting(name)
        if isinstance(value, str) and os.path.exists(value):
            path = Path(value)
            hashes[f"data.{name}"] = _file_hash(path) if path.is_file() else _folder_hash(path)
    if weights is not None and not weights.startswith(HUB_PREFIX) and os.path.exists(weights):
        hashes["model.weights"] = weights_hash(weights)
    return hashes


def weights_hash(weights: str) -> str:
    """Hash weights by the values of their tensors.

    Args:
        weights: Path or hub name, as in ``model.weights``.

    Raises:
        WeightsError: There are no weights.
    """
    hashes = [tensors_hash(file) for file in find_weights(weights).files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        digest.update(str(size).encode())
        for start in np.linspace(0, size - _SAMPLE, _SAMPLES).astype(np.int64):
            file.seek(int(start))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]


def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    files = list_files(folder) or sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    sampled = set(np.linspace(0, len(files) - 1, min(_SAMPLES, len(files))).astype(int).tolist())
    for i, path in enumerate(files):
        if not path.is_file():
            continue  # a broken link is reported by the data's reader
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        if i in sampled:
            with path.open("rb") as file:
                digest.update(file.read(_SAMPLE))
                if size > _SAMPLE:
                    file.seek(max(_SAMPLE, size - _SAMPLE))
                    digest.update(file.read())
    return digest.hexdigest()[:16]
