"""Augmented training images without a model, for `vitrail data show`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.config.augment import augment_settings
from vitrail.config.schema import Recipe
from vitrail.data.augment import Mixing
from vitrail.data.augment.mixing import soft_targets
from vitrail.data.dataset import open_data
from vitrail.models.image_size import image_size
from vitrail.train.build import build_batch_augmentation


@dataclass(frozen=True)
class Row:
    """One image and its augmented versions.

    Attributes:
        key: Key of the image.
        streams: Stream -> shape ``(1 + times, C, H, W)`` in 0..1, the original first; clips and clouds alike, and
            "parts" of points, shape ``(1 + times, N)``.
        labels: Target of each version, as text; empty where points have the labels.
    """

    key: str
    streams: dict[str, Tensor]
    labels: list[str]


@dataclass(frozen=True)
class Views:
    """Augmented training images of a recipe.

    Attributes:
        rows: One row an image.
        bands: Band names of each stream.
        changed: Whether training changes images at all.
        parts: Names of the labels of points.
    """

    rows: list[Row]
    bands: dict[str, tuple[str, ...]]
    changed: bool = True
    parts: tuple[str, ...] = ()


def training_views(recipe: Recipe, images: int, times: int) -> Views:
    """Augment a few training images as training does; mixing uses partners among them.

    Args:
        recipe: Data settings and seed.
        images: Number of images, the first of each class in turn.
        times: Number of augmented versions of each.

    Raises:
        ConfigError: A setting is invalid.
        DataError: Images are missing, unreadable or inconsistent.
    """
    data = open_data(recipe.data, image_size(recipe))
    source = data.source
    chosen = data.balanced_sample("train", images)
    targets = torch.zeros(len(chosen), 0)
    if source.classes:
        targets = soft_targets(torch.from_numpy(source.targets[chosen]), len(source.classes))
    means = {name: mean for name, (mean, _) in data.statistics().items()}
    augment = build_batch_augmentation(recipe, means, source.classes)
    streams = dataclasses.replace(data, fill=means).load(chosen, whole=True)
    settings = augment_settings(recipe.data.augment, recipe.data.augmentation)
    mix = Mixing(settings, len(source.classes)) if settings.mixes else None
    seen, shares = [streams], [targets]
    torch.manual_seed(recipe.run.seed)
    for _ in range(times):
        changed = streams if augment is None else augment(streams)
        changed, share = (changed, targets) if mix is None else mix(changed, targets)
        seen.append(changed)
        shares.append(share)
    rows = [
        Row(
            source.keys[index],
            {name: torch.stack([view[name][i] for view in seen]) for name in streams},
            ["" if source.parts else _in_words(share[i], source.classes) for share in shares],
        )
        for i, index in enumerate(chosen)
    ]
    return Views(rows, source.bands, augment is not None or mix is not None, source.parts)


def _in_words(shares: Tensor, classes: tuple[str, ...]) -> str:
    """Format the classes of a soft target with their shares, the largest first."""
    order = shares.argsort(descending=True, stable=True).tolist()
    parts = [(classes[i], float(shares[i])) for i in order if shares[i] >= 0.005]
    return "\n".join(name if share > 0.995 else f"{share:.0%} {name}" for name, share in parts) or "no label"
