"""Groups of the part ``data`` of a recipe: nested settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from vitrail.errors import ConfigError, closest

# Stored values without a number of their own that mean "no data".
Mark = Literal["nan", "inf", "-inf"]


@dataclass(frozen=True)
class ImagesConfig:
    """Reading of images: size, crop and colour.

    Attributes:
        resize: "crop" scales the shorter side and cuts the centre, "squash" scales both sides.
        crop_pct: Share of each side of that picture that evaluation, predictions and explanations see, its centre, as
            in timm (0.875: 224 of 256 pixels); training sees all of it. 1 cuts off no margin.
        max_pixels: Largest picture or raster, height times width; a larger one is read at reduced size where its format
            allows it (JPEG, rasters), else refused.
        repeated_files: Number of times that an image counts to which several links lead: "once" per class, or "each"
            time (oversampling; for folders that are split already).
    """

    resize: Literal["crop", "squash"] = "crop"
    crop_pct: float = 1.0
    max_pixels: int = 178_956_970
    repeated_files: Literal["once", "each"] = "once"


@dataclass(frozen=True)
class BandsConfig:
    """Bands of the images.

    Attributes:
        names: Names of the bands in the images, in the files' order. Naming them is how TIFF files of any number of
            bands and of 8, 16 or 32 bits are read; without names images are pictures of the bands of ``color``.
        files: Pattern of images with one file per band: a regular expression with a group named "band",
            searched in a file's name (or else in its path), for example ``Ch(?P<band>[0-9])_``. Files whose names
            differ in that group alone are one image. ``names`` gives what the group holds, in the wanted order, or
            other names in its natural order.
        wavelengths: Wavelengths of these bands in nm.
        use: Bands of the image stream, in order; all when not given. A name with * or ? stands for all that
            match and are not taken yet.
        allow_constant: Bands that may have one value throughout the training images, by name.
    """

    names: tuple[str, ...] | None = None
    files: str | None = None
    wavelengths: tuple[float, ...] | None = None
    use: tuple[str, ...] | None = None
    allow_constant: tuple[str, ...] = ()


@dataclass(frozen=True)
class ValuesConfig:
    """Range of the stored values.

    Attributes:
        offset: Value that becomes 0, for all bands or one per band; 0 when not given.
        range: ``[low, high]`` in place of scale and offset: the values that become 0 and 1; or such a pair a band.
        nodata: Stored values that are not measurements (a number, nan, inf, or several), besides those that files
            declare (GDAL_NODATA, masks, alpha); ``[]`` ignores what files declare. Such pixels are left out of
            statistics and filled with the mean of their band.
        value_type: Origin of the range of the values where it was not stated: a type (bool, uint8, uint16, int16) or
            "physical", the files' own scale and offset. Runs record it and refuse files of another type.
        statistics: File that ``vitrail data stats --out`` wrote, by which images are normalised; when not given the
            statistics of 500 training images.
    """

    offset: float | tuple[float, ...] | None = None
    range: tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    nodata: float | Mark | tuple[float | Mark, ...] | None = None
    value_type: Literal["bool", "uint8", "uint16", "int16", "physical"] | None = None
    statistics: str | None = None


@dataclass(frozen=True)
class SpectralConfig:
    """Second stream: its files, bands and values.

    Attributes:
        derive: Second stream for models of two where the data brings none: "none", or "edges", the horizontal and
            vertical slope of each image. Edges hold nothing that the image does not; they are for trying two-stream
            models without a second sensor.
        path: A folder with a second file for each image, at the same place and of the same stem.
        names: Names of the bands in the second files.
        wavelengths: Wavelengths of these bands in nm.
        use: Bands of the spectral stream; the second files' (or the source's own) when not given, and no stream when
            empty ([]).
        scale: Their value that becomes 1, as for ``scale``.
        offset: Their value that becomes 0, as for ``values.offset``.
        range: Their values that become 0 and 1, as for ``values.range``.
        nodata: Their values that are not measurements, as for ``values.nodata``.
        value_type: Origin of their range, as for ``values.value_type``.
    """

    derive: Literal["none", "edges"] = "none"
    path: str | None = None
    names: tuple[str, ...] | None = None
    wavelengths: tuple[float, ...] | None = None
    use: tuple[str, ...] | None = None
    scale: float | tuple[float, ...] | None = None
    offset: float | tuple[float, ...] | None = None
    range: tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    nodata: float | Mark | tuple[float | Mark, ...] | None = None
    value_type: Literal["bool", "uint8", "uint16", "int16", "physical"] | None = None


@dataclass(frozen=True)
class TableConfig:
    """Columns and format of a table.

    Attributes:
        subset: Configuration of a data set of the hub, where it has several.
        image_column: Column with the images (their paths, in a table); of a table "path", of other sources the only one
            that holds images when not given. Of a table without a header: its position, from 0.
        label_column: Column with the labels; "label" when not given.
        group_column: Column with the groups (images that belong together); "group" where there is one.
        split_column: Column of a table with the splits; "split" where there is one.
        separator: Character between the columns of a table: "comma", "semicolon", "tab", "space" (any number of blanks)
            or a character; found where only one fits.
        header: Whether a table's first row holds the names of its columns; found where that is certain.
        encoding: Encoding of a table ("latin-1", "cp1252", ...); UTF-8, or UTF-16 with its mark, when not given.
        image_folder: Folder that the paths in a table are relative to; the table's own when not given.
        label_separator: Separator between the labels of an image in a multi-label table, for example ";"; one label an
            image when not given.
    """

    subset: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    separator: str | None = None
    header: bool | None = None
    encoding: str | None = None
    image_folder: str | None = None
    label_separator: str | None = None


@dataclass(frozen=True)
class ClassesConfig:
    """Classes and labels.

    Attributes:
        multi_label: Give each image any number of labels: those of all its rows in a table, all that are 1 in arrays of
            0 and 1. (Labels that are lists are multi-label without it.)
        label_pattern: Regular expression that finds the class of an image in its path (relative to ``path``): the first
            parenthesis. Images of a folder may then lie in it directly.
        names: Names of the classes. Of numeric labels in the order of the numbers, from 0, or from 1 where the labels
            leave no other reading; of names their order.
        values: The label of each of these names, where that is not 0, 1, 2, ...; training writes it into the run's
            recipe.
        unlabelled_value: Number of the unlabelled pixels of a scene, or "none" where every pixel is labelled. 0 when
            not given, and asked for where labels are negative or 0 may be a class.
        merge: "similar" merges class names that differ only in letter case, blanks, "_" or "-".
        label_fraction: Share of each class's training images whose labels are used, at least one image; the others are
            left out of training, and pre-training takes all. A smaller share is part of a larger one; the rarest label
            of a multi-label image is its class here.
        label_seed: Seed of that share.
    """

    multi_label: bool = False
    label_pattern: str | None = None
    names: tuple[str, ...] | None = None
    values: tuple[int | float | str, ...] | None = None
    unlabelled_value: int | Literal["none"] | None = None
    merge: Literal["none", "similar"] = "none"
    label_fraction: float = 1.0
    label_seed: int = 0


@dataclass(frozen=True)
class ArraysConfig:
    """Arrays and scenes.

    Attributes:
        cube: Name of the images or the scene in a file of arrays; the largest array when not given.
        labels: Name of the labels there, or another file: a number, a name or a one-hot row for each image; or a plane
            of numbers over the scene (0 is unlabelled), or a plane of shares for each class, of which the largest
            counts.
        layout: Axes of images in a file of arrays: "channels_first" or "channels_last"; found from the shape and the
            names of the bands where only one is possible.
        grid: Height and width of a scene that is stored as (bands, pixels); nRow and nCol of the file if it has them.
        patch: Side of the patches cut from a scene, in pixels.
        stride: Pixels from one patch to the next; as many as ``patch`` makes tiles.
        block: Side of the blocks, in pixels, that a scene is split by; three patches when not given.
    """

    cube: str | None = None
    labels: str | None = None
    layout: Literal["channels_first", "channels_last"] | None = None
    grid: tuple[int, int] | None = None
    patch: int = 9
    stride: int = 1
    block: int | None = None


@dataclass(frozen=True)
class LeavesConfig:
    """Synthetic leaves.

    Attributes:
        num_images: Number of synthetic leaves.
        seed: Seed of the synthetic leaves.
    """

    num_images: int = 1200
    seed: int = 0


@dataclass(frozen=True)
class PointsConfig:
    """Point clouds: inputs of the model, and augmentation.

    Attributes:
        num_points: Points of a cloud; the model's when not given. A cloud of fewer different points is filled up with
            NaN, which models leave out.
        features: Names of the attributes that the model gets beside the coordinates (columns of the file after x, y
            and z, "intensity" of LAS); none when not given.
        part: Labels of the points, for ``task.name parts``: a column of the files, an array of an .npz file, or
            "surface" of solids; none when not given.
        subsample: "farthest", each point the farthest from those before, or "random", from clouds of more points.
            Meshes are sampled uniformly over their area first.
        scale: Divisor of the centred coordinates: "sphere", the largest distance from the centroid; "rms", the
            root of the mean squared distance; "none"; or a length in units of the file.
        seed: Seed of the sampling, and of solids.
        turn: Random rotation of training clouds: "up" about the up axis, "so3" uniform over all rotations.
        zoom: Magnification of training clouds, least and most.
        shift: Largest shift of training clouds along each axis, after scaling.
        jitter: Standard deviation of the noise of each training coordinate, cut off at three of them.
        drop: Largest share of points that a training cloud loses.
        num_clouds: Number of solids.
        noise: Standard deviation of the coordinates of solids, in units of their radius.
        occlusion: Share of the surface of solids that is hidden, on the side away from a random viewpoint.
    """

    num_points: int | None = None
    features: tuple[str, ...] | None = None
    part: str | None = None
    subsample: Literal["farthest", "random"] = "farthest"
    scale: Literal["sphere", "rms", "none"] | float = "sphere"
    seed: int = 0
    turn: Literal["none", "up", "so3"] = "none"
    zoom: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    jitter: float = 0.0
    drop: float = 0.0
    num_clouds: int = 1200
    noise: float = 0.02
    occlusion: float = 0.3


@dataclass(frozen=True)
class VideoConfig:
    """Clips.

    Attributes:
        num_frames: Frames of a clip; the model's when not given.
        fps: Frames a second at which a video is sampled, by time, whatever the frame rate of the file; when not given
            a clip has one frame from each of ``num_frames`` equal segments of the whole video.
        folder_fps: Frames a second of folders of frames, which have no times; needed where ``fps``, times of a table or
            a window are in seconds.
        sampling: Clip of each video in an epoch of training: "random", with ``fps`` from a random start, without it
            with a random frame of each segment; or "middle", the same in each epoch.
        views: Clips of a video that evaluation averages over: with ``fps`` evenly spaced from its start to its end,
            without it at other frames of each segment. One is the middle.
        crops: Crops of each of these clips: 1 for the centre, 3 for both ends of the longer side too.
    """

    num_frames: int | None = None
    fps: float | None = None
    folder_fps: float | None = None
    sampling: Literal["random", "middle"] = "random"
    views: int = 1
    crops: int = 1


@dataclass(frozen=True)
class SplittingConfig:
    """Splits and groups.

    Attributes:
        group: Groups of images: a column of the table ("group" when not given), or a regular expression that is
            searched in the path, whose first parenthesis (or whole match) names the group.
        group_pattern: Regular expression that finds the group of an image in its path, as ``classes.label_pattern``
            finds the class.
        fold: Number of the fold, from 0, that is the test split (or the validation split, where a test split is given).
        num_folds: Number of folds.
        val_fraction: Share of each class held out for validation, where the data has no such split.
        test_fraction: Share of each class held out for testing, where the data has no such split; of unlabelled images
            none is.
        check_copies: Look for copies of training images in other splits before training begins, and print their number.
    """

    group: str | None = None
    group_pattern: str | None = None
    fold: int | None = None
    num_folds: int = 5
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    check_copies: bool = True


@dataclass(frozen=True)
class LoaderConfig:
    """Loading of batches.

    Attributes:
        num_workers: Processes that decode images; 0 decodes in the main process, -1 takes one a core (at most 8) for
            folders and 0 for what lies in memory.
        cache: Keep decoded images in memory.
        sampling: "shuffle" takes each training image once an epoch; "balanced" takes as many in all, those of rare
            classes more often and those of frequent ones less.
    """

    num_workers: int = -1
    cache: bool = False
    sampling: Literal["shuffle", "balanced"] = "shuffle"


@dataclass(frozen=True)
class ErrorsConfig:
    """Files that are unsuitable.

    Attributes:
        on_unreadable: Handling of files that are missing, cannot be read or have another number of bands: "error"
            counts them before anything begins; "skip" goes on without them and lists them in the run folder.
        on_band_mismatch: Handling of an image of other bands: "error", or "convert" it.
    """

    on_unreadable: Literal["error", "skip"] = "error"
    on_band_mismatch: Literal["error", "convert"] = "error"


# Name of the group in the part "data" -> its dataclass.
GROUPS: dict[str, type[Any]] = {
    "images": ImagesConfig,
    "bands": BandsConfig,
    "values": ValuesConfig,
    "spectral": SpectralConfig,
    "table": TableConfig,
    "classes": ClassesConfig,
    "arrays": ArraysConfig,
    "leaves": LeavesConfig,
    "points": PointsConfig,
    "video": VideoConfig,
    "splitting": SplittingConfig,
    "loader": LoaderConfig,
    "errors": ErrorsConfig,
}


def build_group(name: str, values: Mapping[str, Any]) -> Any:
    """Build a group from plain values.

    Args:
        name: Dotted name of the group.
        values: Setting -> value.

    Raises:
        ConfigError: An unknown setting; the closest is named.
    """
    kind = GROUPS[name.split(".")[-1]]
    known = [f.name for f in fields(kind)]
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown setting {name}.{key}{closest(str(key), known)}")
    return kind(**values)
