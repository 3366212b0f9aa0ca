"""SimCLR: two views of an image are to be alike, views of two images are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.data.transforms import NormalizeStreams
from vitrail.models.base import VisionModel
from vitrail.tasks.pretraining import PretrainingTask


class _Gather(torch.autograd.Function):
    """Tensors of all processes, each as long as the own one, below each other; gradients come back summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)  # the reduction writes into it
        dist.all_reduce(total)
        own = len(total) // dist.get_world_size()
        start = dist.get_rank() * own
        return total[start : start + own]


def gather_with_gradient(x: Tensor) -> Tensor:
    """What all processes hold, ``(world * N, C)`` in their order; ``x`` itself where there is one process.

    A gradient that any process has with respect to these rows reaches the process that they come from.

    Args:
        x: This process's rows, shape ``(N, C)``, as many in each.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


def nt_xent(first: Tensor, second: Tensor, temperature: float, *, gather: bool = True) -> tuple[Tensor, Tensor]:
    """Normalised temperature-scaled cross-entropy.

    For each of the 2 N views i with its partner j, -log(exp(s_ij / t) / sum over k != i of exp(s_ik / t)), where s is
    the cosine of two vectors; the mean over the views. With several processes the sum runs over the views of all of
    them, and the mean of the processes' losses, whose gradient data-parallel training takes, is what one process
    would have got.

    Args:
        first: Vectors of one view of each image, shape ``(N, C)``.
        second: Those of the other view.
        temperature: t.
        gather: Whether to take in the views of other processes; each then has as many.

    Returns:
        The loss, and the share of views whose partner is the most alike of all, both over this process's views.

    Source: Chen et al. 2020, arXiv:2002.05709, equation 1 and algorithm 1.
    """
    z = F.normalize(torch.stack([first, second]).float(), dim=-1)
    N = z.shape[1]
    own = z.flatten(0, 1)
    everyone, start, total = own, 0, N
    if gather:
        # Views of one image lie as far apart as there are images: the rows of a process are first, then second.
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
        model: Is trained.
        normalize: Makes its inputs from a batch whose streams are in 0..1.
        views: Draws a view of each image from a batch's streams, another at each call.
        temperature: Of the loss.
        projection_dim: Width of the vectors that are compared.

    Source: Chen et al. 2020, arXiv:2002.05709, section 2.1; the projection has a hidden layer as wide as the features,
    with ReLU, and no BatchNorm, so that several processes give what one does.
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
        """The loss of a batch, and the share of views that find their partner ("partner_accuracy")."""
        streams = self.streams(batch)
        pair = [self.views(streams) for _ in range(2)]
        # One pass: what a BatchNorm sees does not tell the two views apart.
        both = {name: torch.cat([view[name] for view in pair]) for name in streams}
        first, second = self.projection(self.represent(both)).chunk(2)
        # The last batch of a validation may be another size in each process.
        loss, accuracy = nt_xent(first, second, self.temperature, gather=self.training)
        return {"loss": loss, "partner_accuracy": accuracy}
