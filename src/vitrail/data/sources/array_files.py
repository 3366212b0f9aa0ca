"""Read files of arrays: .npy, .npz, .mat and HDF5."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrail.data.classes import normalize_label
from vitrail.data.image_errors import refuse_pointer
from vitrail.data.sources import hdf5
from vitrail.errors import ConfigError, DataError, did_you_mean

Array = npt.NDArray[Any]


def read_arrays(path: Path, wanted: tuple[str | None, ...] = (None,)) -> dict[str, Array]:
    """Read the numeric arrays and lists of texts of a file by name, without executing code.

    Args:
        path: The file.
        wanted: Names of the arrays that are used, where all of them are known: of HDF5, large ones of other names are
            then not read.

    Raises:
        DataError: No such file, not one of these, or no array in it.
    """
    arrays = _read(path, None if None in wanted else {name.strip("/") for name in wanted if name is not None})
    if not arrays:
        raise DataError(f"{path} holds no array of numbers or texts; check data.path")
    return arrays


def _read(path: Path, wanted: set[str] | None) -> dict[str, Array]:
    if not path.is_file():
        raise DataError(f"no file of arrays at {path}; check data.path")
    refuse_pointer(path)
    kind = path.suffix.lower()
    is_hdf5 = hdf5.is_hdf5(path)
    if not is_hdf5 and kind not in (".npy", ".npz", ".mat", *hdf5.SUFFIXES):
        raise DataError(f"{path} is not a .npy, .npz, .mat or HDF5 file; check data.path, or use another data.source")
    try:
        if kind == ".npy":
            return {path.stem: np.load(path, allow_pickle=False)}
        if kind == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        if is_hdf5 or kind in hdf5.SUFFIXES:
            return hdf5.read_hdf5(path, wanted)
        content = _read_mat(path)
    except (OSError, ValueError, EOFError, TypeError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path} cannot be read: it holds Python objects, which may run code; save texts as labels.astype(str)"
            ) from error
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from error
    texts = {
        name: np.array([str(item.ravel()[0]) for item in value.ravel()])
        for name, value in content.items()
        if value.dtype == object and value.size and all(i.dtype.kind == "U" and i.size == 1 for i in value.ravel())
    }
    # Rows of a character matrix are texts; a single text is none of a list.
    texts |= {name: value for name, value in content.items() if value.dtype.kind == "U" and value.size > 1}
    return {name: value for name, value in content.items() if value.dtype.kind in "buif"} | texts


def _read_mat(path: Path) -> dict[str, Array]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return {name: value for name, value in loadmat(path).items() if isinstance(value, np.ndarray)}
    except MatReadError as error:
        raise ValueError(str(error)) from error


def pick_array(arrays: Mapping[str, Array], name: str, path: Path, setting: str, texts: bool = False) -> Array:
    """Return the array of a name (in HDF5 the path inside the file).

    Args:
        arrays: Arrays of the file, by name.
        name: Its name.
        path: The file, for errors.
        setting: The setting that names it, for errors.
        texts: Whether it may hold texts.

    Raises:
        ConfigError: No such array, or one of texts.
    """
    name = name if name in arrays else name.strip("/")
    if name not in arrays:
        raise ConfigError(
            f"{setting}: {path} has no array {name!r}, only {', '.join(arrays)}{did_you_mean(name, arrays)}"
        )
    if not texts and arrays[name].dtype.kind not in "buif":
        held = "complex numbers" if arrays[name].dtype.kind == "c" else "texts"
        raise ConfigError(f"{setting}: {name!r} in {path} holds {held}; integers or floats are wanted")
    return arrays[name]


def own_names(arrays: Mapping[str, Array]) -> list[str] | None:
    """Return the names of the classes if a file has exactly one list of texts."""
    lists = [array.tolist() for array in arrays.values() if array.dtype.kind in "US" and array.ndim == 1]
    return [str(normalize_label(name, "names of classes")) for name in lists[0]] if len(lists) == 1 else None
