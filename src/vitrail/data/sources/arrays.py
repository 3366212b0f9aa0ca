"""Arrays in .npy, .npz and .mat files: images, or a scene with a label plane that is cut into patches."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.data.rasters import full_range, resize_tensor, unit_range
from vitrail.data.sources.base import ImageSource, Scene
from vitrail.data.sources.files import agree_on_classes, some
from vitrail.errors import ConfigError, DataError, closest

Array = npt.NDArray[Any]


class ArraySource(ImageSource):
    """Images (N, H, W, C) with a label each, or patches of a scene (H, W, C) with a label plane.

    A patch is labelled by its centre pixel (of an even side: the one below and right of the centre) and lies wholly in
    the scene. The bands of a scene are its last axis, or the first where only that is as long as the names of the
    bands. A scene stored as (bands, pixels) is taken column by column in .mat files and row by row in others.

    Args:
        config: Where the arrays are, and how they are cut.
        size: Height and width that images are brought to.
        classes: Names of the classes where they are given (by a run).

    Raises:
        DataError: No such file, or one that cannot be read; arrays that are missing or do not fit each other; labels
            without a name.
        ConfigError: Settings that do not fit the arrays.
    """

    in_memory = True
    fixed = True

    def __init__(self, config: DataConfig, size: tuple[int, int], classes: Sequence[str] | None = None) -> None:
        path = Path(config.path or "")
        arrays = read_arrays(path)
        cube_name = config.cube or max(arrays, key=lambda name: arrays[name].size)
        cube = _pick(arrays, cube_name, path, "data.cube")
        labels = self._read_labels(config, arrays, cube_name, path)
        scale = full_range(cube.dtype, config.scale, f"{path}: {cube_name}")
        self.path, self.size, self.resize = path, size, config.resize
        self.given_split: list[str] = []
        if labels.ndim == 1 and cube.ndim in (3, 4) and len(labels) == len(cube):
            planes = cube[..., None] if cube.ndim == 3 else cube
            planes = _bands_first(planes, config.band_names, f"{path}: {cube_name}")
            self._images = unit_range(planes, scale, f"{path}: {cube_name}")
            self._corners, numbers, self.fixed = None, labels, False
            self.keys = [f"{path.stem}/{i:08d}" for i in range(len(labels))]
        elif cube.ndim == 4:
            raise DataError(
                f"{path}: {cube_name} holds {len(cube)} images, shape {cube.shape}, and the labels have the shape "
                f"{labels.shape}; one number for each image is wanted"
            )
        else:
            grid = _grid(config.grid, arrays)
            columnwise = path.suffix.lower() == ".mat"
            cube = _scene(cube, grid, columnwise, config.band_names, f"{path}: {cube_name}")
            plane = _label_plane(labels, cube.shape[1:], columnwise, f"{path}: the labels")
            self._images = unit_range(cube, scale, f"{path}: {cube_name}")
            self._corners, numbers = _patches(plane, config.patch, config.stride, path)
            self.scene = Scene(self._corners, config.patch, config.block or 3 * config.patch)
            self.keys = [f"{path.stem}/{row:05d}_{column:05d}" for row, column in self._corners]
        self.patch = config.patch
        self.given_split = [""] * len(self.keys)
        self._name_bands(config)
        names, self.targets = _classes(numbers, config.class_names, _own_names(arrays), path)
        self.classes = agree_on_classes(names, classes, path)
        place = np.array([self.classes.index(name) if name in self.classes else -1 for name in names])
        self.targets = place[self.targets]

    def _read_labels(self, config: DataConfig, arrays: Mapping[str, Array], cube: str, path: Path) -> Array:
        if config.labels is not None and config.labels not in arrays:
            other = Path(config.labels)
            for file in (other, path.parent / other):
                if file.is_file():
                    inside = read_arrays(file)
                    return _squeeze(inside[max(inside, key=lambda name: inside[name].size)])
        if config.labels is None:
            rest = [name for name in arrays if name != cube and arrays[name].size > 1]
            if len(rest) != 1 and "labels" not in rest:
                raise ConfigError(
                    f"which array of {path} holds the labels? Name it with data.labels"
                    + (f"; there are {', '.join(rest)}" if rest else ", or another file")
                )
            return _squeeze(arrays["labels" if "labels" in rest else rest[0]])
        return _squeeze(_pick(arrays, config.labels, path, "data.labels"))

    def _name_bands(self, config: DataConfig) -> None:
        number = self._images.shape[1 if self._corners is None else 0]
        names = config.band_names or tuple(f"band_{i + 1}" for i in range(number))
        if len(names) != number:
            raise ConfigError(f"data.band_names has {len(names)} names and {self.path} has {number} bands")
        self.bands = {"image": tuple(names)}
        if config.wavelengths is not None:
            self.wavelengths = {"image": config.wavelengths}

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Images ``(B, C, H, W)``, float32 in 0..1."""
        if self._corners is None:
            images = self._images[torch.as_tensor(indices)]
        else:
            side = self.patch
            images = torch.stack([self._images[:, r : r + side, c : c + side] for r, c in self._corners[list(indices)]])
        return {"image": resize_tensor(images, self.size, self.resize)}

    def original_size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, or of a patch."""
        if self._corners is not None:
            return self.patch, self.patch
        return self._images.shape[2], self._images.shape[3]


def read_arrays(path: Path) -> dict[str, Array]:
    """The numeric arrays in a file, by name, and lists of texts; nothing that could run code is read.

    Raises:
        DataError: No such file, or not one of these.
    """
    if not path.is_file():
        raise DataError(f"no file of arrays at {path}; check data.path")
    kind = path.suffix.lower()
    if kind not in (".npy", ".npz", ".mat"):
        raise DataError(f"{path} is no .npy, .npz or .mat file; check data.path, or take another data.source")
    try:
        if kind == ".npy":
            return {path.stem: np.load(path, allow_pickle=False)}
        if kind == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        content = _read_mat(path)
    except NotImplementedError as error:
        raise DataError(f"{path} is a MATLAB 7.3 file; save it with -v7, or as .npz") from error
    except (OSError, ValueError, EOFError, TypeError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from error
    texts = {
        name: np.array([str(item.ravel()[0]) for item in value.ravel()])
        for name, value in content.items()
        if value.dtype == object and value.size and all(i.dtype.kind == "U" and i.size == 1 for i in value.ravel())
    }
    return {name: value for name, value in content.items() if value.dtype.kind in "buif"} | texts


def _read_mat(path: Path) -> dict[str, Array]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return {name: value for name, value in loadmat(path).items() if isinstance(value, np.ndarray)}
    except MatReadError as error:
        raise ValueError(str(error)) from error


def _pick(arrays: Mapping[str, Array], name: str, path: Path, setting: str) -> Array:
    if name not in arrays:
        raise ConfigError(f"{setting}: {path} has no array {name!r}, only {', '.join(arrays)}{closest(name, arrays)}")
    if arrays[name].dtype.kind not in "buif":
        raise ConfigError(f"{setting}: {name!r} in {path} holds texts; numbers are wanted")
    return arrays[name]


def _squeeze(labels: Array) -> Array:
    """MATLAB knows no vectors: (N, 1) is one."""
    return labels.reshape(-1) if labels.ndim == 2 and 1 in labels.shape else labels


def _own_names(arrays: Mapping[str, Array]) -> list[str] | None:
    """Names of the classes, where a file holds just one list of texts."""
    lists = [array.tolist() for array in arrays.values() if array.dtype.kind == "U" and array.ndim == 1]
    return lists[0] if len(lists) == 1 else None


def _bands_first(images: Array, names: Sequence[str] | None, what: str) -> Array:
    """Images as ``(N, C, H, W)``, from that or ``(N, H, W, C)``."""
    if names is not None and images.shape[3] != len(names) and images.shape[1] == len(names):
        return images
    if images.shape[3] > images.shape[1] and images.shape[3] > images.shape[2] and names is None:
        raise DataError(
            f"{what} has the shape {images.shape}: are the bands last or first? Name them (data.band_names)"
        )
    return images.transpose(0, 3, 1, 2)


def _grid(given: tuple[int, int] | None, arrays: Mapping[str, Array]) -> tuple[int, int] | None:
    if given is not None or not {"nRow", "nCol"} <= set(arrays):
        return given
    return int(arrays["nRow"].item()), int(arrays["nCol"].item())


def _scene(
    cube: Array, grid: tuple[int, int] | None, columnwise: bool, names: Sequence[str] | None, what: str
) -> Array:
    """A scene as ``(C, H, W)``."""
    if cube.ndim == 2 and grid is not None:
        pixels = grid[0] * grid[1]
        if pixels not in cube.shape:
            raise DataError(
                f"{what} has the shape {cube.shape} and a grid of {grid[0]} x {grid[1]} has {pixels} pixels"
            )
        flat = cube if cube.shape[1] == pixels else cube.T
        return _unfold(flat, grid, columnwise)
    if cube.ndim == 2:
        raise DataError(
            f"{what} has the shape {cube.shape}; a scene has three axes, or is (bands, pixels) with data.grid"
        )
    if cube.ndim != 3:
        raise DataError(f"{what} has the shape {cube.shape}; a scene (H, W, C) or images with a label each are wanted")
    if names is not None and cube.shape[2] != len(names) and cube.shape[0] == len(names):
        return cube
    return cube.transpose(2, 0, 1)


def _unfold(flat: Array, grid: tuple[int, int], columnwise: bool) -> Array:
    if columnwise:
        return flat.reshape(len(flat), grid[1], grid[0]).transpose(0, 2, 1)
    return flat.reshape(len(flat), *grid)


def _label_plane(labels: Array, size: tuple[int, ...], columnwise: bool, what: str) -> npt.NDArray[np.int64]:
    """The number of each pixel's class, ``(H, W)``; 0 is unlabelled."""
    grid = (size[0], size[1])
    if labels.ndim == 1 and labels.size == grid[0] * grid[1]:
        labels = _unfold(labels[None], grid, columnwise)[0]
    elif labels.ndim == 2 and grid[0] * grid[1] in labels.shape and labels.shape != grid:
        labels = _unfold(labels if labels.shape[1] == grid[0] * grid[1] else labels.T, grid, columnwise)
    if labels.ndim == 3 and labels.shape[1:] != grid and labels.shape[:2] == grid:
        labels = labels.transpose(2, 0, 1)
    if labels.ndim == 3 and labels.shape[1:] == grid:
        if not np.isfinite(labels).all():
            raise DataError(f"{what} are shares that are not finite")
        return np.asarray(np.where(labels.max(axis=0) > 0, labels.argmax(axis=0) + 1, 0), dtype=np.int64)
    if labels.shape != grid:
        raise DataError(f"{what} have the shape {labels.shape} and the scene is {grid[0]} x {grid[1]}")
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.round(labels)):
        raise DataError(f"{what} are not whole numbers; give a plane of numbers, or of shares for each class")
    plane: npt.NDArray[np.int64] = labels.astype(np.int64)
    return plane


def _patches(
    plane: npt.NDArray[np.int64], side: int, stride: int, path: Path
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Top left corners of the patches whose centre has a label, and these labels."""
    height, width = plane.shape
    if side > min(height, width):
        raise ConfigError(f"data.patch {side} is more than the {height} x {width} pixels of {path}")
    rows, columns = np.arange(0, height - side + 1, stride), np.arange(0, width - side + 1, stride)
    corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    labels = plane[corners[:, 0] + side // 2, corners[:, 1] + side // 2]
    if not (labels > 0).any():
        raise DataError(f"{path}: no patch has a labelled centre (labels above 0)")
    return corners[labels > 0], labels[labels > 0]


def _classes(
    numbers: Array, given: Sequence[str] | None, own: Sequence[str] | None, path: Path
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Names of the classes, and each label's place among them."""
    if numbers.dtype.kind == "f" and not np.array_equal(numbers, np.round(numbers)):
        raise DataError(f"{path}: the labels are not whole numbers")
    values = np.unique(numbers.astype(np.int64))
    names = list(given or own or [])
    if not names:
        return tuple(str(v) for v in values), np.searchsorted(values, numbers).astype(np.int64)
    # Names count from 0, or from 1 where no label is 0.
    first = 0 if values[0] == 0 else 1
    strangers = [str(v) for v in values if not 0 <= v - first < len(names)]
    if strangers:
        raise DataError(f"{path}: the labels {some(strangers)} have no name, there are {len(names)}: {some(names)}")
    return tuple(names), numbers.astype(np.int64) - first
