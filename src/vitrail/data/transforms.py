"""What happens to a batch on the device: augmentation in training, then normalisation, always."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitrail.errors import ShapeError


class Normalize(nn.Module):
    """Subtract each band's mean and divide by its standard deviation.

    Args:
        mean: Of each band, in units of 0..1.
        std: Of each band.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images ``(B, C, H, W)``.

        Raises:
            ShapeError: Another number of bands.
        """
        if x.shape[1] != self.mean.shape[0]:
            raise ShapeError(f"expected {self.mean.shape[0]} bands, got images of shape {tuple(x.shape)}")
        return (x - self.mean) / self.std


def build_augmentation(preset: str, size: tuple[int, int], num_bands: int) -> nn.Module:
    """Random transforms of a batch in 0..1, drawn from torch's generator.

    Args:
        preset: "none", "light" or "standard".
        size: Height and width of the images.
        num_bands: Bands; colour is changed only where there are three.

    Returns:
        Maps ``(B, C, H, W)`` to the same shape.
    """
    if preset == "none":
        return nn.Identity()
    import kornia.augmentation as K

    if preset == "light":
        steps = [K.RandomAffine(degrees=10.0, translate=(0.1, 0.1), scale=(0.9, 1.1), p=0.9)]
    else:
        steps = [K.RandomResizedCrop(size, scale=(0.35, 1.0), ratio=(0.75, 4 / 3)), K.RandomHorizontalFlip()]
        if num_bands == 3:
            steps.append(K.ColorJiggle(0.3, 0.3, 0.3, 0.05, p=0.8))
    return nn.Sequential(*steps)
