"""Fusion of two streams: the share of each stream, and the regions of the second stream that are attended to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.explain.capture.record import capture_attention, check_reports, first_tiles, last_tiles
from vitrail.explain.methods.maps import upsample
from vitrail.explain.methods.relevance import HeadFusion, Propagation, check_head_fusion, row_product
from vitrail.explain.methods.rollout import rollout_matrix
from vitrail.layers.fusion import ConcatFusion, CrossAttentionFusion
from vitrail.models.base import VisionModel

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class SpectralRegions:
    """Relevance of the second stream for fused tokens in regions of the image.

    Attributes:
        boxes: The regions: top, left, bottom, right in pixels of the image, the last two exclusive.
        tokens: Fused tokens that overlap each region, bool, shape ``(Q, h, w)``.
        direct: Weights of the second stream's last tokens, shape ``(B, Q, h', w')``; each map sums to one.
        traced: ``direct``, propagated through the second stream to its first tokens as in rollout.
        map: ``traced`` at the resolution of the second input, shape ``(B, Q, H', W')``.
    """

    boxes: tuple[Box, ...]
    tokens: Tensor
    direct: Tensor
    traced: Tensor
    map: Tensor


@dataclass(frozen=True)
class StreamShares:
    """Share of each stream in the fused tokens, by vector norm.

    Attributes:
        spectral: Norm of the second stream's vector over the sum of both norms, on the grid of the fused tokens, shape
            ``(B, h, w)``, in 0..1; the share of the image is the complement.
        mean: Mean over the grid, shape ``(B,)``.
    """

    spectral: Tensor
    mean: Tensor


def spectral_regions(
    model: VisionModel,
    *inputs: Tensor | None,
    boxes: Sequence[Box] | None = None,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
) -> SpectralRegions:
    """Compute the relevance of the second stream for fused tokens in regions of the image.

    Args:
        model: A model of two streams, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.
        boxes: Regions of the image, by default all of it; the mean over the tokens that overlap a region.
        head_fusion: Fusion of heads: "mean", "max" or "min".
        discard_ratio: Share of the smallest weights of each row set to zero.

    Raises:
        ConfigError: A model of one stream, a missing input, or a region outside the image.
    """
    fusion_of(model)
    check_head_fusion(head_fusion, discard_ratio)
    image, spectral = _both(inputs)
    size = (image.shape[2], image.shape[3])
    chosen = tuple(boxes) if boxes is not None else ((0, 0, *size),)
    keep = partial(rollout_matrix, head_fusion=head_fusion, discard_ratio=discard_ratio)
    with torch.no_grad(), capture_attention(model, keep=keep) as record:
        model.forward_features(image, spectral)
    check_reports(model, model.mixers(), record)
    (cross,) = (step for step in record.steps if step.layout.kind == "cross")
    grid, keys = cross.layout.query_grid, cross.layout.key_grid
    assert grid is not None, "the streams meet on grids"
    assert keys is not None, "the streams meet on grids"
    stride = last_tiles(model, model.streams[0].name).stride
    second = model.stream_prefixes[model.streams[1].name]
    tokens = torch.stack([_overlap(box, size, grid, stride) for box in chosen])
    own = [step for step in record.steps if step.name.startswith(second)]
    direct, traced = [], []
    for overlap in tokens.to(cross.weights.device):
        row = (overlap.flatten() / overlap.sum()).expand(len(image), -1)
        row = row_product(row, cross.weights)
        direct.append(row.view(-1, *keys))
        propagation, source = Propagation(), keys
        for step in reversed(own):
            row, source = propagation.back(row, step), step.layout.key_grid or source
        traced.append(row.view(-1, *source))
    found = torch.stack(traced, dim=1)
    map_ = upsample(
        found.flatten(0, 1), (spectral.shape[2], spectral.shape[3]), first_tiles(model, model.streams[-1].name)
    )
    return SpectralRegions(
        chosen, tokens, torch.stack(direct, dim=1), found, map_.view(*found.shape[:2], *map_.shape[1:])
    )


def stream_shares(model: VisionModel, *inputs: Tensor | None) -> StreamShares:
    """Compute the share of each stream in the fused tokens: the norms of the two vectors that are added.

    With cross-attention these are the image token (residual connection) and the output of the attention, projection and
    bias included. With concatenation they are the two halves of the projection, without its bias. In rollout each
    stream has one half by definition.

    Args:
        model: A model of two streams, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.

    Raises:
        ConfigError: A model of one stream, or a missing input.

    Source: Kobayashi et al. 2020, arXiv:2004.10102, section 3 (norms of vectors instead of weights).
    """
    fusion = fusion_of(model)
    image, spectral = _both(inputs)
    added: list[tuple[Tensor, Tensor]] = []

    def store(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(fusion, CrossAttentionFusion):
            added.append((args[0], output))
        else:
            weight = fusion.proj.weight
            halves = args[0].split([fusion.dim, fusion.context_dim], dim=-1)
            added.append((halves[0] @ weight[:, : fusion.dim].t(), halves[1] @ weight[:, fusion.dim :].t()))

    watched = fusion.attn if isinstance(fusion, CrossAttentionFusion) else fusion.proj
    handle = watched.register_forward_hook(store)
    try:
        with torch.no_grad():
            model.forward_features(image, spectral)
    finally:
        handle.remove()
    ((own, other),) = ([part.float().norm(dim=-1) for part in parts] for parts in added)
    share = other / (own + other).clamp_min(torch.finfo(torch.float32).tiny)
    return StreamShares(share, share.mean(dim=(1, 2)))


def fusion_of(model: VisionModel) -> CrossAttentionFusion | ConcatFusion:
    """Return the layer that fuses the two streams of a model.

    Raises:
        ConfigError: The model has one stream.
    """
    for module in model.modules():
        if isinstance(module, CrossAttentionFusion | ConcatFusion):
            return module
    raise ConfigError(f"this {type(model).__name__} has one stream; spectral_chans gives a family with two the second")


def _both(inputs: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    if len(inputs) != 2 or inputs[0] is None or inputs[1] is None:
        raise ConfigError("the fusion of two streams needs the inputs of both")
    return inputs[0], inputs[1]


def _overlap(box: Box, size: tuple[int, int], grid: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Find the tokens that a box in pixels overlaps, bool, shape ``(h, w)``."""
    top, left, bottom, right = box
    if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
        raise ConfigError(
            f"box {box} is not a region (top, left, bottom, right) in an image of {size[0]} x {size[1]} pixels"
        )
    overlap = torch.zeros(grid, dtype=torch.bool)
    overlap[top // stride[0] : -(-bottom // stride[0]), left // stride[1] : -(-right // stride[1])] = True
    return overlap
