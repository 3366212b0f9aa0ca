"""Open the images of a data config, split them, and load batches."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitrail.config.data import DataConfig
from vitrail.data.augment import Augmentation, build_augmentation
from vitrail.data.augment.directions import keep_directions
from vitrail.data.class_checks import describe_doubtful, describe_empty
from vitrail.data.classes import describe_similar
from vitrail.data.evaluation_crop import crop_centre, shrink_to, size_to_read
from vitrail.data.file_names import describe_band_files, describe_families
from vitrail.data.identity import NEW, KnownImages, Recognition
from vitrail.data.no_data import fill_no_data
from vitrail.data.notes import print_notes, warn_data
from vitrail.data.sampling import EpochShuffle, balancing_weights
from vitrail.data.sources import ImageSource, open_source
from vitrail.data.sources.base import to_unit
from vitrail.data.splits import SPLITS, assign_splits, keep_labels, resolve_split, strata_of
from vitrail.data.statistics import Statistics, StreamStatistics, read_statistics
from vitrail.data.workers import choose_workers, start_worker, translate_worker_errors
from vitrail.errors import ConfigError, DataError, plural

Batch = dict[str, Tensor]


@dataclass(frozen=True, repr=False)
class ImageData:
    """Source of images together with its split.

    Attributes:
        source: The images.
        splits: Indices into the source for each split that has images; "unlabelled" are training images whose labels
            are not to be used.
        config: Data settings.
        fill: Stream -> the value of each band that pixels without data get in every batch; they stay NaN when not
            given. A run's are its training means, so that such pixels are 0 once normalised.
        recognition: Images known to a run; None where they were not compared with a run's.
        seen_size: Height and width that a model sees, where images are read larger (``data.images.crop_pct``): their
            centre, in training the whole.
    """

    source: ImageSource
    splits: dict[str, list[int]]
    config: DataConfig
    fill: Mapping[str, Sequence[float]] | None = None
    recognition: Recognition | None = None
    seen_size: tuple[int, int] | None = None

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {len(rows):,}" for name, rows in self.splits.items())
        return f"ImageData({self.config.source}, {plural(len(self.source), 'image')}: {splits})"

    def indices(self, split: str) -> list[int]:
        """Return the indices of a split's images.

        Raises:
            DataError: There is no such split; the message says which there are.
        """
        if split not in self.splits:
            remedy = "; leave --split out to measure all images" if "all" in self.splits else ""
            raise DataError(f"the data has no {split!r} split, only {', '.join(self.splits)}{remedy}")
        return self.splits[split]

    def loader(
        self, split: str, *, shuffle_seed: int | None = None, rank: int = 0, world: int = 1
    ) -> DataLoader[Batch]:
        """Build a loader of a split, in order or shuffled (the last incomplete batch is then dropped).

        Each pass over the loader has another order, which the seed and the number of the pass decide;
        ``loader.sampler.set_epoch(n)`` chooses a pass. Images are as the files have them, in 0..1: neither normalised
        nor augmented (``data.augment`` is applied to whole batches, on the device, by the training task). In a loop of
        your own::

            augment = data.augmentation()
            for batch in data.loader("train", shuffle_seed=0):
                images = augment({"image": batch["image"]})["image"]

        Several processes share each shuffled batch, so that together they see the batches that one would; of a split
        in order each has every ``world``-th image.

        Of videos, shuffled batches hold one clip of each (``data.video.sampling``), and those in order all views
        (``data.video.views`` and ``crops``) of each, one after the other: the stream has that many rows for each target
        and index.

        Args:
            split: Its name.
            shuffle_seed: Seed of the shuffling; the order of the source when not given.
            rank: Number of this process.
            world: Number of processes; divides the batch.
        """
        indices = self.indices(split)
        share = self.config.images_a_step // world
        sampler = None
        if shuffle_seed is not None:
            weights = (
                balancing_weights(self.source.targets[indices]) if self.config.loader.sampling == "balanced" else None
            )
            sampler = EpochShuffle(len(indices), shuffle_seed, share, rank, world, weights, seeded=self.source.draws)
        if sampler is None:
            indices = indices[rank::world]
            share = max(1, share // self.source.views)
        workers = self._workers(indices, share * self.source.views if sampler is None else share)
        whole_batches = sampler is not None and len(indices) >= self.config.images_a_step
        if sampler is not None and world > 1 and not whole_batches:
            raise ConfigError(
                f"data.batch_size {self.config.images_a_step} is more than the "
                f"{plural(len(indices), 'training image')}; several processes need a whole batch"
            )
        return _UnitLoader(
            _SplitDataset(
                self.source,
                indices,
                crop_centre if sampler is None else shrink_to,
                self.seen_size,
                # Training without random clips reads the middle one, and not the views of evaluation.
                clips=sampler is None or self.source.draws,
            ),
            batch_size=share,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_identity_collate,
            drop_last=whole_batches,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=start_worker,
            fill=self._filling(),
        )

    def augmentation(self) -> Augmentation | None:
        """Build the random changes of ``data.augment`` for a training loop of your own.

        MixUp and CutMix are not among them (:class:`vitrail.data.augment.Mixing`).

        Returns:
            A module from the streams of a batch, in 0..1, to changed ones; None where ``data.augment`` is "none".
        """
        settings, bands = self.config.augmentation, len(next(iter(self.source.bands.values())))
        if "video" in self.source.bands:
            settings = keep_directions(self.config.augment, settings, self.source.classes)
        if build_augmentation(self.config.augment, bands, settings) is None:
            return None
        means = {name: mean for name, (mean, _) in self.statistics().items()}
        return build_augmentation(self.config.augment, bands, settings, means)

    def _filling(self) -> Mapping[str, Sequence[float]] | None:
        return self.fill if self.source.has_no_data else None

    def _workers(self, indices: Sequence[int], batch_size: int) -> int:
        """Choose the number of worker processes for batches of as many images or clips."""
        asked = self.config.loader.num_workers
        if asked == 0 or (asked == -1 and self.source.in_memory):
            return 0
        one = self._dataset(indices[:1]).__getitems__([0])
        return choose_workers(asked, batch_size * sum(x.nbytes for x in one.values()))

    def batches(self, indices: list[int], batch_size: int) -> Iterator[Batch]:
        """Iterate over batches of images, each image once and in order."""
        workers = self._workers(indices, batch_size) if len(indices) > 8 * batch_size else 0
        return iter(
            _UnitLoader(
                self._dataset(indices),
                batch_size=batch_size,
                num_workers=workers,
                collate_fn=_identity_collate,
                worker_init_fn=start_worker,
                fill=self._filling(),
            )
        )

    def batch(self, indices: Sequence[int]) -> Batch:
        """Load images as one batch."""
        rows = self._dataset(indices).__getitems__(list(range(len(indices))))
        return _to_unit_batch(rows, self._filling())

    def _dataset(self, indices: Sequence[int]) -> _SplitDataset:
        return _SplitDataset(self.source, list(indices), crop_centre, self.seen_size)

    def crop(self, x: Tensor) -> Tensor:
        """Crop a picture or mask ``(..., H, W)`` of the size of the source to the part that evaluation sees."""
        return x if self.seen_size is None else crop_centre(x, self.seen_size)

    def load(self, indices: Sequence[int], whole: bool = False) -> dict[str, Tensor]:
        """Load the streams of images for figures or classification, without NaN.

        Args:
            indices: Indices of the images in the source.
            whole: Whether to resize the whole images, as in training, instead of cutting off the margin.

        Returns:
            For each stream, shape ``(len(indices), C, H, W)``, float32 in 0..1; pixels without data as in batches,
            where ``fill`` is not given as their image's own mean.
        """
        dataset = _SplitDataset(self.source, [], shrink_to if whole else crop_centre, self.seen_size)
        streams = {name: to_unit(x) for name, x in dataset.read(indices).items()}
        if not self.source.has_no_data:
            return streams
        return {name: fill_no_data(x, (self.fill or {}).get(name)) for name, x in streams.items()}

    def balanced_sample(self, split: str, most: int) -> list[int]:
        """Select images of a split for display: the first of each class, then the second of each, and so on.

        Args:
            split: Its name.
            most: Maximum number of images.

        Returns:
            Indices into the source.
        """
        groups: dict[bytes, list[int]] = {}
        for index in self.indices(split):
            groups.setdefault(self.source.targets[index].tobytes(), []).append(index)
        turns = [group[i] for i in range(max(map(len, groups.values()))) for _, group in sorted(groups.items())
                 if i < len(group)]  # fmt: skip
        return turns[:most]

    def evenly_spaced(self, split: str, most: int) -> list[int]:
        """Select images of a split, evenly spaced over it.

        Args:
            split: Its name.
            most: Maximum number of images.

        Returns:
            Indices into the source, in order.
        """
        indices = self.indices(split)
        positions = np.unique(np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(int))
        return [indices[i] for i in positions]

    def balance(self) -> dict[str, dict[str, int]]:
        """Count the images of each class and split."""
        source = self.source
        return {
            name: {split: int(source.has_class(i)[own].sum()) for split, own in self.splits.items()}
            for i, name in enumerate(source.classes)
        }

    def fingerprint(self) -> str:
        """Hash the images' contents, classes and splits, independent of names and order."""
        digests = self.source.digests()
        content = hashlib.sha256(repr(self.source.classes).encode())
        for name, indices in sorted(self.splits.items()):
            content.update(f"{name}\0".encode())
            for image in sorted(digests[i] + repr(self.source.targets[i].tolist()).encode() for i in indices):
                content.update(image)
        return content.hexdigest()[:16]

    def listing(self) -> str:
        """Hash the images' names, classes and splits, in their order; pixels are not read."""
        content = hashlib.sha256(repr(self.source.classes).encode())
        for name, indices in self.splits.items():
            content.update(name.encode())
            for i in indices:
                content.update(f"{self.source.keys[i]}\0{self.source.targets[i].tolist()}\0".encode())
        return content.hexdigest()[:16]

    def identity(self) -> dict[str, str]:
        """Return the hashes of contents and of names, for records."""
        return {"fingerprint": self.fingerprint(), "listing": self.listing()}

    def statistics(self, most: int = 500) -> dict[str, tuple[list[float], list[float]]]:
        """Compute mean and standard deviation of each band, for normalisation.

        They come from the file that ``data.values.statistics`` names, or else from the training images (at most
        ``most``, evenly spaced).

        Returns:
            For each stream, means and standard deviations in units of 0..1. A constant band has the deviation 1.

        Raises:
            DataError: A band that has one value throughout and is not allowed to (``data.bands.allow_constant``); a
                file of statistics that cannot be read or lacks a band.
        """
        if not self.source.is_image:
            return self.source.normalization(self.evenly_spaced("train", most))
        if self.config.values.statistics is not None:
            known = read_statistics(self.config.values.statistics, self.source.bands)
            known.refuse_constant(self.config.bands.allow_constant)
            return known.normalization()
        measured = self.measure(most)
        measured.refuse_constant(self.config.bands.allow_constant)
        warn_data(measured.warnings)
        return measured.normalization()

    def measure(self, most: int | None = None, split: str = "train", robust: bool = False) -> Statistics:
        """Measure the bands of a split's images, batch by batch.

        Args:
            most: Images to measure at most, evenly spaced; all when not given.
            split: Name of the split.
            robust: Whether to normalise by the pixels inside 0..1.

        Raises:
            ConfigError: The data has no bands.
        """
        if not self.source.is_image:
            raise ConfigError(
                f"data.source {self.config.source} has point clouds, whose coordinates are used as they are; "
                "statistics are for bands of images"
            )
        indices = self.indices(split) if most is None else self.evenly_spaced(split, most)
        waves = self.source.wavelengths
        streams = {name: StreamStatistics(bands, waves.get(name)) for name, bands in self.source.bands.items()}
        for batch in dataclasses.replace(self, fill=None).batches(indices, 64):
            for name, stream in streams.items():
                stream.add(batch[name])
        swapped = [stream.swapped_red_and_blue() for stream in streams.values()]
        values = self.source.values
        tallies = {name: own.tally.rows(indices) for name, own in values.items() if own.tally is not None}
        results = {name: stream.result(tallies.get(name)) for name, stream in streams.items()}
        warnings = [warning for warning in swapped if warning is not None]
        return Statistics(results, len(indices), self.fingerprint(), robust, warnings, list(self.source.value_notes))


def open_data(
    config: DataConfig,
    img_size: int | tuple[Any, ...],
    classes: Sequence[str] | None = None,
    *,
    split: bool = True,
    fill: Mapping[str, Sequence[float]] | None = None,
    known: KnownImages | None = None,
) -> ImageData:
    """Open and split the images of a config; notices are printed to standard error.

    Batches are not augmented; :meth:`ImageData.loader` says how to augment them.

    Args:
        config: Data settings.
        img_size: Height and width to bring them to, one number for both; number of points of clouds, as ``(N,)``.
        classes: Names of the classes where a run gives them.
        split: Split what is not split already; otherwise all images that belong to no split form one named "all".
        fill: Stream -> value of pixels without data; see :class:`ImageData`.
        known: Images of a run: these keep their split and their order, whatever they are called here. The rule is for
            others. Without ``split``, where only some are known, the others form the split "new" (or stay in the test
            split that the data gives), and all together are "all" too.

    Raises:
        ConfigError: An unknown source, or a missing or superfluous path.
        DataError: Images that are missing, unreadable or inconsistent.
    """
    img_size = (img_size, img_size) if isinstance(img_size, int) else img_size
    # A run's settings go with other images as far as they concern them.
    source = open_source(config, size_to_read(img_size, config.images.crop_pct), classes, strict=split)
    if config.classes.label_fraction < 1 and split and not source.classes:
        raise ConfigError(
            f"data.classes.label_fraction {config.classes.label_fraction:g} applies only to labelled sources, not to "
            f"data.source {config.source}; remove it"
        )
    config = resolve_split(source, config)
    recognition = None if known is None else known.recognise(source)
    if recognition is None or not recognition.num_known:
        assigned = _assign_splits(source, config, split)
    elif recognition.complete:
        assigned = recognition.splits()
    else:
        # Where some patches of a scene are known, others may overlap with them.
        others = _assign_splits(source, config, split) if source.scene is None else [""] * len(source)
        if not split:
            others = [name if name == "test" else NEW for name in others]
        pairs = zip(recognition.rows.tolist(), recognition.splits(), others, strict=True)
        assigned = [own if row >= 0 else other for row, own, other in pairs]
    splits = {name: [i for i, found in enumerate(assigned) if found == name] for name in _SPLIT_NAMES}
    if recognition is not None and recognition.num_known:
        splits = {name: recognition.sort_by_run(indices) for name, indices in splits.items()}
        if not split and not recognition.complete:
            splits["all"] = list(range(len(source)))
    notes = list(source.notes)
    similar = describe_similar(source.classes) if classes is None else None
    notes += [] if similar is None else [f"warning: {similar}"]
    notes += [*describe_doubtful(source.classes), *describe_empty(source)] if classes is None else []
    if split and source.named:
        notes += describe_families(source.keys, splits, given=any(source.given_split))
        if config.bands.files is None and "image" in source.bands:
            notes += describe_band_files(source.keys)
    print_notes(notes)
    own = {name: indices for name, indices in splits.items() if indices}
    return ImageData(source, own, config, fill, recognition, img_size[-2:] if config.images.crop_pct < 1 else None)


_SPLIT_NAMES = (*SPLITS, "unlabelled", NEW, "all")


def _assign_splits(source: ImageSource, config: DataConfig, split: bool) -> list[str]:
    """Return the split of each image, from the data set or by the rule of the config."""
    if not split:
        return [name or "all" for name in source.given_split]
    assigned = assign_splits(source, config)
    if config.classes.label_fraction == 1:
        return assigned
    return keep_labels(
        source.keys, strata_of(source)[0], assigned, config.classes.label_fraction, config.classes.label_seed
    )


def split_by_rule(data: ImageData) -> ImageData:
    """Split the images as at the start of a run: as the data set or the rule of their config says."""
    assigned = _assign_splits(data.source, data.config, True)
    splits = {name: [i for i, found in enumerate(assigned) if found == name] for name in _SPLIT_NAMES}
    return dataclasses.replace(data, splits={name: indices for name, indices in splits.items() if indices})


class _SplitDataset(Dataset[Any]):
    """Loads a whole batch at once, which in-memory sources turn into one indexing operation.

    Args:
        source: The images.
        indices: Indices of its images in the source.
        fit: Brings images that are read larger to the size that a model sees.
        seen_size: Height and width that a model sees; as read when not given.
        clips: Whether to read by :meth:`ImageSource.read_clips`.
    """

    def __init__(
        self,
        source: ImageSource,
        indices: list[int],
        fit: Callable[[Tensor, tuple[int, int]], Tensor],
        seen_size: tuple[int, int] | None,
        clips: bool = False,
    ) -> None:
        self.source, self.indices, self.clips = source, indices, clips
        self.fit, self.seen_size = fit, seen_size
        targets = torch.from_numpy(source.targets)
        self.targets = targets.float() if targets.ndim == 2 else targets

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: list[int] | list[tuple[int, int]]) -> Batch:
        drawn = [item for item in items if isinstance(item, tuple)]
        rows = [self.indices[item[0] if isinstance(item, tuple) else item] for item in items]
        index = torch.as_tensor(rows)
        streams = self.read(rows, [seed for _, seed in drawn] if drawn else None)
        return {**streams, "target": self.targets[index], "index": index}

    def read(self, rows: Sequence[int], seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Read the streams of images of the source, at the size that a model sees."""
        streams = self.source.read_clips(rows, seeds) if self.clips else self.source.read(rows)
        size = self.seen_size
        if size is None:
            return streams
        for x in streams.values():
            if x.shape[-2] < size[0] or x.shape[-1] < size[1]:
                raise DataError(
                    f"an image of {x.shape[-2]} x {x.shape[-1]} pixels has no margin around {size[0]} x {size[1]}; the "
                    "source does not resize its images: set data.images.crop_pct 1"
                )
        return {name: self.fit(x, size) for name, x in streams.items()}


class _UnitLoader(DataLoader[Batch]):
    """Loader that converts batches of workers to float32: 8-bit batches are a quarter of the size to transfer.

    Pixels without data are filled here, before anything else sees the batch.
    """

    def __init__(self, *arguments: Any, fill: Mapping[str, Sequence[float]] | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._fill = fill

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        with translate_worker_errors():
            for batch in super().__iter__():
                yield _to_unit_batch(batch, self._fill)


def _to_unit_batch(batch: Batch, fill: Mapping[str, Sequence[float]] | None = None) -> Batch:
    batch = {name: to_unit(x) if x.dtype == torch.uint8 else x for name, x in batch.items()}
    return batch | {name: fill_no_data(batch[name], means) for name, means in (fill or {}).items() if name in batch}


def _identity_collate(batch: Any) -> Batch:
    result: Batch = batch
    return result
