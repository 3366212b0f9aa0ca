"""Attention rollout: attention of all layers composed from the output to the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vitrail.explain.capture.groups import normalize_rows
from vitrail.explain.capture.prepare import labels_points
from vitrail.explain.capture.record import (
    CapturedMixing,
    armed,
    capture_attention,
    check_reports,
    running_mixers,
    tapped_layers,
)
from vitrail.explain.capture.scores import predicted_points
from vitrail.explain.methods.maps import StreamMap
from vitrail.explain.methods.registry import register_method
from vitrail.explain.methods.relevance import (
    DiscardFrom,
    HeadFusion,
    Rollout,
    check_head_fusion,
    fuse_heads,
    lacks_rollout,
    pooling_row,
    propagate,
)
from vitrail.layers.tap import TokenLayout
from vitrail.models.base import VisionModel


def attention_rollout(
    model: VisionModel,
    *inputs: Tensor | None,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
    discard_from: DiscardFrom = "row",
) -> Rollout:
    """Compute the attention rollout through all layers of a model.

    Attention and its residual connection are averaged: A' = (A + I) / 2, with fused heads and renormalised rows.

    - Attention in windows or grids is the same matrix, scattered to the positions of the tokens.
    - A merged token, and a token after a convolution of stride 2, is the mean of its 2 x 2 parents.
    - Token merging: a merged token is the mean of its tokens, weighted by the number of their patches.
    - TokenLearner: the selection weights, normalised over positions. TokenFuser: the mean of the token and its share of
      the learned tokens.
    - Fusion of two streams: the mean of the image token and its attention to the second stream.
    - Convolutions of stride 1 and MLPs: the identity.

    The result is the row of the class token, or the mean of the rows of all tokens, as the model pools them. Heads are
    fused as soon as a layer reports them, so that one matrix for each layer is stored.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream. A stream without input (None) has no
            map; the shares of the other streams do not sum to one.
        head_fusion: Fusion of heads: "mean", "max" or "min".
        discard_ratio: Share of the smallest weights set to zero before the residual is added.
        discard_from: "row", from each row, or "matrix", from the whole matrix of an image, as the program vit-explain
            does. That program divides columns by the sums of the rows; here rows are divided by their own sums.

    Raises:
        ConfigError: A setting out of range, a pooling other than the class token and the mean, or a block without a
            tap.

    Source: Abnar & Zuidema 2020, arXiv:2005.00928, section 3.
    """
    features, steps = _features_and_steps(model, inputs, head_fusion, discard_ratio, discard_from)
    return propagate(model, pooling_row(model, features, steps[-1].layout), steps, inputs)


def _features_and_steps(
    model: VisionModel,
    inputs: Sequence[Tensor | None],
    head_fusion: HeadFusion,
    discard_ratio: float,
    discard_from: DiscardFrom,
) -> tuple[Tensor, Sequence[CapturedMixing]]:
    """Compute the features, and the matrix of each layer."""
    check_head_fusion(head_fusion, discard_ratio, discard_from)
    keep = partial(rollout_matrix, head_fusion=head_fusion, discard_ratio=discard_ratio, discard_from=discard_from)
    with torch.no_grad(), capture_attention(model, keep=keep) as record:
        features = model.forward_features(*inputs)
    check_reports(model, running_mixers(model, inputs), record)
    return features, record.steps


def features_and_rollout(model: VisionModel, *inputs: Tensor) -> tuple[Tensor, Rollout]:
    """Compute features and attention rollout in one forward pass that ``torch.export`` can trace.

    As :func:`attention_rollout` with its default settings, but without its checks of values, which a graph cannot hold.

    Args:
        model: The model, in evaluation mode; :func:`~vitrail.explain.methods.relevance.lacks_rollout` is None.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.

    Returns:
        Features of :meth:`~vitrail.models.base.VisionModel.forward_features`, and the rollout.
    """
    steps: list[CapturedMixing] = []

    def add(name: str, weights: Tensor, layout: TokenLayout) -> None:
        step = CapturedMixing(name, weights, layout)
        steps.append(replace(step, weights=rollout_matrix(step, "mean", 0.0)))

    taps = tapped_layers(model)
    with armed(taps, {name: partial(add, name) for name in taps}):
        features = model.forward_features(*inputs)
    return features, propagate(model, pooling_row(model, features, steps[-1].layout), steps, inputs)


def rollout_matrix(
    step: CapturedMixing, head_fusion: HeadFusion, discard_ratio: float, discard_from: DiscardFrom = "row"
) -> Tensor:
    """Compute the matrix of a layer, ``(B, queries, keys)``; merged tokens keep the weights of their parents."""
    weights, kind = step.weights, step.layout.kind
    if weights.ndim == 4:
        fused = fuse_heads(weights, step.layout, head_fusion, discard_ratio, discard_from)
        return normalize_rows(fused) if kind == "cross" else fused
    return normalize_rows(weights.float()) if kind == "pool" else weights.float()


@register_method("rollout", by_class=False, lacks=lacks_rollout, any_grid=True)
def _rollout(
    model: VisionModel,
    inputs: Sequence[Tensor | None],
    target: Tensor | None,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
    discard_from: DiscardFrom = "row",
) -> dict[str, StreamMap]:
    """Attention of all layers composed, from the output back to the input (Abnar & Zuidema 2020)."""
    found = attention_rollout(
        model, *inputs, head_fusion=head_fusion, discard_ratio=discard_ratio, discard_from=discard_from
    )
    return found.by_stream(model)


def _lacks_parts(model: VisionModel) -> str | None:
    """Return the reason why no part can be followed; None for a model that labels points by attention."""
    return lacks_rollout(model) if labels_points(model) else "it follows a part, and this model labels whole inputs"


@register_method("part_rollout", by_class=True, lacks=_lacks_parts, any_grid=True)
def _part_rollout(
    model: VisionModel,
    inputs: Sequence[Tensor | None],
    target: Tensor,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
    discard_from: DiscardFrom = "row",
) -> dict[str, StreamMap]:
    """Attention of all layers composed, from the points that are predicted as a part back to the cloud.

    The classifier of a point reads its own features and the pooled ones: half of the start are the points of the part,
    half the weights of the pooling. A part that no point is predicted as has a map of zeros.
    """
    features, steps = _features_and_steps(model, inputs, head_fusion, discard_ratio, discard_from)
    with torch.no_grad():
        points = predicted_points(model.forward_head(features))
    own = points[torch.arange(len(points)), :, target].float()
    start = own / own.sum(dim=1, keepdim=True).clamp_min(1.0)
    if model.global_pool:
        pooled = pooling_row(model, features, steps[-1].layout)
        start = torch.where(own.any(dim=1, keepdim=True), (start + pooled) / 2, 0.0)
    return propagate(model, start, steps, inputs).by_stream(model)
