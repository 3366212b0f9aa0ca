"""Arrays in .npy, .npz, .mat and HDF5 files: images, or a scene with a label plane that is cut into patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.data.classes import ClassRules
from vitrail.data.rasters import full_range, resize_tensor, unit_range
from vitrail.data.sources.array_files import Array, pick_array, read_arrays
from vitrail.data.sources.array_labels import are_images, find_patches, label_images, label_plane, read_labels, unfold
from vitrail.data.sources.base import ImageSource, Scene
from vitrail.errors import ConfigError, DataError


class ArraySource(ImageSource):
    """Images (N, H, W, C) with a label each, or patches of a scene (H, W, C) with a label plane.

    A patch is labelled by its centre pixel (of an even side: the one below and right of the centre) and lies wholly in
    the scene. The bands of a scene are its last axis, or the first where only that is as long as the names of the
    bands. A scene stored as (bands, pixels) is taken column by column in .mat files and row by row in others.

    Args:
        config: Where the arrays are, and how they are cut.
        size: Height and width that images are brought to.
        rules: How labels become classes; those of the config when not given.

    Raises:
        DataError: No such file, or one that cannot be read; arrays that are missing or do not fit each other; labels
            without a name.
        ConfigError: Settings that do not fit the arrays.
    """

    in_memory = True
    fixed = True

    def __init__(self, config: DataConfig, size: tuple[int, int], rules: ClassRules | None = None) -> None:
        rules = rules or ClassRules.of(config, None)
        path = Path(config.path or "")
        arrays = read_arrays(path)
        cube_name = config.cube or max(arrays, key=lambda name: arrays[name].size)
        cube = pick_array(arrays, cube_name, path, "data.cube")
        labels = read_labels(config, arrays, cube_name, path)
        scale = full_range(cube.dtype, config.scale, f"{path}: {cube_name}")
        self.path, self.size, self.resize = path, size, config.resize
        self.given_split: list[str] = []
        if are_images(cube, labels):
            planes = cube[..., None] if cube.ndim == 3 else cube
            planes = _bands_first(planes, config.band_names, f"{path}: {cube_name}")
            self._images = unit_range(planes, scale, f"{path}: {cube_name}")
            self._corners, self.fixed = None, False
            found, self.targets = label_images(labels, config, rules, arrays, path)
            self.keys = [f"{path.stem}/{i:08d}" for i in range(len(labels))]
        elif cube.ndim == 4:
            raise DataError(
                f"{path}: {cube_name} holds {len(cube)} images, shape {cube.shape}, and the labels have the shape "
                f"{labels.shape}; one number, or a one-hot row, for each image is wanted"
            )
        else:
            grid = _grid(config.grid, arrays)
            columnwise = path.suffix.lower() == ".mat"
            cube = _scene(cube, grid, columnwise, config.band_names, f"{path}: {cube_name}")
            plane = label_plane(labels, (cube.shape[1], cube.shape[2]), columnwise, config, path)
            self._images = unit_range(cube, scale, f"{path}: {cube_name}")
            self._corners = find_patches(plane, config.patch, config.stride, path)
            found, self.targets = plane.label_patches(self._corners, config.patch, rules, arrays, path)
            self.scene = Scene(self._corners, config.patch, config.block or 3 * config.patch)
            self.keys = [f"{path.stem}/{row:05d}_{column:05d}" for row, column in self._corners]
        self.classes, self.numbering = found.names, found.numbering
        self.patch = config.patch
        self.given_split = [""] * len(self.keys)
        self._name_bands(config)

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
        return unfold(flat, grid, columnwise)
    if cube.ndim == 2:
        raise DataError(
            f"{what} has the shape {cube.shape}; a scene has three axes, or is (bands, pixels) with data.grid"
        )
    if cube.ndim != 3:
        raise DataError(f"{what} has the shape {cube.shape}; a scene (H, W, C) or images with a label each are wanted")
    if names is not None and cube.shape[2] != len(names) and cube.shape[0] == len(names):
        return cube
    return cube.transpose(2, 0, 1)
