"""Changes of an image, too small to see, that are made to mislead the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.sources.edges import edges
from vitrail.errors import ConfigError
from vitrail.runs.trained import TrainedModel

EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
PGD_STEPS = 10


def check_epsilons(values: Sequence[float]) -> tuple[float, ...]:
    """Those sizes; 1, 2, 4 and 8 of 255 where there are none.

    Raises:
        ConfigError: One out of range.
    """
    for value in values:
        if not 0 < value <= 1:
            raise ConfigError(
                f"--attacks takes sizes in units of pixel values from 0 to 1 (above 0), got {value:g}; "
                f"8 of 255 is {8 / 255:.4f}"
            )
    return tuple(sorted(set(values))) or EPSILONS


def losses(trained: TrainedModel, streams: Mapping[str, Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``(B, K)`` and the loss of each image ``(B,)``, with gradients.

    A second stream that is made from the image follows it.

    Args:
        trained: The model.
        streams: Its inputs in 0..1, each of shape ``(B, C, H, W)``.
        target: Classes ``(B,)``, or labels ``(B, K)``.
    """
    if trained.card.spectral == "edges":
        streams = {"image": streams["image"], "spectral": edges(streams["image"])}
    logits = trained.model(*trained.normalize(streams)).float()
    if trained.card.multi_label:
        return logits, F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").mean(dim=1)
    return logits, F.cross_entropy(logits, target, reduction="none")


def fgsm(trained: TrainedModel, streams: Mapping[str, Tensor], target: Tensor, epsilon: float) -> dict[str, Tensor]:
    """One step that makes the loss rise, as far as the ball goes.

    Args:
        trained: The model.
        streams: Its inputs in 0..1, each of shape ``(B, C, H, W)``.
        target: Classes ``(B,)``, or labels ``(B, K)``.
        epsilon: The largest change of any value, in units of 0..1.

    Returns:
        The changed inputs, in 0..1.

    Source: Goodfellow et al. 2015, arXiv:1412.6572.
    """
    free = _changeable(trained, streams)
    _, gradients = _loss_and_gradients(trained, free, target)
    return {name: _inside(x + epsilon * gradients[name].sign(), x, epsilon) for name, x in free.items()}


def pgd(
    trained: TrainedModel,
    streams: Mapping[str, Tensor],
    target: Tensor,
    epsilon: float,
    steps: int = PGD_STEPS,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Steps of 2.5 epsilon / ``steps`` from a random place in the ball; of each image the place of the highest loss.

    Args:
        trained: The model.
        streams: Its inputs in 0..1, each of shape ``(B, C, H, W)``.
        target: Classes ``(B,)``, or labels ``(B, K)``.
        epsilon: The largest change of any value, in units of 0..1.
        steps: How many.
        seed: Of the random place.

    Returns:
        The changed inputs, in 0..1.

    Source: Madry et al. 2018, arXiv:1706.06083.
    """
    clean = _changeable(trained, streams)
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.rand(x.shape, generator=generator).to(x) * 2 - 1 for name, x in clean.items()}
    place = {name: _inside(x + epsilon * noise[name], x, epsilon) for name, x in clean.items()}
    best, highest = dict(clean), torch.full((len(target),), -torch.inf, device=target.device)
    for step in range(steps + 1):
        loss, gradients = _loss_and_gradients(trained, place, target)
        higher = loss > highest
        highest = torch.where(higher, loss, highest)
        best = {name: torch.where(higher[:, None, None, None], place[name], x) for name, x in best.items()}
        if step < steps:
            pace = 2.5 * epsilon / steps
            place = {
                name: _inside(x + pace * gradients[name].sign(), clean[name], epsilon) for name, x in place.items()
            }
    return best


def _changeable(trained: TrainedModel, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an attacker can change: inputs that are not made from others."""
    made = trained.card.spectral == "edges"
    return {name: streams[name].detach() for name in trained.card.streams if not (made and name == "spectral")}


def _loss_and_gradients(
    trained: TrainedModel, streams: Mapping[str, Tensor], target: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {name: x.clone().requires_grad_() for name, x in streams.items()}
    with torch.enable_grad():
        _, loss = losses(trained, leaves, target)
        gradients = torch.autograd.grad(loss.sum(), list(leaves.values()))
    return loss.detach(), dict(zip(leaves, gradients, strict=True))


def _inside(x: Tensor, center: Tensor, epsilon: float) -> Tensor:
    """The nearest place in the ball and in 0..1."""
    return torch.maximum(torch.minimum(x, center + epsilon), center - epsilon).clamp(0, 1)
