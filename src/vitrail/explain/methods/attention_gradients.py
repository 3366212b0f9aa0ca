"""Attention weighted by the gradient of a class, composed through all layers: gradient rollout and attribution.

Both take the same row back through the model that rollout takes. Instead of a layer's weights A they use
``mean over heads of (A * dy/dA)+``, where y is the class's logit: of what a token took, only what spoke for the class.

The equations are those of Chefer et al. 2021 (ICCV), arXiv:2103.15679, section 3, in which the attention itself
stands for the layer-wise relevance of their earlier Transformer Attribution (CVPR), arXiv:2012.09838. That relevance
is not computed here: it would need a rule of propagation for every operation of every family, biases of relative
positions, squeeze-excitation, BatchNorm and all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.groups import normalize_rows
from vitrail.explain.capture.prepare import lacks_class
from vitrail.explain.capture.record import CapturedMixing, capture_attention, check_reports, lacks_taps, running_mixers
from vitrail.explain.methods.maps import StreamMap
from vitrail.explain.methods.registry import register_method
from vitrail.explain.methods.relevance import (
    HeadFusion,
    Rollout,
    check_fusion,
    fuse_heads,
    lacks_mean,
    lacks_rollout,
    reading_row,
    reads_class_token,
    roll_back,
)
from vitrail.layers.tap import TokenLayout
from vitrail.models.base import VisionModel


def gradient_rollout(
    model: VisionModel,
    *inputs: Tensor | None,
    target: Tensor,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
) -> Rollout:
    """Attention rollout of what spoke for a class.

    As :func:`~vitrail.explain.methods.rollout.attention_rollout`, with the rows of (A * dy/dA)+ scaled to sum to one
    in the place of those of A: a token's residual connection and what it took count half each, whatever the size of the
    gradient. A row without positive weights leaves its token to the residual connection alone. TokenLearner's
    selection weights, TokenFuser's and those of the fusion of streams are weighted in the same way.

    A class token is read by its row. A model that pools its last tokens, by mean or maximum, is read as if that were
    one more attention with one query: the product of weight and gradient is then that of the token and its gradient,
    x . dy/dx, whose positive part, scaled to sum to one, is the row that is carried.

    Args:
        model: The model, in evaluation mode; its parameters may be frozen and get no gradients.
        *inputs: As for :func:`~vitrail.explain.methods.rollout.attention_rollout`.
        target: Number of the class to explain for each image, shape ``(B,)``.
        head_fusion: How heads are fused.
        discard_ratio: Share of the smallest weights of each row set to zero before the residual is added.

    Returns:
        Maps whose tokens sum to one, or to zero where nothing speaks for the class.

    Raises:
        ConfigError: Settings out of range, or a model whose logits are of tokens (``global_pool=""``).

    Source: Abnar & Zuidema 2020, arXiv:2005.00928, section 3; weights: Chefer et al. 2021, arXiv:2103.15679,
    section 3.
    """
    check_fusion(head_fusion, discard_ratio)
    return _roll_graded(model, inputs, target, _Graded(True, head_fusion, discard_ratio))


def attribution(model: VisionModel, *inputs: Tensor | None, target: Tensor) -> Rollout:
    """Transformer attribution: relevance for a class, added up along the residual connections.

    Relevance begins as the identity, and each attention adds to it what it carried for the class:

        A_bar = mean over heads of (A * dy/dA)+        R <- R + A_bar R

    The result is the class token's row of R, without the class token itself. Rows are not scaled. Beyond the paper:

    - A model that averages its last tokens is read in the mean over the rows of R - I. The identity is what never left
      its token: of a class token's row it is the class token itself, of a mean it would be the same everywhere, and
      far more than what attention carried.
    - Windows and grids are the same matrix spread to the tokens' places; merged tokens, and those after a convolution
      of stride 2, are means of their parents.
    - Tokens that were learned have no residual connection: TokenLearner hands their relevance on along the rows of
      A_bar, scaled to sum to one. TokenFuser adds B_bar M, where M says of which learned tokens those that were
      spread had been mixed.
    - Two streams are one sequence, in which the fusion is an attention from image tokens to spectral ones:
      R <- R + A_bar R, without the row scaling of the paper's rule for two modalities. Streams that are concatenated
      have no residual connection either; the image's tokens are taken to have one.

    Args:
        model: The model, in evaluation mode; its parameters may be frozen and get no gradients.
        *inputs: As for :func:`~vitrail.explain.methods.rollout.attention_rollout`.
        target: Number of the class to explain for each image, shape ``(B,)``.

    Returns:
        Maps whose tokens sum to one, or to zero where nothing speaks for the class.

    Source: Chefer et al. 2021, arXiv:2103.15679, section 3 (self-attention).
    """
    return _roll_graded(model, inputs, target, _Graded(False))


class _Graded:
    """Weights times their positive gradients, fused while the backward pass runs from layer to layer.

    Args:
        scaled: Whether rows sum to one.
        head_fusion: How heads are fused.
        discard_ratio: Share of the smallest weights of each row set to zero.
    """

    def __init__(self, scaled: bool, head_fusion: HeadFusion = "mean", discard_ratio: float = 0.0) -> None:
        self.scaled, self.head_fusion, self.discard_ratio = scaled, head_fusion, discard_ratio
        self.constants: list[Tensor] = []

    def __call__(self, step: CapturedMixing) -> Tensor:
        """What to keep of a layer: a matrix ``(B, queries, keys)`` that the backward pass fills."""
        weights, layout = step.weights, step.layout
        if layout.kind in ("merge", "mix"):
            return normalize_rows(weights.detach().float())
        if not weights.requires_grad:
            self.constants.append(weights.requires_grad_())
        shape = weights.shape if weights.ndim == 3 else (weights.shape[0], *weights.shape[2:])
        matrix = torch.zeros(shape, device=weights.device)
        # A hook that held the weights themselves would be held by them: neither would ever be freed.
        values = weights.detach()

        def fill(gradient: Tensor) -> None:
            matrix.copy_(self._fuse((values * gradient).clamp_min(0), layout))

        weights.register_hook(fill)  # type: ignore[no-untyped-call]
        return matrix

    def _fuse(self, graded: Tensor, layout: TokenLayout) -> Tensor:
        if graded.ndim == 4:
            graded = fuse_heads(graded, layout, self.head_fusion, self.discard_ratio)
        return normalize_rows(graded.float()) if self.scaled or layout.kind == "pool" else graded.float()


def _roll_graded(model: VisionModel, inputs: Sequence[Tensor | None], target: Tensor, graded: _Graded) -> Rollout:
    lack = lacks_class(model) or (None if graded.scaled else lacks_mean(model))
    if lack is not None:
        raise ConfigError(f"this explanation is not possible: {lack}")
    # The inputs alone ask for a gradient: that of the parameters would have every layer keep what it was given.
    inputs = [None if image is None else image.detach().requires_grad_() for image in inputs]
    with torch.enable_grad(), _frozen(model), capture_attention(model, keep=graded) as record:
        features = model.forward_features(*inputs)
        check_reports(model, running_mixers(model, inputs), record)
        score = model.forward_head(features).gather(1, target[:, None]).sum()
        sources = [features, *(image for image in inputs if image is not None), *graded.constants]
        gradient = torch.autograd.grad(score, sources, allow_unused=True)[0]
    if graded.scaled and not reads_class_token(model):
        row = normalize_rows(F.pad(_spoken_for(model, features.detach(), gradient), (model.num_prefix, 0)))
    else:
        row = reading_row(model, features, record.steps[-1].layout)
    return roll_back(model, row, record.steps, inputs, averaged=graded.scaled)


@contextmanager
def _frozen(model: VisionModel) -> Iterator[None]:
    """No parameter asks for a gradient inside."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _spoken_for(model: VisionModel, features: Tensor, gradient: Tensor) -> Tensor:
    """Positive part of each last token's product with its gradient, shape ``(B, N)`` without prefix tokens."""
    product = (features * gradient).sum(dim=1 if model.channels_first else -1).clamp_min(0)
    return product.flatten(1)[:, model.num_prefix :].float()


@register_method("gradient_rollout", by_class=True, lacks=lacks_taps)
def _gradient_rollout(
    model: VisionModel,
    inputs: Sequence[Tensor | None],
    target: Tensor,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
) -> dict[str, StreamMap]:
    """Rollout of the attention that spoke for a class, by its gradient."""
    rollout = gradient_rollout(
        model, *inputs, target=target, head_fusion=head_fusion, discard_ratio=discard_ratio
    )  # fmt: skip
    return rollout.by_stream(model)


@register_method("attribution", by_class=True, lacks=lacks_rollout)
def _attribution(model: VisionModel, inputs: Sequence[Tensor | None], target: Tensor) -> dict[str, StreamMap]:
    """Relevance for a class, from attention times its gradient, added up over layers (Chefer et al. 2021)."""
    return attribution(model, *inputs, target=target).by_stream(model)
