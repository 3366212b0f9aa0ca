"""SimCLR: contrastive learning of pairs of augmented views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.data.normalization import NormalizeStreams
from vitrail.models.base import VisionModel
from vitrail.tasks.pretraining import PretrainingTask


class _Gather(torch.autograd.Function):
    """All-gather along the first dimension; the backward pass sums gradients over processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)  # all_reduce works in place
        dist.all_reduce(total)
        own = len(total) // dist.get_world_size()
        start = dist.get_rank() * own
        return total[start : start + own]


def gather_with_gradient(x: Tensor) -> Tensor:
    """Gather rows of all processes, ``(world * N, C)`` by rank; gradients flow back to the process of each row.

    Args:
        x: Rows of this process, shape ``(N, C)``, equally many in each process.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


def nt_xent(first: Tensor, second: Tensor, temperature: float, *, gather: bool = True) -> tuple[Tensor, Tensor]:
    """Compute the normalised temperature-scaled cross-entropy (NT-Xent).

    For each of the 2 N views i with its partner j, -log(exp(s_ij / t) / sum over k != i of exp(s_ik / t)), where s is
    the cosine similarity, averaged over the views. With several processes the sum runs over the views of all of them:
    the mean of their losses, which data-parallel training optimises, equals the loss of one process.

    Args:
        first: Projections of one view of each image, shape ``(N, C)``.
        second: Projections of the other view, shape ``(N, C)``.
        temperature: Temperature t.
        gather: Whether negatives include the views of other processes, which then have equally many.

    Returns:
        Loss, and accuracy (share of views whose partner is the most similar view), both over this process's views.

    Source: Chen et al. 2020, arXiv:2002.05709, equation 1 and algorithm 1.
    """
    z = F.normalize(torch.stack([first, second]).float(), dim=-1)
    N = z.shape[1]
    own = z.flatten(0, 1)
    everyone, start, total = own, 0, N
    if gather:
        # Rows of each process: its first views, then its second views.
        everyone = gather_with_gradient(own)
        total = len(everyone) // 2
        start = dist.get_rank() * 2 * N if total > N else 0
    similarity = own @ everyone.T / temperature
    rows = torch.arange(2 * N, device=own.device)
    similarity = similarity.masked_fill(F.one_hot(rows + start, 2 * total).bool(), -torch.inf)
    partner = start + (rows + N) % (2 * N)
    loss = F.cross_entropy(similarity, partner)
    return loss, (similarity.argmax(dim=1) == partner).float().mean()


class SimCLRTask(PretrainingTask):
    """Contrastive learning.

    Args:
        model: Model to train.
        normalize: Normalises streams in 0..1 to the model's inputs.
        views: Samples an augmented view of each image from a batch's streams, a different one at each call.
        temperature: Temperature of the loss.
        projection_dim: Channels of the projections.

    Source: Chen et al. 2020, arXiv:2002.05709, section 2.1; the projection head has one hidden layer, ReLU and no
    BatchNorm, so that several processes compute the same loss as one.
    """

    def __init__(
        self,
        model: VisionModel,
        normalize: NormalizeStreams,
        views: nn.Module,
        temperature: float = 0.2,
        projection_dim: int = 128,
    ) -> None:
        super().__init__(model, normalize)
        self.views, self.temperature = views, temperature
        width = model.num_features
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection_dim))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the loss of a batch, and the accuracy of finding each view's partner ("partner_accuracy")."""
        streams = self.streams(batch)
        pair = [self.views(streams) for _ in range(2)]
        # One forward pass, so that BatchNorm statistics cover both views.
        both = {name: torch.cat([view[name] for view in pair]) for name in streams}
        first, second = self.projection(self.represent(both)).chunk(2)
        # The last validation batch may differ in size between processes.
        loss, accuracy = nt_xent(first, second, self.temperature, gather=self.training)
        return {"loss": loss, "partner_accuracy": accuracy}
