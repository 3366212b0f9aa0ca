"""Labels in arrays: a number, a name or a one-hot row for each image, or a label plane of a scene."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitrail.config.data import DataConfig
from vitrail.data.classes import (
    Classes,
    ClassRules,
    Label,
    Numbering,
    clean_name,
    encode_targets,
    match_names_to_numbers,
    normalize_label,
    resolve_classes,
)
from vitrail.data.image_errors import head
from vitrail.data.sources.array_files import Array, own_names, pick_array, read_arrays
from vitrail.errors import ConfigError, DataError, count_of, plural

Integers = npt.NDArray[np.int64]


def read_labels(config: DataConfig, arrays: Mapping[str, Array], cube: str, path: Path) -> Array:
    """Read the label array of a config, from the file or another; (N, 1) becomes (N,).

    Raises:
        ConfigError: No such array, or several that it could be.
    """
    if config.arrays.labels is not None and config.arrays.labels not in arrays:
        other = Path(config.arrays.labels)
        for file in (other, path.parent / other):
            if file.is_file():
                inside = read_arrays(file)
                length = len(arrays[cube])
                fits = [name for name, own in inside.items() if own.ndim in (1, 2) and len(own) == length]
                if arrays[cube].ndim == 4 and len(fits) > 1 and "labels" not in fits:
                    raise ConfigError(
                        f"which array of {file} holds the labels? {', '.join(fits)} fit {cube}; call it labels, or "
                        "keep it alone in the file"
                    )
                if arrays[cube].ndim == 4 and fits:
                    return _squeeze(inside["labels" if "labels" in fits else fits[0]])
                return _squeeze(inside[max(inside, key=lambda name: inside[name].size)])
    if config.arrays.labels is None:
        rest = [name for name in arrays if name != cube and arrays[name].size > 1]
        if len(rest) != 1 and "labels" not in rest:
            raise ConfigError(
                f"which array of {path} holds the labels? Name it with data.arrays.labels"
                + (f"; there are {', '.join(rest)}" if rest else ", or another file")
            )
        return _squeeze(arrays["labels" if "labels" in rest else rest[0]])
    return _squeeze(pick_array(arrays, config.arrays.labels, path, "data.arrays.labels", texts=True))


def _squeeze(labels: Array) -> Array:
    """Convert (N, 1) to (N,): MATLAB has no vectors."""
    return labels.reshape(-1) if labels.ndim == 2 and 1 in labels.shape else labels


def are_images(cube: Array, labels: Array) -> bool:
    """Check whether an array is a stack of images with a label (or a row of labels) each, not a scene.

    ``(N, H, W)`` with labels ``(N, K)`` of 0 and 1 is a stack, unless these are a plane over a scene: of its height and
    width, or of as many columns as it has pixels, and not one 1 in every row.
    """
    if cube.ndim not in (3, 4) or labels.ndim not in (1, 2) or len(labels) != len(cube):
        return False
    if labels.ndim == 1 or cube.ndim == 4:
        return True
    if not _is_binary(labels):
        return False
    plane = labels.shape in (cube.shape[:2], cube.shape[1:])
    pixels = {cube.shape[0] * cube.shape[1], cube.shape[1] * cube.shape[2]}
    return not pixels & set(labels.shape) and (not plane or bool((labels.sum(axis=1) == 1).all()))


def _is_binary(labels: Array) -> bool:
    return labels.dtype.kind in "buif" and bool(np.isin(labels, (0, 1)).all())


def labelled_images(labels: Array, config: DataConfig, path: Path) -> tuple[Integers, list[str]]:
    """Return the indices of the labelled images, and a note on the others.

    Args:
        labels: Labels of a stack of images.
        config: Says which number is unlabelled; none when it does not.
        path: The file.

    Raises:
        DataError: No image is labelled.
    """
    every = np.arange(len(labels))
    value = config.classes.unlabelled_value
    if value is None or value == "none" or labels.ndim != 1 or labels.dtype.kind not in "buif":
        return every, []
    kept = every[labels != value]
    if not len(kept):
        raise DataError(f"{path}: no image is labelled (data.classes.unlabelled_value {value})")
    lost = len(every) - len(kept)
    return kept, [
        f"left out {plural(lost, 'image')} whose label is {value} (data.classes.unlabelled_value)"
    ] if lost else []


def label_images(
    labels: Array, config: DataConfig, rules: ClassRules, arrays: Mapping[str, Array], path: Path
) -> tuple[Classes, Integers]:
    """Resolve the classes, and the class of each image.

    Args:
        labels: A number or a name an image ``(N,)``, or 0 and 1 for each class ``(N, K)``.
        config: Data settings that say how to read the labels.
        rules: Rules that map labels to classes.
        arrays: Arrays of the file, which may name the classes.
        path: The file.

    Returns:
        The classes, and class indices ``(N,)``, or 1 and 0 for each class ``(N, K)`` where images are multi-label.

    Raises:
        DataError: Labels that are not whole numbers or names, or rows that are not one-hot.
    """
    if labels.ndim == 1:
        if config.classes.multi_label:
            raise ConfigError(
                f"data.classes.multi_label needs labels (N, K) of 0 and 1, those of {path} are {labels.shape}"
            )
        return _resolve(labels, rules, own_names(arrays) if labels.dtype.kind in "buif" else None, path)
    if not _is_binary(labels):
        raise DataError(
            f"{path}: the labels have the shape {labels.shape} and are not all 0 or 1; give one number an image, or "
            "one-hot rows"
        )
    count = labels.shape[1]
    if not config.classes.multi_label:
        wrong = np.flatnonzero(labels.sum(axis=1) != 1)
        if len(wrong):
            raise DataError(
                f"{path}: several or no 1 in {len(wrong)} of {plural(len(labels), 'row')} of labels (row {wrong[0]} "
                f"has {int(labels[wrong[0]].sum())}); one-hot labels have one in each row, and "
                "data.classes.multi_label true (with task.loss bce) takes any number"
            )
    found: dict[Label, int] = {i: int(labels[:, i].sum()) for i in range(count)}
    own = _own_of(own_names(arrays), range(count), rules, range(count), path)
    classes = resolve_classes(found, rules, path, own, range(count))
    if config.classes.multi_label:
        rows: list[Label | tuple[Label, ...]] = [tuple(np.flatnonzero(row).tolist()) for row in labels]
        return classes, encode_targets(rows, classes.index, len(classes.names))
    columns = np.array([classes.index[i] for i in range(count)], dtype=np.int64)
    return classes, columns[labels.argmax(axis=1)]


def _resolve(
    labels: Array, rules: ClassRules, names: Sequence[str] | None, path: Path, numbers: Sequence[int] | None = None
) -> tuple[Classes, Integers]:
    """Resolve the classes of labels ``(N,)``, and the index of each."""
    values, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    found = [normalize_label(value, path) for value in values.tolist()]
    if "" in found:
        raise DataError(
            f"{path}: {count_of(int(counts[found.index('')]), len(labels), 'label', 'is', 'are')} empty; fill them"
        )
    present = [label for label in found if isinstance(label, int)]
    own = _own_of(names, present, rules, numbers, path)
    totals: dict[Label, int] = {}
    for label, count in zip(found, counts.tolist(), strict=True):
        totals[label] = totals.get(label, 0) + count
    classes = resolve_classes(totals, rules, path, own, numbers)
    return classes, np.array([classes.index[label] for label in found], dtype=np.int64)[inverse.reshape(-1)]


def _own_of(
    names: Sequence[str] | None,
    present: Sequence[int],
    rules: ClassRules,
    numbers: Sequence[int] | None,
    path: Path,
) -> dict[int, str] | None:
    """Map numbers to the names that a list of texts in the file gives."""
    if names is None or not present:
        return None
    given = {clean_name(name) for name in rules.names or ()}
    if given and not given & {clean_name(name) for name in names}:
        return None  # a list of something else, or names that the recipe replaces
    values = sorted(value for value in rules.values or () if isinstance(value, int))
    if numbers is None and len(values) == len(names):
        numbers = values
    if numbers is None:
        numbers = match_names_to_numbers(present, names, path)
    return dict(zip(numbers, names, strict=False))


@dataclass(frozen=True)
class LabelPlane:
    """Label of each pixel of a scene.

    Attributes:
        numbers: Shape ``(H, W)``.
        unlabelled: The number of unlabelled pixels; "none" where every pixel is labelled.
        first: The number of the first class, where the form of the labels says so.
    """

    numbers: Array
    unlabelled: int | str
    first: int | None

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """Mask of labelled pixels, shape ``(H, W)``."""
        mask: npt.NDArray[np.bool_] = np.full(self.numbers.shape, True)
        return mask if self.unlabelled == "none" else self.numbers != self.unlabelled

    def label_patches(
        self, corners: Integers, side: int, rules: ClassRules, arrays: Mapping[str, Array], path: Path
    ) -> tuple[Classes, Integers]:
        """Resolve the classes of patches by their centres, and the class index of each.

        Args:
            corners: Top and left pixel of each patch, shape ``(N, 2)``.
            side: Side of a patch, in pixels.
            rules: Rules that map numbers to classes.
            arrays: Arrays of the file, which may name the classes.
            path: The file.
        """
        names = rules.names or own_names(arrays)
        numbers: Sequence[int] | None = None
        if names is not None and rules.values is None:
            present = np.unique(self.numbers[self.labelled]).tolist()
            first = self.first
            numbers = (
                match_names_to_numbers(present, names, path) if first is None else range(first, first + len(names))
            )
        labels = self.numbers[corners[:, 0] + side // 2, corners[:, 1] + side // 2]
        classes, targets = _resolve(labels, rules, own_names(arrays), path, numbers)
        numbering = dataclasses.replace(classes.numbering or Numbering(), unlabelled_value=self.unlabelled)
        return dataclasses.replace(classes, numbering=numbering), targets


def label_plane(labels: Array, size: tuple[int, int], columnwise: bool, config: DataConfig, path: Path) -> LabelPlane:
    """Return the label of each pixel of a scene, from numbers or from shares of the classes.

    Args:
        labels: Numbers ``(H, W)`` or ``(H * W,)``, or shares ``(K, H, W)``, ``(H, W, K)`` or of flat planes; the class
            of the largest share counts, and where no share is above 0 a pixel is unlabelled.
        size: Height and width of the scene.
        columnwise: Whether flat planes are stored column by column.
        config: Data settings that say how to read the numbers.
        path: The file, for errors.

    Raises:
        DataError: Labels of another shape, or that are not whole numbers.
        ConfigError: The number of unlabelled pixels could be one of several.
    """
    what, pixels = f"{path}: the labels", size[0] * size[1]
    if labels.ndim == 1 and labels.size == pixels:
        labels = unfold(labels[None], size, columnwise)[0]
    elif labels.ndim == 2 and pixels in labels.shape and labels.shape != size:
        labels = unfold(labels if labels.shape[1] == pixels else labels.T, size, columnwise)
    if labels.ndim == 3 and labels.shape[1:] != size and labels.shape[:2] == size:
        labels = labels.transpose(2, 0, 1)
    if labels.ndim == 3 and labels.shape[1:] == size:
        if not np.isfinite(labels).all():
            raise DataError(f"{what} are shares that are not finite")
        return LabelPlane(np.where(labels.max(axis=0) > 0, labels.argmax(axis=0) + 1, 0), 0, 1)
    if labels.shape != size:
        raise DataError(
            f"{what} have the shape {labels.shape} and the scene is {size[0]} x {size[1]}; images (N, H, W) need a "
            "number or a one-hot row each"
        )
    if labels.dtype.kind not in "buif" or (labels.dtype.kind == "f" and not np.array_equal(labels, np.round(labels))):
        raise DataError(f"{what} are not whole numbers; give a plane of numbers, or of shares for each class")
    plane = labels.astype(np.int64) if labels.dtype.kind in "bf" else labels
    unlabelled = _unlabelled(plane, config, path)
    return LabelPlane(plane, unlabelled, 1 if unlabelled == 0 == config.classes.unlabelled_value else None)


def _unlabelled(plane: Array, config: DataConfig, path: Path) -> int | str:
    """Resolve the number of unlabelled pixels: the setting, or 0 if unambiguous."""
    if config.classes.unlabelled_value is not None:
        return config.classes.unlabelled_value
    values = np.unique(plane)
    low, high = int(values[0]), int(values[-1])
    named = None if config.classes.values is None else [v for v in config.classes.values if isinstance(v, int)]
    if low < 0 or (named is not None and 0 in named and set(values.tolist()) - set(named)):
        raise ConfigError(
            f"the labels of {path} are {head([str(v) for v in values.tolist()], 6)}: which number is unlabelled? Give "
            f"data.classes.unlabelled_value {low if low < 0 else 0} (or another, or none where every pixel is labelled)"
        )
    if named is not None:
        return "none" if 0 in named else 0
    count = len(config.classes.names or ())
    if count and low == 0 and high > count and len(values) == count + 1 and int(values[-2]) == count - 1:
        raise ConfigError(
            f"the labels of {path} are 0 to {count - 1} and {high}, and "
            f"{plural(count, 'class has a name', 'classes have names')} ({head(list(config.classes.names or ()))}): "
            f"give data.classes.unlabelled_value {high} if those are unlabelled"
        )
    if config.classes.names is not None and low == 0 and high < len(config.classes.names):
        raise ConfigError(
            f"the labels of {path} are 0 to {high} and "
            f"{plural(len(config.classes.names), 'class has a name', 'classes have names')} "
            f"({head(list(config.classes.names))}): are pixels of 0 unlabelled, or of the first class? Give "
            "data.classes.unlabelled_value 0, or none where every pixel is labelled"
        )
    return 0


def find_patches(plane: LabelPlane, side: int, stride: int, path: Path) -> Integers:
    """Find the top left corners of patches with a labelled centre, shape ``(N, 2)``.

    Raises:
        ConfigError: Patches larger than the scene.
        DataError: No labelled centre.
    """
    height, width = plane.numbers.shape
    if side > min(height, width):
        raise ConfigError(f"data.arrays.patch {side} is more than the {height} x {width} pixels of {path}")
    rows, columns = np.arange(0, height - side + 1, stride), np.arange(0, width - side + 1, stride)
    corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    labelled = plane.labelled[corners[:, 0] + side // 2, corners[:, 1] + side // 2]
    if not labelled.any():
        remedy = f"reduce data.arrays.stride {stride}, or check" if stride > 1 else "check"
        raise DataError(
            f"{path}: all patch centres are unlabelled; {remedy} data.classes.unlabelled_value {plane.unlabelled}"
        )
    return np.asarray(corners[labelled], dtype=np.int64)


def unfold(flat: Array, grid: tuple[int, int], columnwise: bool) -> Array:
    """Reshape flat planes ``(C, H * W)``, stored by row or by column, to ``(C, H, W)``."""
    if columnwise:
        return flat.reshape(len(flat), grid[1], grid[0]).transpose(0, 2, 1)
    return flat.reshape(len(flat), *grid)
