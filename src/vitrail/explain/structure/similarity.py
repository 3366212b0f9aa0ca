"""Similarity of the features of layers: linear centred kernel alignment (CKA), within a model and between two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vitrail.errors import ConfigError, ShapeError
from vitrail.explain.structure.features import EMBEDDING, embed, mean_over_positions
from vitrail.models.base import VisionModel

# Fewer images have no covariance.
FEWEST_IMAGES = 3


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Compute the linear CKA of two sets of features of the same images.

    ``||Y' X||^2 / (||X' X|| ||Y' Y||)`` (Frobenius norms) of centred features: 1 for features that differ in a
    rotation, a shift and a scale, 0 for uncorrelated ones. With fewer images than features it is biased towards 1.

    Args:
        x: Features, shape ``(n, p)``.
        y: Features of the same images, shape ``(n, q)``.

    Returns:
        0 to 1; NaN where features do not vary.

    Raises:
        ShapeError: Not two matrices of as many rows, at least three.

    Source: Kornblith et al. 2019, arXiv:1905.00414, equation 3 and table 1.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < FEWEST_IMAGES:
        raise ShapeError(
            f"linear_cka takes features (n, p) and (n, q) of at least {FEWEST_IMAGES} images, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    return float(_alignment(_centred_gram(x), _centred_gram(y)))


def cka_matrix(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensor:
    """Compute the linear CKA between all layers of two models, or of one with itself.

    Args:
        first: Layer -> features, shape ``(n, p)``.
        second: Layer -> features of the same images in the same order, shape ``(n, q)``.

    Returns:
        Shape ``(len(first), len(second))``.

    Raises:
        ShapeError: As :func:`linear_cka`.
    """
    counts = {len(x) for x in (*first.values(), *second.values())}
    if len(counts) != 1 or min(counts) < FEWEST_IMAGES:
        raise ShapeError(f"CKA compares features of the same images, at least {FEWEST_IMAGES}; got {sorted(counts)}")
    grams = [[_centred_gram(x) for x in layers.values()] for layers in (first, second)]
    return torch.tensor([[float(_alignment(a, b)) for b in grams[1]] for a in grams[0]])


def all_features(model: VisionModel, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Compute the features of all layers in one forward pass: means of levels over positions, and the embedding.

    Args:
        model: The model, in evaluation mode.
        inputs: Normalised images, shape ``(B, C, H, W)``, one for each stream.

    Returns:
        Layer -> float32, shape ``(B, C)``; layers as :func:`~vitrail.explain.structure.features.layers_of` lists them.

    Raises:
        ConfigError: A model without feature levels.
    """
    if not model.feature_info:
        raise ConfigError(f"this {type(model).__name__} has no feature levels to compare")
    with torch.no_grad():
        features, maps = model.forward_intermediates(inputs)
        vectors = {
            info.name: mean_over_positions(level, inputs) for info, level in zip(model.feature_info, maps, strict=True)
        }
        return {**vectors, EMBEDDING: embed(model, features)}


def _centred_gram(x: Tensor) -> Tensor:
    """Compute the inner products of centred features, ``(n, n)``."""
    centred = x.double() - x.double().mean(dim=0)
    return centred @ centred.t()


def _alignment(a: Tensor, b: Tensor) -> Tensor:
    # ||Y' X||^2 is the sum of the elementwise product of both Gram matrices.
    aligned: Tensor = (a * b).sum() / (a.norm() * b.norm())
    return aligned
