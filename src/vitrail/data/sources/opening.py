"""Open the source that a data config names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vitrail.config.data import DEFAULTS, DataConfig
from vitrail.data.classes import ClassRules
from vitrail.data.file_reader import FileReader, file_readers
from vitrail.data.notes import warn_data
from vitrail.data.points.source import open_points
from vitrail.data.sources.arrays import ArraySource
from vitrail.data.sources.bands import ChosenBands
from vitrail.data.sources.base import ImageSource
from vitrail.data.sources.digits import DigitsSource
from vitrail.data.sources.edges import WithEdges
from vitrail.data.sources.embedded import EmbeddedSource, Part
from vitrail.data.sources.folder import FolderSource
from vitrail.data.sources.hub import hub_parts
from vitrail.data.sources.memory import InMemory
from vitrail.data.sources.moving_digits import MovingDigitsSource
from vitrail.data.sources.parquet import parquet_parts
from vitrail.data.sources.patterns import by_pattern
from vitrail.data.sources.synthetic_leaves import SyntheticLeavesSource
from vitrail.data.sources.table import TableSource
from vitrail.data.sources.table_file import TableForm
from vitrail.data.sources.unlabelled import UnlabelledSource
from vitrail.data.video.source import VideoSource
from vitrail.errors import ConfigError, DataError, closest
from vitrail.plugins import SOURCES as PLUGINS
from vitrail.plugins import load_plugins

# Value of `data.source` -> meaning of its path; "" where it has none.
SOURCES = {
    "digits": "",
    "folder": "the folder with the images",
    "unlabelled": "the folder of images",
    "table": "the CSV or Parquet file that lists them",
    "parquet": "the Parquet file that holds them, or the folder of such files",
    "hf": "the data set: owner/name on the Hugging Face hub, or a folder",
    "synthetic_leaves": "",
    "moving_digits": "",
    "videos": "the folder with a folder of clips for each class, or the CSV table that lists clips",
    "arrays": "the .npy, .npz, .mat or HDF5 file",
    "points": "the folder with the point clouds, the CSV file that lists them, or the .npz file that holds them",
    "solids": "",
}
# Settings of bands of images, which registered sources understand too.
_OF_IMAGES = ("bands.use", "spectral.use", "spectral.derive")
# What inputs of a size of as many lengths are, and the first stream of sources that have others than images.
_KINDS = {1: "point clouds", 2: "images", 3: "clips"}
_FIRST = {"moving_digits": "video", "videos": "video", "points": "points", "solids": "points"}
_LENGTHS = {"points": 1, "image": 2, "video": 3}
# Opens the images of a source that another distribution or the running program has registered.
Opener = Callable[[DataConfig, tuple[int, int]], ImageSource]
_REGISTERED: dict[str, Opener] = {}
_FILES = ("folder", "unlabelled", "table")
_CLOUDS = ("points", "solids")
_CHANGES_OF_CLOUDS = ("turn", "zoom", "shift", "jitter", "drop")
_LABELLED = ("folder", "table", "parquet", "hf", "arrays")
# Settings that only some sources understand.
_ONLY_FOR = {
    "bands.names": (*_FILES, "arrays"),
    "bands.files": _FILES,
    "bands.wavelengths": (*_FILES, "arrays"),
    **dict.fromkeys(
        ("scale", "values.offset", "values.range", "values.nodata", "values.value_type"),
        (*_FILES, "parquet", "hf", "arrays"),
    ),
    "arrays.layout": ("arrays",),
    "images.max_pixels": (*_FILES, "parquet", "hf"),
    "spectral.path": ("folder", "unlabelled"),
    "spectral.names": _FILES,
    "spectral.wavelengths": _FILES,
    **dict.fromkeys(
        ("spectral.scale", "spectral.offset", "spectral.range", "spectral.nodata", "spectral.value_type"), _FILES
    ),
    "table.image_column": ("table", "parquet", "hf"),
    "table.label_column": ("table", "parquet", "hf"),
    "table.group_column": ("table", "parquet", "hf"),
    "table.split_column": ("table", "parquet", "hf"),
    "table.separator": ("table",),
    "table.header": ("table",),
    "table.encoding": ("table",),
    "table.image_folder": ("table",),
    "classes.multi_label": ("table", "arrays"),
    "classes.label_pattern": ("folder", "table"),
    "splitting.group_pattern": (*_FILES, "parquet", "hf"),
    "table.subset": ("hf",),
    "classes.names": _LABELLED,
    "classes.values": _LABELLED,
    "classes.merge": _LABELLED,
    "classes.unlabelled_value": ("arrays",),
    "arrays.cube": ("arrays",),
    "arrays.labels": ("arrays",),
    "arrays.grid": ("arrays",),
    "arrays.patch": ("arrays",),
    "arrays.stride": ("arrays",),
    "arrays.block": ("arrays",),
    "leaves.num_images": ("synthetic_leaves",),
    "leaves.seed": ("synthetic_leaves",),
    "video.num_frames": ("moving_digits", "videos"),
    **dict.fromkeys(("video.fps", "video.folder_fps", "video.sampling", "video.views", "video.crops"), ("videos",)),
    "images.repeated_files": ("folder",),
    "errors.on_unreadable": (*_FILES, "parquet", "hf", "videos"),
    **dict.fromkeys(
        [f"points.{name}" for name in ("num_points", "subsample", "scale", "seed", *_CHANGES_OF_CLOUDS)], _CLOUDS
    ),
    "up": ("points",),
    "points.features": ("points",),
    **dict.fromkeys(("points.num_clouds", "points.noise", "points.occlusion"), ("solids",)),
}


def register_source(name: str, path: str = "") -> Callable[[Opener], Opener]:
    """Register a function that opens images under a name for ``data.source``.

    A distribution adds sources by entry points of the group ``vitrail.sources`` that name its modules.

    Args:
        name: The name.
        path: Meaning of ``data.path``, for errors ("the folder with the scans"); empty where the source takes none.

    Returns:
        Decorator of a function from the settings and the image size ``(height, width)`` to an :class:`ImageSource`.

    Raises:
        ConfigError: The name is taken.
    """
    if name in SOURCES and name not in _REGISTERED:
        raise ConfigError(f"the data source {name!r} is built in; choose another name")

    def register(opener: Opener) -> Opener:
        SOURCES[name], _REGISTERED[name] = path, opener
        return opener

    return register


def first_stream(source: str) -> str:
    """Return the name of the first stream of a source: "image", "video" for clips, or "points"."""
    return _FIRST.get(source, "image")


def path_of(source: str) -> str:
    """Return the meaning of a source's path; empty where it takes none.

    Raises:
        ConfigError: An unknown source.
    """
    load_plugins(PLUGINS)  # their modules register sources
    if source not in SOURCES:
        raise ConfigError(f"unknown data.source {source!r}{closest(source, SOURCES)}")
    return SOURCES[source]


def list_labelled(stream: str) -> list[str]:
    """List the sources with a path that give labelled inputs, by the name of their first stream."""
    return [name for name, path in SOURCES.items() if path and name != "unlabelled" and first_stream(name) == stream]


def accepts_setting(source: str, setting: str) -> bool:
    """Check whether a setting applies to a source."""
    takers = _takers(setting)
    return takers is None or source in takers


def _takers(setting: str) -> Sequence[str] | None:
    """Return the sources to which a setting applies; None for all."""
    if setting in _OF_IMAGES:
        return [source for source in SOURCES if first_stream(source) == "image"]
    return _ONLY_FOR.get(setting)


def open_source(
    config: DataConfig, img_size: tuple[Any, ...], classes: Sequence[str] | None, *, strict: bool = True
) -> ImageSource:
    """Open the images of a config.

    Args:
        config: Data settings.
        img_size: Height and width to bring them to; number of points of clouds.
        classes: Names of the classes where a run gives them.
        strict: Refuse settings that the source has no use for; a run's settings may go with other images.

    Raises:
        ConfigError: An unknown source, a missing or superfluous path, or settings that do not apply.
        DataError: Images that are missing, unreadable or inconsistent.
    """
    path = path_of(config.source)
    has, takes = _LENGTHS[first_stream(config.source)], len(img_size)
    if has != takes and config.source not in _REGISTERED:
        raise ConfigError(
            f"data.source {config.source} has {_KINDS[has]}, and the model takes {_KINDS[takes]}; choose a model of "
            f"{_KINDS[has]} (`vitrail models`), or other data"
        )
    if path and not config.path:
        raise ConfigError(f"data.source {config.source} needs data.path, {path}")
    if config.path and not path:
        raise ConfigError(
            f"data.path {config.path!r} does not apply to data.source {config.source}, which is built in; did you "
            "mean data.source folder?"
        )
    if strict:
        _refuse_meaningless(config)
    source = _openers(config, img_size, classes)[config.source]()
    if config.splitting.group_pattern is not None:
        try:
            source.groups = by_pattern("data.splitting.group_pattern", config.splitting.group_pattern, source.keys)
        except DataError:
            if strict:  # other images than a run's may be called otherwise; each is then a group of its own
                raise
    if classes is not None and tuple(classes) != source.classes:
        found = ", ".join(source.classes) or "none"
        raise DataError(f"the run knows the classes {', '.join(classes)}, the data has {found}")
    if config.bands.use is not None or config.spectral.use is not None:
        source = ChosenBands(source, config.bands.use, config.spectral.use)
    check_values(source, of_run=classes is not None)
    if config.spectral.derive == "edges":
        if "spectral" in source.bands:
            raise ConfigError(
                "data.spectral.derive edges makes a second stream and the data brings one; choose one of them"
            )
        source = WithEdges(source)
    return InMemory(source) if config.loader.cache and not source.in_memory else source


def check_values(source: ImageSource, *, of_run: bool = False) -> None:
    """Report pixels without data; warn of images that mostly lack data and of clipped values.

    Args:
        source: The images.
        of_run: Whether a trained run reads them, for remedies.

    Raises:
        DataError: The range cuts off more than half of a band's values.
    """
    notes = list(source.value_notes)
    for values in source.values.values():
        facts, suspicious = values.check(source.keys, of_run=of_run)
        notes += facts
        warn_data(suspicious)
    source.value_notes = notes


def _openers(
    config: DataConfig, size: tuple[Any, ...], classes: Sequence[str] | None
) -> dict[str, Callable[[], ImageSource]]:
    path, skip = config.path or "", config.errors.on_unreadable == "skip"
    rules = ClassRules.of(config, classes)

    def readers_with_partners() -> dict[str, FileReader]:
        readers = file_readers(config, size)
        if "spectral" in readers and config.spectral.path is None:
            raise ConfigError("data.spectral.names needs data.spectral.path, the folder with the second files")
        return readers

    def folder() -> ImageSource:
        each, readers = config.images.repeated_files == "each", readers_with_partners()
        return FolderSource(
            path, readers, classes, config.spectral.path, skip, each, rules, config.classes.label_pattern
        )

    def unlabelled() -> ImageSource:
        return UnlabelledSource(path, readers_with_partners(), config.spectral.path, skip)

    def table() -> ImageSource:
        readers, form = file_readers(config, size), TableForm.of(config)
        return TableSource(path, readers, classes, config.splitting.group, skip, form, rules)

    def embedded(parts: Sequence[Part]) -> ImageSource:
        reader = file_readers(config, size)["image"]
        columns = config.table.image_column, config.table.label_column, config.splitting.group
        return EmbeddedSource(
            parts, path, reader, rules, *columns, skip, config.table.group_column, config.table.split_column
        )

    return {
        "digits": lambda: DigitsSource(size),
        "folder": folder,
        "unlabelled": unlabelled,
        "table": table,
        "parquet": lambda: embedded(parquet_parts(path)),
        "hf": lambda: embedded(hub_parts(path, config.table.subset, config.table.image_column)),
        "synthetic_leaves": lambda: InMemory(SyntheticLeavesSource(size, config.leaves.num_images, config.leaves.seed)),
        "moving_digits": lambda: MovingDigitsSource(size),
        "videos": lambda: VideoSource(config, size, classes),
        "arrays": lambda: ArraySource(config, size, rules),
        **{name: lambda: open_points(config, size, classes) for name in _CLOUDS},
        **{name: partial(opener, config, size) for name, opener in _REGISTERED.items()},
    }


def _refuse_meaningless(config: DataConfig) -> None:
    for name, default in DEFAULTS.items():
        value = config.setting(name)
        if not accepts_setting(config.source, name) and value != default:
            raise ConfigError(
                f"data.{name} {value!r} does not apply to data.source {config.source}, only to "
                f"{', '.join(_takers(name) or ())}; remove it"
            )
