"""Second stream of edges: the gradient of the image in two directions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.sources.base import ImageSource, WrappedSource, to_unit

BANDS = ("edge_x", "edge_y")


def edges(images: Tensor) -> Tensor:
    """Compute Sobel gradients of the mean over the bands.

    Args:
        images: Shape ``(B, C, H, W)``, in 0..1.

    Returns:
        Horizontal and vertical slope, shape ``(B, 2, H, W)``; 0.5 is flat, 0 and 1 are the steepest possible. The
        border repeats the outermost pixels.

    Source: Sobel & Feldman 1968; the kernel as in Duda & Hart 1973, "Pattern Classification", page 271.
    """
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device) / 8
    kernels = torch.stack([across, across.T])[:, None]
    gray = F.pad(images.float().mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(gray, kernels) + 0.5


class WithEdges(WrappedSource):
    """Source that adds edges as the spectral stream of another source.

    Args:
        source: Images of one stream.
    """

    def __init__(self, source: ImageSource) -> None:
        super().__init__(source)
        self.bands = {**source.bands, "spectral": BANDS}

    def change(self, streams: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the edges of images, ``(B, 2, H, W)`` in 0..1."""
        return {**streams, "spectral": edges(to_unit(streams["image"]))}
