"""Image files as a trained run takes them: pictures, rasters of its bands, second files of its second stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.data.dataset import ImageData
from vitrail.data.images import BANDS, image_size, read_image
from vitrail.data.listing import Listing, by_suffix, describe_passed_over, list_images
from vitrail.data.notes import print_notes
from vitrail.data.reading import file_readers
from vitrail.data.sources.bands import ChosenBands
from vitrail.data.sources.base import ImageSource, innermost
from vitrail.data.sources.edges import WithEdges
from vitrail.data.sources.files import FileSource
from vitrail.data.sources.folder import find_partners
from vitrail.data.sources.opening import check_values
from vitrail.errors import ConfigError, DataError
from vitrail.runs.trained import ModelCard


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """The files named, and the images in the folders named, each once and in order.

    A file that is named is taken to be an image; inside folders :func:`vitrail.data.listing.list_images` decides.

    Raises:
        DataError: A path that does not exist, or a folder without images.
    """
    return list(dict.fromkeys(file for path in map(Path, paths) for file in _list(path).files))


def _list(path: Path) -> Listing:
    """The images of a folder, or a file by itself."""
    if path.is_dir():
        listing = list_images(path)
        if not listing.files:
            only = f"no images, only {by_suffix(listing.passed_over)}" if listing.passed_over else "no files"
            raise DataError(f"the folder {path} holds {only}")
        return listing
    if path.is_file():
        return Listing(path.parent, files=[path])
    raise DataError(f"no file or folder at {path}")


def open_files(
    card: ModelCard,
    data: DataConfig,
    places: Sequence[str | Path],
    *,
    size: tuple[int, int] | None = None,
    spectral: str | Path | None = None,
) -> ImageData:
    """Files, and those of folders, brought to a run's size, bands and streams as they were in training.

    An image in a folder that is named like one of the run's classes is of that class; the target of others is -1.
    Every file is decoded once, small, so that all faults are known before anything begins.

    Args:
        card: Of the run.
        data: The run's own data: how the bands of its files are called, and which make which stream.
        places: Files and folders.
        size: Height and width, where that is not the run's.
        spectral: A folder with the second stream's file for each image, at the same place and of the same stem; of one
            image the file.

    Returns:
        The images in one split, "all"; their keys are their paths.

    Raises:
        ConfigError: A run whose streams no file can bring, or second files that it has no use for.
        DataError: Files that are missing, unreadable or of other bands; all that cannot be read are named.
    """
    second = "spectral" in card.streams and card.spectral == "none"
    # A second stream may also be of the image files' own bands.
    in_files = second and not set(card.streams["spectral"].bands) <= set(data.band_names or ())
    if spectral is not None and not in_files:
        raise ConfigError(f"the run takes no second files; leave out {spectral}")
    if in_files and data.spectral_band_names is None:
        _refuse_bands(card, "spectral")
    if in_files and spectral is None:
        raise ConfigError(
            f"the run takes a second file for each image ({', '.join(card.streams['spectral'].bands)}); name their "
            "folder with --spectral"
        )
    config = dataclasses.replace(
        card.as_trained(data),
        spectral_path=None if spectral is None else str(spectral),
        spectral_band_names=data.spectral_band_names if in_files else None,
        band_names=data.band_names or _names_of(card, data),
    )
    source = _chosen(config, _read(card, config, places, size or card.img_size, spectral))
    for name, stream in card.streams.items():
        if source.bands.get(name) != stream.bands:
            _refuse_bands(card, name)
    check_values(source, of_run=True)
    return ImageData(source, {"all": list(range(len(source)))}, config, card.filling())


def _names_of(card: ModelCard, data: DataConfig) -> tuple[str, ...] | None:
    """Names of a file's bands, where the run was trained on arrays: those of the model, which takes them all."""
    bands = card.streams["image"].bands
    return bands if data.bands is None and bands not in BANDS.values() else None


def _read(
    card: ModelCard, config: DataConfig, places: Sequence[str | Path], size: tuple[int, int], spectral: object
) -> FileSource:
    files: dict[Path, None] = {}
    partners: list[Path] = []
    listings: list[Listing] = []
    for listing, new in _by_root(places):
        listings.append(listing)
        files.update(dict.fromkeys(new))
        if spectral is not None:
            other = Path(str(spectral))
            # One image may come with one file.
            single = len(new) == 1 and other.is_file()
            partners += [other] if single else find_partners(new, listing.root, other, setting="--spectral")
    rows = [("", "", file) for file in files]
    skip = config.on_unreadable == "skip"
    notes = describe_passed_over(listings)
    readers = file_readers(config, size)
    source = FileSource(Path(), rows, ("",), readers, partners or None, skip=skip, notes=notes, of_run=True)
    print_notes(source.notes)
    source.classes = card.classes
    numbers = {name: i for i, name in enumerate(card.classes)}
    source.targets = np.array([numbers.get(Path(key).parent.name, -1) for key in source.keys], dtype=np.int64)
    return source


def _by_root(places: Sequence[str | Path]) -> Iterator[tuple[Listing, list[Path]]]:
    """What lies at each place, and its images that are not among those of a place before."""
    seen: set[Path] = set()
    for place in map(Path, places):
        listing = _list(place)
        new = [file for file in dict.fromkeys(listing.files) if file not in seen]
        seen.update(new)
        yield listing, new


def mask_reader(
    card: ModelCard, data: ImageData, places: Sequence[str | Path], folder: str | Path
) -> Callable[[int], Tensor]:
    """Masks of files that :func:`open_files` opened, brought to their size in the same way.

    Args:
        card: Of the run.
        data: What :func:`open_files` gave.
        places: The files and folders that it was given.
        folder: Holds a mask for each image, at the same place and of the same stem: a picture as large as the image
            whose bright pixels (above half of its brightest) are what should matter.

    Returns:
        Index of an image -> its mask, shape ``(H, W)``, bool.

    Raises:
        DataError: An image without a mask, or a mask that cannot be read or has another size than its image.
    """
    source = innermost(data.source)
    assert isinstance(source, FileSource), "open_files gives files"
    found: dict[str, Path] = {}
    for listing, files in _by_root(places):
        names = list(dict.fromkeys(source.readers["image"].name(file.as_posix()) for file in files))
        masks = find_partners(list(map(Path, names)), listing.root, Path(folder), "mask", "--masks")
        found.update(zip(names, masks, strict=True))
    size = source.readers["image"].size
    for index, key in enumerate(source.keys):
        own, wanted = image_size(found[key]), source.original_size(index)
        if own != wanted:
            raise DataError(
                f"the mask {found[key]} is {own[0]} x {own[1]} pixels and its image {key} {wanted[0]} x {wanted[1]}; "
                "make it as large as the image"
            )

    def read(index: int) -> Tensor:
        pixels = read_image(found[source.keys[index]], "gray", size, card.resize, convert=True)[0]
        return pixels > pixels.max() // 2

    return read


def _chosen(config: DataConfig, source: ImageSource) -> ImageSource:
    """The streams of the recipe, made of the files' bands."""
    if config.bands is not None or config.spectral_bands is not None:
        source = ChosenBands(source, config.bands, config.spectral_bands)
    return WithEdges(source) if config.spectral == "edges" else source


def _refuse_bands(card: ModelCard, stream: str) -> None:
    raise ConfigError(
        f"the run's stream {stream!r} has the bands {', '.join(card.streams[stream].bands)}, which image files do not "
        "bring; take the run's own images (`vitrail evaluate`, or `vitrail explain` without files)"
    )
