"""From clips to tokens: tubelets of a few frames, or frames sampled at equal distances."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, arange, nn

from vitrail.errors import ConfigError, ShapeError
from vitrail.layers.init import zero_bias
from vitrail.layers.modes import known
from vitrail.layers.norms import make_norm
from vitrail.layers.patches import check_images
from vitrail.layers.shapes import divide_up
from vitrail.layers.symbolic import one_node

Triple = tuple[int, int, int]


def to_triple(size: tuple[int, ...] | list[int], name: str) -> Triple:
    """Read a size as frames, height and width.

    Raises:
        ConfigError: Not three positive whole numbers.
    """
    values = list(size) if isinstance(size, list | tuple) else []
    if len(values) != 3 or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
        raise ConfigError(f"{name} must be three positive whole numbers (frames, height, width), got {size!r}")
    return values[0], values[1], values[2]


class TubeletEmbed(nn.Module):
    """Cut a clip into tubelets and project each to a token: a convolution with the tubelet as kernel and stride.

    Args:
        in_chans: Bands of a frame.
        embed_dim: Number of channels of a token.
        tubelet_size: Frames, height and width of a tubelet.
        uniform: Whether the middle frame of each tubelet is embedded alone, as a patch of an image: uniform frame
            sampling.
        norm_layer: Name of the norm that follows, see :mod:`vitrail.layers.norms`; none when not given.

    Source: Arnab et al. 2021 (ViViT), arXiv:2103.15691, section 3.2.
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        tubelet_size: Triple,
        uniform: bool = False,
        norm_layer: str | None = None,
    ) -> None:
        super().__init__()
        self.in_chans, self.tubelet_size, self.uniform = in_chans, tubelet_size, uniform
        kernel = (1, *tubelet_size[1:]) if uniform else tubelet_size
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel, kernel)
        self.norm = nn.Identity() if norm_layer is None else make_norm(norm_layer, embed_dim, 1e-5)

    @property
    def pixel_stride(self) -> Triple:
        """Frames and pixels from one token to the next."""
        return self.tubelet_size

    @property
    def pixel_offset(self) -> Triple:
        """Frames and pixels from the clip's first pixel to the first tubelet."""
        return 0, 0, 0

    def grid_of(self, size: Triple) -> Triple:
        """Compute the grid of tubelets that cover a clip of this size; the last ones may extend beyond it."""
        frames, rows, columns = (divide_up(length, step) for length, step in zip(size, self.tubelet_size, strict=True))
        return frames, rows, columns

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Embed a batch of clips.

        Args:
            x: Clips, shape ``(B, in_chans, T, H, W)``. Where the tubelets do not cover them, zeros are appended: after
                the last frame, at the bottom and right.

        Returns:
            Tokens, shape ``(B, *grid_of((T, H, W)), embed_dim)``.

        Raises:
            ShapeError: As for :func:`~vitrail.layers.patches.check_images`, or smaller than a tubelet.
        """
        check_images(x, self.in_chans, self.proj, axes=3)
        size = (x.shape[2], x.shape[3], x.shape[4])
        least = (1, *self.tubelet_size[1:]) if self.uniform else self.tubelet_size
        if any(length < step for length, step in zip(size, least, strict=True)):
            clip, tubelet = (" x ".join(map(str, values)) for values in (size, least))
            raise ShapeError(
                f"a clip of {clip} is smaller than one tubelet of {tubelet}; read more frames or resize it"
            )
        grid = self.grid_of(size)
        if self.uniform:
            step = self.tubelet_size[0]
            middle = arange(step // 2, step // 2 + grid[0] * step, step, device=x.device).clamp(max=size[0] - 1)
            x = x.index_select(2, middle)
        missing = [
            count * step - length for count, step, length in zip(grid, self.proj.kernel_size, x.shape[2:], strict=True)
        ]
        if not all(known(count == 0) for count in missing):
            x = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))
        tokens: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 4, 1))
        return tokens


def inflate_kernel(kernel: Tensor, frames: int, how: str) -> Tensor:
    """Make the kernel of a tubelet of that of a patch.

    Args:
        kernel: Shape ``(out, bands, h, w)``.
        frames: Frames of a tubelet.
        how: "central_frame": the kernel at frame ``frames // 2``, zeros elsewhere; or "inflation": the kernel over the
            number of frames, at each.

    Returns:
        Shape ``(out, bands, frames, h, w)``.

    Source: Arnab et al. 2021, arXiv:2103.15691, section 3.4, equations 8 and 9.
    """
    if how == "inflation":
        return (kernel / frames)[:, :, None].expand(-1, -1, frames, -1, -1).clone()
    inflated = kernel.new_zeros(*kernel.shape[:2], frames, *kernel.shape[2:])
    inflated[:, :, frames // 2] = kernel
    return inflated


def init_tubelet_projection(conv: nn.Conv3d, how: str) -> None:
    """Initialise the convolution of tubelets as one of patches, of variance 1 / fan-in, that was inflated.

    Args:
        conv: The convolution.
        how: As for :func:`inflate_kernel`.
    """
    kernel = conv.weight.new_empty(*conv.weight.shape[:2], *conv.weight.shape[3:])
    nn.init.trunc_normal_(kernel, std=kernel[0].numel() ** -0.5)
    conv.weight.data.copy_(inflate_kernel(kernel, conv.weight.shape[2], how))
    zero_bias(conv)
