"""Table of methods: measures on the same images, with intervals, against a random map and a Gaussian at the centre."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitrail.bootstrap import bootstrap_mean
from vitrail.errors import ConfigError, ShapeError
from vitrail.explain.capture.forwarding import in_batches, inputs_by_stream, slice_inputs
from vitrail.explain.capture.prepare import Explainable, Images, Target, prepared
from vitrail.explain.interface import explain
from vitrail.explain.methods.registry import get_method
from vitrail.explain.metrics.measures import MEASURES, Case, choose_measures
from vitrail.explain.metrics.remove_and_debias import FRACTIONS

if TYPE_CHECKING:
    import pandas as pd

CONTROLS = ("random", "centre")
# Names of methods, or row -> (method, settings).
Methods = Sequence[str] | Mapping[str, tuple[str, Mapping[str, Any]]]


def measure(
    model: Explainable,
    images: Images,
    methods: Methods,
    masks: Tensor | Mapping[str, Tensor] | None = None,
    target: Target = None,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = 2000,
    **settings: Any,
) -> pd.DataFrame:
    """Measure methods and compare them: :func:`score_methods`, then :func:`compare_methods`.

    Args:
        model: As for :func:`score_methods`.
        images: As for :func:`score_methods`.
        methods: As for :func:`score_methods`.
        masks: As for :func:`score_methods`.
        target: As for :func:`score_methods`.
        seed: Seed of all random numbers and of the bootstrap.
        confidence: Confidence level of the intervals.
        resamples: Number of bootstrap resamples.
        **settings: Further arguments of :func:`score_methods`.

    Returns:
        The table of :func:`compare_methods`.
    """
    scores = score_methods(model, images, methods, masks, target, seed=seed, **settings)
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
    """Measure methods, one value for each image, method and measure.

    Images run in batches and maps are not stored, so that memory does not grow with the number of images. ROAD solves
    a linear system for each image and fraction, which dominates the time for large images; use fewer ``fractions``.

    Args:
        model: Any model of vitrail, or a trained model.
        images: As for :func:`vitrail.explain.explain`.
        methods: Names of methods, or names of rows with a method and its settings:
            ``{"rollout, max": ("rollout", {"head_fusion": "max"})}``. "random" and "centre" are always added.
        masks: Relevant pixels, bool, ``(B, H, W)`` of the first stream or by stream. Measures that need masks omit
            images with an empty mask.
        target: The class, one for all images or one for each; by default the predicted class.
        measures: Names of :data:`~vitrail.explain.metrics.measures.MEASURES`; by default "deletion", "insertion",
            "road" and "infidelity", with masks also "pointing", "mask_iou" and "energy_inside". "sensitivity" and
            "randomisation" run the method many times.
        steps: Steps of deletion and insertion.
        fractions: Shares of pixels that ROAD imputes.
        score: "probability" (softmax), "independent" (sigmoid, multi-label) or "logit".
        seed: Seed of all random numbers.
        batch_size: Batch size.

    Returns:
        Columns ``image``, ``method``, ``measure``, ``value``; the value is NaN where the mask is empty.

    Raises:
        ConfigError: An unknown method, setting or measure, or one that needs masks without any.
        ShapeError: Masks of another size than the images.
    """
    import pandas as pd

    rows = _rows(methods)
    names = choose_measures(measures, masks is not None)
    values: list[tuple[int, str, str, float]] = []
    with prepared(model, images, target) as (network, inputs, classes):
        assert classes is not None, "by_class is True"
        checked = _check_masks(masks, network.streams[0].name, inputs_by_stream(network, inputs))
        for part in in_batches(len(classes), batch_size):
            batch = slice_inputs(inputs, part)
            inside = {name: mask[part] for name, mask in checked.items()}
            for row, (method, settings) in rows.items():
                explanation = explain(network, batch, method, get_method(method).target(classes[part]), **settings)
                case = Case(
                    network, batch, classes[part], explanation, inside, method, settings, steps, fractions, score, seed,
                    batch_size,
                )  # fmt: skip
                for name in names:
                    found = MEASURES[name].compute(case).tolist()
                    values += [(part.start + i, row, name, value) for i, value in enumerate(found)]
    return pd.DataFrame(values, columns=["image", "method", "measure", "value"])


def compare_methods(
    scores: pd.DataFrame, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Compute means and intervals over images, and paired differences from the controls.

    Args:
        scores: Table of :func:`score_methods`.
        confidence: Confidence level of the intervals.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        A row for each measure and method, in order of appearance. Columns: ``measure``, ``method``, ``better``
        ("higher" or "lower"), ``images``, ``mean``, ``low``, ``high``; and for each control among the scores
        (``random``, ``centre``) the mean of the paired difference ``vs_random`` with ``vs_random_low`` and
        ``vs_random_high``, and ``beats_random``: whether the interval of the difference is on the better side of 0.
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
    """Return row -> (method, settings), controls included."""
    if isinstance(methods, str):
        raise ConfigError(f"methods must be a list of names, got {methods!r}; write [{methods!r}]")
    chosen: dict[str, tuple[str, Mapping[str, Any]]] = (
        dict(methods) if isinstance(methods, Mapping) else {name: (name, {}) for name in methods}
    )
    for name, settings in chosen.values():
        get_method(name).check_settings(settings)
    for control in CONTROLS:
        chosen.setdefault(control, (control, {}))
    return chosen


def _check_masks(
    masks: Tensor | Mapping[str, Tensor] | None, first: str, images: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    if masks is None:
        return {}
    by_stream = {first: masks} if isinstance(masks, Tensor) else dict(masks)
    for name, mask in by_stream.items():
        image = images.get(name)
        if image is None:
            raise ConfigError(f"there are masks of {name!r}, but inputs only of {', '.join(images)}")
        if mask.shape != (len(image), *image.shape[2:]):
            raise ShapeError(f"masks of {name!r} have shape {tuple(mask.shape)}, its images {tuple(image.shape)}")
        if mask.dtype != torch.bool:
            raise ConfigError(f"masks must be boolean, got {mask.dtype}; compare them with a threshold")
    return by_stream
