"""A table of methods: each measured on the same images, with intervals, against a random map and a centre blob."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitrail.bootstrap import bootstrap_mean
from vitrail.errors import ConfigError, ShapeError, did_you_mean
from vitrail.explain.capture.forwarding import in_batches, slice_inputs
from vitrail.explain.capture.prepare import Explainable, Images, Target, prepared
from vitrail.explain.interface import explain
from vitrail.explain.methods.maps import Explanation
from vitrail.explain.methods.registry import get_method
from vitrail.explain.metrics.captum_metrics import infidelity, sensitivity
from vitrail.explain.metrics.faithfulness import deletion, insertion
from vitrail.explain.metrics.localisation import energy_inside, mask_iou, pointing_game
from vitrail.explain.metrics.randomisation import randomisation_check
from vitrail.explain.metrics.remove_and_debias import FRACTIONS, road

if TYPE_CHECKING:
    import pandas as pd

CONTROLS = ("random", "centre")
# Names of methods, or names of rows with the method and its settings.
Methods = Sequence[str] | Mapping[str, tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class _Case:
    """One method on some images.

    Attributes:
        model: The model.
        inputs: One tensor for each stream, or None.
        classes: Shape ``(B,)``.
        found: What the method says.
        masks: Shape ``(B, H, W)`` by stream; empty where none are known.
        method: Name of the method.
        settings: Its settings.
        steps: Of deletion and insertion.
        fractions: Of ROAD.
        score: Of the class.
        seed: Of everything that is drawn.
        batch_size: Images that run at once.
    """

    model: nn.Module
    inputs: tuple[Tensor | None, ...]
    classes: Tensor
    found: Explanation
    masks: Mapping[str, Tensor]
    method: str
    settings: Mapping[str, Any]
    steps: int
    fractions: Sequence[float]
    score: str
    seed: int
    batch_size: int

    def drawn(self) -> dict[str, Any]:
        """Arguments that all measures by the model share."""
        return {"score": self.score, "seed": self.seed, "batch_size": self.batch_size}

    def inside(self, compare: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Mean over the streams that have both map and mask; not a number where all masks of an image are empty."""
        values = [
            compare(one.map, self.masks[name].to(one.map.device))
            for name, one in self.found.items()
            if name in self.masks
        ]
        return torch.stack(values).nanmean(dim=0)


@dataclass(frozen=True)
class Measure:
    """A way to measure a map.

    Attributes:
        compute: One value for each image of a case.
        higher_is_better: Whether large values are good.
        needs_masks: Whether it compares with what is known to matter.
        summary: What it says.
    """

    compute: Callable[[_Case], Tensor]
    higher_is_better: bool
    needs_masks: bool
    summary: str


def _deletion(case: _Case) -> Tensor:
    return deletion(case.model, case.inputs, case.found, case.classes, steps=case.steps, **case.drawn()).area


def _insertion(case: _Case) -> Tensor:
    return insertion(case.model, case.inputs, case.found, case.classes, steps=case.steps, **case.drawn()).area


def _road(case: _Case) -> Tensor:
    return road(case.model, case.inputs, case.found, case.classes, fractions=case.fractions, **case.drawn()).gap


def _infidelity(case: _Case) -> Tensor:
    return infidelity(case.model, case.inputs, case.found, case.classes, **case.drawn())


def _sensitivity(case: _Case) -> Tensor:
    return sensitivity(
        case.model,
        case.inputs,
        case.method,
        case.classes,
        seed=case.seed,
        batch_size=case.batch_size,
        settings=case.settings,
    )


def _randomisation(case: _Case) -> Tensor:
    found = randomisation_check(
        case.model, case.inputs, case.method, case.classes, parts=1, seed=case.seed, settings=case.settings
    )
    return found.rank[-1]


MEASURES: dict[str, Measure] = {
    "deletion": Measure(_deletion, False, False, "area under the score as relevant pixels are taken away"),
    "insertion": Measure(_insertion, True, False, "area under the score as relevant pixels are given"),
    "road": Measure(_road, True, False, "score without irrelevant minus score without relevant pixels, imputed"),
    "infidelity": Measure(_infidelity, False, False, "error of the map as a prediction of what covering costs"),
    "sensitivity": Measure(_sensitivity, False, False, "largest change of the map for a small one of the image"),
    "randomisation": Measure(_randomisation, False, False, "rank correlation with the map of a random model"),
    "pointing": Measure(lambda case: case.inside(pointing_game), True, True, "the maximum lies in the mask"),
    "mask_iou": Measure(
        lambda case: case.inside(mask_iou), True, True, "overlap of mask and as large a top of the map"
    ),
    "energy_inside": Measure(lambda case: case.inside(energy_inside), True, True, "share of the map in the mask"),
}
# What is measured where nothing is asked for: what needs the map alone, not the method again and again.
_USUAL = ("deletion", "insertion", "road", "infidelity")
_WITH_MASKS = ("pointing", "mask_iou", "energy_inside")


def measure(
    model: Explainable,
    images: Images,
    methods: Methods,
    masks: Tensor | Mapping[str, Tensor] | None = None,
    target: Target = None,
    *,
    measures: Sequence[str] | None = None,
    steps: int = 20,
    fractions: Sequence[float] = FRACTIONS,
    score: str = "probability",
    seed: int = 0,
    batch_size: int = 16,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> pd.DataFrame:
    """Methods and what they are worth: :func:`score_methods`, then :func:`compare_methods`.

    Args:
        model: Any model of vitrail, or a trained model.
        images: As for :func:`vitrail.explain.explain`.
        methods: As for :func:`score_methods`.
        masks: As for :func:`score_methods`.
        target: As for :func:`score_methods`.
        measures: As for :func:`score_methods`.
        steps: As for :func:`score_methods`.
        fractions: As for :func:`score_methods`.
        score: As for :func:`score_methods`.
        seed: As for :func:`score_methods`, and of the bootstrap.
        batch_size: As for :func:`score_methods`.
        confidence: Of the intervals.
        resamples: Of the bootstrap.

    Returns:
        As :func:`compare_methods`.
    """
    scores = score_methods(
        model, images, methods, masks, target, measures=measures, steps=steps, fractions=fractions, score=score,
        seed=seed, batch_size=batch_size,
    )  # fmt: skip
    return compare_methods(scores, confidence, resamples, seed)


def score_methods(
    model: Explainable,
    images: Images,
    methods: Methods,
    masks: Tensor | Mapping[str, Tensor] | None = None,
    target: Target = None,
    *,
    measures: Sequence[str] | None = None,
    steps: int = 20,
    fractions: Sequence[float] = FRACTIONS,
    score: str = "probability",
    seed: int = 0,
    batch_size: int = 16,
) -> pd.DataFrame:
    """One value for each image, method and measure.

    Images run in batches, and maps are dropped once they are measured, so that memory does not grow with the number
    of images. ROAD solves a system of equations for each image and share of pixels: with large images it takes most
    of the time, and fewer ``fractions`` make it shorter.

    Args:
        model: Any model of vitrail, or a trained model.
        images: As for :func:`vitrail.explain.explain`.
        methods: Names of methods, or names of rows with a method and its settings each:
            ``{"rollout, max": ("rollout", {"head_fusion": "max"})}``. "random" and "centre" are always added.
        masks: What should matter, boolean, ``(B, H, W)`` of the first stream or by stream. An image whose mask is empty
            takes no part in what needs masks.
        target: The class, one for all images or one for each; the predicted one where it is not given.
        measures: Of :data:`MEASURES`; "deletion", "insertion", "road" and "infidelity", and with masks "pointing",
            "mask_iou" and "energy_inside", where they are not given. "sensitivity" and "randomisation" explain anew
            many times.
        steps: Of deletion and insertion.
        fractions: Shares of pixels that ROAD removes.
        score: "probability" (softmax), "independent" (sigmoid, for several labels an image) or "logit".
        seed: Of everything that is drawn.
        batch_size: Images that run at once.

    Returns:
        Columns ``image``, ``method``, ``measure``, ``value``; the value is not a number where the mask is empty.

    Raises:
        ConfigError: An unknown method, setting or measure, or one that needs masks without any.
        ShapeError: Masks that do not fit the images.
    """
    import pandas as pd

    chosen = _rows(methods)
    names = _measures(measures, masks is not None)
    rows: list[tuple[int, str, str, float]] = []
    with prepared(model, images, target) as (network, inputs, classes):
        assert classes is not None, "by_class is True"
        known = _masks(
            masks, network.streams[0].name, {s.name: x for s, x in zip(network.streams, inputs, strict=False)}
        )
        for part in in_batches(len(classes), batch_size):
            batch = slice_inputs(inputs, part)
            for label, (method, settings) in chosen.items():
                found = explain(network, batch, method, get_method(method).target(classes[part]), **settings)
                inside = {name: mask[part] for name, mask in known.items()}
                case = _Case(
                    network, batch, classes[part], found, inside, method, settings, steps, fractions, score, seed,
                    batch_size,
                )  # fmt: skip
                for name in names:
                    values = MEASURES[name].compute(case).tolist()
                    rows += [(part.start + i, label, name, value) for i, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["image", "method", "measure", "value"])


def compare_methods(
    scores: pd.DataFrame, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Means and intervals over images, and paired differences from the random map and the centre blob.

    Args:
        scores: As :func:`score_methods` gives them.
        confidence: Of the intervals.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        A row for each measure and method, in the order in which they came. Columns: ``measure``, ``method``,
        ``better`` ("higher" or "lower"), ``images``, ``mean``, ``low``, ``high``; and for each control among the
        scores (``random``, ``centre``) the mean of the paired difference ``vs_random`` with ``vs_random_low`` and
        ``vs_random_high``, and ``beats_random``: whether the whole interval of the difference is on the better side.
    """
    import pandas as pd

    wide = scores.pivot(index=["measure", "image"], columns="method", values="value")
    rows = []
    for measured in scores["measure"].unique():
        values = wide.loc[measured]
        better = MEASURES[measured].higher_is_better
        for method in scores["method"].unique():
            own = values[method].dropna()
            mean, low, high = bootstrap_mean(own.to_numpy(), confidence, resamples, seed)
            row: dict[str, Any] = {
                "measure": measured,
                "method": method,
                "better": "higher" if better else "lower",
                "images": len(own),
                "mean": float(mean),
                "low": float(low),
                "high": float(high),
            }
            for control in (name for name in CONTROLS if name in values):
                difference = (values[method] - values[control]).dropna().to_numpy()
                mean, low, high = bootstrap_mean(difference, confidence, resamples, seed)
                row |= {
                    f"vs_{control}": float(mean),
                    f"vs_{control}_low": float(low),
                    f"vs_{control}_high": float(high),
                }
                row[f"beats_{control}"] = bool(low > 0 if better else high < 0)
            rows.append(row)
    return pd.DataFrame(rows)


def _rows(methods: Methods) -> dict[str, tuple[str, Mapping[str, Any]]]:
    if isinstance(methods, str):
        raise ConfigError(f"methods is a list of names, got {methods!r}; write [{methods!r}]")
    chosen: dict[str, tuple[str, Mapping[str, Any]]] = {}
    if isinstance(methods, Mapping):
        chosen.update(methods)
    else:
        chosen.update({name: (name, {}) for name in methods})
    for name, _ in chosen.values():
        get_method(name)
    for control in CONTROLS:
        chosen.setdefault(control, (control, {}))
    return chosen


def _measures(measures: Iterable[str] | None, with_masks: bool) -> list[str]:
    if measures is None:
        return [*_USUAL, *(_WITH_MASKS if with_masks else ())]
    chosen = list(dict.fromkeys(measures))
    for name in chosen:
        if name not in MEASURES:
            raise ConfigError(f"no measure {name!r}{did_you_mean(name, MEASURES)}; measures: {', '.join(MEASURES)}")
        if MEASURES[name].needs_masks and not with_masks:
            raise ConfigError(f"{name} compares maps with masks of what should matter; give masks, or leave it out")
    return chosen


def _masks(
    masks: Tensor | Mapping[str, Tensor] | None, first: str, inputs: Mapping[str, Tensor | None]
) -> dict[str, Tensor]:
    if masks is None:
        return {}
    known = {first: masks} if isinstance(masks, Tensor) else dict(masks)
    for name, mask in known.items():
        image = inputs.get(name)
        if image is None:
            raise ConfigError(f"masks of {name!r}, but the images are of {', '.join(inputs)}")
        if mask.shape != (len(image), *image.shape[2:]):
            raise ShapeError(f"masks of {name!r} have shape {tuple(mask.shape)}, its images {tuple(image.shape)}")
        if mask.dtype != torch.bool:
            raise ConfigError(f"masks must be boolean, got {mask.dtype}; compare them with a threshold")
    return known
