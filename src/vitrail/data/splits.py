"""Splitting by fixed rules, decided by hashes of what identifies an image, a group or a block."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vitrail.config.data import DataConfig
from vitrail.data.sources.base import ImageSource, Scene
from vitrail.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
# Of a patch that reaches into blocks of different splits.
LEFT_OUT = "left out"

Integers = npt.NDArray[np.int64]


def assign_splits(source: ImageSource, config: DataConfig) -> list[str]:
    """The split of each image: the one that the data gives, or one by the config's rule.

    Where the data sets only its test images apart, the validation split comes out of the training images.

    Raises:
        DataError: Too few images, groups or blocks for the wanted splits, or images that belong to no group.
        ConfigError: A rule that the data has no use for.
    """
    given = set(source.given_split) - {""}
    if not given:
        # Without classes there is nothing to test.
        return _assign(source, config, range(len(source)), ("test", "val") if source.classes else ("val",))
    lost = [key for key, name in zip(source.keys, source.given_split, strict=True) if not name]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(source.keys)} images belong to no split where the others do, {lost[0]} is the first; "
            "put each into train, val or test, or none of them"
        )
    if config.fold is not None and "val" in given:
        raise ConfigError("data.fold has no meaning for data that is split already; leave it out, or join the splits")
    if "val" in given or "train" not in given or (config.val_fraction == 0 and config.fold is None):
        return list(source.given_split)
    training = [i for i, name in enumerate(source.given_split) if name == "train"]
    assigned = list(source.given_split)
    for i, name in zip(training, _assign(source, config, training, ("val",)), strict=True):
        assigned[i] = name
    return assigned


def _assign(source: ImageSource, config: DataConfig, rows: Sequence[int], wanted: tuple[str, ...]) -> list[str]:
    """Split some of the images; ``wanted`` names the splits beside the training split."""
    fractions = {"test": config.test_fraction, "val": config.val_fraction}
    fractions = {name: fractions[name] for name in wanted if fractions[name] > 0}
    fold = None if config.fold is None else (config.fold, config.num_folds)
    strata, classes = strata_of(source)
    targets = strata[list(rows)]
    if source.scene is not None:
        if config.split not in ("stratified", "block"):
            raise ConfigError(f"data.split {config.split} has no meaning for the patches of a scene; use block")
        return block_split(source.scene, targets, fractions, classes, fold=fold, first=wanted[0])
    if config.split == "block":
        raise ConfigError("data.split block is for the patches of a scene (data.source arrays)")
    keys = [source.keys[i] for i in rows]
    if config.split == "grouped":
        units = groups_of(source, config.group)
        return hashed_split(
            [units[i] for i in rows], targets, fractions, classes, fold=fold, first=wanted[0], grouped=True
        )
    if (config.split == "exact" or source.fixed) and fold is None:
        return stratified_split(keys, targets, fractions, classes)
    if config.split == "exact":
        raise ConfigError("data.split exact has no folds; use data.split stratified with data.fold")
    return hashed_split(keys, targets, fractions, classes, fold=fold, first=wanted[0])


def strata_of(source: ImageSource) -> tuple[Integers, tuple[str, ...]]:
    """What each image counts as when the data is split, shape ``(N,)``, and the names of that."""
    if not source.classes:
        return np.zeros(len(source), dtype=np.int64), ("unlabelled",)
    if source.targets.ndim == 1:
        return source.targets, source.classes
    return rarest_label(source.targets), (*source.classes, "(no label)")


def rarest_label(targets: Integers) -> Integers:
    """The label of each image that the fewest images have, K where it has none, shape ``(N,)``.

    Args:
        targets: Shape ``(N, K)``, 1 or 0.
    """
    count = np.where(targets > 0, targets.sum(axis=0), len(targets) + 1)
    rarest: Integers = np.where(targets.any(axis=1), count.argmin(axis=1), targets.shape[1])
    return rarest


def stratified_split(
    keys: Sequence[str], targets: npt.NDArray[np.int64], fractions: dict[str, float], classes: Sequence[str]
) -> list[str]:
    """Give each split exactly its share of each class; the same keys are split the same way on every machine.

    Within each class images are ordered by a hash of their key, and each split takes its share of that order,
    rounded to whole images; the rest is for training. A new image may push one over each border.

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


def position(key: str, salt: str = "") -> float:
    """A number in 0..1 that depends on the key alone, evenly spread over keys."""
    return int.from_bytes(hashlib.sha256((salt + key).encode()).digest()[:8], "big") / 2**64


def _rule(fractions: Mapping[str, float], fold: tuple[int, int] | None, first: str) -> Callable[[str], str]:
    """What split a key belongs to by its own hash, and nothing else."""
    if fold is not None:
        number, count = fold
        share = fractions.get("val", 0.0) / (1 - 1 / count) if first != "val" else 0.0

        def by_fold(key: str) -> str:
            if int(position(key) * count) == number:
                return first
            return "val" if position(key, "val:") < share else "train"

        return by_fold

    def by_share(key: str) -> str:
        place, border = position(key), 0.0
        for split, fraction in fractions.items():
            border += fraction
            if place < border:
                return split
        return "train"

    return by_share


def hashed_split(
    units: Sequence[str],
    targets: Integers,
    fractions: Mapping[str, float],
    classes: Sequence[str],
    *,
    fold: tuple[int, int] | None = None,
    first: str = "test",
    grouped: bool = False,
) -> list[str]:
    """Assign each image by the hash of its unit alone, so that a new one moves no other.

    A split's share of a class is about the wanted one: of n images it differs by the square root of n times the share
    or so. Only where a split would get no image of a class (no group at all, for groups) does it take one: the one
    with the lowest hash, from the split that has most.

    Args:
        units: What identifies each image, or its group.
        targets: Its class, shape ``(N,)``.
        fractions: Share of each split but "train".
        classes: Names of the classes.
        fold: Number of the fold that ``first`` is, and how many there are; the share of ``first`` has then no say.
        first: The split that a fold is.
        grouped: Whether several images may have one unit.

    Returns:
        The name of each image's split.

    Raises:
        DataError: Fewer images of a class (or groups) than splits, or a class that training would lack.
    """
    rule = _rule(fractions, fold, first)
    needed = [*dict.fromkeys([*([first] if fold is not None else []), *fractions]), "train"]
    if not grouped:
        result = [rule(unit) for unit in units]
        for target, name in enumerate(classes):
            members = np.flatnonzero(targets == target).tolist()
            if members:
                chosen = _fill({i: (units[i], result[i]) for i in members}, needed, f"class {name!r} has", "images")
                for i, split in chosen.items():
                    result[i] = split
        return result
    names = list(dict.fromkeys(units))
    filled = _fill({i: (name, rule(name)) for i, name in enumerate(names)}, needed, "there are", "groups")
    of_group = {name: filled[i] for i, name in enumerate(names)}
    result = [of_group[unit] for unit in units]
    _require_classes(result, targets, classes, "groups")
    return result


def _fill(members: dict[int, tuple[str, str]], needed: Sequence[str], who: str, what: str) -> dict[int, str]:
    """Give every needed split at least one of the members (number -> key, split)."""
    assigned = {i: split for i, (_, split) in members.items()}
    if len(members) < len(needed):
        raise DataError(
            f"{who} {len(members)} {what}: too few to give {' and '.join(needed)} one each; add {what} or change the "
            "fractions"
        )
    for split in needed:
        counts = {name: sum(s == name for s in assigned.values()) for name in needed}
        if counts[split] == 0:
            donor = max(needed, key=lambda name: (counts[name], name))
            moved = min((i for i, s in assigned.items() if s == donor), key=lambda i: position(members[i][0], "fill:"))
            assigned[moved] = split
    return assigned


def _require_classes(splits: Sequence[str], targets: Integers, classes: Sequence[str], what: str) -> None:
    trained = {int(t) for t, split in zip(targets, splits, strict=True) if split == "train"}
    lacking = [classes[int(t)] for t in np.unique(targets) if int(t) not in trained]
    if lacking:
        raise DataError(
            f"training would get no image of {', '.join(lacking)}: all are in {what} of other splits; change the "
            f"fractions, the fold or the {what}"
        )


def groups_of(source: ImageSource, pattern: str | None) -> list[str]:
    """The group of each image.

    Args:
        source: The images.
        pattern: A regular expression that is searched in the keys, whose first parenthesis (or whole match) is the
            group; the source's own groups when not given, or when the source took it for the name of a column.

    Raises:
        DataError: The source has no groups, or keys in which nothing is found.
        ConfigError: Not a regular expression.
    """
    if source.groups is not None:
        empty = [key for key, group in zip(source.keys, source.groups, strict=True) if group == ""]
        if empty:
            raise DataError(f"{len(empty)} images have no group, {empty[0]} is the first; fill the column")
        return list(source.groups)
    if pattern is None:
        raise DataError("data.split grouped needs a column 'group' in a table, or data.group, a regular expression")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"data.group {pattern!r} is no regular expression ({error})") from error
    found = [compiled.search(key) for key in source.keys]
    strangers = [key for key, match in zip(source.keys, found, strict=True) if match is None]
    if strangers:
        raise DataError(
            f"data.group {pattern!r} is no column, and is found in {len(found) - len(strangers)} of {len(found)} "
            f"paths; {strangers[0]} is one that has no group"
        )
    return [(m.group(1) or "" if m.re.groups else m.group()) for m in found if m is not None]


def block_split(
    scene: Scene,
    targets: Integers,
    fractions: Mapping[str, float],
    classes: Sequence[str],
    *,
    fold: tuple[int, int] | None = None,
    first: str = "test",
) -> list[str]:
    """Split the patches of a scene so that no pixel is seen by two splits.

    The scene is divided into blocks. Going from the blocks of the most uneven classes to the most even, each is given
    to the split that lacks most of its classes (ties by a hash of its place). A patch that reaches into blocks of
    different splits is left out.

    Args:
        scene: Where the patches lie.
        targets: Their classes, shape ``(N,)``.
        fractions: Share of each split but "train".
        classes: Names of the classes.
        fold: Number of the fold that ``first`` is, and how many there are.
        first: The split that a fold is.

    Returns:
        The name of each patch's split, or :data:`LEFT_OUT`.

    Raises:
        DataError: Too few blocks, or a class that a split would lack.
    """
    # First and last block that a patch touches, by row and column.
    low, high = scene.corners // scene.block, (scene.corners + scene.patch - 1) // scene.block
    grid = high.max(axis=0) + 1
    counts = np.zeros((*grid, len(classes)))
    centre = (scene.corners + scene.patch // 2) // scene.block
    np.add.at(counts, (centre[:, 0], centre[:, 1], targets), 1)
    flat = counts.reshape(-1, len(classes))
    used = np.flatnonzero(flat.sum(1) > 0)
    if fold is None:
        shares = {**fractions, "train": 1 - sum(fractions.values())}
        assignment = _spread(flat, used, list(shares.values()))
        names = np.array([*shares, LEFT_OUT])
    else:
        number, count = fold
        folds = _spread(flat, used, [1 / count] * count)
        chosen = np.flatnonzero(folds == number)
        rest = np.setdiff1d(used, chosen)
        share = fractions.get("val", 0.0) / (1 - 1 / count) if first != "val" else 0.0
        names = np.array([first, "val", "train", LEFT_OUT])
        inner = _spread(flat, rest, [share, 1 - share]) if share else np.ones(len(flat), dtype=np.int64)
        assignment = inner + 1
        assignment[chosen] = 0
    plane = assignment.reshape(grid)
    own = plane[low[:, 0], low[:, 1]]
    whole = np.ones(len(own), dtype=bool)
    for down in range(int((high - low)[:, 0].max()) + 1):
        for right in range(int((high - low)[:, 1].max()) + 1):
            rows, columns = np.minimum(low[:, 0] + down, high[:, 0]), np.minimum(low[:, 1] + right, high[:, 1])
            other = plane[rows, columns]
            # A block without a labelled centre belongs to nobody until a patch reaches into it: it counts as another.
            whole &= other == own
    result = [str(names[split]) if fits else LEFT_OUT for split, fits in zip(own, whole, strict=True)]
    needed = [*dict.fromkeys([*([first] if fold else []), *fractions]), "train"]
    for split in needed:
        present = {int(t) for t, name in zip(targets, result, strict=True) if name == split}
        lacking = [classes[int(t)] for t in np.unique(targets) if int(t) not in present]
        if lacking:
            raise DataError(
                f"the {split} split would get no patch of {', '.join(lacking)} from blocks of {scene.block} pixels; "
                "make data.block smaller, or change the fractions"
            )
    return result


def _spread(counts: npt.NDArray[np.float64], blocks: Integers, shares: Sequence[float]) -> Integers:
    """Divide blocks among parts so that each gets about its share of each class; -1 for other blocks."""
    totals = np.maximum(counts[blocks].sum(0), 1)
    parts = np.zeros((len(shares), counts.shape[1]))
    target = np.array(shares)[:, None]
    order = sorted(blocks.tolist(), key=lambda b: (-float((counts[b] / totals).std()), position(str(b))))
    result = np.full(len(counts), -1, dtype=np.int64)
    for block in order:
        added = (parts[None] + np.eye(len(shares))[:, :, None] * counts[block]) / totals
        # How far all parts would be from what they should have, in units of that.
        costs = (((added - target) / np.sqrt(target)) ** 2).sum((1, 2))
        best = int(costs.argmin())
        result[block] = best
        parts[best] += counts[block]
    return result


def keep_labels(keys: Sequence[str], targets: Integers, splits: Sequence[str], fraction: float, seed: int) -> list[str]:
    """Leave the labels of a share of the training images; the others' split becomes "unlabelled".

    Within each class images are ordered by a hash of the seed and their key, so that a smaller share is part of a
    larger one, and the share is rounded to whole images, at least one.

    Args:
        keys: What identifies each image.
        targets: Its class, shape ``(N,)``.
        splits: The name of each image's split.
        fraction: Share of each class's training images that keep their label.
        seed: Which.

    Returns:
        The name of each image's split.
    """
    result = list(splits)
    for target in np.unique(targets):
        members = [i for i in np.flatnonzero(targets == target).tolist() if splits[i] == "train"]
        members.sort(key=lambda i: (hashlib.sha256(f"{seed}:{keys[i]}".encode()).digest(), keys[i]))
        for i in members[max(1, round(fraction * len(members))) :]:
            result[i] = "unlabelled"
    return result
