"""Read HDF5 files (the ``hdf5`` extra), those of MATLAB 7.3 included."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrail.extras import import_extra

SUFFIXES = (".h5", ".hdf5", ".he5", ".hdf")
_MATLAB = "MATLAB_class"
_MAGIC = b"\x89HDF\r\n\x1a\n"
# Bytes that MATLAB puts before the rest.
_HEADER = 512
# Elements of an array that is read though no setting names it.
_SMALL = 2**16


def is_hdf5(path: Path) -> bool:
    """Check whether a file is HDF5, by its magic bytes at the start or behind MATLAB's header."""
    with path.open("rb") as file:
        beginning = file.read(_HEADER + len(_MAGIC))
    return _MAGIC in (beginning[: len(_MAGIC)], beginning[_HEADER:])


def read_hdf5(path: Path, wanted: Set[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Read the numeric arrays and texts of a file, by their paths inside it.

    MATLAB stores arrays by column and HDF5 by row: what MATLAB has written (its attribute ``MATLAB_class`` says so) has
    its axes reversed in the file, and is brought back to the shape that it has in MATLAB. Links to other files are not
    followed.

    Args:
        path: The file.
        wanted: Names of the arrays that are used, where these are known; others are read where they are small.

    Raises:
        VitrailError: The extra is not installed.
        OSError: Not a file of HDF5, or a damaged one.
        ValueError: A filter that is not there, or a data set that cannot be read.
    """
    h5py = import_extra("h5py", "hdf5")
    found: dict[str, npt.NDArray[Any]] = {}
    with h5py.File(path, "r") as file:

        def visit(name: str, item: Any) -> None:
            # "#refs#" holds the cells of MATLAB's cell arrays, which are read where they belong.
            if isinstance(item, h5py.Dataset) and not name.startswith("#"):
                if wanted is not None and name not in wanted and (item.size or 0) > _SMALL:
                    return
                array = _read(h5py, file, item)
                if array is not None:
                    found[name] = array

        file.visititems(visit)
    return found


def _read(h5py: Any, file: Any, item: Any) -> npt.NDArray[Any] | None:
    """Read a data set as an array of numbers or texts; None for anything else."""
    kind = item.attrs.get(_MATLAB)
    kind = kind.decode() if isinstance(kind, bytes) else kind
    if item.shape is None or (kind is not None and "MATLAB_empty" in item.attrs):
        return None
    if kind == "cell":
        return _texts_of_cells(h5py, file, item)
    if kind == "char":
        return np.array([_text(item[()])])
    if h5py.check_string_dtype(item.dtype) is not None:
        return np.asarray(item.asstr()[()], dtype=str)
    if item.dtype.kind not in "buif":
        return None
    array = np.asarray(item[()])
    if kind is None:
        return array
    array = array.transpose()
    return array.astype(bool) if kind == "logical" else array


def _texts_of_cells(h5py: Any, file: Any, item: Any) -> npt.NDArray[Any] | None:
    """Read a cell array of texts, in MATLAB's order; None if it holds anything else."""
    if h5py.check_ref_dtype(item.dtype) is None:
        return None
    cells = [file[reference] for reference in np.asarray(item[()]).ravel()]
    if not cells or any(cell.attrs.get(_MATLAB) not in (b"char", "char") for cell in cells):
        return None
    return np.array([_text(cell[()]) for cell in cells])


def _text(codes: Any) -> str:
    """Decode a text: MATLAB stores UTF-16 code units, by column."""
    return np.asarray(codes).transpose().ravel().astype("<u2").tobytes().decode("utf-16-le")
