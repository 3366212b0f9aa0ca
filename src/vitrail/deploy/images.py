"""Open image files with the size, bands and streams of a trained run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from vitrail.config.data import DataConfig
from vitrail.data.dataset import ImageData
from vitrail.data.evaluation_crop import size_to_read
from vitrail.data.file_reader import file_readers
from vitrail.data.images import BANDS, image_size, read_image
from vitrail.data.listing import Listing, by_suffix, describe_passed_over, list_images
from vitrail.data.notes import print_notes
from vitrail.data.points.source import PointFileSource
from vitrail.data.sources.bands import ChosenBands
from vitrail.data.sources.base import ImageSource, unwrap_source
from vitrail.data.sources.edges import WithEdges
from vitrail.data.sources.files import FileSource
from vitrail.data.sources.folder import find_partners
from vitrail.data.sources.opening import check_values
from vitrail.data.video.source import VideoSource
from vitrail.errors import ConfigError, DataError
from vitrail.models.modality import IMAGE, VIDEO
from vitrail.runs.trained import ModelCard


def _list(path: Path) -> Listing:
    """List the images of a folder, or a single file."""
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
    paths: Sequence[str | Path],
    *,
    size: tuple[int, int] | None = None,
    spectral: str | Path | None = None,
) -> ImageData:
    """Open files and folders of images, clips or point clouds with the size, bands and streams of a run.

    The target of an image is the run's class with the name of its folder, or -1. Every file is decoded once at low
    resolution, so that unreadable files are reported before any work.

    Args:
        card: Model card of the run.
        data: Data settings of the run: names of the bands, and bands of each stream.
        paths: Files and folders.
        size: Height and width; by default the run's.
        spectral: Folder with the spectral file of each image, at the same relative path and with the same stem; or the
            file of a single image.

    Returns:
        The images in one split, "all"; their keys are their paths.

    Raises:
        ConfigError: Files cannot provide a stream of the run, or ``spectral`` is given to a run without such files.
        DataError: Files are missing, unreadable or have other bands; all unreadable files are listed.
    """
    in_files = needs_spectral_files(card, data)
    if spectral is not None and not in_files:
        raise ConfigError(f"this run takes no spectral input; omit --spectral {spectral}")
    if in_files and data.spectral.names is None:
        _refuse_bands(card, "spectral")
    if in_files and spectral is None:
        raise ConfigError(
            f"the run needs a spectral file for each image ({', '.join(card.streams['spectral'].bands)}); give their "
            "folder with --spectral"
        )
    rate = data.video.folder_fps
    if rate is not None and card.modality is not VIDEO:
        raise ConfigError(
            f"data.video.folder_fps {rate:g} is for clips, and the run takes {card.modality.noun}; leave it out"
        )
    if card.modality is not IMAGE:
        return _open_others(card, card.as_trained(data), paths)
    config = files_config(card, data, spectral if in_files else None)
    size = size or card.img_size
    source = _chosen(config, _read(card, config, paths, size_to_read(size, config.images.crop_pct), spectral))
    for name, stream in card.streams.items():
        if source.bands.get(name) != stream.bands:
            _refuse_bands(card, name)
    check_values(source, of_run=True)
    seen_size = size if config.images.crop_pct < 1 else None
    return ImageData(source, {"all": list(range(len(source)))}, config, card.filling(), seen_size=seen_size)


def _open_others(card: ModelCard, config: DataConfig, paths: Sequence[str | Path]) -> ImageData:
    """Open files and folders of clips or point clouds."""
    source: ImageSource
    seen_size = None
    if card.modality is VIDEO:
        source = VideoSource(config, size_to_read(card.img_size, config.images.crop_pct), card.classes, paths)
        seen_size = card.img_size[-2:] if config.images.crop_pct < 1 else None
    else:
        config = config.changed({"points.part": None})
        source = PointFileSource(config, card.img_size[0], card.classes, paths)
    print_notes(source.notes)
    for name, stream in card.streams.items():
        if source.bands.get(name) != stream.bands:
            _refuse_bands(card, name)
    return ImageData(source, {"all": list(range(len(source)))}, config, card.filling(), seen_size=seen_size)


def needs_spectral_files(card: ModelCard, data: DataConfig) -> bool:
    """Check whether each image needs a spectral file; the stream may also consist of bands of the image files.

    Args:
        card: Model card of the run.
        data: Data settings of the run.
    """
    return "spectral" in card.input_streams and not set(card.streams["spectral"].bands) <= set(data.bands.names or ())


def files_config(card: ModelCard, data: DataConfig, spectral: str | Path | None) -> DataConfig:
    """Return the settings by which image files are read for a run.

    Args:
        card: Model card of the run.
        data: Data settings of the run.
        spectral: Folder or file of the spectral files; None where there are none.
    """
    return card.as_trained(data).changed(
        {
            "spectral.path": None if spectral is None else str(spectral),
            "spectral.names": data.spectral.names if spectral is not None else None,
            "bands.names": data.bands.names or _names_of(card, data),
        }
    )


def _names_of(card: ModelCard, data: DataConfig) -> tuple[str, ...] | None:
    """Return the default names of a file's bands for a run trained on arrays: the model's bands."""
    bands = card.streams["image"].bands
    return bands if data.bands.use is None and bands not in BANDS.values() else None


def _read(
    card: ModelCard, config: DataConfig, paths: Sequence[str | Path], size: tuple[int, int], spectral: object
) -> FileSource:
    files: dict[Path, None] = {}
    partners: list[Path] = []
    listings: list[Listing] = []
    for listing, new in _by_root(paths):
        listings.append(listing)
        files.update(dict.fromkeys(new))
        if spectral is not None:
            other = Path(str(spectral))
            single = len(new) == 1 and other.is_file()
            partners += [other] if single else find_partners(new, listing.root, other, setting="--spectral")
    rows = [("", "", file) for file in files]
    skip = config.errors.on_unreadable == "skip"
    notes = describe_passed_over(listings)
    readers = file_readers(config, size)
    source = FileSource(Path(), rows, ("",), readers, partners or None, skip=skip, notes=notes, of_run=True)
    print_notes(source.notes)
    source.classes = card.classes
    numbers = {name: i for i, name in enumerate(card.classes)}
    source.targets = np.array([numbers.get(Path(key).parent.name, -1) for key in source.keys], dtype=np.int64)
    return source


def _by_root(paths: Sequence[str | Path]) -> Iterator[tuple[Listing, list[Path]]]:
    """List each path, with its images that no earlier path holds."""
    seen: set[Path] = set()
    for path in map(Path, paths):
        listing = _list(path)
        new = [file for file in dict.fromkeys(listing.files) if file not in seen]
        seen.update(new)
        yield listing, new


def mask_reader(
    card: ModelCard, data: ImageData, paths: Sequence[str | Path], folder: str | Path
) -> Callable[[int], Tensor]:
    """Build a reader of the masks of images, resized and cropped as the images.

    Args:
        card: Model card of the run.
        data: Result of :func:`open_files`.
        paths: Files and folders given to :func:`open_files`.
        folder: Folder with a mask for each image, at the same relative path, with the same stem and size; the object
            is where pixels exceed half of the mask's maximum.

    Returns:
        Function from the index of an image to its mask, shape ``(H, W)``, bool.

    Raises:
        DataError: An image has no mask, or a mask is unreadable or has another size than its image.
    """
    source = unwrap_source(data.source)
    assert isinstance(source, FileSource), "open_files returns files"
    found: dict[str, Path] = {}
    for listing, files in _by_root(paths):
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
        return data.crop(pixels > pixels.max() // 2)

    return read


def _chosen(config: DataConfig, source: ImageSource) -> ImageSource:
    """Build the streams of the recipe from the bands of the files."""
    if config.bands.use is not None or config.spectral.use is not None:
        source = ChosenBands(source, config.bands.use, config.spectral.use)
    return WithEdges(source) if config.spectral.derive == "edges" else source


def _refuse_bands(card: ModelCard, stream: str) -> None:
    raise ConfigError(
        f"the run's stream {stream!r} has the bands {', '.join(card.streams[stream].bands)}, which image files do not "
        "bring; take the run's own images (`vitrail evaluate`, or `vitrail explain` without files)"
    )
