"""Images of a run: their record, and their recognition at any path."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vitrail.config.data import PATH_SETTINGS, DataConfig
from vitrail.data.dataset import ImageData, open_data, split_by_rule
from vitrail.data.identity import NEW, KnownImages, Recognition
from vitrail.data.sources import ImageSource
from vitrail.data.sources.base import WrappedSource
from vitrail.errors import ConfigError, DataError, RunError, count_of, plural
from vitrail.files import replacing
from vitrail.runs.folder import RunFolder
from vitrail.runs.trained import ModelCard

# Sources whose path is a file or a folder of this machine.
_ON_DISK = ("folder", "unlabelled", "table", "parquet", "arrays")


def write_image_record(run: RunFolder, data: ImageData) -> None:
    """Record content, name, split and label of each image of a run."""
    splits = [""] * len(data.source)
    for name in ("train", "val", "test", "unlabelled"):
        for index in data.splits.get(name, ()):
            splits[index] = name
    digests = [digest.hex() for digest in data.source.digests()]
    labels = [data.source.label(index) for index in range(len(data.source))]
    table = pd.DataFrame({"digest": digests, "path": data.source.keys, "split": splits, "label": labels})
    with replacing(run.images) as temporary:
        table.to_parquet(temporary)


def read_image_record(run: RunFolder) -> KnownImages | None:
    """Read the recorded images of a run; None for versions without the record.

    Raises:
        RunError: The record is damaged.
    """
    if not run.images.is_file():
        return None
    try:
        table = pd.read_parquet(run.images)
        digests = tuple(bytes.fromhex(text) for text in table["digest"])
        labels = tuple(table["label"]) if "label" in table else None
        return KnownImages(digests, tuple(table["path"]), tuple(table["split"]), labels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{run.images} is damaged ({error}); restore it, or remove it and resume the run") from error


def has_other_paths(data: DataConfig, own: DataConfig) -> bool:
    """Return whether settings have other paths than a run's own."""
    return any(_place(data.setting(name)) != _place(own.setting(name)) for name in PATH_SETTINGS)


def _place(value: Any) -> Any:
    return os.path.realpath(value) if isinstance(value, str) and os.path.exists(value) else value


def open_prepared(
    card: ModelCard,
    data: DataConfig,
    *,
    split: bool,
    labelled: bool = True,
    known: KnownImages | None = None,
    size: tuple[int, int] | None = None,
) -> ImageData:
    """Open images with exactly the preparation of training.

    Args:
        card: The model's.
        data: The images.
        split: Split them as for training.
        labelled: Whether they are of the model's classes.
        known: The run's own images.
        size: Height and width, where that is not the run's.

    Raises:
        DataError: Images that are missing, unreadable, of unknown classes or of other bands.
    """
    classes = card.classes if labelled and card.classes and not card.per_point else None
    images = open_data(
        card.as_trained(data), size or card.img_size, classes, split=split, fill=card.filling(), known=known
    )
    if classes and (images.source.targets.ndim == 2) != card.multi_label:
        wanted = "multi-label data" if card.multi_label else "one label an image"
        raise DataError(
            f"the run was trained with {wanted}, the data is of the other kind; see data.table.label_separator"
        )
    trained_on = {name: stream.bands for name, stream in card.streams.items()}
    if images.source.bands != trained_on:
        raise DataError(
            f"the run was trained on the bands {_bands(trained_on)}, the data has {_bands(images.source.bands)}"
        )
    return images


def _bands(streams: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{stream}: {', '.join(names)}" for stream, names in streams.items())


@dataclasses.dataclass(frozen=True)
class RunImages:
    """Opened images, with their relation to a run.

    Attributes:
        data: The images. Where they are the run's own, wherever they lie, their splits are those of the run.
        moved: Whether their paths differ from the run's recipe.
        own: Whether they lie where the run has them, or all of them are known.
        lines: Facts that a reader of results must know.
    """

    data: ImageData
    moved: bool
    own: bool
    lines: tuple[str, ...]

    @property
    def mixed(self) -> bool:
        """Whether some of the images belong to the run and others do not."""
        found = self.data.recognition
        return self.moved and not self.own and found is not None and found.num_known > 0

    def default_split(self) -> str:
        """Split that is measured by default."""
        order = ("all",) if self.mixed else ("test", "val", "all", "train", "unlabelled", NEW)
        return next(name for name in order if name in self.data.splits)

    def primary_split(self) -> str:
        """Split of the run's primary evaluation."""
        found = self.data.recognition
        if not self.moved or found is None or not found.num_known:
            return self.default_split()
        return next((name for name in ("test", "val", "train") if name in found.known.splits), self.default_split())

    def is_own_split(self, split: str) -> bool:
        """Return whether a split equals a split of the run."""
        found = self.data.recognition
        if not self.moved or found is None:
            return self.own
        return found.has_all_of(split) and set(found.counts(self.data.splits.get(split, ()))) == {split}


def open_images(
    run: RunFolder,
    card: ModelCard,
    data: DataConfig,
    own: DataConfig | None = None,
    *,
    size: tuple[int, int] | None = None,
    verb: str = "evaluate",
) -> RunImages:
    """Open a run's images from its recipe or elsewhere, and recognise known ones by content.

    Args:
        run: Run that the images belong to.
        card: Card of the model that they are prepared for.
        data: The images.
        own: Data settings of the run's recipe; the same as ``data`` when not given.
        size: Height and width, where that is not the model's.
        verb: Verb, for the remedy.

    Raises:
        DataError: Images that are missing, unreadable, of unknown classes or of other bands.
    """
    moved = own is not None and has_other_paths(data, own)
    refuse_absent(run, data, moved, verb)
    known = read_image_record(run)
    images = open_prepared(card, data, split=not moved, known=known, size=size)
    opened = _by_names(run, images, moved) if known is None else _by_contents(run, images, moved)
    return dataclasses.replace(opened, lines=tuple(map(run.reword, opened.lines)))


def _by_contents(run: RunFolder, images: ImageData, moved: bool) -> RunImages:
    found = images.recognition
    assert found is not None, "they were compared"
    lines = (*_lines(run, images, found, moved), *_on_labels(run, images, found))
    return RunImages(images, moved, not moved or found.complete, lines)


def refuse_absent(run: RunFolder, data: DataConfig, moved: bool, verb: str) -> None:
    """Raise an error that names the setting for data that is not at the recipe's path.

    Args:
        run: Run that the data belongs to.
        data: Its settings.
        moved: Whether these name other paths already, which are not checked.
        verb: Verb, for the remedy.

    Raises:
        DataError: The images, or the table that lists them, are not there.
    """
    if moved or data.source not in _ON_DISK:
        return
    for name in ("path", "spectral.path"):
        value = data.setting(name)
        if value is not None and not Path(value).exists():
            where = "" if Path(value).is_absolute() else f" (seen from {Path.cwd()})"
            raise DataError(
                run.reword(f"the images of {run} are not at {value}{where}, where its recipe has them; ")
                + f"`vitrail {verb} {run} --data.{name} NEW` names their new path"
            )
    _refuse_absent_folder(run, data, verb)


def _refuse_absent_folder(run: RunFolder, data: DataConfig, verb: str) -> None:
    """Raise the error for the image folder of a table."""
    if data.source != "table" or data.path is None or data.table.image_folder is None:
        return
    if not any(
        folder.is_dir() for folder in (Path(data.table.image_folder), Path(data.path).parent / data.table.image_folder)
    ):
        raise DataError(
            f"the images of {run} are not in {data.table.image_folder!r}, where its recipe has them (the table is "
            f"{data.path} still); `vitrail {verb} {run} --data.path NEW` names their new folder"
        )


def _by_names(run: RunFolder, images: ImageData, moved: bool) -> RunImages:
    """Compare names, classes and rule for a run without recorded contents; otherwise unknown."""
    recorded = (run.read_json(run.environment) if run.environment.is_file() else {}).get("images") or {}
    try:
        split = split_by_rule(images) if moved else images
    except (ConfigError, DataError):
        split = images
    same = "listing" not in recorded and recorded.get("fingerprint") == split.listing()
    if not moved:
        changed = "fingerprint" in recorded and not same
        line = f"the names, classes or splits of the images are not those that {run} was made from"
        return RunImages(images, False, True, (line,) if changed else ())
    if same:
        line = (
            f"{plural(len(images.source), 'image has', 'images have')} the names and classes of those of {run}: the "
            "split is kept"
        )
        return RunImages(split, True, True, (line,))
    line = f"{run} did not record the contents of its images: which of these it was trained on is not known"
    return RunImages(images, True, False, (line,))


def _lines(run: RunFolder, images: ImageData, found: Recognition, moved: bool) -> tuple[str, ...]:
    number, new = len(images.source), len(images.source) - found.num_known
    if not moved:
        if not new and not found.num_missing:
            return ()
        gone = (
            f"{found.num_missing} of {plural(len(found.known), 'image')} of {run} "
            f"{'is' if found.num_missing == 1 else 'are'} gone"
        )
        added = (
            f"{count_of(new, number, 'image', 'is', 'are')} not among those that {run} was made from, and split by "
            "its rule"
        )
        return ("; ".join([*([added] if new else []), *([gone] if found.num_missing else [])]),)
    if not found.num_known:
        alike = found.count_namesakes()
        if 2 * alike < number:
            return (f"none of {plural(number, 'image')} is one that {run} was made from",)
        return (
            f"none of {plural(number, 'image')} is one that {run} was made from, by content, but {alike} have the "
            "names of those; re-encoded copies are not unseen images (`vitrail data audit` finds them)",
        )
    if not new:
        lacking = f" ({plural(found.num_missing, 'other')} not there)" if found.num_missing else ""
        return (f"{plural(number, 'image is', 'images are')} known to {run}, by content{lacking}: the split is kept",)
    counts = found.counts(range(number))
    seen = describe_counts(counts["train"], counts["val"])
    parts = [*([seen] if seen else []), f"{counts['test']} are its test images", f"{new} are new"]
    return (
        f"{count_of(found.num_known, number, 'image', 'is', 'are')} known to {run}, by content: {', '.join(parts)}",
    )


def _on_labels(run: RunFolder, images: ImageData, found: Recognition) -> tuple[str, ...]:
    """Describe images whose label differs from the recorded one."""
    source = images.source
    changed = found.relabelled(source)
    if not changed:
        return ()
    assert found.known.labels is not None, "they were compared"
    first = changed[0]
    then = found.known.labels[int(found.rows[first])]
    return (
        f"{count_of(len(changed), found.num_known, 'known image', 'has', 'have')} other labels than when {run} was "
        f"made, {source.keys[first]} is the first ({then}, now {source.label(first)}): they are measured by their "
        "labels of now",
    )


def describe_training_images(run: RunFolder, images: ImageData) -> str | None:
    """Describe the number of images that a run was trained on; None if none is known or recorded."""
    known = read_image_record(run)
    if known is None:
        return None
    counts = known.recognise(images.source).counts(range(len(images.source)))
    if not counts["train"] + counts["val"]:
        return None
    number = len(images.source)
    of_them = run.reword(f"of {plural(number, 'image')} {describe_counts(counts['train'], counts['val'])}")
    return f"{of_them}: results of {run} on those are not on unseen images"


def describe_counts(trained: int, chosen: int) -> str:
    """Describe the number of training images for a sentence."""
    parts = ((trained, "trained on"), (chosen, "used to choose the best epoch"))
    return " and ".join(f"{number} {'was' if number == 1 else 'were'} {what}" for number, what in parts if number)


class _Renamed(WrappedSource):
    """Source with other names for its images."""

    def __init__(self, source: ImageSource, keys: list[str]) -> None:
        super().__init__(source)
        self.keys = keys


def as_recorded(images: ImageData) -> ImageData:
    """Return the same images with their recorded names, where known."""
    found = images.recognition
    if found is None:
        return images
    keys = [
        found.known.keys[row] if row >= 0 else key
        for row, key in zip(found.rows.tolist(), images.source.keys, strict=True)
    ]
    return dataclasses.replace(images, source=_Renamed(images.source, keys))
