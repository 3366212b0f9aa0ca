"""Arrays in .npy, .npz, .mat and HDF5 files: images, or a scene with a label plane that is cut into patches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.data.classes import ClassRules, normalize_label
from vitrail.data.no_data import no_data_mask
from vitrail.data.rasters import resize_tensor
from vitrail.data.sources.array_files import Array, pick_array, read_arrays
from vitrail.data.sources.array_labels import (
    Integers,
    are_images,
    find_patches,
    label_images,
    label_plane,
    labelled_images,
    read_labels,
    unfold,
)
from vitrail.data.sources.array_values import (
    bands_first,
    by_patch,
    scene_layout,
    scene_without_data,
    survey_array,
)
from vitrail.data.sources.base import ImageSource, Scene
from vitrail.data.sources.columns import groups_of_cells
from vitrail.data.value_range import to_unit_range, value_rules
from vitrail.errors import ConfigError, DataError, plural


class ArraySource(ImageSource):
    """Images (N, H, W, C) with a label each, or patches of a scene (H, W, C) with a label plane.

    A patch is labelled by its centre pixel (of an even side: the one below and right of the centre) and lies wholly in
    the scene. Which axis holds the bands follows from the names of the bands and the size of the label plane, or
    ``data.arrays.layout`` says so. A scene stored as (bands, pixels) is taken column by column in .mat files and row by
    row in others.

    Args:
        config: Data settings: path and layout of the arrays, and the patches.
        size: Height and width that images are brought to.
        rules: Rules that map labels to classes; those of the config when not given.

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
        arrays = read_arrays(path, (config.arrays.cube, config.arrays.labels))
        cube_name = config.arrays.cube or max(arrays, key=lambda name: arrays[name].size)
        cube = pick_array(arrays, cube_name, path, "data.arrays.cube")
        labels = read_labels(config, arrays, cube_name, path)
        what, rule = f"{path}: {cube_name}", value_rules(config)["image"]
        self.path, self.size, self.resize = path, size, config.images.resize
        self.given_split: list[str] = []
        if are_images(cube, labels):
            kept, self.notes = labelled_images(labels, config, path)
            cube, labels = cube[kept], labels[kept]
            planes = cube[..., None] if cube.ndim == 3 else cube
            cube = bands_first(planes, config.arrays.layout, config.bands.names, what)
            bands = self._name_bands(config, cube.shape[1])
            self._corners, self.fixed = None, False
            invalid = no_data_mask(cube, rule)
            values, self.value_notes = survey_array(cube, invalid, rule, bands, what)
            found, self.targets = label_images(labels, config, rules, arrays, path)
            self.keys = [f"{path.stem}/{i:08d}" for i in kept]
            self.groups = _groups(arrays, kept)
        elif cube.ndim == 4:
            raise DataError(
                f"{path}: {cube_name} holds {plural(len(cube), 'image')}, shape {cube.shape}, and the labels have the "
                f"shape {labels.shape}; one number, or a one-hot row, for each image is wanted"
            )
        else:
            grid = _grid(config.arrays.grid, arrays)
            columnwise = path.suffix.lower() == ".mat"
            layout = config.arrays.layout or scene_layout(cube, labels, config.bands.names, what)
            cube = _scene(cube, grid, columnwise, layout, what)
            bands = self._name_bands(config, cube.shape[0])
            plane = label_plane(labels, (cube.shape[1], cube.shape[2]), columnwise, config, path)
            self._corners = find_patches(plane, config.arrays.patch, config.arrays.stride, path)
            invalid = scene_without_data(cube, plane.labelled, rule)
            values, self.value_notes = survey_array(cube, invalid, rule, bands, what)
            values = by_patch(values, cube, invalid, self._corners, config.arrays.patch)
            found, self.targets = plane.label_patches(self._corners, config.arrays.patch, rules, arrays, path)
            self.scene = Scene(self._corners, config.arrays.patch, config.arrays.block or 3 * config.arrays.patch)
            self.keys = [f"{path.stem}/{row:05d}_{column:05d}" for row, column in self._corners]
        self.values = {"image": values}
        self._images = to_unit_range(cube, invalid, values.limits)
        self.classes, self.numbering = found.names, found.numbering
        self.patch = config.arrays.patch
        self.given_split = [""] * len(self.keys)

    def _name_bands(self, config: DataConfig, number: int) -> tuple[str, ...]:
        names = config.bands.names or tuple(f"band_{i + 1}" for i in range(number))
        if len(names) != number:
            raise ConfigError(
                f"data.bands.names has {plural(len(names), 'name')} and {self.path} {plural(number, 'band')}"
            )
        self.bands = {"image": tuple(names)}
        if config.bands.wavelengths is not None:
            self.wavelengths = {"image": config.bands.wavelengths}
        return tuple(names)

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Read images, shape ``(B, C, H, W)``, float32 in 0..1."""
        if self._corners is None:
            images = self._images[torch.as_tensor(indices)]
        else:
            side = self.patch
            images = torch.stack([self._images[:, r : r + side, c : c + side] for r, c in self._corners[list(indices)]])
        return {"image": resize_tensor(images, self.size, self.resize)}

    def digest(self, index: int) -> bytes:
        """Hash the pixels of the image or patch in 0..1, independent of the requested size."""
        if self._corners is None:
            pixels = self._images[index]
        else:
            row, column = self._corners[index].tolist()
            pixels = self._images[:, row : row + self.patch, column : column + self.patch]
        return hashlib.sha256(pixels.contiguous().numpy().tobytes()).digest()

    def original_size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image or a patch."""
        if self._corners is not None:
            return self.patch, self.patch
        return self._images.shape[2], self._images.shape[3]


def _groups(arrays: Mapping[str, Array], kept: Integers) -> list[str] | None:
    """Return the groups of images if the file has an array "group" or "groups" with an entry for each image."""
    for name in ("group", "groups"):
        if name in arrays and arrays[name].size > kept.max(initial=0) and arrays[name].size in arrays[name].shape:
            cells = arrays[name].reshape(-1)[kept].tolist()
            return groups_of_cells([normalize_label(cell, name) if isinstance(cell, bytes) else cell for cell in cells])
    return None


def _grid(given: tuple[int, int] | None, arrays: Mapping[str, Array]) -> tuple[int, int] | None:
    if given is not None or not {"nRow", "nCol"} <= set(arrays):
        return given
    return int(arrays["nRow"].item()), int(arrays["nCol"].item())


def _scene(cube: Array, grid: tuple[int, int] | None, columnwise: bool, layout: str, what: str) -> Array:
    """Return a scene as ``(C, H, W)``."""
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
            f"{what} has the shape {cube.shape}; a scene has three axes, or is (bands, pixels) with data.arrays.grid"
        )
    if cube.ndim != 3:
        raise DataError(f"{what} has the shape {cube.shape}; a scene (H, W, C) or images with a label each are wanted")
    return cube if layout == "channels_first" else cube.transpose(2, 0, 1)
