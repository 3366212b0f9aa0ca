"""What happens to a batch on the device: augmentation in training, then normalisation, always."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

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


class NormalizeStreams(nn.ModuleDict):
    """Each stream by its own statistics.

    Args:
        statistics: Stream -> mean and standard deviation of each of its bands, in the order in which the model
            takes the streams.
    """

    def __init__(self, statistics: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
        super().__init__({name: Normalize(mean, std) for name, (mean, std) in statistics.items()})

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The model's inputs from a batch; a stream that the batch lacks ends them.

        Args:
            batch: Stream -> shape ``(B, C, H, W)``, in 0..1; other keys are passed over.

        Raises:
            ShapeError: Another number of bands.
        """
        present = itertools.takewhile(lambda item: item[0] in batch, self.items())
        return tuple(normalize(batch[name]) for name, normalize in present)


class Augmentation(nn.Module):
    """Random transforms of a batch in 0..1, drawn from torch's generator.

    Args:
        geometry: Moves pixels: maps ``(B, C, H, W)`` to the same shape, each image its own way.
        color: Changes their values; applied to the image stream alone.
    """

    def __init__(self, geometry: nn.Module, color: nn.Module) -> None:
        super().__init__()
        self.geometry, self.color = geometry, color

    def forward(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Change all streams of each image by the same geometry.

        Args:
            streams: Stream -> shape ``(B, C, H, W)``, all of one height and width.

        Raises:
            ShapeError: Streams of different sizes.
        """
        sizes = {tuple(x.shape[2:]) for x in streams.values()}
        if len(sizes) > 1:
            raise ShapeError(f"streams are augmented together and must be of one size, got {sorted(sizes)}")
        # Side by side as bands of one image, they cannot but move together.
        moved = self.geometry(torch.cat(list(streams.values()), dim=1))
        parts = dict(zip(streams, moved.split([x.shape[1] for x in streams.values()], dim=1), strict=True))
        return {name: self.color(x) if name == "image" else x for name, x in parts.items()}


def build_augmentation(preset: str, size: tuple[int, int], num_bands: int) -> nn.Module | None:
    """The random transforms of training.

    Args:
        preset: "none", "light" or "standard".
        size: Height and width of the images.
        num_bands: Bands of the image stream; colour is changed only where there are three.

    Returns:
        An :class:`Augmentation`; None for "none".
    """
    if preset == "none":
        return None
    import kornia.augmentation as K

    if preset == "light":
        return Augmentation(K.RandomAffine(degrees=10.0, translate=(0.1, 0.1), scale=(0.9, 1.1), p=0.9), nn.Identity())
    geometry = nn.Sequential(
        K.RandomResizedCrop(size, scale=(0.35, 1.0), ratio=(0.75, 4 / 3)), K.RandomHorizontalFlip()
    )
    return Augmentation(geometry, K.ColorJiggle(0.3, 0.3, 0.3, 0.05, p=0.8) if num_bands == 3 else nn.Identity())
