"""The convolutions of MaxViT: its stem, and MBConv, the inverted bottleneck with squeeze and excitation.

Maps are ``(B, C, H, W)`` in ``channels_last`` memory, so that turning them to ``(B, H, W, C)`` costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ShapeError
from vitrail.layers.activations import make_activation
from vitrail.layers.drop_path import DropPath
from vitrail.layers.fast.dispatch import with_fast_path
from vitrail.layers.modes import in_transform, known
from vitrail.layers.patch_merging import report_merge
from vitrail.layers.patches import check_images
from vitrail.layers.shapes import padding_to_multiple
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import AttentionTap


@dataclass(frozen=True)
class ConvFlavour:
    """The details in which implementations of MBConv differ.

    Attributes:
        act_layer: Name of the activation, see :mod:`vitrail.layers.activations`.
        same_padding: TensorFlow's 'same' padding: at stride 2 an even length is padded at its end alone, and
            the shortcut averages 2 x 2. Otherwise one on each side, and the shortcut averages 3 x 3.
        always_project: Whether the shortcut at stride 2 has its 1 x 1 convolution also for equal widths.
        norm_momentum: Momentum of the BatchNorms.
        norm_eps: Epsilon of the BatchNorms.
    """

    act_layer: str = "gelu_tanh"
    same_padding: bool = True
    always_project: bool = False
    norm_momentum: float = 0.1
    norm_eps: float = 1e-3


TENSORFLOW = ConvFlavour()
TORCHVISION = ConvFlavour("gelu", same_padding=False, always_project=True, norm_momentum=0.01)


def edge_padding(length: int, stride: int, same: bool) -> tuple[int, int]:
    """Compute the padding before and after an axis for a kernel of 3; the output has length ``ceil(length / stride)``.

    Args:
        length: Length of the axis.
        stride: 1 or 2.
        same: TensorFlow's rule, by which an even length at stride 2 gets its only zero at the end.
    """
    # Written without a branch on the length: a compiled model then serves even and odd ones alike.
    return (padding_to_multiple(length, 2) if same and stride == 2 else 1), 1


class Conv3x3(nn.Conv2d):
    """A 3 x 3 convolution of stride 1 or 2 with either rule of padding, on maps of any size.

    Args:
        dim: Channels of the input.
        out_dim: Channels of the output.
        stride: 1 or 2.
        same: TensorFlow's rule, see :func:`edge_padding`.
        groups: Groups of channels.
        bias: Whether there is a bias.
    """

    def __init__(
        self, dim: int, out_dim: int, stride: int = 1, same: bool = True, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__(dim, out_dim, 3, stride=stride, padding=1, groups=groups, bias=bias)
        self.same = same and stride == 2

    @one_node
    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, dim, H, W)`` to ``(B, out_dim, ceil(H / stride), ceil(W / stride))``."""
        if not self.same:
            return super().forward(input)
        (top, bottom), (left, right) = (edge_padding(length, 2, self.same) for length in input.shape[2:])
        padded = F.pad(input, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)


class SqueezeExcite(nn.Module):
    """Squeeze and excitation: scale each channel by a factor in 0..1, computed from the means of all channels.

    Args:
        dim: Channels.
        hidden_dim: Channels of the hidden layer.

    Source: Hu et al. 2018, arXiv:1709.01507, section 3.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.act = nn.SiLU()
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def scale(self, x: Tensor) -> Tensor:
        """Compute the factors of the channels, shape ``(B, C, 1, 1)``."""
        means = x.mean(dim=(2, 3), keepdim=True)
        return torch.sigmoid(self.fc2(self.act(self.fc1(means))))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        return x * self.scale(x)


class Shortcut(nn.Module):
    """Residual branch of an MBConv of stride 2: average pooling, then a 1 x 1 convolution where the widths differ.

    With 'same' padding the zeros after an odd edge take part in the average, as in timm.

    Args:
        dim: Channels of the input.
        out_dim: Channels of the output.
        flavour: Size of the average; whether equal widths are projected too.
    """

    def __init__(self, dim: int, out_dim: int, flavour: ConvFlavour) -> None:
        super().__init__()
        self.same_padding = flavour.same_padding
        project = dim != out_dim or flavour.always_project
        self.expand = nn.Conv2d(dim, out_dim, 1) if project else nn.Identity()

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, dim, H, W)`` to ``(B, out_dim, ceil(H / 2), ceil(W / 2))``."""
        if self.same_padding:
            bottom, right = (padding_to_multiple(length, 2) for length in x.shape[2:])
            if not known(bottom == 0) or not known(right == 0):
                x = F.pad(x, (0, right, 0, bottom))
            x = F.avg_pool2d(x, 2, 2)
        else:
            x = F.avg_pool2d(x, 3, 2, 1)
        out: Tensor = self.expand(x)
        return out


class MBConv(nn.Module):
    """Norm, 1 x 1 expansion, 3 x 3 depthwise, squeeze and excitation, 1 x 1 projection; a residual branch.

    Args:
        dim: Channels of the input.
        out_dim: Channels of the output; the expansion and the squeeze are measured by it.
        stride: 1, or 2 to halve the map. At 1 the widths must agree.
        flavour: Details of the implementation.
        drop_path: Probability of dropping the branch.

    Source: Tu et al. 2022, arXiv:2204.01697, section 3.1 and appendix A.1.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        stride: int = 1,
        flavour: ConvFlavour = TENSORFLOW,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        assert stride == 2 or (stride == 1 and dim == out_dim), (stride, dim, out_dim)
        self.stride, self.flavour = stride, flavour
        hidden = 4 * out_dim
        if flavour.same_padding:
            hidden = -(-hidden // 8) * 8  # timm rounds up to a multiple of 8
        self.shortcut = Shortcut(dim, out_dim, flavour) if stride == 2 else nn.Identity()
        self.pre_norm = self._norm(dim)
        self.conv1_1x1 = nn.Conv2d(dim, hidden, 1, bias=False)
        self.norm1 = self._norm(hidden)
        self.act1 = make_activation(flavour.act_layer)
        self.conv2_kxk = Conv3x3(hidden, hidden, stride, flavour.same_padding, groups=hidden, bias=False)
        self.norm2 = self._norm(hidden)
        self.act2 = make_activation(flavour.act_layer)
        self.se = SqueezeExcite(hidden, out_dim // 4)
        self.conv3_1x1 = nn.Conv2d(hidden, out_dim, 1)
        self.drop_path = DropPath(drop_path)
        self.tap = AttentionTap()

    def _norm(self, dim: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(dim, eps=self.flavour.norm_eps, momentum=self.flavour.norm_momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: Map, shape ``(B, dim, H, W)``.

        Returns:
            Map, shape ``(B, out_dim, ceil(H / stride), ceil(W / stride))``.
        """
        if self.stride == 2 and self.tap.armed:
            report_merge(self.tap, x.permute(0, 2, 3, 1))
        out: Tensor = self.shortcut(x) + self.drop_path(self.branch(x))
        return out

    @with_fast_path("mbconv")
    def branch(self, x: Tensor) -> Tensor:
        """Expand, convolve depthwise, squeeze and excite, project."""
        x = self.act1(self.norm1(self.conv1_1x1(self.pre_norm(x))))
        x = self.act2(self.norm2(self.conv2_kxk(x)))
        out: Tensor = self.conv3_1x1(self.se(x))
        return out


class Stem(nn.Module):
    """Two 3 x 3 convolutions, the first of stride 2, with a BatchNorm and an activation between.

    Args:
        in_chans: Bands.
        dim: Channels of the output.
        flavour: Padding, activation and BatchNorm.
        first_bias: Whether the first convolution has a bias.

    Source: arXiv:2204.01697, appendix A.1.
    """

    def __init__(self, in_chans: int, dim: int, flavour: ConvFlavour, first_bias: bool) -> None:
        super().__init__()
        self.in_chans, self.flavour = in_chans, flavour
        self.conv1 = Conv3x3(in_chans, dim, 2, flavour.same_padding, bias=first_bias)
        self.norm1 = nn.BatchNorm2d(dim, eps=flavour.norm_eps, momentum=flavour.norm_momentum)
        self.act1 = make_activation(flavour.act_layer)
        self.conv2 = Conv3x3(dim, dim)

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_chans, H, W)`` to ``(B, dim, ceil(H / 2), ceil(W / 2))``, in channels_last memory.

        Raises:
            ShapeError: As for :func:`~vitrail.layers.patches.check_images`, or no pixels.
        """
        check_images(x, self.in_chans, self.conv1)
        if x.shape[2] < 1 or x.shape[3] < 1:
            raise ShapeError(f"an image of {x.shape[2]} x {x.shape[3]} has no pixels")
        x = channels_last(self.conv1(channels_last(x)))
        out: Tensor = self.conv2(self.act1(self.norm1(x)))
        return out


def channels_last(x: Tensor) -> Tensor:
    """Convert a map to the memory order of tokens; torch leaves an image of one band, which it takes for contiguous."""
    return x if in_transform() else x.contiguous(memory_format=torch.channels_last)
