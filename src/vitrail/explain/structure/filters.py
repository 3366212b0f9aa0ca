"""Projection filters: principal components of the convolutions that read the bands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.models.base import VisionModel

# As many as figure 7 of the ViT paper shows.
NUM_FILTERS = 28


@dataclass(frozen=True)
class ProjectionFilters:
    """Principal components of the filters of one convolution over the bands.

    Attributes:
        name: Name of the weight.
        stream: The input that it reads.
        components: Orthonormal components, shape ``(K, C, h, w)``, the one of largest variance first. Signs are
            arbitrary: the weight of largest magnitude is positive.
        shares: Share of each component in the variance of the filters, shape ``(K,)``.
    """

    name: str
    stream: str
    components: Tensor
    shares: Tensor


def projection_filters(model: VisionModel, count: int = NUM_FILTERS) -> list[ProjectionFilters]:
    """Compute the principal components of the filters that project patches to tokens.

    Each filter is a point with one coordinate for each weight; its mean over all filters is subtracted. Models with a
    convolutional stem have the components of their first convolution.

    Args:
        model: The model.
        count: Largest number of components; there are no more than filters, or weights of a filter.

    Returns:
        One for each input of the model.

    Raises:
        ConfigError: ``count`` below 1, or no convolution over the bands of an image.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, figure 7, left.
    """
    if count < 1:
        raise ConfigError(f"count must be at least 1, got {count}")
    lack = lacks_filters(model)
    if lack is not None:
        raise ConfigError(lack)
    found = []
    for name, weight in _kernels(model).items():
        rows = weight.flatten(1).double()
        _, sizes, directions = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
        largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
        components = (directions * largest.sign())[:count].view(-1, *weight.shape[1:])
        shares = sizes.square() / sizes.square().sum().clamp_min(torch.finfo(sizes.dtype).tiny)
        stream = model.input_kernels[name].stream
        found.append(ProjectionFilters(name, stream, components.float(), shares[:count].float()))
    return found


def lacks_filters(model: VisionModel) -> str | None:
    """Return the reason why a model has no projection filters; None where it has some."""
    if _kernels(model):
        return None
    return f"{type(model).__name__} has no convolution over the bands of an image, and so no filters"


def _kernels(model: VisionModel) -> dict[str, Tensor]:
    """Return the weights of the convolutions over the bands of an image, by name."""
    parameters = dict(model.named_parameters())
    kernels = {name: parameters[name].detach() for name in model.input_kernels if name in parameters}
    return {name: weight for name, weight in kernels.items() if weight.ndim == 4}
