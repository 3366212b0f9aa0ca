"""Sources of labelled point clouds."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.data.points.files import READERS, CloudFile, check_points, read_cloud
from vitrail.data.points.sampling import choose_points, sample_mesh, scale_of, turn_back, turn_up
from vitrail.data.points.solids import CLASSES, PARTS, make_solid
from vitrail.data.sources.base import ImageSource
from vitrail.data.sources.class_folders import (
    class_of_folder,
    groups_of_rows,
    labels_of_rows,
    list_given,
    number_labels,
    read_rows,
    split_and_class,
    splits_of_rows,
)
from vitrail.data.sources.encoded import StoredSource
from vitrail.data.sources.listed_files import refuse_repeated
from vitrail.errors import ConfigError, DataError, plural

Array = npt.NDArray[Any]


class PointSource(StoredSource):
    """Point clouds in memory: sampled, centred and scaled as the settings say.

    A cloud of fewer different points than asked for is filled up with NaN.

    Args:
        clouds: Coordinates ``(N, 3)`` and attributes ``(N, F)`` of each.
        labels: Part of each point of each cloud, shape ``(N,)``, as indices into ``parts``; None without labels.
        config: The settings.
        num_points: Points of a cloud.
        feature_names: Names of the attributes.
    """

    is_image = False
    in_memory = True

    def __init__(
        self,
        clouds: Sequence[tuple[Array, Array]],
        config: DataConfig,
        num_points: int,
        feature_names: tuple[str, ...],
        labels: Sequence[Array] | None = None,
    ) -> None:
        settings = config.points
        self.bands = {"points": ("x", "y", "z")} | ({"features": feature_names} if feature_names else {})
        self._points = torch.full((len(clouds), num_points, 3), float("nan"))
        self._features = torch.zeros(len(clouds), num_points, len(feature_names))
        self._parts = None if labels is None else torch.full((len(clouds), num_points), -1)
        self._up = config.up
        self._places = np.empty((len(clouds), 4))
        for i, (points, features) in enumerate(clouds):
            chosen = choose_points(points, num_points, settings.subsample, _generator(settings.seed, points))
            own = turn_up(points[chosen], config.up)
            centre = own.mean(axis=0)
            own = own - centre
            self._places[i] = *centre, scale_of(own, settings.scale)
            self._points[i, : len(own)] = torch.from_numpy(own / self._places[i, 3])
            self._features[i, : len(own)] = torch.from_numpy(features[chosen])
            if self._parts is not None and labels is not None:
                self._parts[i, : len(own)] = torch.from_numpy(labels[i][chosen])

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return points ``(B, N, 3)``, NaN where a cloud has fewer, attributes ``(B, N, F)`` and parts ``(B, N)``."""
        rows = torch.as_tensor(indices)
        found = {"points": self._points[rows]}
        if "features" in self.bands:
            found["features"] = self._features[rows]
        if self._parts is not None:
            found["parts"] = self._parts[rows]
        return found

    def in_file(self, index: int) -> Array:
        """Return the points of a cloud, coordinates as in the file, shape ``(N, 3)``, NaN where it has fewer."""
        centred = self._points[index].double().numpy() * self._places[index, 3] + self._places[index, :3]
        return turn_back(centred, self._up)

    def read_stored(self, stream: str, index: int) -> Array:
        """Return the sampled points of a cloud before rotation, centring and scaling, from its first point on."""
        if stream == "features":
            features: Array = self._features[index].numpy()
            return features
        points = self._points[index].double().numpy() * self._places[index, 3]
        return turn_back(points - points[0], self._up).astype(np.float32)

    def stored_size(self, index: int) -> tuple[int, ...]:
        """Return the number of points, that of all clouds."""
        return (self._points.shape[1],)

    def normalization(self, indices: Sequence[int]) -> dict[str, tuple[list[float], list[float]]]:
        """Leave coordinates as they are; mean and deviation of the attributes of some clouds' real points."""
        found = {"points": ([0.0] * 3, [1.0] * 3)}
        if "features" in self.bands:
            real = self._features[list(indices)][self._points[list(indices)][..., 0].isfinite()].double()
            std = real.std(dim=0, correction=0)
            found["features"] = (real.mean(dim=0).tolist(), torch.where(std > 1e-6, std, 1.0).tolist())
        return found


class SolidsSource(PointSource):
    """Solids made by code.

    Args:
        config: The settings.
        num_points: Points of a cloud.
    """

    fixed = True

    def __init__(self, config: DataConfig, num_points: int) -> None:
        settings = config.points
        numbers = range(settings.num_clouds)
        if settings.part not in (None, "surface"):
            raise ConfigError(f"data.points.part of solids must be 'surface', got {settings.part!r}")
        made = [make_solid(settings.seed, i, num_points, settings.noise, settings.occlusion) for i in numbers]
        self.classes = CLASSES
        self.keys = [f"solids/{settings.seed}/{i:06d}" for i in numbers]
        self.targets = np.array([solid.target for solid in made], dtype=np.int64)
        self.given_split = [""] * len(made)
        clouds = [(solid.points, np.empty((num_points, 0))) for solid in made]
        self.parts = PARTS if settings.part else ()
        super().__init__(clouds, config, num_points, (), [solid.parts for solid in made] if settings.part else None)


class PointFileSource(PointSource):
    """Point clouds of files: a folder of class folders, a CSV table, or an .npz file of arrays.

    Args:
        config: The settings; ``path`` is a folder with a folder for each class (below train, val and test where it is
            split), a CSV file with the columns "path", "label" and maybe "split", or an .npz file with "points"
            ``(M, N, 3)``, "label" ``(M,)`` and maybe "features", "count" (real points of each cloud), "classes" and
            "test". Points whose coordinates are all NaN are padding.
        num_points: Points of a cloud.
        classes: Names of the classes where a run gives them.
        files: Files and folders of point clouds in place of ``path``: their class is the name of their folder where a
            run knows it, -1 where not.

    Raises:
        DataError: Nothing to read, a file that cannot be read, or attributes that some clouds lack.
    """

    named = True

    def __init__(
        self,
        config: DataConfig,
        num_points: int,
        classes: Sequence[str] | None,
        files: Sequence[str | Path] | None = None,
    ) -> None:
        path = Path(config.path or "")
        settings = config.points
        if files is None and path.suffix.lower() == ".npz":
            found, labels = self._read_arrays(path, settings.part)
        else:
            if files is not None:
                listed, labels = self._list_files(files, classes or ())
            else:
                listed, labels = self._list_table(path) if path.suffix.lower() == ".csv" else self._list_folder(path)
            found = [read_cloud(file) for file in listed]
        names = found[0].names if found else ()
        wanted = tuple(settings.features or ())
        sampled, parts = [], []
        for key, cloud in zip(self.keys, found, strict=True):
            points, features = cloud.points, _choose_features(key, cloud, wanted, names)
            if settings.part is not None:
                parts.append(_choose_features(key, cloud, (settings.part,), names, "part")[:, 0])
            elif cloud.faces is not None and not wanted:
                points = sample_mesh(points, cloud.faces, 4 * num_points, _generator(settings.seed, points))
                features = np.empty((len(points), 0))
            sampled.append((points, features))
        self.classes, self.targets = number_labels(labels, classes, path, given=files is not None)
        numbered = None
        if settings.part is not None:
            self.parts, numbered = _number_parts(parts, self.parts)
        super().__init__(sampled, config, num_points, wanted, numbered)

    def _list_files(self, paths: Sequence[str | Path], classes: Sequence[str]) -> tuple[list[Path], list[str]]:
        found = list_given(paths, _clouds_below, f"point clouds; known formats are {' '.join(READERS)}")
        self.keys = [path.as_posix() for path in found]
        self.given_split = [""] * len(found)
        return found, [class_of_folder(path, classes) for path in found]

    def _list_folder(self, root: Path) -> tuple[list[Path], list[str]]:
        if not root.is_dir():
            raise DataError(f"data.path {root} is neither a folder nor a .csv or .npz file")
        files = [p for p in sorted(_clouds_below(root)) if p.parent != root]
        if not files:
            raise DataError(f"{root} has no folders of point clouds; known formats are {' '.join(READERS)}")
        self.keys = [p.relative_to(root).as_posix() for p in files]
        found = [split_and_class(p.relative_to(root).parts[:-1]) for p in files]
        self.given_split, labels = [split for split, _ in found], [label for _, label in found]
        if "" in labels:
            raise DataError(f"{files[labels.index('')]} is not inside a class folder; move it to CLASS/")
        return files, labels

    def _list_table(self, path: Path) -> tuple[list[Path], list[str]]:
        rows = read_rows(path)
        self.keys = [row["path"] for row in rows]
        self.given_split = splits_of_rows(rows, path)
        self.groups = groups_of_rows(rows)
        files, labels = [path.parent / key for key in self.keys], labels_of_rows(rows, path, "point clouds")
        refuse_repeated(path, self.keys, files, labels, "point cloud")
        return files, labels

    def _read_arrays(self, path: Path, part: str | None) -> tuple[list[CloudFile], list[str]]:
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read data.path {path}: {error}") from error
        if not {"points", "label"} <= set(arrays) or arrays["points"].ndim != 3 or arrays["points"].shape[2] < 3:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in arrays.items())
            raise DataError(f"{path}: needs points (M, N, 3) and label (M,), has {shapes}")
        points = arrays["points"].astype(np.float64)
        features = arrays.get("features", points[..., 3:]).astype(np.float64)
        counts = np.minimum(arrays.get("count", np.full(len(points), points.shape[1])), points.shape[1])
        label, classes = arrays["label"], arrays.get("classes")
        labels = [
            str(classes[value]) if classes is not None and label.dtype.kind in "iu" else str(value) for value in label
        ]
        keys = arrays.get("name")
        self.keys = [f"{i:06d}" for i in range(len(points))] if keys is None else [str(key) for key in keys]
        if len(set(self.keys)) < len(self.keys):
            self.keys = [f"{i:06d}" for i in range(len(points))]
        test = arrays.get("test")
        self.given_split = [""] * len(points) if test is None else ["test" if own else "train" for own in test]
        names = tuple(f"feature{i}" for i in range(features.shape[2]))
        if part is not None and part in arrays:
            if arrays[part].shape != points.shape[:2]:
                raise DataError(
                    f"{path}: {part} (data.points.part) needs shape {points.shape[:2]}, has {arrays[part].shape}"
                )
            features, names = np.concatenate([features, arrays[part][..., None]], axis=2), (*names, part)
            self.parts = tuple(map(str, arrays.get("part_names", ())))
        clouds = []
        for key, own, numbers, count in zip(self.keys, points[..., :3], features, counts, strict=True):
            real = ~np.isnan(own).all(axis=1) & (np.arange(len(own)) < count)
            check_points(f"{path}: cloud {key}", own[real])
            clouds.append(CloudFile(own[real], numbers[real], names))
        return clouds, labels


def _clouds_below(root: Path) -> list[Path]:
    return [p for p in root.rglob("*") if p.suffix.lower() in READERS and p.is_file()]


def _generator(seed: int, points: Array) -> np.random.Generator:
    """Make the generator of a cloud's sampling: by its content, so that its name and order change no point."""
    return np.random.default_rng((seed, zlib.crc32(np.ascontiguousarray(points).tobytes())))


def _number_parts(parts: Sequence[Array], names: tuple[str, ...]) -> tuple[tuple[str, ...], list[Array]]:
    """Map the labels of points, whole numbers, to class numbers; negative ones mark points without a label.

    Args:
        parts: Label of each point of each cloud.
        names: Names of the labels 0, 1, ...; where there are none the labels are their own names.

    Returns:
        Names, and index into them of each point of each cloud; -1 without a label.

    Raises:
        DataError: Labels that are not whole or have no name, or no label at all.
    """
    every = np.unique(np.concatenate(parts))
    whole = np.isfinite(every) & (every == every.round())
    if not whole.all():
        raise DataError(f"data.points.part must hold whole numbers, got {every[~whole][0]:g}")
    every = every[every >= 0]
    if not len(every):
        raise DataError("data.points.part has no label of 0 or above; negative ones mark points without a label")
    if names and every[-1] >= len(names):
        raise DataError(
            f"data.points.part has labels up to {int(every[-1])} and {plural(len(names), 'name')} (part_names)"
        )
    known = np.arange(len(names)) if names else every
    numbered = [np.where(own < 0, -1, np.searchsorted(known, own)) for own in parts]
    return names or tuple(str(int(value)) for value in every), numbered


def _choose_features(
    key: str, cloud: CloudFile, wanted: tuple[str, ...], names: tuple[str, ...], setting: str = "features"
) -> Array:
    """Return the wanted attributes of a cloud, by name, shape ``(N, len(wanted))``.

    Raises:
        DataError: The cloud lacks one.
    """
    if not wanted:
        return np.empty((len(cloud.points), 0))
    own = cloud.names or names or tuple(f"feature{i}" for i in range(cloud.features.shape[1]))
    lacking = [name for name in wanted if name not in own]
    if lacking:
        raise DataError(
            f"{key}: has no {', '.join(lacking)} (data.points.{setting}); it has {', '.join(own) or 'none'}"
        )
    return cloud.features[:, [own.index(name) for name in wanted]]


def open_points(config: DataConfig, size: tuple[int, ...], classes: Sequence[str] | None) -> ImageSource:
    """Open the point clouds of ``data.source`` "solids" or "points".

    Args:
        config: The settings.
        size: Number of points, which a model of point clouds gives.
        classes: Names of the classes where a run gives them.
    """
    return SolidsSource(config, size[0]) if config.source == "solids" else PointFileSource(config, size[0], classes)
