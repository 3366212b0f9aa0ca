"""From a data config to batches."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vitrail.config.schema import DataConfig
from vitrail.data.sources import (
    SOURCES,
    DigitsSource,
    FolderSource,
    ImageSource,
    TableSource,
    UnlabelledSource,
    WithEdges,
)
from vitrail.data.splits import keep_labels, random_split, stratified_split
from vitrail.errors import ConfigError, DataError, closest

Batch = dict[str, Tensor]
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ImageData:
    """A source together with its split.

    Attributes:
        source: The images.
        splits: Indices into the source for each split that has images; "unlabelled" are training images whose labels
            are not to be used.
        config: Where they came from.
    """

    source: ImageSource
    splits: dict[str, list[int]]
    config: DataConfig

    def indices(self, split: str) -> list[int]:
        """Indices of a split's images.

        Raises:
            DataError: There is no such split; the message says which there are.
        """
        if split not in self.splits:
            raise DataError(f"the data has no {split!r} split, only {', '.join(self.splits)}")
        return self.splits[split]

    def loader(
        self, split: str, *, shuffle_seed: int | None = None, rank: int = 0, world: int = 1
    ) -> DataLoader[Batch]:
        """Batches of a split, in order, or shuffled anew each epoch (the last incomplete batch is then left out).

        Several processes share each shuffled batch, so that together they see the batches that one would; of a split
        in order each has every ``world``-th image.

        Args:
            split: Its name.
            shuffle_seed: Seed of the shuffling; the order of the source when not given.
            rank: Number of this process.
            world: How many there are; divides the batch.
        """
        indices = self.indices(split)
        share = self.config.batch_size // world
        sampler = None if shuffle_seed is None else EpochShuffle(len(indices), shuffle_seed, share, rank, world)
        if sampler is None:
            indices = indices[rank::world]
        workers = self.config.num_workers
        if workers == -1:
            workers = 0 if self.source.in_memory else min(os.cpu_count() or 1, 8)
        whole_batches = sampler is not None and len(indices) >= self.config.batch_size
        if sampler is not None and world > 1 and not whole_batches:
            raise ConfigError(
                f"data.batch_size {self.config.batch_size} is more than the {len(indices)} training images; several "
                "processes need a whole batch"
            )
        return DataLoader(
            _SplitDataset(self.source, indices),
            batch_size=share,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_already_a_batch,
            drop_last=whole_batches,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
        )

    def fingerprint(self) -> str:
        """A hash of what the images are called, their classes and their splits; pixels are not read."""
        content = hashlib.sha256(repr(self.source.classes).encode())
        for name, indices in self.splits.items():
            content.update(name.encode())
            for i in indices:
                content.update(f"{self.source.keys[i]}\0{self.source.targets[i]}\0".encode())
        return content.hexdigest()[:16]

    def statistics(self, most: int = 500) -> dict[str, tuple[list[float], list[float]]]:
        """Mean and standard deviation of each band over the training images (at most ``most``, evenly spaced).

        Returns:
            For each stream, means and standard deviations in units of 0..1. A constant band has the deviation 1.
        """
        indices = self.indices("train")
        chosen = [indices[i] for i in np.unique(np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(int))]
        sums = {name: torch.zeros(3, len(bands), dtype=torch.float64) for name, bands in self.source.bands.items()}
        for start in range(0, len(chosen), 64):
            for name, images in self.source.load(chosen[start : start + 64]).items():
                values = images.double().transpose(0, 1).flatten(1)
                count = torch.full((len(values),), values.shape[1])
                sums[name] += torch.stack([values.sum(1), values.square().sum(1), count])
        return {name: _moments(*parts) for name, parts in sums.items()}


def _moments(total: Tensor, squares: Tensor, count: Tensor) -> tuple[list[float], list[float]]:
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std[std < 1e-6] = 1.0
    return [round(v, 6) for v in mean.tolist()], [round(v, 6) for v in std.tolist()]


def open_data(
    config: DataConfig, img_size: tuple[int, int], classes: Sequence[str] | None = None, *, split: bool = True
) -> ImageData:
    """Open the images that a config names, and split them.

    Args:
        config: Which.
        img_size: Height and width to bring them to.
        classes: Names of the classes where a run gives them.
        split: Split what is not split already; otherwise all images that belong to no split form one named "all".

    Raises:
        ConfigError: An unknown source, or a path missing or out of place.
        DataError: Images that are missing, unreadable or inconsistent.
    """
    source = _open_source(config, img_size, classes)
    given = set(source.given_split) - {""}
    if not split:
        assigned = [name or "all" for name in source.given_split]
    elif not source.classes:
        assigned = random_split(source.keys, config.val_fraction)
    elif not given:
        fractions = {"test": config.test_fraction, "val": config.val_fraction}
        assigned = stratified_split(source.keys, source.targets, fractions, source.classes)
    elif "val" not in given and "train" in given and config.val_fraction > 0:
        # Only the test images are set apart: the validation split comes out of the training images.
        training = [i for i, name in enumerate(source.given_split) if name == "train"]
        parts = stratified_split(
            [source.keys[i] for i in training],
            source.targets[training],
            {"val": config.val_fraction},
            source.classes,
        )
        assigned = list(source.given_split)
        for i, name in zip(training, parts, strict=True):
            assigned[i] = name
    else:
        assigned = list(source.given_split)
    if config.label_fraction < 1 and split:
        assigned = keep_labels(source.keys, source.targets, assigned, config.label_fraction, config.label_seed)
    splits = {name: [i for i, assignment in enumerate(assigned) if assignment == name] for name in SPLITS}
    for kept in ("unlabelled", "all"):
        splits[kept] = [i for i, name in enumerate(assigned) if name == kept]
    return ImageData(source, {name: indices for name, indices in splits.items() if indices}, config)


def _open_source(config: DataConfig, img_size: tuple[int, int], classes: Sequence[str] | None) -> ImageSource:
    convert = config.on_band_mismatch == "convert"
    openers: dict[str, Callable[[str], ImageSource]] = {
        "digits": lambda _: DigitsSource(img_size),
        "folder": lambda path: FolderSource(path, img_size, config.color, config.resize, convert, classes),
        "table": lambda path: TableSource(path, img_size, config.color, config.resize, convert, classes),
        "unlabelled": lambda path: UnlabelledSource(path, img_size, config.color, config.resize, convert),
    }
    if config.source not in SOURCES:
        raise ConfigError(f"unknown data.source {config.source!r}{closest(config.source, SOURCES)}")
    if config.source != "digits" and not config.path:
        what = {**dict.fromkeys(SOURCES, "the folder of images"), "table": "the CSV or Parquet file that lists them"}
        raise ConfigError(f"data.source {config.source} needs data.path, {what[config.source]}")
    if config.source == "digits" and config.path:
        raise ConfigError(
            f"data.path {config.path!r} has no meaning for the built-in digits; did you mean data.source folder?"
        )
    source = openers[config.source](config.path or "")
    if classes is not None and tuple(classes) != source.classes:
        raise DataError(f"the run knows the classes {', '.join(classes)}, the data has {', '.join(source.classes)}")
    return WithEdges(source) if config.spectral == "edges" else source


class _SplitDataset(Dataset[Any]):
    """Loads a whole batch at once, which in-memory sources turn into one indexing operation."""

    def __init__(self, source: ImageSource, indices: list[int]) -> None:
        self.source, self.indices = source, indices
        self.targets = torch.from_numpy(source.targets)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: list[int]) -> Batch:
        rows = [self.indices[i] for i in items]
        index = torch.as_tensor(rows)
        return {**self.source.load(rows), "target": self.targets[index], "index": index}


def _already_a_batch(batch: Any) -> Batch:
    result: Batch = batch
    return result


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


class EpochShuffle(Sampler[int]):
    """A permutation that depends on the seed and the epoch alone, so that a resumed run sees the same order.

    Args:
        length: Images.
        seed: Of the permutations.
        share: Images of a batch that one process takes.
        rank: Number of this process.
        world: How many processes there are; with several, images that fill no batch of all are left out.
    """

    def __init__(self, length: int, seed: int, share: int = 1, rank: int = 0, world: int = 1) -> None:
        self.length, self.seed, self.epoch = length, seed, 0
        self.share, self.rank, self.world = share, rank, world

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's permutation; the training loop calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.length)
        if self.world > 1:
            batches = order[: len(self) * self.world].reshape(-1, self.world, self.share)
            order = batches[:, self.rank].reshape(-1)
        return iter(order.tolist())

    def __len__(self) -> int:
        if self.world == 1:
            return self.length
        return self.length // (self.share * self.world) * self.share
