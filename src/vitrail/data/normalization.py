"""Normalisation of batches on the device."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vitrail.errors import ShapeError, plural

# Streams whose bands are the last dimension: coordinates and attributes of points.
CHANNELS_LAST = ("points", "features")


class Normalize(nn.Module):
    """Subtract each band's mean and divide by its standard deviation.

    Args:
        mean: Mean of each band, in units of 0..1.
        std: Standard deviation of each band, in units of 0..1.
        channels_last: Whether the bands are the last dimension, as of point clouds.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels_last: bool = False) -> None:
        super().__init__()
        shape = (-1,) if channels_last else (-1, 1, 1)
        self.axis = -1 if channels_last else 1
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(shape), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images ``(B, C, H, W)``, clips ``(B, C, T, H, W)`` or point clouds ``(B, N, C)``.

        Raises:
            ShapeError: Another number of bands.
        """
        if x.shape[self.axis] != self.mean.shape[0]:
            raise ShapeError(f"expected {plural(self.mean.shape[0], 'band')}, got inputs of shape {tuple(x.shape)}")
        if x.ndim == 5:
            return (x - self.mean[:, None]) / self.std[:, None]
        return (x - self.mean) / self.std


class NormalizeStreams(nn.ModuleDict):
    """Normalise each stream by its own statistics.

    Args:
        statistics: Stream -> mean and standard deviation of each of its bands, in the order in which the model
            takes the streams.
    """

    def __init__(self, statistics: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
        super().__init__(
            {name: Normalize(mean, std, name in CHANNELS_LAST) for name, (mean, std) in statistics.items()}
        )

    def forward(self, batch: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the model's inputs of a batch; they end at the first stream that the batch lacks.

        Args:
            batch: Stream -> shape ``(B, C, H, W)``, in 0..1; other keys are passed over. Of one stream the tensor alone
                will do.

        Raises:
            ShapeError: Another number of bands, or a tensor alone for several streams.
        """
        batch = self.by_name(batch)
        present = itertools.takewhile(lambda item: item[0] in batch, self.items())
        return tuple(normalize(batch[name]) for name, normalize in present)

    def by_name(self, batch: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a batch by stream; a tensor alone is the only stream.

        Raises:
            ShapeError: A tensor alone for several streams, or no tensors.
        """
        if isinstance(batch, Tensor) and len(self) == 1:
            return dict.fromkeys(self, batch)
        if not isinstance(batch, Mapping):
            wanted = ", ".join(f"{name!r}: x" for name in self)
            raise ShapeError(
                f"expected a tensor for each stream by name, got a {type(batch).__name__}; pass {{{wanted}}}"
            )
        return batch
