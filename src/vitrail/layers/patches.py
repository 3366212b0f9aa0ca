"""From pixels to tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError, ShapeError
from vitrail.layers.checks import check_rate
from vitrail.layers.fast.dispatch import with_fast_path
from vitrail.layers.modes import known
from vitrail.layers.norms import make_norm
from vitrail.layers.shapes import Size, divide_up, to_pair
from vitrail.layers.symbolic import one_node

_NORM_EPS = 1e-5


def check_images(x: Tensor, bands: int, kernel: nn.Module, axes: int = 2) -> None:
    """Validate a batch of images or clips for the first convolution.

    Args:
        x: Images, shape ``(B, C, H, W)``, or clips, ``(B, C, T, H, W)``.
        bands: C.
        kernel: The convolution, or a module in its place; with a ``weight``, the images must have its dtype.
        axes: 2 for images, 3 for clips.

    Raises:
        ShapeError: No tensor, another number of dimensions or bands, or another type of number.
    """
    if not isinstance(x, Tensor) or x.ndim != axes + 2 or x.shape[1] != bands:
        given = str(tuple(x.shape)) if isinstance(x, Tensor) else "None" if x is None else type(x).__name__
        wanted = f"images of shape (B, {bands}, H, W)" if axes == 2 else f"clips of shape (B, {bands}, T, H, W)"
        raise ShapeError(f"expected {wanted}, got {given}; {_shape_remedy(x, bands, axes)}")
    weight = getattr(kernel, "weight", None)
    if isinstance(weight, Tensor) and x.dtype != weight.dtype and not _autocast_converts(x):
        whole = not (x.is_floating_point() or x.is_complex())
        advice = "bring them to 0..1 and normalise them" if whole else f"convert with .to({weight.dtype})"
        noun = "images" if axes == 2 else "clips"
        raise ShapeError(f"expected {noun} of {weight.dtype}, as the model's weights, got {x.dtype}; {advice}")


def _shape_remedy(x: object, bands: int, axes: int) -> str:
    if not isinstance(x, Tensor):
        return "pass a tensor"
    if axes == 3 and x.ndim == 4 and x.shape[0] == bands:
        return "add a batch dimension: x[None]"
    if axes == 3 and x.ndim == 5 and bands in (x.shape[2], x.shape[4]):
        order = "x.transpose(1, 2)" if x.shape[2] == bands else "x.permute(0, 4, 1, 2, 3)"
        return f"move the bands to the second dimension: {order}"
    if axes == 2 and x.ndim == 3 and bands in (x.shape[0], x.shape[2]):
        return "add a batch dimension: x[None]" if x.shape[0] == bands else "use x.permute(2, 0, 1)[None]"
    if axes == 2 and x.ndim == 4 and x.shape[3] == bands:
        return "move the bands to the second dimension: x.permute(0, 3, 1, 2)"
    return "build the model with in_chans equal to the number of bands"


def _autocast_converts(x: Tensor) -> bool:
    # Autocast leaves double precision alone.
    return x.is_floating_point() and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)


def check_covers(x: Tensor, patch: tuple[int, int]) -> None:
    """Validate that images cover one patch at least.

    Args:
        x: Images, shape ``(B, C, H, W)``.
        patch: Height and width of a patch in pixels.

    Raises:
        ShapeError: Fewer rows or columns than a patch has.
    """
    (H, W), (ph, pw) = x.shape[2:], patch
    if H < ph or W < pw:
        raise ShapeError(f"an image of {H} x {W} is smaller than one patch of {ph} x {pw}; resize the image")


class UnfoldLinear(nn.Conv2d):
    """A convolution computed as unfolding and a linear layer: the same weights, the same result.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, equation 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, out_channels, h, w)``."""
        padding = to_pair(self.padding, "padding", 0)
        sizes = (x.shape[2:], self.kernel_size, self.stride, padding)
        h, w = ((length + 2 * pad - size) // step + 1 for length, size, step, pad in zip(*sizes, strict=True))
        patches = F.unfold(x, self.kernel_size, stride=self.stride, padding=padding)
        tokens = F.linear(patches.transpose(1, 2), self.weight.flatten(1), self.bias)
        return tokens.transpose(1, 2).reshape(x.shape[0], -1, h, w)


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each to a token: a convolution with the patch as its kernel.

    Args:
        in_chans: Bands of the image.
        embed_dim: Number of channels of a token.
        patch_size: Height and width of a patch in pixels.
        norm_layer: Name of the norm that follows, see :mod:`vitrail.layers.norms` (Swin and HVT have one); none when
            not given.
        stride: Pixels from one patch to the next; the patch size when not given, less for overlapping patches.
        padding: Rows and columns of zeros on each side of the image.
        pixels: Pixels of a position of its input, which are more than one after a stem.

    Raises:
        ConfigError: A stride larger than the patch, or padding that holds a whole patch.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1; overlapping patches: Wu et al. 2021,
    arXiv:2103.15808, section 3.1.
    """

    projection: type[nn.Conv2d] = nn.Conv2d

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        patch_size: Size,
        norm_layer: str | None = None,
        stride: Size | None = None,
        padding: Size = 0,
        pixels: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.patch_size = to_pair(patch_size, "patch_size")
        self.stride = self.patch_size if stride is None else to_pair(stride, "patch_stride")
        self.padding = to_pair(padding, "patch_padding", 0)
        self.pixels = pixels
        if any(step > size for step, size in zip(self.stride, self.patch_size, strict=True)):
            raise ConfigError(
                f"patch_stride {self.stride} exceeds patch_size {self.patch_size} and would skip pixels; "
                f"use at most {self.patch_size}"
            )
        if any(pad >= size for pad, size in zip(self.padding, self.patch_size, strict=True)):
            raise ConfigError(f"patch_padding {self.padding} must be smaller than the patch {self.patch_size}")
        self.proj = self.projection(
            in_chans, embed_dim, kernel_size=self.patch_size, stride=self.stride, padding=self.padding
        )
        self.norm = nn.Identity() if norm_layer is None else make_norm(norm_layer, embed_dim, _NORM_EPS)

    @property
    def pixel_stride(self) -> tuple[int, int]:
        """Pixels of the image from one token to the next."""
        return self.stride[0] * self.pixels[0], self.stride[1] * self.pixels[1]

    @property
    def pixel_offset(self) -> tuple[int, int]:
        """Pixels from the image's top left corner to the first tile of one stride, which is central in its patch."""
        rows, columns = (
            ((patch - step) // 2 - pad) * pixels
            for patch, step, pad, pixels in zip(self.patch_size, self.stride, self.padding, self.pixels, strict=True)
        )
        return rows, columns

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Compute height and width of the grid of patches that cover an image of a size; ceil(H / patch) by default."""
        rows, columns = (
            divide_up(length + 2 * pad - patch + step, step)
            for length, patch, step, pad in zip(size, self.patch_size, self.stride, self.padding, strict=True)
        )
        return rows, columns

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Embed a batch of images.

        Args:
            x: Images, shape ``(B, in_chans, H, W)``. Where the patches do not cover it, zeros are appended at the
                bottom and right, for one more patch and no further.

        Returns:
            Tokens, shape ``(B, *grid_of((H, W)), embed_dim)``.

        Raises:
            ShapeError: As for :func:`check_images` and :func:`check_covers`.
        """
        check_images(x, self.in_chans, self.proj)
        check_covers(x, self.patch_size)
        H, W = x.shape[2:]
        grid = self.grid_of((H, W))
        bottom, right = (
            (count - 1) * step + patch - length - 2 * pad
            for count, step, patch, length, pad in zip(
                grid, self.stride, self.patch_size, (H, W), self.padding, strict=True
            )
        )
        if not known(bottom == 0) or not known(right == 0):
            x = F.pad(x, (0, right, 0, bottom))
        tokens: Tensor = self.norm(self.project(x).permute(0, 2, 3, 1))
        return tokens

    @with_fast_path("patch_embed")
    def project(self, x: Tensor) -> Tensor:
        """Project each patch: images ``(B, in_chans, H, W)`` to ``(B, embed_dim, h, w)``."""
        out: Tensor = self.proj(x)
        return out


class LinearPatchEmbed(PatchEmbed):
    """Cut an image into patches by unfolding and map each by a linear layer: equal to the convolution of its weights.

    Arguments, errors and source are those of :class:`PatchEmbed`.
    """

    projection = UnfoldLinear


class PatchDropout(nn.Module):
    """Keep a random subset of the patches of each image in training; prefix tokens stay.

    Args:
        rate: Share of patches to drop.
        num_prefix: Tokens before the patches.

    Source: Liu et al. 2022, arXiv:2208.07220; as in timm.
    """

    def __init__(self, rate: float, num_prefix: int) -> None:
        super().__init__()
        check_rate("patch_drop_rate", rate)
        self.rate, self.num_prefix = rate, num_prefix

    @property
    def active(self) -> bool:
        """Whether a call drops patches."""
        return self.rate > 0.0 and self.training

    @one_node
    def forward(self, tokens: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Drop patches.

        Args:
            tokens: Shape ``(B, P + N, C)``.
            rotation: Rotary positions of the patches, shape ``(N, R)``.

        Returns:
            Tokens, shape ``(B, P + K, C)``, and their rotary positions, shape ``(B, 1, K, R)``; both as they came in
            evaluation.
        """
        if not self.active:
            return tokens, rotation
        count = tokens.shape[1] - self.num_prefix
        kept = max(1, int(count * (1.0 - self.rate)))
        order = torch.rand(tokens.shape[0], count, device=tokens.device).argsort(dim=1)
        return take_patches(tokens, rotation, order[:, :kept], self.num_prefix)


def take_patches(
    tokens: Tensor, rotation: Tensor | None, keep: Tensor, num_prefix: int
) -> tuple[Tensor, Tensor | None]:
    """Gather a subset of each image's patches, and their rotary position embeddings.

    Args:
        tokens: Shape ``(B, P + N, C)``.
        rotation: Rotary positions of the patches, shape ``(N, R)``, or None.
        keep: Indices of the patches, shape ``(B, K)``.
        num_prefix: P, the tokens before the patches, which stay.

    Returns:
        Tokens, shape ``(B, P + K, C)``, and rotary positions, shape ``(B, 1, K, R)``.
    """
    chosen = tokens[:, num_prefix:].gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
    positions = None if rotation is None else rotation[keep][:, None]
    return torch.cat([tokens[:, :num_prefix], chosen], dim=1), positions
