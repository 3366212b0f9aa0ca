"""Where two streams meet: how much the fused tokens drew on each, and on which regions of the second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.explain.capture.record import capture_attention, check_reports, first_stride
from vitrail.explain.methods.maps import upsample
from vitrail.explain.methods.relevance import Carrier, HeadFusion, check_fusion, through
from vitrail.explain.methods.rollout import fuse_for_rollout
from vitrail.layers.fusion import ConcatFusion, CrossAttentionFusion
from vitrail.models.base import VisionModel

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class SpectralRegions:
    """What the fused tokens of some regions of the image drew on in the second stream.

    Attributes:
        boxes: The regions: top, left, bottom, right in pixels of the image, the last two not included.
        tokens: Fused tokens that touch each, on their grid, bool, shape ``(Q, h, w)``.
        direct: Weights of the second stream's last tokens, shape ``(B, Q, h', w')``; each map sums to one.
        traced: The same carried back through the second stream to its first tokens, as rollout does.
        map: ``traced`` at the resolution of the second input, shape ``(B, Q, H', W')``.
    """

    boxes: tuple[Box, ...]
    tokens: Tensor
    direct: Tensor
    traced: Tensor
    map: Tensor


@dataclass(frozen=True)
class StreamShares:
    """How much of each fused token came from each stream, by the length of what came.

    Attributes:
        spectral: Length of what came from the second stream over the sum of both lengths, on the grid of the fused
            tokens, shape ``(B, h, w)``, in 0..1; the image's share is the rest.
        mean: The mean over the map, shape ``(B,)``.
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
    """Which regions of the second stream the fused tokens of some regions of the image drew on.

    Args:
        model: A model of two streams, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.
        boxes: Regions of the image; all of it when not given. The tokens that touch one count alike.
        head_fusion: How heads are fused.
        discard_ratio: Share of the smallest weights of each row set to zero.

    Raises:
        ConfigError: A model of one stream, a missing input, or a region outside the image.
    """
    fusion_of(model)
    check_fusion(head_fusion, discard_ratio)
    image, spectral = _both(inputs)
    size = (image.shape[2], image.shape[3])
    chosen = tuple(boxes) if boxes is not None else ((0, 0, *size),)
    keep = partial(fuse_for_rollout, head_fusion=head_fusion, discard_ratio=discard_ratio)
    with torch.no_grad(), capture_attention(model, keep=keep) as record:
        model.forward_features(image, spectral)
    check_reports(model, model.mixers(), record)
    (cross,) = (step for step in record.steps if step.layout.kind == "cross")
    grid, asked = cross.layout.query_grid, cross.layout.key_grid
    assert grid is not None, "the streams meet on grids"
    assert asked is not None, "the streams meet on grids"
    first, second = (model.stream_prefixes[stream.name] for stream in model.streams)
    stride = [info.stride for info in model.feature_info if info.name.startswith(first)][-1]
    tokens = torch.stack([_touched(box, size, grid, stride) for box in chosen])
    own = [step for step in record.steps if step.name.startswith(second)]
    direct, traced = [], []
    for touched in tokens.to(cross.weights.device):
        row = (touched.flatten() / touched.sum()).expand(len(image), -1)
        row = through(row, cross.weights)
        direct.append(row.view(-1, *asked))
        carrier, places = Carrier(model.num_prefix), asked
        for step in reversed(own):
            row, places = carrier.back(row, step), step.layout.key_grid or places
        traced.append(row.view(-1, *places))
    found = torch.stack(traced, dim=1)
    map_ = upsample(
        found.flatten(0, 1), (spectral.shape[2], spectral.shape[3]), first_stride(model, model.streams[-1].name)
    )
    return SpectralRegions(
        chosen, tokens, torch.stack(direct, dim=1), found, map_.view(*found.shape[:2], *map_.shape[1:])
    )


def stream_shares(model: VisionModel, *inputs: Tensor | None) -> StreamShares:
    """How much of each fused token came from each stream: the lengths of the two vectors that were added.

    Where image tokens ask spectral ones, these are the token itself, which the residual connection carries, and what
    cross-attention adds, projection and its bias included. Where the two are concatenated, they are the two halves of
    the projection, without its bias. Norms and perceptron that follow see only the sum.

    Rollout cannot tell this: there each stream has one half, by definition.

    Args:
        model: A model of two streams, in evaluation mode.
        *inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.

    Raises:
        ConfigError: A model of one stream, or a missing input.

    Source: Kobayashi et al. 2020, arXiv:2004.10102, section 3 (vectors by their lengths instead of their weights).
    """
    fusion = fusion_of(model)
    image, spectral = _both(inputs)
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(fusion, CrossAttentionFusion):
            seen.append((args[0], output))
        else:
            weight = fusion.proj.weight
            halves = args[0].split([fusion.dim, fusion.context_dim], dim=-1)
            seen.append((halves[0] @ weight[:, : fusion.dim].t(), halves[1] @ weight[:, fusion.dim :].t()))

    watched = fusion.attn if isinstance(fusion, CrossAttentionFusion) else fusion.proj
    handle = watched.register_forward_hook(note)
    try:
        with torch.no_grad():
            model.forward_features(image, spectral)
    finally:
        handle.remove()
    ((own, other),) = ([part.float().norm(dim=-1) for part in parts] for parts in seen)
    share = other / (own + other).clamp_min(torch.finfo(torch.float32).tiny)
    return StreamShares(share, share.mean(dim=(1, 2)))


def fusion_of(model: VisionModel) -> CrossAttentionFusion | ConcatFusion:
    """The layer in which a model's two streams meet.

    Raises:
        ConfigError: It has one stream.
    """
    for module in model.modules():
        if isinstance(module, CrossAttentionFusion | ConcatFusion):
            return module
    raise ConfigError(f"this {type(model).__name__} has one stream; spectral_chans gives a family with two the second")


def _both(inputs: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    if len(inputs) != 2 or inputs[0] is None or inputs[1] is None:
        raise ConfigError("what one stream took from the other needs the input of both")
    return inputs[0], inputs[1]


def _touched(box: Box, size: tuple[int, int], grid: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Tokens that a box in pixels touches, bool, shape ``(h, w)``."""
    top, left, bottom, right = box
    if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
        raise ConfigError(
            f"box {box} is no region (top, left, bottom, right) in an image of {size[0]} x {size[1]} pixels"
        )
    touched = torch.zeros(grid, dtype=torch.bool)
    touched[top // stride[0] : -(-bottom // stride[0]), left // stride[1] : -(-right // stride[1])] = True
    return touched
