"""Adversarial attacks in the L-infinity norm: FGSM and PGD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.runs.trained import TrainedModel, with_derived_streams

EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
PGD_STEPS = 10


def check_epsilons(values: Sequence[float]) -> tuple[float, ...]:
    """Validate and sort epsilons; by default 1, 2, 4 and 8 of 255.

    Raises:
        ConfigError: An epsilon is not in (0, 1].
    """
    for value in values:
        if not 0 < value <= 1:
            raise ConfigError(
                f"--attacks {value:g}: an epsilon must be above 0 and at most 1, in units of pixel values in 0..1; "
                f"8 of 255 is {8 / 255:.4f}"
            )
    return tuple(sorted(set(values))) or EPSILONS


def losses(trained: TrainedModel, streams: Mapping[str, Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
    """Compute logits ``(B, K)`` and the loss of each image ``(B,)``, with gradients.

    A spectral stream derived from the image is recomputed.

    Args:
        trained: The model.
        streams: Inputs in 0..1, shape ``(B, C, H, W)`` each.
        target: Classes ``(B,)``, or labels ``(B, K)``.
    """
    logits = trained.model(*trained.normalize(with_derived_streams(trained.card, streams))).float()
    if trained.card.multi_label:
        return logits, F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").mean(dim=1)
    return logits, F.cross_entropy(logits, target, reduction="none")


def fgsm(trained: TrainedModel, streams: Mapping[str, Tensor], target: Tensor, epsilon: float) -> dict[str, Tensor]:
    """Attack with one step of size epsilon along the sign of the gradient.

    Args:
        trained: The model.
        streams: Inputs in 0..1, shape ``(B, C, H, W)`` each.
        target: Classes ``(B,)``, or labels ``(B, K)``.
        epsilon: Radius of the L-infinity ball, in units of pixel values in 0..1.

    Returns:
        Adversarial inputs in 0..1.

    Source: Goodfellow et al. 2015, arXiv:1412.6572.
    """
    clean = _attacked_inputs(trained, streams)
    _, gradients = _loss_and_gradients(trained, clean, target)
    return {name: _project(x + epsilon * gradients[name].sign(), x, epsilon) for name, x in clean.items()}


def pgd(
    trained: TrainedModel,
    streams: Mapping[str, Tensor],
    target: Tensor,
    epsilon: float,
    steps: int = PGD_STEPS,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Attack with projected gradient ascent from a random start, in steps of ``2.5 * epsilon / steps``.

    Args:
        trained: The model.
        streams: Inputs in 0..1, shape ``(B, C, H, W)`` each.
        target: Classes ``(B,)``, or labels ``(B, K)``.
        epsilon: Radius of the L-infinity ball, in units of pixel values in 0..1.
        steps: Number of steps.
        seed: Seed of the random start.

    Returns:
        Adversarial inputs in 0..1: of each image the iterate with the highest loss.

    Source: Madry et al. 2018, arXiv:1706.06083.
    """
    clean = _attacked_inputs(trained, streams)
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.rand(x.shape, generator=generator).to(x) * 2 - 1 for name, x in clean.items()}
    iterate = {name: _project(x + epsilon * noise[name], x, epsilon) for name, x in clean.items()}
    best, highest = dict(clean), torch.full((len(target),), -torch.inf, device=target.device)
    for step in range(steps + 1):
        loss, gradients = _loss_and_gradients(trained, iterate, target)
        higher = loss > highest
        highest = torch.where(higher, loss, highest)
        best = {name: torch.where(higher[:, None, None, None], iterate[name], x) for name, x in best.items()}
        if step < steps:
            size = 2.5 * epsilon / steps
            iterate = {
                name: _project(x + size * gradients[name].sign(), clean[name], epsilon) for name, x in iterate.items()
            }
    return best


def _attacked_inputs(trained: TrainedModel, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the inputs that are not derived from others."""
    return {name: streams[name].detach() for name in trained.card.input_streams}


def _loss_and_gradients(
    trained: TrainedModel, streams: Mapping[str, Tensor], target: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {name: x.clone().requires_grad_() for name, x in streams.items()}
    with torch.enable_grad():
        _, loss = losses(trained, leaves, target)
        gradients = torch.autograd.grad(loss.sum(), list(leaves.values()))
    return loss.detach(), dict(zip(leaves, gradients, strict=True))


def _project(x: Tensor, center: Tensor, epsilon: float) -> Tensor:
    """Project onto the L-infinity ball around ``center`` and onto 0..1."""
    return torch.maximum(torch.minimum(x, center + epsilon), center - epsilon).clamp(0, 1)
