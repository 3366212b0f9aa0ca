"""Attention weighted by the gradient of a class, composed through all layers: gradient rollout and attribution.

As in rollout, a row is propagated from the output to the input. The matrix of a layer is the mean over heads of
``(A * dy/dA)+`` instead of the attention A, where y is the logit of the class.

The equations are those of Chefer et al. 2021 (ICCV), arXiv:2103.15679, section 3. Their earlier Transformer
Attribution (CVPR), arXiv:2012.09838, replaces A by a layer-wise relevance. That needs a propagation rule for every
operation of every family (relative position bias, squeeze-excitation, BatchNorm) and is not implemented.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.forwarding import frozen
from vitrail.explain.capture.groups import normalize_rows
from vitrail.explain.capture.prepare import lacks_class
from vitrail.explain.capture.record import (
    AttentionRecord,
    CapturedMixing,
    attention_layers,
    capture_attention,
    check_reports,
    lacks_taps,
    running_mixers,
)
from vitrail.explain.capture.scores import total_score
from vitrail.explain.methods.maps import StreamMap
from vitrail.explain.methods.registry import register_method
from vitrail.explain.methods.relevance import (
    HeadFusion,
    Rollout,
    check_head_fusion,
    fuse_heads,
    lacks_mean,
    pooling_row,
    propagate,
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
    """Compute the attention rollout of a class.

    As :func:`~vitrail.explain.methods.rollout.attention_rollout`, with (A * dy/dA)+, rows scaled to sum to one, instead
    of A. Residual connection and branch are averaged, whatever the magnitude of the gradient; a row without positive
    weights is the identity. The weights of TokenLearner, TokenFuser and the fusion of streams are weighted likewise.

    With a class token, propagation starts at its row. With mean or maximum pooling it starts at the positive part of
    x . dy/dx for each last token x, scaled to sum to one: the pooling counts as an attention with one query.

    Args:
        model: The model, in evaluation mode; its parameters may be frozen and get no gradients.
        *inputs: As for :func:`~vitrail.explain.methods.rollout.attention_rollout`.
        target: Index of the class to explain for each image, shape ``(B,)``.
        head_fusion: Fusion of heads: "mean", "max" or "min".
        discard_ratio: Share of the smallest weights of each row set to zero before the residual is added.

    Returns:
        Maps whose tokens sum to one, or to zero where no attention has a positive gradient.

    Raises:
        ConfigError: A setting out of range, or a model with logits for each token (``global_pool=""``).

    Source: Abnar & Zuidema 2020, arXiv:2005.00928, section 3; weights: Chefer et al. 2021, arXiv:2103.15679,
    section 3.
    """
    check_head_fusion(head_fusion, discard_ratio)
    return _propagate_weighted(model, inputs, target, _GradientWeighted(True, head_fusion, discard_ratio))


def attribution(model: VisionModel, *inputs: Tensor | None, target: Tensor) -> Rollout:
    """Compute the transformer attribution: relevance of a class, added along the residual connections.

    Relevance R starts as the identity, and each attention adds its part:

        A_bar = mean over heads of (A * dy/dA)+        R <- R + A_bar R

    The result is the class token's row of R, without the class token itself. Rows are not scaled. Beyond the paper:

    - With mean pooling the result is the mean over the rows of R - I. The identity would be the same for all tokens and
      much larger than the relevance of the attention.
    - Attention in windows and grids is the same matrix, scattered to the positions of the tokens. Merged tokens, and
      tokens after a convolution of stride 2, are means of their parents.
    - Learned tokens have no residual connection: their relevance is propagated along the rows of A_bar of the
      TokenLearner, scaled to sum to one. TokenFuser adds B_bar M, where M mixed the learned tokens.
    - Two streams are one sequence, in which the fusion is an attention from image to spectral tokens:
      R <- R + A_bar R, without the row scaling of the paper's rule for two modalities. Concatenated streams count the
      same, although they have no residual connection.

    Args:
        model: The model, in evaluation mode; its parameters may be frozen and get no gradients.
        *inputs: As for :func:`~vitrail.explain.methods.rollout.attention_rollout`.
        target: Index of the class to explain for each image, shape ``(B,)``.

    Returns:
        Maps whose tokens sum to one, or to zero where no attention has a positive gradient.

    Source: Chefer et al. 2021, arXiv:2103.15679, section 3 (self-attention).
    """
    return _propagate_weighted(model, inputs, target, _GradientWeighted(False))


class _GradientWeighted:
    """Positive part of attention times gradient, computed during the backward pass, layer by layer.

    Args:
        scaled: Whether rows are scaled to sum to one.
        head_fusion: Fusion of heads: "mean", "max" or "min".
        discard_ratio: Share of the smallest weights of each row set to zero.
    """

    def __init__(self, scaled: bool, head_fusion: HeadFusion = "mean", discard_ratio: float = 0.0) -> None:
        self.scaled, self.head_fusion, self.discard_ratio = scaled, head_fusion, discard_ratio
        self.constants: list[Tensor] = []
        self.reached: set[str] = set()

    def __call__(self, step: CapturedMixing) -> Tensor:
        """Return the matrix of a layer, ``(B, queries, keys)``, which the backward pass fills."""
        weights, layout = step.weights, step.layout
        if layout.kind in ("merge", "mix", "slices", "match"):
            return normalize_rows(weights.detach().float())
        if not weights.requires_grad:
            self.constants.append(weights.requires_grad_())
        shape = weights.shape if weights.ndim == 3 else (weights.shape[0], *weights.shape[2:])
        matrix = torch.zeros(shape, device=weights.device)
        # Detached, since a hook that refers to its own tensor is a reference cycle and is never freed.
        values = weights.detach()

        def fill(gradient: Tensor) -> None:
            self.reached.add(step.name)
            matrix.copy_(self._fuse((values * gradient).clamp_min(0), layout))

        weights.register_hook(fill)  # type: ignore[no-untyped-call]
        return matrix

    def _fuse(self, product: Tensor, layout: TokenLayout) -> Tensor:
        if product.ndim == 4:
            product = fuse_heads(product, layout, self.head_fusion, self.discard_ratio)
        return normalize_rows(product.float()) if self.scaled or layout.kind == "pool" else product.float()


def _propagate_weighted(
    model: VisionModel, inputs: Sequence[Tensor | None], target: Tensor, weighting: _GradientWeighted
) -> Rollout:
    lack = lacks_class(model) or (None if weighting.scaled else lacks_mean(model))
    if lack is not None:
        raise ConfigError(f"this model cannot be explained: {lack}")
    # Only the inputs require a gradient: with trainable parameters every layer would store its input.
    inputs = [None if image is None else image.detach().requires_grad_() for image in inputs]
    with torch.enable_grad(), frozen(model), capture_attention(model, keep=weighting) as record:
        features = model.forward_features(*inputs)
        check_reports(model, running_mixers(model, inputs), record)
        score = total_score(model.forward_head(features), target)
        sources = [features, *(image for image in inputs if image is not None), *weighting.constants]
        gradient = torch.autograd.grad(score, sources, allow_unused=True)[0]
    _check_reached(model, record, weighting.reached)
    if weighting.scaled and not model.reads_class_token:
        row = normalize_rows(F.pad(_token_relevance(model, features.detach(), gradient), (model.num_prefix, 0)))
    else:
        row = pooling_row(model, features, record.steps[-1].layout)
    return propagate(model, row, record.steps, inputs, averaged=weighting.scaled)


def _check_reached(model: VisionModel, record: AttentionRecord, reached: set[str]) -> None:
    """Raise if a mixer that is not of vitrail reported weights on which the logits do not depend.

    Layers of vitrail report the tensor that mixes the values; a stream without influence on the logits is then a fact.
    """
    known = attention_layers(model)
    mixers = model.mixers()
    for step in record.steps:
        foreign = step.name in mixers and step.name not in known
        if foreign and step.name not in reached:
            raise ConfigError(
                f"the logits do not depend on the mixing weights that {step.name} reports; report the very tensor that "
                "mixes the values, so that gradients reach it (docs/extend.md, 'A mixer of your own')"
            )


def _token_relevance(model: VisionModel, features: Tensor, gradient: Tensor) -> Tensor:
    """Compute the positive part of x . dy/dx for each last token, shape ``(B, N)``, without prefix tokens."""
    # Tokens of points that a cloud lacks are NaN.
    product = (features.nan_to_num(0.0) * gradient).sum(dim=1 if model.channels_first else -1).clamp_min(0)
    return product.flatten(1)[:, model.num_prefix :].float()


@register_method("gradient_rollout", by_class=True, lacks=lacks_taps, any_grid=True)
def _gradient_rollout(
    model: VisionModel,
    inputs: Sequence[Tensor | None],
    target: Tensor,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
) -> dict[str, StreamMap]:
    """Rollout of the attention, weighted by the positive gradient of a class."""
    rollout = gradient_rollout(
        model, *inputs, target=target, head_fusion=head_fusion, discard_ratio=discard_ratio
    )  # fmt: skip
    return rollout.by_stream(model)


def _lacks_attribution(model: VisionModel) -> str | None:
    return lacks_taps(model) or lacks_mean(model)


@register_method("attribution", by_class=True, lacks=_lacks_attribution, any_grid=True)
def _attribution(model: VisionModel, inputs: Sequence[Tensor | None], target: Tensor) -> dict[str, StreamMap]:
    """Relevance for a class, from attention times its gradient, added up over layers (Chefer et al. 2021)."""
    return attribution(model, *inputs, target=target).by_stream(model)
