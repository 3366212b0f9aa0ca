"""Recorded facts of a run that its plain sentences are decided from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from vitrail.analyze.evaluated import Evaluation
from vitrail.config.schema import Recipe
from vitrail.data.images import BANDS
from vitrail.evaluate.run import OTHER
from vitrail.models.modality import POINTS
from vitrail.report.data import Known, read_known

_SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class GroupFacts:
    """Groups of the evaluated images.

    Attributes:
        what: Column that names them, "block" of a scene, or "group".
        names: Their names.
        shared: Groups that lie in several splits; None where nothing records it.
    """

    what: str
    names: tuple[str, ...]
    shared: int | None = None


@dataclass(frozen=True)
class ClassFacts:
    """One class in the evaluated images.

    Attributes:
        name: The class, or the label.
        images: Images of it.
        recall: Share of these that are classified correctly; None without such images.
        train: Training images of it; None where they were not counted.
    """

    name: str
    images: int
    recall: float | None
    train: int | None = None


@dataclass(frozen=True)
class RunFacts:
    """Recorded facts of a run and of one evaluation of it.

    Attributes:
        label: The run.
        model: Name of its model.
        data: Name of the data.
        split: "test", "val", "train", or "other" for other images.
        images: Images evaluated.
        accuracy: Share classified correctly; of multi-label images, share with all labels correct.
        low: Lower end of its 95 % interval.
        high: Upper end.
        classes: Each class.
        multi_label: Whether images are multi-label.
        splits: Images of each split of the run's data; empty where nothing was recorded.
        weights: Initial weights; empty for random ones.
        groups: Groups of the evaluated images, where they have any.
        path: Path of other images.
        trained_on: Evaluated images that were trained on; None where nothing records it.
        chosen_on: Evaluated images that chose the epoch; None where nothing records it.
        pretrained_on: Evaluated images that the starting weights were pre-trained on.
        most_frequent: The most frequent class (or set of labels) of the evaluated images and its share.
        ece: Expected calibration error.
        ece_of_chance: Error that a calibrated model stays below 95 times in 100.
        ece_after: Error after temperature scaling.
        mean_confidence: Mean probability of the predicted class.
        unreadable: Files that were left out.
        stale: Whether the data has changed since training.
        audited: Whether an audit of these images is recorded, or none is possible.
        leaking: Groups of copies, and groups of the data's own, that lie in several splits.
        possible_leaks: Unconfirmed look-alikes in different splits.
        out_of_distribution: The best AUROC between known images and others, and where these lie.
        views: Test-time augmentation; "none" without.
        finished: Whether training came to its end.
        bands: Bands that the model reads; empty for pictures (RGB or gray) and where nothing records them.
        point_attributes: Attributes of each point that the model reads, beside its coordinates.
        band_drops: Each band -> the accuracy that is lost without it and the verdict; empty where not measured.
    """

    label: str
    model: str
    data: str
    split: str
    images: int
    accuracy: float
    low: float
    high: float
    classes: tuple[ClassFacts, ...]
    multi_label: bool = False
    splits: dict[str, int] = field(default_factory=dict)
    weights: str = ""
    groups: GroupFacts | None = None
    path: str = ""
    trained_on: int | None = 0
    chosen_on: int | None = 0
    pretrained_on: int = 0
    most_frequent: tuple[str, float] | None = None
    ece: float | None = None
    ece_of_chance: float | None = None
    ece_after: float | None = None
    mean_confidence: float | None = None
    unreadable: int = 0
    stale: bool = False
    audited: bool = True
    leaking: tuple[int, int] = (0, 0)
    possible_leaks: int = 0
    out_of_distribution: tuple[float, str] | None = None
    views: str = "none"
    finished: bool = True
    bands: tuple[str, ...] = ()
    point_attributes: tuple[str, ...] = ()
    band_drops: dict[str, tuple[float, str]] = field(default_factory=dict)


def read_facts(part: Evaluation, recipe: Recipe, label: str) -> RunFacts:
    """Read the facts of an evaluated run from its folder.

    Args:
        part: The evaluation.
        recipe: The run's recipe.
        label: Name of the run on the page.

    Raises:
        RunError: A record that is damaged.
    """
    metrics, run = part.metrics, part.run
    known = read_known(part)
    record = {} if known is None else known.record
    audit = None if known is None else known.audit
    path = (metrics.get("data") or {}).get("path") or ""
    predictions = _predictions(part, str(metrics["name"]))
    calibration = metrics.get("calibration") or {}
    environment = part.content(run.environment) or {}
    weights = recipe.model.weights
    bands, attributes = _bands(part)
    return RunFacts(
        label=label,
        model=recipe.model.name,
        data=recipe.data.path or recipe.data.source,
        split=_split(metrics),
        images=int(metrics["images"]),
        accuracy=float(metrics["accuracy"]),
        low=float(metrics["accuracy_low"]),
        high=float(metrics["accuracy_high"]),
        classes=_classes(part, record.get("balance") or {}),
        multi_label="map" in metrics,
        splits=dict(record.get("splits") or {}),
        weights="" if weights is None else str(weights),
        groups=_groups(part, recipe, predictions, record, audit),
        path=str(path),
        trained_on=metrics.get("trained_on"),
        chosen_on=metrics.get("chosen_on"),
        pretrained_on=int(metrics.get("seen_in_pretraining") or 0),
        most_frequent=_most_frequent(part, predictions),
        ece=calibration.get("ece"),
        ece_of_chance=calibration.get("ece_of_chance_95"),
        ece_after=calibration.get("ece_after"),
        mean_confidence=(part.content(part.files.calibration) or {}).get("mean_confidence"),
        unreadable=len(record.get("unreadable") or ()),
        stale=known is not None and known.stale,
        audited=audit is not None or (known is not None and not known.can_audit),
        leaking=_leaking(known),
        possible_leaks=0 if audit is None else sum(len(set(p["splits"])) > 1 for p in audit.get("look_alikes", ())),
        out_of_distribution=_out_of_distribution(part),
        views=str(metrics.get("tta") or "none"),
        finished=not environment or "finished" in environment,
        bands=bands,
        point_attributes=attributes,
        band_drops=_band_drops(part),
    )


def _split(metrics: dict[str, Any]) -> str:
    name, views = str(metrics["name"]), metrics.get("tta") or "none"
    own = name.removesuffix(f"-{views}")
    return own if own in _SPLITS else OTHER


def _predictions(part: Evaluation, name: str) -> pd.DataFrame | None:
    """Read the saved predictions of these weights; None where there are none."""
    run = part.run
    if not run.predictions(name).is_file() or not run.made_with(run.origin_of_predictions(name).get("weights")):
        return None
    return run.read_predictions(name)


def _classes(part: Evaluation, balance: dict[str, dict[str, int]]) -> tuple[ClassFacts, ...]:
    table = part.table(part.files.per_class, "class", "recall", "images")
    if table is None:
        return ()
    found = []
    for row in table.to_dict("records"):
        name, images = str(row["class"]), int(row["images"])
        recall = float(row["recall"])
        train = balance[name].get("train", 0) if name in balance else None
        found.append(ClassFacts(name, images, recall if images and not np.isnan(recall) else None, train))
    return tuple(found)


def _most_frequent(part: Evaluation, predictions: pd.DataFrame | None) -> tuple[str, float] | None:
    """Find the best guess without an image: the most frequent class, or set of labels."""
    if predictions is None:
        return None
    names = part.run.read_json(part.run.card)["classes"]
    kinds = Counter(tuple(np.atleast_1d(np.asarray(target)).tolist()) for target in predictions["target"])
    kind, number = kinds.most_common(1)[0]
    several = np.ndim(predictions["target"].iloc[0]) > 0
    chosen = [name for name, on in zip(names, kind, strict=True) if on] if several else [names[int(kind[0])]]
    return " and ".join(map(str, chosen)) or "no label", number / len(predictions)


def _groups(
    part: Evaluation,
    recipe: Recipe,
    predictions: pd.DataFrame | None,
    record: dict[str, Any],
    audit: dict[str, Any] | None,
) -> GroupFacts | None:
    names = _names_of_groups(predictions)
    if not names:
        return None
    data, evaluated = recipe.data, str(part.metrics["name"])
    column = data.table.group_column or data.splitting.group or ""
    what = "block" if data.split == "block" else (column if column.replace("_", "").isalnum() else "group")
    others = [_names_of_groups(_predictions(part, split)) for split in ("train", "val") if split != evaluated]
    shared = len(set(names) & {name for found in others for name in found})
    # Blocks of a scene lie in one split by construction.
    divided = 0 if data.split == "block" else (record.get("groups") or {}).get("divided")
    if audit is not None:
        divided = max(divided or 0, len(audit["shared_groups"]))
    return GroupFacts(what, names, shared or divided)


def _names_of_groups(predictions: pd.DataFrame | None) -> tuple[str, ...]:
    if predictions is None or "group" not in predictions:
        return ()
    names = predictions["group"].dropna().astype(str)
    return tuple(sorted(set(names) - {""}))


def _bands(part: Evaluation) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the bands of images or clips, and the attributes of points."""
    streams = (part.content(part.run.card) or {}).get("streams") or {}
    named = tuple(str(band) for name, stream in streams.items() if name != POINTS.name for band in stream["bands"])
    if POINTS.name in streams:
        return (), named
    return () if named in BANDS.values() else named, ()


def _band_drops(part: Evaluation) -> dict[str, tuple[float, str]]:
    table = part.robustness("missing", "band", "accuracy")
    if table is None or "verdict" not in table:
        return {}
    single = table[(table["stream"] != "none") & (table["band"] != "all")]
    return {str(row["band"]): (float(row["drop"]), str(row["verdict"])) for row in single.to_dict("records")}


def _leaking(known: Known | None) -> tuple[int, int]:
    if known is None or known.audit is None:
        return 0, 0
    return len(known.leaks), len(known.audit["shared_groups"])


def _out_of_distribution(part: Evaluation) -> tuple[float, str] | None:
    content = part.content(part.files.ood)
    if not content or not part.of_these_weights(content):
        return None
    return max(float(score["auroc"]) for score in content["scores"].values()), str(content["path"])
