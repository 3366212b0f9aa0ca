"""Deterministic splits by hashes of images, groups or blocks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vitrail.config.data import DataConfig
from vitrail.data.classes import similar_names
from vitrail.data.groups import groups_of
from vitrail.data.sources.base import ImageSource, Scene
from vitrail.errors import ConfigError, DataError, count_of, plural

SPLITS = ("train", "val", "test")
# Of a patch that reaches into blocks of different splits.
LEFT_OUT = "left out"
# Of so many groups or fewer hashes alone miss the wanted shares by far: groups are exchanged until none comes nearer.
FEW_GROUPS = 20
_WITHOUT_GROUPS = ", or split without regard to groups (data.split stratified)"

Integers = npt.NDArray[np.int64]


def resolve_split(source: ImageSource, config: DataConfig) -> DataConfig:
    """Resolve ``data.split`` auto: blocks for a scene, groups where there are any, else single images.

    Args:
        source: The images.
        config: Their settings.

    Returns:
        The settings with the rule that is used, which a run's recipe records.
    """
    if config.split != "auto":
        return config
    if source.scene is not None:
        return dataclasses.replace(config, split="block")
    grouped = source.groups is not None or config.splitting.group is not None
    return dataclasses.replace(config, split="grouped" if grouped else "stratified")


def assign_splits(source: ImageSource, config: DataConfig) -> list[str]:
    """Return the split of each image: the one of the data set, or one by the resolved rule of the config.

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
            f"{count_of(len(lost), len(source.keys), 'image', 'belongs', 'belong')} to no split where the others do, "
            f"{lost[0]} is the first; put each into train, val or test, or none of them"
        )
    if config.splitting.fold is not None and "val" in given:
        raise ConfigError("data.splitting.fold applies only to data without a val split; remove it, or join the splits")
    if "val" in given or "train" not in given or (config.splitting.val_fraction == 0 and config.splitting.fold is None):
        return list(source.given_split)
    training = [i for i, name in enumerate(source.given_split) if name == "train"]
    assigned = list(source.given_split)
    for i, name in zip(training, _assign(source, config, training, ("val",)), strict=True):
        assigned[i] = name
    return assigned


def _assign(source: ImageSource, config: DataConfig, rows: Sequence[int], wanted: tuple[str, ...]) -> list[str]:
    """Split some of the images; ``wanted`` names the splits beside the training split."""
    fractions = {"test": config.splitting.test_fraction, "val": config.splitting.val_fraction}
    fractions = {name: fractions[name] for name in wanted if fractions[name] > 0}
    fold = None if config.splitting.fold is None else (config.splitting.fold, config.splitting.num_folds)
    strata, classes = strata_of(source)
    targets = strata[list(rows)]
    if source.scene is not None:
        if config.split not in ("stratified", "block"):
            raise ConfigError(f"data.split {config.split} does not apply to the patches of a scene; use block")
        return block_split(source.scene, targets, fractions, classes, fold=fold, first=wanted[0])
    if config.split == "block":
        raise ConfigError("data.split block is for the patches of a scene (data.source arrays)")
    keys = [source.keys[i] for i in rows]
    if config.split == "grouped":
        units = groups_of(source, config.splitting.group)
        return hashed_split(
            [units[i] for i in rows], targets, fractions, classes, fold=fold, first=wanted[0], grouped=True
        )
    if (config.split == "exact" or source.fixed) and fold is None:
        return stratified_split(keys, targets, fractions, classes)
    if config.split == "exact":
        raise ConfigError("data.split exact has no folds; use data.split stratified with data.splitting.fold")
    return hashed_split(keys, targets, fractions, classes, fold=fold, first=wanted[0])


def strata_of(source: ImageSource) -> tuple[Integers, tuple[str, ...]]:
    """Return the stratum of each image, shape ``(N,)``, and the names of the strata."""
    if not source.classes:
        return np.zeros(len(source), dtype=np.int64), ("unlabelled",)
    if source.targets.ndim == 1:
        return source.targets, source.classes
    return rarest_label(source.targets), (*source.classes, "(no label)")


def rarest_label(targets: Integers) -> Integers:
    """Return the rarest label of each image, K where it has none, shape ``(N,)``.

    Args:
        targets: Shape ``(N, K)``, 1 or 0.
    """
    count = np.where(targets > 0, targets.sum(axis=0), len(targets) + 1)
    rarest: Integers = np.where(targets.any(axis=1), count.argmin(axis=1), targets.shape[1])
    return rarest


def stratified_split(
    keys: Sequence[str], targets: npt.NDArray[np.int64], fractions: dict[str, float], classes: Sequence[str]
) -> list[str]:
    """Split with exact shares of each class; equal keys are split equally on every machine.

    Within each class images are ordered by a hash of their key, and each split takes its share of that order,
    rounded to whole images; the rest is for training. A new image may push one over each border.

    Args:
        keys: Identifier of each image.
        targets: Its class, shape ``(N,)``.
        fractions: Share of each class for each split but "train".
        classes: Names of the classes, for the error.

    Returns:
        The name of each image's split.

    Raises:
        DataError: A class with too few images to give every split one.
    """
    result = ["train"] * len(keys)
    titles = _titles(classes)
    for target in range(len(classes)):
        members = [i for i in range(len(keys)) if targets[i] == target]
        members.sort(key=lambda i: (hashlib.sha256(keys[i].encode()).digest(), keys[i]))
        start = 0
        for split, fraction in fractions.items():
            if fraction == 0 or not members:
                continue
            count = round(fraction * len(members))
            if count == 0 or start + count >= len(members):
                raise DataError(
                    f"class {titles[target]} has {plural(len(members), 'image')}: too few to give {fraction:g} of them "
                    f"to {split} and leave some for training; add images or change the fractions"
                )
            for i in members[start : start + count]:
                result[i] = split
            start += count
    return result


def _titles(classes: Sequence[str]) -> list[str]:
    """Return the names of the classes for errors, with other spellings in the data."""
    spellings = {name: group for group in similar_names(classes) for name in group}
    titles = []
    for name in classes:
        others = ", ".join(repr(other) for other in spellings.get(name, ()) if other != name)
        remedy = "merge them with data.classes.merge similar"
        titles.append(f"{name!r} (also spelled {others}; {remedy})" if others else repr(name))
    return titles


def position(key: str, salt: str = "") -> float:
    """Hash a key to a number in 0..1, evenly distributed over keys."""
    return int.from_bytes(hashlib.sha256((salt + key).encode()).digest()[:8], "big") / 2**64


def _by_share(fractions: Mapping[str, float]) -> Callable[[str], str]:
    """Return a function that maps a key to its split by hash."""

    def rule(key: str) -> str:
        value, border = position(key), 0.0
        for split, fraction in fractions.items():
            border += fraction
            if value < border:
                return split
        return "train"

    return rule


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
    """Assign each image by the hash of its unit alone, so that new images do not move others.

    A split's share of a class is about the wanted one: of n images it differs by the square root of n times the share
    or so. Only where a split would get no image of a class (no group at all, for groups) does it take one: the one
    with the lowest hash, from the split that has most. Of 20 groups or fewer, groups then change splits while that
    brings the splits nearer to their shares of each class.

    Each image is in ``first`` in exactly one of the folds, however few there are of its class: of a class with fewer
    images than folds, some folds have none there.

    Args:
        units: Identifier of each image or of its group.
        targets: Its class, shape ``(N,)``.
        fractions: Share of each split but "train".
        classes: Names of the classes.
        fold: Number of the fold that ``first`` is, and how many there are; the share of ``first`` has then no say.
        first: The split that a fold is.
        grouped: Whether several images may have one unit.

    Returns:
        The name of each image's split.

    Raises:
        DataError: Fewer images of a class (or groups) than splits or folds need, or a class that training would lack.
    """
    if grouped:
        names = list(dict.fromkeys(units))
        parts = [(list(range(len(names))), "the data has", "group")]
    else:
        names = list(units)
        parts = [
            (members, f"class {title} has", "image")
            for target, title in enumerate(_titles(classes))
            if (members := np.flatnonzero(targets == target).tolist())
        ]
    filled: dict[int, str] = {}
    used: set[int] = set()
    for members, who, what in parts:
        keys = {i: names[i] for i in members}
        if fold is None:
            rule = _by_share(fractions)
            filled |= _fill({i: (key, rule(key)) for i, key in keys.items()}, [*fractions, "train"], who, what)
            continue
        number, count = fold
        rest = [*(name for name in fractions if name != first), "train"]
        folds = _folds(keys, count, [first, *rest], who, what)
        used |= set(folds.values())
        share = fractions.get("val", 0.0) / (1 - 1 / count) if first != "val" else 0.0
        others = {i: key for i, key in keys.items() if folds[i] != number}
        inner = {i: (key, "val" if position(key, "val:") < share else "train") for i, key in others.items()}
        filled |= {**dict.fromkeys(keys, first), **_fill(inner, rest, who, what)}
    if fold is not None and len(used) < fold[1]:
        raise DataError(
            f"{fold[1] - len(used)} of {plural(fold[1], 'fold')} would have no {'group' if grouped else 'image'} in "
            f"{first}; set data.splitting.num_folds to at most {max(2, max(len(members) for members, *_ in parts))}"
        )
    if not grouped:
        return [filled[i] for i in range(len(names))]
    if fold is None and len(names) <= FEW_GROUPS:
        row = {name: i for i, name in enumerate(names)}
        counts = np.zeros((len(names), len(classes)))
        np.add.at(counts, (np.array([row[unit] for unit in units]), targets), 1)
        filled = _exchange(names, filled, counts, {**fractions, "train": 1 - sum(fractions.values())})
    of_group = {name: filled[i] for i, name in enumerate(names)}
    result = [of_group[unit] for unit in units]
    _require_classes(result, targets, classes)
    return result


def _exchange(
    names: Sequence[str], assigned: Mapping[int, str], counts: npt.NDArray[np.float64], shares: Mapping[str, float]
) -> dict[int, str]:
    """Move single groups and swap pairs of them, best change first, while the shares improve.

    Args:
        names: Name of each group; what stands first by its hash is changed first where two changes are as good.
        assigned: Split of each group; no split becomes empty.
        counts: Images of each group and class, shape ``(N, K)``.
        shares: Share of each split.
    """
    splits = list(shares)
    totals = counts.sum(0)
    counts = np.concatenate(
        [counts[:, totals > 0] / totals[totals > 0], counts.sum(1, keepdims=True) / counts.sum()], 1
    )
    # The number of images counts as much as all classes together.
    weight = np.append(np.full(counts.shape[1] - 1, 1 / max(1, counts.shape[1] - 1)), 1.0)
    target = np.array(list(shares.values()))[:, None]
    order = sorted(range(len(names)), key=lambda i: position(names[i]))
    held = np.array([splits.index(assigned[i]) for i in range(len(names))])

    def cost(candidate: Integers) -> float:
        parts = np.stack([counts[candidate == split].sum(0) for split in range(len(splits))])
        if len(np.unique(candidate)) < len(splits):
            return np.inf
        return float(((parts - target) ** 2 / target * weight).sum())

    best = cost(held)
    while True:
        candidates = []
        for rank, i in enumerate(order):
            for split in range(len(splits)):
                if split != held[i]:
                    moved = held.copy()
                    moved[i] = split
                    candidates.append(moved)
            for j in order[rank + 1 :]:
                if held[i] != held[j]:
                    swapped = held.copy()
                    swapped[[i, j]] = held[[j, i]]
                    candidates.append(swapped)
        costs = [cost(candidate) for candidate in candidates]
        if not costs or min(costs) > best - 1e-9:
            return {i: splits[held[i]] for i in range(len(names))}
        best = min(costs)
        held = candidates[costs.index(best)]


def _folds(keys: Mapping[int, str], count: int, needed: Sequence[str], who: str, what: str) -> dict[int, int]:
    """Return the fold of each member, independent of the requested fold.

    The hash decides. Only where a fold would be empty though another has two, or one so large that the other splits
    would be empty beside it, does the member with the lowest second hash go from the largest fold to the smallest.
    """
    folds = {i: int(position(key) * count) for i, key in keys.items()}
    beside = len(needed) - 1
    while True:
        sizes = [0] * count
        for number in folds.values():
            sizes[number] += 1
        largest, least = max(range(count), key=lambda n: sizes[n]), min(sizes)
        crowded = len(folds) - sizes[largest] < beside
        if sizes[largest] - least < 2 or not (least == 0 or crowded):
            break
        moved = min((i for i, number in folds.items() if number == largest), key=lambda i: position(keys[i], "fill:"))
        # Rare classes spread over different folds.
        folds[moved] = min((n for n in range(count) if sizes[n] == least), key=lambda n: position(keys[moved], f"{n}:"))
    if crowded:
        raise DataError(
            f"{who} {plural(len(folds), what)}: too few for {count} folds with {' and '.join(needed)} in each; add "
            f"{what}s"
            + (", set data.splitting.val_fraction 0" if "val" in needed[1:] else "")
            + (f" or data.splitting.num_folds {count + 1}" if len(folds) > beside else "")
            + (_WITHOUT_GROUPS if what == "group" else "")
        )
    return folds


def _fill(members: dict[int, tuple[str, str]], needed: Sequence[str], who: str, what: str) -> dict[int, str]:
    """Give each required split at least one member (number -> key, split)."""
    assigned = {i: split for i, (_, split) in members.items()}
    if len(members) < len(needed):
        raise DataError(
            f"{who} {plural(len(members), what)}: too few to give {' and '.join(needed)} one each; add {what}s or "
            "change the fractions" + (_WITHOUT_GROUPS if what == "group" else "")
        )
    for split in needed:
        counts = {name: sum(s == name for s in assigned.values()) for name in needed}
        if counts[split] == 0:
            donor = max(needed, key=lambda name: (counts[name], name))
            moved = min((i for i, s in assigned.items() if s == donor), key=lambda i: position(members[i][0], "fill:"))
            assigned[moved] = split
    return assigned


def _require_classes(splits: Sequence[str], targets: Integers, classes: Sequence[str]) -> None:
    trained = {int(t) for t, split in zip(targets, splits, strict=True) if split == "train"}
    lacking = [classes[int(t)] for t in np.unique(targets) if int(t) not in trained]
    if lacking:
        raise DataError(
            f"training would get no image of {', '.join(lacking)}: all are in groups of other splits; change the "
            f"fractions, the fold or the groups{_WITHOUT_GROUPS}"
        )


def block_split(
    scene: Scene,
    targets: Integers,
    fractions: Mapping[str, float],
    classes: Sequence[str],
    *,
    fold: tuple[int, int] | None = None,
    first: str = "test",
) -> list[str]:
    """Split the patches of a scene without pixels shared by two splits.

    The scene is divided into blocks. Going from the blocks of the most uneven classes to the most even, each is given
    to the split that lacks most of its classes (ties by a hash of its position). A patch that reaches into blocks of
    different splits is left out.

    Args:
        scene: Position of each patch in the scene.
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
                "make data.arrays.block smaller, or change the fractions"
            )
    return result


def _spread(counts: npt.NDArray[np.float64], blocks: Integers, shares: Sequence[float]) -> Integers:
    """Distribute blocks so that each part has about its share of each class; -1 for other blocks."""
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
    """Keep the labels of a share of the training images; the others become the split "unlabelled".

    Within each class images are ordered by a hash of the seed and their key, so that a smaller share is part of a
    larger one, and the share is rounded to whole images, at least one.

    Args:
        keys: Identifier of each image.
        targets: Its class, shape ``(N,)``.
        splits: The name of each image's split.
        fraction: Share of each class's training images that keep their label.
        seed: Seed of the choice.

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
