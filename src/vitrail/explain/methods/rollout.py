"""Attention rollout: how much of each input token reaches the output, composed through all layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from vitrail.explain.capture.groups import normalize_rows
from vitrail.explain.capture.record import CapturedMixing, capture_attention, check_reports, running_mixers
from vitrail.explain.methods.maps import StreamMap
from vitrail.explain.methods.registry import register_method
from vitrail.explain.methods.relevance import (
    HeadFusion,
    Rollout,
    check_fusion,
    fuse_heads,
    lacks_rollout,
    reading_row,
    roll_back,
)
from vitrail.models.base import VisionModel


def attention_rollout(
    model: VisionModel, *inputs: Tensor | None, head_fusion: HeadFusion = "mean", discard_ratio: float = 0.0
) -> Rollout:
    """Attention rollout through every layer of a model of any family.

    Each attention counts half, its residual connection the other half: A' = (A + I) / 2, heads fused, rows
    renormalised. Attention in windows or grids is the same matrix spread to the tokens' places on the map. A merged
    token, and one after a convolution of stride 2, is the mean of its 2 x 2 parents. TokenLearner contributes its
    selection weights, normalised over positions; after a TokenFuser a token is half itself, half its share of the
    learned tokens; after the fusion of two streams an image token is half itself, half what it took from the other
    stream. Convolutions of stride 1 and perceptrons leave tokens where they are. The result is read where the model
    reads it: in the class token's row, or in the mean over tokens.

    Heads are fused as soon as a layer reports them, so that one matrix a layer is kept and not one a head.

    Args:
        model: The model, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream. A stream whose input is None, or
            left out, where the model allows that, has no map; its share is what the others lack.
        head_fusion: How heads are fused.
        discard_ratio: Share of the smallest weights of each row set to zero before the residual is added.

    Raises:
        ConfigError: Settings out of range, a pooling other than the class token and the mean, or a block that does not
            report how it mixes tokens.

    Source: Abnar & Zuidema 2020, arXiv:2005.00928, section 3.
    """
    check_fusion(head_fusion, discard_ratio)
    keep = partial(fuse_for_rollout, head_fusion=head_fusion, discard_ratio=discard_ratio)
    with torch.no_grad(), capture_attention(model, keep=keep) as record:
        features = model.forward_features(*inputs)
    check_reports(model, running_mixers(model, inputs), record)
    return roll_back(model, reading_row(model, features, record.steps[-1].layout), record.steps, inputs)


def fuse_for_rollout(step: CapturedMixing, head_fusion: HeadFusion, discard_ratio: float) -> Tensor:
    """What rollout keeps of a layer: one matrix ``(B, queries, keys)``, or the parents of merged tokens."""
    weights, kind = step.weights, step.layout.kind
    if weights.ndim == 4:
        fused = fuse_heads(weights, step.layout, head_fusion, discard_ratio)
        return normalize_rows(fused) if kind == "cross" else fused
    return normalize_rows(weights.float()) if kind == "pool" else weights.float()


@register_method("rollout", by_class=False, lacks=lacks_rollout)
def _rollout(
    model: VisionModel,
    inputs: Sequence[Tensor | None],
    target: Tensor | None,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
) -> dict[str, StreamMap]:
    """Attention of all layers composed, from the output back to the input (Abnar & Zuidema 2020)."""
    return attention_rollout(model, *inputs, head_fusion=head_fusion, discard_ratio=discard_ratio).by_stream(model)
