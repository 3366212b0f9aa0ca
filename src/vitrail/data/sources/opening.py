"""Open the source that a data config names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from vitrail.config.data import DataConfig
from vitrail.data.classes import ClassRules
from vitrail.data.file_reader import FileReader, file_readers
from vitrail.data.notes import warn_data
from vitrail.data.sources.arrays import ArraySource
from vitrail.data.sources.bands import ChosenBands
from vitrail.data.sources.base import ImageSource
from vitrail.data.sources.digits import DigitsSource
from vitrail.data.sources.edges import WithEdges
from vitrail.data.sources.embedded import EmbeddedSource, Part
from vitrail.data.sources.folder import FolderSource
from vitrail.data.sources.hub import hub_parts
from vitrail.data.sources.memory import InMemory
from vitrail.data.sources.parquet import parquet_parts
from vitrail.data.sources.patterns import by_pattern
from vitrail.data.sources.synthetic_leaves import SyntheticLeavesSource
from vitrail.data.sources.table import TableSource
from vitrail.data.sources.table_file import TableForm
from vitrail.data.sources.unlabelled import UnlabelledSource
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
    "arrays": "the .npy, .npz, .mat or HDF5 file",
}
# Opens the images of a source that another distribution or the running program has registered.
Opener = Callable[[DataConfig, tuple[int, int]], ImageSource]
_REGISTERED: dict[str, Opener] = {}
_FILES = ("folder", "unlabelled", "table")
_LABELLED = ("folder", "table", "parquet", "hf", "arrays")
# Settings that only some sources understand.
_ONLY_FOR = {
    "band_names": (*_FILES, "arrays"),
    "band_files": _FILES,
    "wavelengths": (*_FILES, "arrays"),
    **dict.fromkeys(("scale", "offset", "range", "nodata", "value_type"), (*_FILES, "parquet", "hf", "arrays")),
    "layout": ("arrays",),
    "max_pixels": (*_FILES, "parquet", "hf"),
    "spectral_path": ("folder", "unlabelled"),
    "spectral_band_names": _FILES,
    "spectral_wavelengths": _FILES,
    **dict.fromkeys(
        ("spectral_scale", "spectral_offset", "spectral_range", "spectral_nodata", "spectral_value_type"), _FILES
    ),
    "image_column": ("table", "parquet", "hf"),
    "label_column": ("table", "parquet", "hf"),
    "group_column": ("table", "parquet", "hf"),
    "split_column": ("table", "parquet", "hf"),
    "separator": ("table",),
    "header": ("table",),
    "encoding": ("table",),
    "image_folder": ("table",),
    "multi_label": ("table", "arrays"),
    "label_pattern": ("folder", "table"),
    "group_pattern": (*_FILES, "parquet", "hf"),
    "subset": ("hf",),
    "class_names": _LABELLED,
    "label_values": _LABELLED,
    "merge_labels": _LABELLED,
    "unlabelled_value": ("arrays",),
    "cube": ("arrays",),
    "labels": ("arrays",),
    "grid": ("arrays",),
    "patch": ("arrays",),
    "stride": ("arrays",),
    "block": ("arrays",),
    "num_images": ("synthetic_leaves",),
    "seed": ("synthetic_leaves",),
    "repeated_files": ("folder",),
    "on_unreadable": (*_FILES, "parquet", "hf"),
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


def accepts_setting(source: str, setting: str) -> bool:
    """Check whether a setting applies to a source."""
    return setting not in _ONLY_FOR or source in _ONLY_FOR[setting]


def open_source(
    config: DataConfig, img_size: tuple[int, int], classes: Sequence[str] | None, *, strict: bool = True
) -> ImageSource:
    """Open the images of a config.

    Args:
        config: Which.
        img_size: Height and width to bring them to.
        classes: Names of the classes where a run gives them.
        strict: Refuse settings that the source has no use for; a run's settings may go with other images.

    Raises:
        ConfigError: An unknown source, a missing or superfluous path, or settings that do not apply.
        DataError: Images that are missing, unreadable or inconsistent.
    """
    load_plugins(PLUGINS)  # their modules register sources
    if config.source not in SOURCES:
        raise ConfigError(f"unknown data.source {config.source!r}{closest(config.source, SOURCES)}")
    if SOURCES[config.source] and not config.path:
        raise ConfigError(f"data.source {config.source} needs data.path, {SOURCES[config.source]}")
    if config.path and not SOURCES[config.source]:
        raise ConfigError(
            f"data.path {config.path!r} has no meaning for data.source {config.source}, which is built in; did you "
            "mean data.source folder?"
        )
    if strict:
        _refuse_meaningless(config)
    source = _openers(config, img_size, classes)[config.source]()
    if config.group_pattern is not None:
        try:
            source.groups = by_pattern("data.group_pattern", config.group_pattern, source.keys)
        except DataError:
            if strict:  # other images than a run's may be called otherwise; each is then a group of its own
                raise
    if classes is not None and tuple(classes) != source.classes:
        found = ", ".join(source.classes) or "none"
        raise DataError(f"the run knows the classes {', '.join(classes)}, the data has {found}")
    if config.bands is not None or config.spectral_bands is not None:
        source = ChosenBands(source, config.bands, config.spectral_bands)
    check_values(source, of_run=classes is not None)
    if config.spectral == "edges":
        if "spectral" in source.bands:
            raise ConfigError("data.spectral edges makes a second stream and the data brings one; choose one of them")
        source = WithEdges(source)
    return InMemory(source) if config.cache and not source.in_memory else source


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
    config: DataConfig, size: tuple[int, int], classes: Sequence[str] | None
) -> dict[str, Callable[[], ImageSource]]:
    path, skip = config.path or "", config.on_unreadable == "skip"
    rules = ClassRules.of(config, classes)

    def readers_with_partners() -> dict[str, FileReader]:
        readers = file_readers(config, size)
        if "spectral" in readers and config.spectral_path is None:
            raise ConfigError("data.spectral_band_names needs data.spectral_path, the folder with the second files")
        return readers

    def folder() -> ImageSource:
        each, readers = config.repeated_files == "each", readers_with_partners()
        return FolderSource(path, readers, classes, config.spectral_path, skip, each, rules, config.label_pattern)

    def unlabelled() -> ImageSource:
        return UnlabelledSource(path, readers_with_partners(), config.spectral_path, skip)

    def table() -> ImageSource:
        readers, form = file_readers(config, size), TableForm.of(config)
        return TableSource(path, readers, classes, config.group, skip, config.label_separator, form, rules)

    def embedded(parts: Sequence[Part]) -> ImageSource:
        reader = file_readers(config, size)["image"]
        columns = config.image_column, config.label_column, config.group
        return EmbeddedSource(parts, path, reader, rules, *columns, skip, config.group_column, config.split_column)

    return {
        "digits": lambda: DigitsSource(size),
        "folder": folder,
        "unlabelled": unlabelled,
        "table": table,
        "parquet": lambda: embedded(parquet_parts(path)),
        "hf": lambda: embedded(hub_parts(path, config.subset, config.image_column)),
        "synthetic_leaves": lambda: InMemory(SyntheticLeavesSource(size, config.num_images, config.seed)),
        "arrays": lambda: ArraySource(config, size, rules),
        **{name: partial(opener, config, size) for name, opener in _REGISTERED.items()},
    }


def _refuse_meaningless(config: DataConfig) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not accepts_setting(config.source, field.name) and value != field.default:
            raise ConfigError(
                f"data.{field.name} {value!r} has no meaning for data.source {config.source}, only for "
                f"{', '.join(_ONLY_FOR[field.name])}; leave it out"
            )
