"""Splitting by a fixed rule: stratified, decided by a hash of what identifies an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitrail.errors import DataError


def stratified_split(
    keys: Sequence[str], targets: npt.NDArray[np.int64], fractions: dict[str, float], classes: Sequence[str]
) -> list[str]:
    """Assign each image to a split; the same keys are split the same way on every machine and with every seed.

    Within each class images are ordered by a hash of their key, and each split takes its share of that order,
    rounded to whole images; the rest is for training.

    Args:
        keys: What identifies each image.
        targets: Its class, shape ``(N,)``.
        fractions: Share of each class for each split but "train".
        classes: Names of the classes, for the error.

    Returns:
        The name of each image's split.

    Raises:
        DataError: A class with too few images to give every split one.
    """
    result = ["train"] * len(keys)
    for target, name in enumerate(classes):
        members = [i for i in range(len(keys)) if targets[i] == target]
        members.sort(key=lambda i: (hashlib.sha256(keys[i].encode()).digest(), keys[i]))
        start = 0
        for split, fraction in fractions.items():
            if fraction == 0 or not members:
                continue
            count = round(fraction * len(members))
            if count == 0 or start + count >= len(members):
                raise DataError(
                    f"class {name!r} has {len(members)} images: too few to give {fraction:g} of them to {split} and "
                    "leave some for training; add images or change the fractions"
                )
            for i in members[start : start + count]:
                result[i] = split
            start += count
    return result


def random_split(keys: Sequence[str], val_fraction: float) -> list[str]:
    """Assign images without classes to "train" and "val", by the same rule as :func:`stratified_split`.

    Args:
        keys: What identifies each image.
        val_fraction: Share of the images for "val".

    Returns:
        The name of each image's split.

    Raises:
        DataError: Too few images.
    """
    alike = np.zeros(len(keys), dtype=np.int64)
    return stratified_split(keys, alike, {"val": val_fraction}, ("unlabelled",))


def keep_labels(
    keys: Sequence[str], targets: npt.NDArray[np.int64], splits: Sequence[str], fraction: float, seed: int
) -> list[str]:
    """Leave the labels of a share of the training images; the others' split becomes "unlabelled".

    Within each class images are ordered by a hash of the seed and their key, so that a smaller share is part of a
    larger one, and the share is rounded to whole images, at least one.

    Args:
        keys: What identifies each image.
        targets: Its class, shape ``(N,)``; below 0 for none.
        splits: The name of each image's split.
        fraction: Share of each class's training images that keep their label.
        seed: Which.

    Returns:
        The name of each image's split.
    """
    result = list(splits)
    for target in np.unique(targets[targets >= 0]):
        members = [i for i in np.flatnonzero(targets == target).tolist() if splits[i] == "train"]
        members.sort(key=lambda i: (hashlib.sha256(f"{seed}:{keys[i]}".encode()).digest(), keys[i]))
        for i in members[max(1, round(fraction * len(members))) :]:
            result[i] = "unlabelled"
    return result
