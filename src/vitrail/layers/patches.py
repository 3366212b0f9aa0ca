"""From pixels to tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ShapeError
from vitrail.layers.fast.dispatch import with_fast_path
from vitrail.layers.modes import known
from vitrail.layers.norms import make_norm
from vitrail.layers.shapes import Size, padding_to_multiple, to_pair
from vitrail.layers.symbolic import one_node

_NORM_EPS = 1e-5


def check_images(x: Tensor, bands: int, kernel: nn.Module) -> None:
    """Validate a batch of images for the first convolution.

    Args:
        x: Images, shape ``(B, C, H, W)``.
        bands: C.
        kernel: The convolution, or a module in its place; with a ``weight``, the images must have its dtype.

    Raises:
        ShapeError: No tensor, not four dimensions, another number of bands, or another type of number.
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != bands:
        given = str(tuple(x.shape)) if isinstance(x, Tensor) else "None" if x is None else type(x).__name__
        raise ShapeError(f"expected images of shape (B, {bands}, H, W), got {given}; {_shape_remedy(x, bands)}")
    weight = getattr(kernel, "weight", None)
    if isinstance(weight, Tensor) and x.dtype != weight.dtype and not _autocast_converts(x):
        whole = not (x.is_floating_point() or x.is_complex())
        advice = "bring them to 0..1 and normalise them" if whole else f"convert with .to({weight.dtype})"
        raise ShapeError(f"expected images of {weight.dtype}, as the model's weights, got {x.dtype}; {advice}")


def _shape_remedy(x: object, bands: int) -> str:
    if not isinstance(x, Tensor):
        return "pass a tensor"
    if x.ndim == 3 and bands in (x.shape[0], x.shape[2]):
        return "add a batch dimension: x[None]" if x.shape[0] == bands else "use x.permute(2, 0, 1)[None]"
    if x.ndim == 4 and x.shape[3] == bands:
        return "move the bands to the second dimension: x.permute(0, 3, 1, 2)"
    return "build the model with in_chans equal to the number of bands"


def _autocast_converts(x: Tensor) -> bool:
    # Autocast leaves double precision alone.
    return x.is_floating_point() and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each to a token: a convolution with kernel = stride = patch.

    Args:
        in_chans: Bands of the image.
        embed_dim: Number of channels of a token.
        patch_size: Height and width of a patch in pixels.
        norm_layer: Name of the norm that follows, see :mod:`vitrail.layers.norms` (Swin and HVT have one); none when
            not given.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1.
    """

    def __init__(self, in_chans: int, embed_dim: int, patch_size: Size, norm_layer: str | None = None) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.patch_size = to_pair(patch_size, "patch_size")
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=self.patch_size, stride=self.patch_size)
        self.norm = nn.Identity() if norm_layer is None else make_norm(norm_layer, embed_dim, _NORM_EPS)

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Embed a batch of images.

        Args:
            x: Images, shape ``(B, in_chans, H, W)``. Where the size is not a multiple of the patch, zeros are
                appended at the bottom and right, up to a multiple and no further.

        Returns:
            Tokens, shape ``(B, ceil(H / patch), ceil(W / patch), embed_dim)``.

        Raises:
            ShapeError: As for :func:`check_images`, or smaller than a patch.
        """
        check_images(x, self.in_chans, self.proj)
        H, W = x.shape[2:]
        ph, pw = self.patch_size
        if H < ph or W < pw:
            raise ShapeError(f"an image of {H} x {W} is smaller than one patch of {ph} x {pw}; resize the image")
        bottom, right = padding_to_multiple(H, ph), padding_to_multiple(W, pw)
        if not known(bottom == 0) or not known(right == 0):
            x = F.pad(x, (0, right, 0, bottom))
        tokens: Tensor = self.norm(self.project(x).permute(0, 2, 3, 1))
        return tokens

    @with_fast_path("patch_embed")
    def project(self, x: Tensor) -> Tensor:
        """Project each patch: images ``(B, in_chans, H, W)`` to ``(B, embed_dim, H / patch, W / patch)``."""
        out: Tensor = self.proj(x)
        return out
