"""Attention rollout: how much of each input token reaches the output, composed through all layers.

Only a row vector is carried from the output back to the input, so the full N x N product is never built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture import CapturedMixing, capture_attention
from vitrail.models.base import VisionModel

HeadFusion = Literal["mean", "max", "min"]


@dataclass(frozen=True)
class Rollout:
    """How much each place of the input contributed.

    Attributes:
        map: Shape ``(B, H, W)``, at the input's resolution, interpolated from the tokens.
        tokens: Shape ``(B, h, w)``, on the grid of the patches; sums to one for each image.
    """

    map: Tensor
    tokens: Tensor


def attention_rollout(
    model: VisionModel, images: Tensor, head_fusion: HeadFusion = "mean", discard_ratio: float = 0.0
) -> Rollout:
    """Attention rollout of a ViT, with or without class token, TokenLearner and TokenFuser.

    Each attention counts half, its residual connection the other half: A' = (A + I) / 2, heads fused, rows
    renormalised. TokenLearner contributes its selection weights, normalised over positions; after a TokenFuser
    a token is half itself, half its share of the learned tokens. The result is read where the model reads it: in the
    class token's row, or in the mean over tokens.

    Args:
        model: The model, in evaluation mode.
        images: Normalised images, shape ``(B, C, H, W)``.
        head_fusion: How heads are fused.
        discard_ratio: Share of the smallest weights of each row set to zero before the residual is added.

    Raises:
        ConfigError: Settings out of range, or a family whose layers rollout does not know yet.

    Source: Abnar & Zuidema 2020, arXiv:2005.00928, section 3.
    """
    if not 0.0 <= discard_ratio < 1.0:
        raise ConfigError(f"discard_ratio must be at least 0 and below 1, got {discard_ratio}")
    if head_fusion not in ("mean", "max", "min"):
        raise ConfigError(f"head_fusion must be 'mean', 'max' or 'min', got {head_fusion!r}")
    with torch.no_grad(), capture_attention(model) as record:
        features = model.forward_features(images)
    unknown = {step.layout.kind for step in record.steps} - {"global", "pool", "fuse"}
    if unknown or features.ndim != 3:
        raise ConfigError(f"rollout does not reach through {type(model).__name__}: {', '.join(sorted(unknown))}")
    row = torch.zeros(features.shape[:2], dtype=torch.float32, device=features.device)
    if getattr(model.config, "global_pool", "avg") == "token":
        row[:, 0] = 1.0
    else:
        row[:, model.num_prefix :] = 1.0 / (features.shape[1] - model.num_prefix)
    row = _carry_back(row, record.steps, model.num_prefix, head_fusion, discard_ratio)
    first = record.steps[0].layout
    grid = first.query_grid or first.key_grid
    assert grid is not None, "the first layer of a model works on the patch grid"
    tokens = row[:, model.num_prefix :]
    tokens = (tokens / tokens.sum(dim=1, keepdim=True)).reshape(len(tokens), *grid)
    return Rollout(upsample(tokens, (images.shape[2], images.shape[3])), tokens)


def _carry_back(
    row: Tensor, steps: list[CapturedMixing], prefix: int, head_fusion: HeadFusion, discard_ratio: float
) -> Tensor:
    """Multiply the row vector by every layer's matrix, last layer first."""
    waiting: list[Tensor] = []
    for step in reversed(steps):
        head, rest = row[:, :prefix], row[:, prefix:]
        if step.layout.kind == "global":
            row = _through(row, mixing_matrix(step.weights, head_fusion, discard_ratio))
        elif step.layout.kind == "fuse":
            # Half of a fused token is what it was before its block; that half waits for the block's TokenLearner.
            waiting.append(rest / 2)
            row = torch.cat([head, _through(rest / 2, normalize_rows(step.weights))], dim=1)
        else:
            rest = _through(rest, normalize_rows(step.weights))
            row = torch.cat([head, rest + waiting.pop() if waiting else rest], dim=1)
    return row


def _through(row: Tensor, matrix: Tensor) -> Tensor:
    return (row[:, None] @ matrix.float())[:, 0]


def mixing_matrix(weights: Tensor, head_fusion: HeadFusion = "mean", discard_ratio: float = 0.0) -> Tensor:
    """(A + I) / 2 with fused heads and rows that sum to one.

    Args:
        weights: Attention, shape ``(B, heads, N, N)``.
        head_fusion: How heads are fused.
        discard_ratio: Share of the smallest weights of each row set to zero.

    Returns:
        Shape ``(B, N, N)``.
    """
    if head_fusion == "mean":
        fused = weights.mean(dim=1)
    else:
        fused = weights.amax(dim=1) if head_fusion == "max" else weights.amin(dim=1)
    if discard_ratio:
        count = int(fused.shape[-1] * discard_ratio)
        if count:
            smallest = fused.topk(count, dim=-1, largest=False).indices
            fused = fused.scatter(-1, smallest, 0.0)
    identity = torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device)
    return normalize_rows((fused + identity) / 2)


def normalize_rows(matrix: Tensor) -> Tensor:
    """Scale each row (last dimension) to sum to one."""
    return matrix / matrix.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)


def upsample(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate maps ``(B, h, w)`` bilinearly to ``(B, H, W)``."""
    return F.interpolate(tokens[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
