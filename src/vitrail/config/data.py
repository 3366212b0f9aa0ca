"""The part ``data`` of a recipe: images, classes, splits and batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from vitrail.config.augment import augment_settings
from vitrail.config.checks import expand_homes, require
from vitrail.errors import ConfigError

# Settings that say where other images lie and how their labels are written; none of them changes what a run was trained
# on, so that an evaluation may change them.
FORM_SETTINGS = (
    "source", "path", "spectral_path", "labels", "cube", "image_column", "label_column", "group_column",
    "split_column", "separator", "header", "encoding", "image_folder", "multi_label", "label_separator",
    "label_pattern", "class_names", "label_values", "unlabelled_value", "merge_labels",
)  # fmt: skip
# Settings that say where a run's images lie and how they are listed there: another place may need others.
PATH_SETTINGS = (*FORM_SETTINGS, "subset", "group_pattern", "repeated_files")

# Stored values without a number of their own that mean "no data".
Mark = Literal["nan", "inf", "-inf"]


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are split, sized and batched.

    Attributes:
        source: "digits" (scikit-learn's 1,797 handwritten digits), "folder" (images in one folder a class), "table" (a
            CSV or Parquet file with a column of paths and one of labels, and of splits, groups or second files where
            there are any),
            "parquet" (Parquet files that hold the images themselves, as the Hugging Face hub has them), "hf" (a data
            set of the hub by its name, or one of its library's on this machine; needs the extra hf), "arrays" (.npy,
            .npz, .mat or HDF5: images, or a scene with a label plane that is cut into patches), "synthetic_leaves"
            (drawn by the code: RGB and five spectral bands, for trying things out) or "unlabelled" (all images in a
            folder, at any depth; for pre-training).
        path: The folder, with train/, val/ (and test/) inside, or class folders to split; the table, in which paths
            are relative to its folder; the Parquet file or the folder of them; owner/name of a data set on the hub; the
            file of arrays.
        img_size: Height and width in pixels that images are brought to; the model's when not given.
        resize: "crop" scales the shorter side and cuts the centre, "squash" scales both sides.
        crop_pct: Share of each side of that picture that evaluation, predictions and explanations see, its centre, as
            in timm (0.875: 224 of 256 pixels); training sees all of it. 1 cuts off no margin.
        color: Bands of a folder's images: "rgb" (3) or "gray" (1).
        on_band_mismatch: What to do with an image of other bands: "error", or "convert" it.
        spectral: Second stream for models of two where the data brings none: "none", or "edges", the horizontal and
            vertical slope of each image. Edges hold nothing that the image does not; they are for trying two-stream
            models without a second sensor.
        band_names: Names of the bands in the images, in the files' order. Naming them is how TIFF files of any number
            of bands and of 8, 16 or 32 bits are read; without names images are pictures of the bands of ``color``.
        band_files: Where each band of an image is a file of its own: a regular expression with a group named "band",
            searched in a file's name (or else in its path), for example ``Ch(?P<band>[0-9])_``. Files whose names
            differ in that group alone are one image. ``band_names`` gives what the group holds, in the wanted order, or
            other names in its natural order.
        wavelengths: Of these bands in nm.
        bands: Which bands make the image stream, in order; all when not given. A name with * or ? stands for all that
            match and are not taken yet.
        spectral_bands: Which make the spectral stream; the second files' (or the source's own) when not given, and no
            stream when empty ([]).
        scale: Value that becomes 1 (with ``offset``: the difference between the values that become 0 and 1), for all
            bands or one a band. Not needed for 8 bits and where files bring a scale and offset of their own (GDAL),
            which are applied first; of 16-bit integers of one type throughout their largest is used, and logged.
        offset: Value that becomes 0, for all bands or one a band; 0 when not given.
        range: ``[low, high]`` in place of scale and offset: the values that become 0 and 1; or such a pair a band.
        nodata: Stored values that are no measurements (a number, nan, inf, or several), besides those that files
            declare (GDAL_NODATA, masks, alpha); ``[]`` ignores what files declare. Such pixels are left out of
            statistics and filled with the mean of their band.
        allow_constant: Bands that may have one value throughout the training images, by name.
        value_type: What decided the range of the values where it was not stated: a type (bool, uint8, uint16, int16) or
            "physical", the files' own scale and offset. Runs record it and refuse files of another type.
        layout: Axes of images in a file of arrays: "channels_first" or "channels_last"; found from the shape and the
            names of the bands where only one is possible.
        max_pixels: Largest picture or raster, height times width; a larger one is read at reduced size where its
            format allows it (JPEG, rasters), else refused.
        spectral_path: A folder with a second file for each image, at the same place and of the same stem.
        spectral_band_names: Names of the bands in the second files.
        spectral_wavelengths: Of these in nm.
        spectral_scale: Their value that becomes 1, as for ``scale``.
        spectral_offset: Their value that becomes 0, as for ``offset``.
        spectral_range: Their values that become 0 and 1, as for ``range``.
        spectral_nodata: Their values that are no measurements, as for ``nodata``.
        spectral_value_type: What decided their range, as for ``value_type``.
        statistics: File that ``vitrail data stats --out`` wrote, by which images are normalised; when not given the
            statistics of 500 training images.
        subset: Configuration of a data set of the hub, where it has several.
        image_column: Column with the images (their paths, in a table); of a table "path", of other sources the only one
            that holds images when not given. Of a table without a header: its position, from 0.
        label_column: Column with the labels; "label" when not given.
        group_column: Column with the groups (images that belong together); "group" where there is one.
        split_column: Column of a table with the splits; "split" where there is one.
        separator: Character between the columns of a table: "comma", "semicolon", "tab", "space" (any number of
            blanks) or a character; found where only one fits.
        header: Whether a table's first row holds the names of its columns; found where that is certain.
        encoding: Encoding of a table ("latin-1", "cp1252", ...); UTF-8, or UTF-16 with its mark, when not given.
        image_folder: Folder that the paths in a table are relative to; the table's own when not given.
        multi_label: Give each image any number of labels: those of all its rows in a table, all that are 1 in arrays
            of 0 and 1. (Labels that are lists are multi-label without it.)
        label_pattern: Regular expression that finds the class of an image in its path (relative to ``path``): the first
            parenthesis. Images of a folder may then lie in it directly.
        group_pattern: The same for the group.
        class_names: Names of the classes. Of numeric labels in the order of the numbers, from 0, or from 1 where the
            labels leave no other reading; of names their order.
        label_values: The label of each of these names, where that is not 0, 1, 2, ...; training writes it into the
            run's recipe.
        unlabelled_value: Number of the unlabelled pixels of a scene, or "none" where every pixel is labelled. 0 when
            not given, and asked for where labels are negative or 0 may be a class.
        merge_labels: "similar" merges class names that differ only in letter case, blanks, "_" or "-".
        cube: Name of the images or the scene in a file of arrays; the largest array when not given.
        labels: Name of the labels there, or another file: a number, a name or a one-hot row for each image; or a plane
            of numbers over the scene (0 is unlabelled), or a plane of shares for each class, of which the largest
            counts.
        grid: Height and width of a scene that is stored as (bands, pixels); nRow and nCol of the file if it has them.
        patch: Side of the patches cut from a scene, in pixels.
        stride: Pixels from one patch to the next; as many as ``patch`` makes tiles.
        block: Side of the blocks, in pixels, that a scene is split by; three patches when not given.
        num_images: How many synthetic leaves.
        seed: Of the synthetic leaves.
        split: How images that are not split already are split. "auto": a scene by blocks, images with groups (a
            column or ``group``) grouped, others stratified; the run's recipe records which. "stratified": each image
            by its own hash, so that a new one moves no other, and of each class about the wanted share; "exact":
            exactly that share of each class, where a new image may move one at each border (collections that never
            grow are always split so); "grouped": whole groups by their hash; "block": a scene's blocks, which is how
            scenes are always split.
        group: What makes a group: a column of the table ("group" when not given), or a regular expression that is
            searched in the path, whose first parenthesis (or whole match) names the group.
        fold: Number of the fold, from 0, that is the test split (or the validation split, where a test split is given).
        num_folds: How many folds there are.
        on_unreadable: What to do with files that are missing, cannot be read or have another number of bands: "error"
            counts them before anything begins; "skip" goes on without them and lists them in the run folder.
        repeated_files: How often an image of a folder counts that several links lead to: "once" a class, or "each" time
            (oversampling; for folders that are split already).
        check_copies: Look for copies of training images in other splits before training begins, and print their number.
        cache: Keep decoded images in memory.
        val_fraction: Share of each class held out for validation, where the data has no such split.
        test_fraction: Share of each class held out for testing, where the data has no such split; of unlabelled images
            none is.
        label_fraction: Share of each class's training images whose labels are used, at least one image; the others are
            left out of training, and pre-training takes all. A smaller share is part of a larger one; of several
            labels an image's rarest is its class here.
        label_seed: Which share that is.
        label_separator: Separator between the labels of an image in a multi-label table, for example
            ";"; one label an image when not given.
        sampling: "shuffle" takes each training image once an epoch; "balanced" takes as many in all, those of rare
            classes more often and those of frequent ones less.
        augment: "none", "light" (small shifts, turns and zooms), "standard" (random crops, flips and colour), "strong"
            (RandAugment, erasing, mixup and CutMix as well) or "leaf" (any way round, gentle colours).
        augment_settings: Single settings that take the place of the preset's, for example ``{mixup: 0.2}``; those of
            :class:`vitrail.config.augment.AugmentSettings`.
        batch_size: Images a step; "auto" measures training steps and takes the smallest that is about as fast as any.
        num_workers: Processes that decode images; 0 decodes in the main process, -1 takes one a core (at most 8)
            for folders and 0 for what lies in memory.
    """

    source: str = "digits"
    path: str | None = None
    img_size: int | tuple[int, int] | None = None
    resize: Literal["crop", "squash"] = "crop"
    crop_pct: float = 1.0
    color: Literal["rgb", "gray"] = "rgb"
    on_band_mismatch: Literal["error", "convert"] = "error"
    spectral: Literal["none", "edges"] = "none"
    band_names: tuple[str, ...] | None = None
    band_files: str | None = None
    wavelengths: tuple[float, ...] | None = None
    bands: tuple[str, ...] | None = None
    spectral_bands: tuple[str, ...] | None = None
    scale: float | tuple[float, ...] | None = None
    offset: float | tuple[float, ...] | None = None
    range: tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    nodata: float | Mark | tuple[float | Mark, ...] | None = None
    allow_constant: tuple[str, ...] = ()
    value_type: Literal["bool", "uint8", "uint16", "int16", "physical"] | None = None
    layout: Literal["channels_first", "channels_last"] | None = None
    max_pixels: int = 178_956_970
    spectral_path: str | None = None
    spectral_band_names: tuple[str, ...] | None = None
    spectral_wavelengths: tuple[float, ...] | None = None
    spectral_scale: float | tuple[float, ...] | None = None
    spectral_offset: float | tuple[float, ...] | None = None
    spectral_range: tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    spectral_nodata: float | Mark | tuple[float | Mark, ...] | None = None
    spectral_value_type: Literal["bool", "uint8", "uint16", "int16", "physical"] | None = None
    statistics: str | None = None
    subset: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    separator: str | None = None
    header: bool | None = None
    encoding: str | None = None
    image_folder: str | None = None
    multi_label: bool = False
    label_pattern: str | None = None
    group_pattern: str | None = None
    class_names: tuple[str, ...] | None = None
    label_values: tuple[int | float | str, ...] | None = None
    unlabelled_value: int | Literal["none"] | None = None
    merge_labels: Literal["none", "similar"] = "none"
    cube: str | None = None
    labels: str | None = None
    grid: tuple[int, int] | None = None
    patch: int = 9
    stride: int = 1
    block: int | None = None
    num_images: int = 1200
    seed: int = 0
    split: Literal["auto", "stratified", "exact", "grouped", "block"] = "auto"
    group: str | None = None
    fold: int | None = None
    num_folds: int = 5
    on_unreadable: Literal["error", "skip"] = "error"
    repeated_files: Literal["once", "each"] = "once"
    check_copies: bool = True
    cache: bool = False
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    label_fraction: float = 1.0
    label_seed: int = 0
    label_separator: str | None = None
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    augment: Literal["none", "light", "standard", "strong", "leaf"] = "none"
    augment_settings: dict[str, Any] = field(default_factory=dict)
    batch_size: int | Literal["auto"] = 64
    num_workers: int = -1

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: A value out of range.
        """
        expand_homes("data", self, ("path", "spectral_path", "statistics", "labels"))
        require(self.batch_size == "auto" or self.batch_size >= 1, "data.batch_size", "at least 1", self.batch_size)
        require(self.num_workers >= -1, "data.num_workers", "at least -1", self.num_workers)
        for name in ("val_fraction", "test_fraction"):
            require(0 <= getattr(self, name) < 1, f"data.{name}", "at least 0 and below 1", getattr(self, name))
        require(0 < self.crop_pct <= 1, "data.crop_pct", "above 0 and at most 1", self.crop_pct)
        require(0 < self.label_fraction <= 1, "data.label_fraction", "above 0 and at most 1", self.label_fraction)
        held_out = self.val_fraction + self.test_fraction
        require(held_out < 1, "data.val_fraction + data.test_fraction", "below 1", held_out)
        self._check_bands()
        for name in ("patch", "stride", "num_images", "block"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name}", "at least 1", value)
        require(self.num_folds >= 2, "data.num_folds", "at least 2", self.num_folds)
        if self.fold is not None:
            require(0 <= self.fold < self.num_folds, "data.fold", f"from 0 to {self.num_folds - 1}", self.fold)
            rest = 1 - 1 / self.num_folds
            require(self.val_fraction < rest, "data.val_fraction", f"below the {rest:g} beside a fold", held_out)
        if self.group is not None:
            grouped = self.split in ("auto", "grouped")
            require(grouped, "data.split", "auto or grouped where data.group is given", self.split)
        require(self.label_separator != "", "data.label_separator", "at least one character", self.label_separator)
        self._check_labels()
        if self.source != "table":
            require(
                self.label_separator is None, "data.label_separator", "left out but for tables", self.label_separator
            )
        augment_settings(self.augment, self.augment_settings)

    def form(self) -> dict[str, Any]:
        """The settings of :data:`FORM_SETTINGS` that are given, source and path always."""
        values = {name: getattr(self, name) for name in FORM_SETTINGS}
        defaults = {f.name: f.default for f in fields(self)}
        return {name: v for name, v in values.items() if name in ("source", "path") or v != defaults[name]}

    @property
    def images_a_step(self) -> int:
        """The batch size as a number.

        Raises:
            ConfigError: It is "auto" still, which only training resolves.
        """
        if self.batch_size == "auto":
            raise ConfigError("data.batch_size auto is resolved by training; give a number here")
        return self.batch_size

    def _check_labels(self) -> None:
        groups = [name for name in ("group", "group_column", "group_pattern") if getattr(self, name) is not None]
        require(len(groups) < 2, " and ".join(f"data.{name}" for name in groups), "one of them alone", "both")
        if self.label_pattern is not None:
            column = self.label_column
            require(column is None, "data.label_column", "left out beside data.label_pattern", column)
        if self.label_values is not None:
            object.__setattr__(self, "label_values", tuple(map(_plain_label, self.label_values)))
        names, values = self.class_names, self.label_values
        if names is not None:
            require(len(set(names)) == len(names) > 0, "data.class_names", "different names, at least one", names)
        if values is not None:
            count = len(names or ())
            require(names is not None, "data.label_values", "left out without data.class_names", values)
            require(len(values) == count, "data.label_values", f"{count} labels, one for each class name", values)
            require(len(set(values)) == len(values), "data.label_values", "different labels", values)

    def _check_bands(self) -> None:
        if self.band_files is not None:
            require(self.band_names is not None, "data.band_names", "given where data.band_files is", self.band_names)
            second = self.spectral_path
            require(
                second is None, "data.spectral_path", "left out beside data.band_files (use spectral_bands)", second
            )
        for names, waves in (
            ("band_names", "wavelengths"),
            ("spectral_band_names", "spectral_wavelengths"),
        ):
            given, nm = getattr(self, names), getattr(self, waves)
            if nm is not None:
                require(given is not None, f"data.{names}", f"given where data.{waves} are", given)
                require(len(nm) == len(given), f"data.{waves}", f"{len(given)} numbers, one a band", nm)
                require(all(0 < v < math.inf for v in nm), f"data.{waves}", "above 0 and finite, in nm", nm)
        for names in ("band_names", "spectral_band_names", "bands", "spectral_bands"):
            given = getattr(self, names)
            if given is not None:
                require(names == "spectral_bands" or len(given) > 0, f"data.{names}", "at least one name", given)
                require(all(given), f"data.{names}", "names that are not empty", given)
                require(len(set(given)) == len(given), f"data.{names}", "different names", given)
        for prefix in ("", "spectral_"):
            self._check_values(prefix)
        require(self.max_pixels >= 1, "data.max_pixels", "at least 1", self.max_pixels)

    def _check_values(self, prefix: str) -> None:
        """Validate the settings that say how stored values become 0..1."""
        self._name_no_data(f"{prefix}nodata")
        scale, offset, limits = (getattr(self, f"{prefix}{name}") for name in ("scale", "offset", "range"))
        names = {name: f"data.{prefix}{name}" for name in ("scale", "offset", "range")}
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

    def _name_no_data(self, name: str) -> None:
        """Write nan and infinities as words: nan is equal to nothing, and recipes are compared."""
        given = getattr(self, name)
        if given is None:
            return
        several = isinstance(given, (tuple, list))
        marks = []
        for mark in given if several else (given,):
            try:
                value = float(mark)
            except ValueError:
                require(False, f"data.{name}", "numbers, nan, inf or -inf", given)
            marks.append(value if math.isfinite(value) else str(value))
        object.__setattr__(self, name, tuple(marks) if several else marks[0])


def _plain_label(value: int | float | bool | str) -> int | str:
    """A label as a whole number or a text: 1.0 as 1, 0.5 and true as they are spelled."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return str(value) if isinstance(value, (bool, float)) else value
