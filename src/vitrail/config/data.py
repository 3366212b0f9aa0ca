"""The part ``data`` of a recipe: images, classes, splits and batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any, Literal

from vitrail.config.augment import augment_settings
from vitrail.config.checks import expand_homes, require
from vitrail.config.data_groups import (
    GROUPS,
    ArraysConfig,
    BandsConfig,
    ClassesConfig,
    ErrorsConfig,
    ImagesConfig,
    LeavesConfig,
    LoaderConfig,
    PointsConfig,
    SpectralConfig,
    SplittingConfig,
    TableConfig,
    ValuesConfig,
    VideoConfig,
    build_group,
)
from vitrail.errors import ConfigError, plural

# Settings that say where other images lie and how their labels are written; none of them changes what a run was trained
# on, so that an evaluation may change them.
FORM_SETTINGS = (
    "source", "path", "spectral.path", "arrays.labels", "arrays.cube", "table.image_column", "table.label_column",
    "table.group_column", "table.split_column", "table.separator", "table.header", "table.encoding",
    "table.image_folder", "classes.multi_label", "table.label_separator", "classes.label_pattern", "classes.names",
    "classes.values", "classes.unlabelled_value", "classes.merge", "points.part",
)  # fmt: skip
# Settings that say where a run's images lie and how they are listed there: another path may need others.
PATH_SETTINGS = (*FORM_SETTINGS, "table.subset", "splitting.group_pattern", "images.repeated_files", "video.folder_fps")
# Settings that name a file or folder.
FILE_SETTINGS = ("path", "spectral.path", "values.statistics", "arrays.labels")


@dataclass(frozen=True)
class DataConfig:
    """Images of a run: source, split, size and batches.

    Attributes:
        source: "digits" (scikit-learn's 1,797 handwritten digits), "folder" (images in one folder a class), "table" (a
            CSV or Parquet file with a column of paths and one of labels, and of splits, groups or second files where
            there are any), "parquet" (Parquet files that hold the images themselves, as the Hugging Face hub has them),
            "hf" (a data set of the hub by its name, or one of its library's on this machine; needs the extra hf),
            "arrays" (.npy, .npz, .mat or HDF5: images, or a scene with a label plane that is cut into patches),
            "synthetic_leaves" (drawn by the code: RGB and five spectral bands, for trying things out) or "unlabelled"
            (all images in a folder, at any depth; for pre-training). Of clips: "moving_digits" (handwritten digits that
            move in one of eight directions) or "videos" (video files or folders of frames in one folder a class, or a
            CSV table of them; needs the extra video). Of point clouds: "points" (files in one folder a
            class, a CSV table of them, or arrays in an .npz file) or "solids" (bodies made by the code, for trying
            things out).
        path: The folder, with train/, val/ (and test/) inside, or class folders to split; the table, in which paths are
            relative to its folder; the Parquet file or the folder of them; owner/name of a data set on the hub; the
            file of arrays.
        img_size: Height and width in pixels that images are brought to; the model's when not given.
        color: Bands of a folder's images: "rgb" (3) or "gray" (1).
        scale: Value that becomes 1 (with ``values.offset``: the difference between the values that become 0 and 1), for
            all bands or one per band. Not needed for 8 bits and where files bring a scale and offset of their own
                (GDAL),
            which are applied first; of 16-bit integers of one type throughout their largest is used, and logged.
        split: Method that splits images without a given split. "auto": a scene by blocks, images with groups (a column
            or ``splitting.group``) grouped, others stratified; the run's recipe records which. "stratified": each image
            by its own hash, so that a new one moves no other, and of each class about the wanted share; "exact":
            exactly that share of each class, where a new image may move one at each border (collections that never grow
            are always split so); "grouped": whole groups by their hash; "block": a scene's blocks, which is how scenes
            are always split.
        up: Up axis of the files of point clouds; their z axis is up once they are read.
        augment: "none", "light" (small shifts, turns and zooms), "standard" (random crops, flips and colour), "strong"
            (RandAugment, erasing, mixup and CutMix as well) or "leaf" (any way round, gentle colours).
        batch_size: Images a step; "auto" measures training steps and takes the smallest that is about as fast as any.
        images: Reading of the images.
        bands: Bands of the images.
        values: Range of the stored values.
        spectral: Second stream: its files, bands and values.
        table: Columns and format of a table.
        classes: Classes and labels.
        arrays: Arrays and scenes.
        leaves: Synthetic leaves.
        points: Point clouds.
        video: Clips.
        splitting: Splits and groups.
        loader: Loading of batches.
        errors: Files that are unsuitable.
        augmentation: Single settings that take the place of the preset's, for example ``{mixup: 0.2}``; those of
            :class:`vitrail.config.augment.AugmentSettings`.
    """

    source: str = "digits"
    path: str | None = None
    img_size: int | tuple[int, int] | None = None
    color: Literal["rgb", "gray"] = "rgb"
    scale: float | tuple[float, ...] | None = None
    split: Literal["auto", "stratified", "exact", "grouped", "block"] = "auto"
    up: Literal["x", "y", "z"] = "z"
    augment: Literal["none", "light", "standard", "strong", "leaf"] = "none"
    batch_size: int | Literal["auto"] = 64
    images: ImagesConfig = field(default_factory=ImagesConfig)
    bands: BandsConfig = field(default_factory=BandsConfig)
    values: ValuesConfig = field(default_factory=ValuesConfig)
    spectral: SpectralConfig = field(default_factory=SpectralConfig)
    table: TableConfig = field(default_factory=TableConfig)
    classes: ClassesConfig = field(default_factory=ClassesConfig)
    arrays: ArraysConfig = field(default_factory=ArraysConfig)
    leaves: LeavesConfig = field(default_factory=LeavesConfig)
    points: PointsConfig = field(default_factory=PointsConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    splitting: SplittingConfig = field(default_factory=SplittingConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    errors: ErrorsConfig = field(default_factory=ErrorsConfig)
    augmentation: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Build groups that are given as mappings, and check ranges.

        Raises:
            ConfigError: A value out of range.
        """
        for group in GROUPS:
            value = getattr(self, group)
            if isinstance(value, Mapping):
                object.__setattr__(self, group, build_group(f"data.{group}", value))
        for name in FILE_SETTINGS:
            group, dot, leaf = name.rpartition(".")
            expand_homes(f"data{dot}{group}", getattr(self, group) if group else self, (leaf,))
        require(self.batch_size == "auto" or self.batch_size >= 1, "data.batch_size", "at least 1", self.batch_size)
        workers, share = self.loader.num_workers, self.classes.label_fraction
        seen = self.images.crop_pct
        require(0 < seen <= 1, "data.images.crop_pct", "above 0 and at most 1", seen)
        require(workers >= -1, "data.loader.num_workers", "at least -1", workers)
        require(0 < share <= 1, "data.classes.label_fraction", "above 0 and at most 1", share)
        for name in (
            "arrays.patch",
            "arrays.stride",
            "leaves.num_images",
            "arrays.block",
            "video.num_frames",
            "video.views",
        ):
            value = self.setting(name)
            require(value is None or value >= 1, f"data.{name}", "at least 1", value)
        self._check_splitting()
        self._check_points()
        self._check_clips()
        self._check_bands()
        self._check_labels()
        augment_settings(self.augment, self.augmentation)

    def setting(self, name: str) -> Any:
        """Return a setting by its dotted name, for example "splitting.val_fraction"."""
        return attrgetter(name)(self)

    def changed(self, settings: Mapping[str, Any]) -> DataConfig:
        """Copy with other settings.

        Args:
            settings: Dotted name -> value.
        """
        own = {name: value for name, value in settings.items() if "." not in name}
        groups: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            if "." in name:
                group, leaf = name.split(".")
                groups.setdefault(group, {})[leaf] = value
        built = {group: replace(getattr(self, group), **values) for group, values in groups.items()}
        return replace(self, **own, **built)

    def form(self) -> dict[str, Any]:
        """Return the settings of :data:`FORM_SETTINGS` that are given, source and path always."""
        values = {name: self.setting(name) for name in FORM_SETTINGS}
        return {n: v for n, v in values.items() if n in ("source", "path") or v != DEFAULTS[n]}

    @property
    def images_a_step(self) -> int:
        """The batch size as a number.

        Raises:
            ConfigError: It is "auto" still, which only training resolves.
        """
        if self.batch_size == "auto":
            raise ConfigError("data.batch_size auto is resolved by training; give a number here")
        return self.batch_size

    def _check_splitting(self) -> None:
        config = self.splitting
        for name in ("val_fraction", "test_fraction"):
            value = getattr(config, name)
            require(0 <= value < 1, f"data.splitting.{name}", "at least 0 and below 1", value)
        held_out = config.val_fraction + config.test_fraction
        require(held_out < 1, "data.splitting.val_fraction + data.splitting.test_fraction", "below 1", held_out)
        require(config.num_folds >= 2, "data.splitting.num_folds", "at least 2", config.num_folds)
        if config.fold is not None:
            last = config.num_folds - 1
            require(0 <= config.fold <= last, "data.splitting.fold", f"from 0 to {last}", config.fold)
            rest = 1 - 1 / config.num_folds
            require(
                config.val_fraction < rest, "data.splitting.val_fraction", f"below the {rest:g} beside a fold", held_out
            )
        if config.group is not None:
            grouped = self.split in ("auto", "grouped")
            require(grouped, "data.split", "auto or grouped where data.splitting.group is given", self.split)

    def _check_points(self) -> None:
        points = self.points
        require(
            points.num_points is None or points.num_points >= 1,
            "data.points.num_points",
            "at least 1",
            points.num_points,
        )
        require(points.num_clouds >= 1, "data.points.num_clouds", "at least 1", points.num_clouds)
        for name in ("shift", "jitter", "noise"):
            value = getattr(points, name)
            require(0 <= value < math.inf, f"data.points.{name}", "at least 0 and finite", value)
        for name in ("drop", "occlusion"):
            value = getattr(points, name)
            require(0 <= value < 1, f"data.points.{name}", "at least 0 and below 1", value)
        low, high = points.zoom
        require(0 < low <= high < math.inf, "data.points.zoom", "two numbers above 0, the lower one first", points.zoom)
        if not isinstance(points.scale, str):
            require(
                0 < points.scale < math.inf, "data.points.scale", "sphere, rms, none or a length above 0", points.scale
            )

    def _check_clips(self) -> None:
        video = self.video
        for name, rate in (("fps", video.fps), ("folder_fps", video.folder_fps)):
            require(rate is None or 0 < rate < math.inf, f"data.video.{name}", "above 0 and finite", rate)
        require(video.crops in (1, 3), "data.video.crops", "1 or 3", video.crops)
        whole = self.images.resize == "squash"
        require(video.crops == 1 or not whole, "data.video.crops", "1 with data.images.resize squash", video.crops)
        if self.source == "videos" and self.loader.cache:
            # A cache holds one clip of each video.
            for name, value in (("sampling", "middle"), ("views", 1), ("crops", 1)):
                given = getattr(video, name)
                require(given == value, f"data.video.{name}", f"{value} beside data.loader.cache", given)

    def _check_labels(self) -> None:
        separator = self.table.label_separator
        require(separator != "", "data.table.label_separator", "at least one character", separator)
        if self.source != "table":
            require(separator is None, "data.table.label_separator", "left out but for tables", separator)
        names_of_groups = ("splitting.group", "table.group_column", "splitting.group_pattern")
        groups = [name for name in names_of_groups if self.setting(name) is not None]
        require(len(groups) < 2, " and ".join(f"data.{name}" for name in groups), "one of them alone", "both")
        config = self.classes
        if config.label_pattern is not None:
            column = self.table.label_column
            wanted = "left out beside data.classes.label_pattern"
            require(column is None, "data.table.label_column", wanted, column)
        if config.values is not None:
            object.__setattr__(config, "values", tuple(map(_plain_label, config.values)))
        names, values = config.names, config.values
        if names is not None:
            require(len(set(names)) == len(names) > 0, "data.classes.names", "different names, at least one", names)
        if values is not None:
            count = len(names or ())
            require(names is not None, "data.classes.values", "left out without data.classes.names", values)
            require(
                len(values) == count,
                "data.classes.values",
                f"{plural(count, 'label')}, one for each class name",
                values,
            )
            require(len(set(values)) == len(values), "data.classes.values", "different labels", values)

    def _check_bands(self) -> None:
        bands, spectral = self.bands, self.spectral
        if bands.files is not None:
            require(bands.names is not None, "data.bands.names", "given where data.bands.files is", bands.names)
            wanted = "left out beside data.bands.files (use data.spectral.use)"
            require(spectral.path is None, "data.spectral.path", wanted, spectral.path)
        for group in ("bands", "spectral"):
            config = getattr(self, group)
            if config.wavelengths is not None:
                name, nm = f"data.{group}.wavelengths", config.wavelengths
                require(config.names is not None, f"data.{group}.names", f"given where {name} are", config.names)
                require(len(nm) == len(config.names), name, f"{plural(len(config.names), 'number')}, one per band", nm)
                require(all(0 < v < math.inf for v in nm), name, "above 0 and finite, in nm", nm)
            for leaf in ("names", "use"):
                name, given = f"data.{group}.{leaf}", getattr(config, leaf)
                if given is not None:
                    require(name == "data.spectral.use" or len(given) > 0, name, "at least one name", given)
                    require(all(given), name, "names that are not empty", given)
                    require(len(set(given)) == len(given), name, "different names", given)
        self._check_values("data.values", self.values, "data.scale", self.scale)
        self._check_values("data.spectral", spectral, "data.spectral.scale", spectral.scale)
        require(self.images.max_pixels >= 1, "data.images.max_pixels", "at least 1", self.images.max_pixels)

    def _check_values(self, group: str, config: ValuesConfig | SpectralConfig, name_of_scale: str, scale: Any) -> None:
        """Check the settings that map stored values to 0..1."""
        _name_no_data(group, config)
        offset, limits = config.offset, config.range
        names = {"scale": name_of_scale, "offset": f"{group}.offset", "range": f"{group}.range"}
        for value in scale if isinstance(scale, (tuple, list)) else (scale,):
            require(value is None or 0 < value < math.inf, names["scale"], "above 0 and finite", scale)
        for value in offset if isinstance(offset, (tuple, list)) else (offset,):
            require(value is None or math.isfinite(value), names["offset"], "finite", offset)
        for name, given in ((names["scale"], scale), (names["offset"], offset), (names["range"], limits)):
            require(not isinstance(given, (tuple, list)) or len(given) > 0, name, "at least one number", given)
        require(offset is None or scale is not None, names["offset"], f"left out without {names['scale']}", offset)
        if limits is None:
            return
        require(scale is None, names["scale"], f"left out beside {names['range']}", scale)
        for pair in limits if isinstance(limits[0], (tuple, list)) else (limits,):
            require(len(pair) == 2, names["range"], "two values [low, high], or such a pair a band", limits)
            low, high = pair
            ordered = math.isfinite(low) and math.isfinite(high) and low < high
            require(ordered, names["range"], "two finite values, the lower one first", limits)


# Dotted name -> default of every setting.
DEFAULTS: dict[str, Any] = {
    **{f.name: f.default for f in fields(DataConfig) if f.name not in (*GROUPS, "augmentation")},
    **{f"{group}.{f.name}": f.default for group, kind in GROUPS.items() for f in fields(kind)},
    "augmentation": {},
}


def _name_no_data(group: str, config: ValuesConfig | SpectralConfig) -> None:
    """Write nan and infinities as words: nan is equal to nothing, and recipes are compared."""
    given = config.nodata
    if given is None:
        return
    several = isinstance(given, (tuple, list))
    marks = []
    for mark in given if isinstance(given, (tuple, list)) else (given,):
        try:
            value = float(mark)
        except ValueError:
            require(False, f"{group}.nodata", "numbers, nan, inf or -inf", given)
        marks.append(value if math.isfinite(value) else str(value))
    object.__setattr__(config, "nodata", tuple(marks) if several else marks[0])


def _plain_label(value: int | float | bool | str) -> int | str:
    """Convert a label to a whole number or a text: 1.0 to 1; 0.5 and true as they are spelled."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return str(value) if isinstance(value, (bool, float)) else value
