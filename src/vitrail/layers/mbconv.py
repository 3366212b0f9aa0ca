"""The convolutions of MaxViT: its stem, and MBConv, the inverted bottleneck with squeeze and excitation.

Maps are ``(B, C, H, W)`` in ``channels_last`` memory, so that turning them to ``(B, H, W, C)`` costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ShapeError
from vitrail.layers.drop_path import DropPath
from vitrail.layers.gelu import Approximate, Gelu, gelu, infers_on_cpu
from vitrail.layers.modes import in_transform
from vitrail.layers.patch_merging import report_merge
from vitrail.layers.patches import check_images
from vitrail.layers.plain import is_plain
from vitrail.layers.relative_position import in_graph
from vitrail.layers.shapes import divide_up, known, padding_to_multiple
from vitrail.layers.symbolic import one_node
from vitrail.layers.tap import AttentionTap

# Numbers that an intermediate of the inference route may hold: about what the caches of a small CPU keep.
_WORKING_SET = 1 << 21
# Numbers of a map from which training takes its channels in groups: larger blocks of memory than half of this are
# fetched from the operating system anew each time, which costs more than what is computed in them.
_WIDE_MAP = 1 << 24


@dataclass(frozen=True)
class ConvFlavour:
    """The details in which implementations of MBConv differ.

    Attributes:
        approximate: Form of the GELU.
        same_padding: TensorFlow's 'same' padding: at stride 2 an even length is padded at its end alone, and
            the shortcut averages 2 x 2. Otherwise one on each side, and the shortcut averages 3 x 3.
        always_project: Whether the shortcut at stride 2 has its 1 x 1 convolution also for equal widths.
        norm_momentum: Momentum of the BatchNorms.
        norm_eps: Epsilon of the BatchNorms.
    """

    approximate: Approximate = "tanh"
    same_padding: bool = True
    always_project: bool = False
    norm_momentum: float = 0.1
    norm_eps: float = 1e-3


TENSORFLOW = ConvFlavour()
TORCHVISION = ConvFlavour("none", same_padding=False, always_project=True, norm_momentum=0.01)


def edge_padding(length: int, stride: int, same: bool) -> tuple[int, int]:
    """Zeros before and after an axis for a kernel of 3; the output has ``ceil(length / stride)`` places.

    Args:
        length: Of the axis.
        stride: 1 or 2.
        same: TensorFlow's rule, by which an even length at stride 2 gets its only zero at the end.
    """
    # Written without a branch on the length: a compiled model then serves even and odd ones alike.
    return (padding_to_multiple(length, 2) if same and stride == 2 else 1), 1


class Conv3x3(nn.Conv2d):
    """A 3 x 3 convolution of stride 1 or 2 with either rule of padding, on maps of any size.

    Args:
        dim: Channels that come.
        out_dim: Channels that leave.
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
        return self.convolve(input, self.weight, self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same with another weight and bias, those of some of the groups for instance."""
        stride = self.stride[0]
        groups = x.shape[1] // weight.shape[1]
        if not self.same:
            return F.conv2d(x, weight, bias, stride, 1, groups=groups)
        (top, bottom), (left, right) = (edge_padding(length, stride, self.same) for length in x.shape[2:])
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, groups=groups)

    def even_axes(self, x: Tensor) -> list[int]:
        """Axes along which the rule pads the end alone, which torch's convolution can not without a copy.

        Turned around along these, map and kernel give the turned result with one zero on each side: the
        last place does not fit a stride any more.
        """
        return [axis for axis in (2, 3) if self.same and x.shape[axis] % 2 == 0]


def fold_norm(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A convolution and the BatchNorm after it as one convolution, with the running statistics.

    Args:
        weight: Shape ``(out, in, kh, kw)``.
        bias: Shape ``(out,)``, or none.
        norm: The BatchNorm.

    Returns:
        Weight and bias of the one convolution.
    """
    scale, shift = _affine(norm)
    return weight * scale[:, None, None, None], shift if bias is None else torch.addcmul(shift, bias, scale)


def foldable(*norms: nn.BatchNorm2d) -> bool:
    """Whether BatchNorms scale and shift by known numbers, whatever the mode of the layer that they are in.

    Not one that normalises with the batch at hand: in training, or without running statistics.
    """
    return all(not norm.training and norm.running_mean is not None and norm.affine for norm in norms)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a BatchNorm that is :func:`foldable`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def _is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution maps each place alone, all channels to all."""
    return conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


class SqueezeExcite(nn.Module):
    """Scale each channel by a number in 0..1 that is computed from the means of all channels.

    Args:
        dim: Channels.
        hidden_dim: Width between the two layers.

    Source: Hu et al. 2018, arXiv:1709.01507, section 3.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.act = nn.SiLU()
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def is_plain(self) -> bool:
        """Whether :meth:`scale` computes all of this layer, and no hook observes the parts."""
        return is_plain(SqueezeExcite, self) and is_plain(nn.Conv2d, self.fc1, self.fc2) and is_plain(nn.SiLU, self.act)

    def scale(self, x: Tensor) -> Tensor:
        """The channels' factors, shape ``(B, C, 1, 1)``, of a map ``(B, C, H, W)``."""
        return torch.sigmoid(self.fc2(self.act(self.fc1(x.mean(dim=(2, 3), keepdim=True)))))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        return x * self.scale(x)


class Shortcut(nn.Module):
    """The way past an MBConv of stride 2: an average, then a 1 x 1 convolution where the widths differ.

    With 'same' padding the zeros after an odd edge take part in the average, as in timm.

    Args:
        dim: Channels that come.
        out_dim: Channels that leave.
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

    In inference on the CPU the BatchNorms are folded into the convolutions, from the values of that moment,
    and the expanded map, four times as wide as the output, is made and used up in pieces that fit the caches.

    Args:
        dim: Channels that come.
        out_dim: Channels that leave; the expansion and the squeeze are measured by it.
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
        self.act1 = Gelu(flavour.approximate)
        self.conv2_kxk = Conv3x3(hidden, hidden, stride, flavour.same_padding, groups=hidden, bias=False)
        self.norm2 = self._norm(hidden)
        self.act2 = Gelu(flavour.approximate)
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
        if in_graph(x) or not self._is_plain():
            branch = self._branch(x)
        # On a small map, folding the norms into the weights would cost more than applying them.
        elif infers_on_cpu(x) and foldable(*self._norms()) and x.shape[0] * x.shape[2:].numel() >= 4 * x.shape[1]:
            branch = self._infer(x)
        else:
            branch = self._branch(x, self.conv2_kxk.even_axes(x))
        out: Tensor = self.shortcut(x) + self.drop_path(branch)
        return out

    def _branch(self, x: Tensor, turned: list[int] | None = None) -> Tensor:
        """All layers in turn.

        Args:
            x: Map, shape ``(B, dim, H, W)``.
            turned: Axes along which the wide maps are turned around, to spare the padding a copy; None: every part is
                called as it is, whatever its class.
        """
        if turned is None:
            y = self.conv2_kxk(self.act1(self.norm1(self.conv1_1x1(self.pre_norm(x)))))
            plain: Tensor = self.conv3_1x1(self.se(self.act2(self.norm2(y))))
            return plain
        y = self.pre_norm(x.flip(turned) if turned else x)
        wide = self.conv1_1x1.out_channels * x.shape[0] * x.shape[2] * x.shape[3]
        norm = self.norm1
        usual = norm.momentum is not None and norm.affine and norm.track_running_stats
        if wide > _WIDE_MAP and x.device.type == "cpu" and usual:
            y = self._mix_in_groups(y, turned, -(-2 * wide // _WIDE_MAP))
        else:
            y = self._depthwise(self.act1(self.norm1(self.conv1_1x1(y))), self.conv2_kxk.weight, turned)
        y = self.conv3_1x1(self.se(self.act2(self.norm2(y))))
        out: Tensor = y.flip(turned) if turned else y
        return out

    def _depthwise(self, y: Tensor, weight: Tensor, turned: list[int]) -> Tensor:
        if turned:
            return F.conv2d(y, weight.flip(turned), None, self.stride, 1, groups=y.shape[1])
        return self.conv2_kxk.convolve(y, weight, None)

    def _mix_in_groups(self, x: Tensor, turned: list[int], groups: int) -> Tensor:
        """Expansion, norm, GELU and depthwise convolution of some channels at a time: each is alone in these."""
        norm, hidden = self.norm1, self.conv1_1x1.out_channels
        if norm.training and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        width = -(-hidden // (8 * groups)) * 8
        pieces = []
        for start in range(0, hidden, width):
            c = slice(start, start + width)
            mean, var = (None if t is None else t[c] for t in (norm.running_mean, norm.running_var))
            y = F.conv2d(x, self.conv1_1x1.weight[c])
            own = norm.training or mean is None
            y = F.batch_norm(y, mean, var, norm.weight[c], norm.bias[c], own, norm.momentum or 0.0, norm.eps)
            pieces.append(self._depthwise(self.act1(y), self.conv2_kxk.weight[c], turned))
        return torch.cat(pieces, dim=1)

    def _norms(self) -> tuple[nn.BatchNorm2d, ...]:
        return self.pre_norm, self.norm1, self.norm2

    def _is_plain(self) -> bool:
        """Whether the parts may be passed by, called in pieces or on a map that is turned around."""
        expand, mix, project, se = self.conv1_1x1, self.conv2_kxk, self.conv3_1x1, self.se
        return (
            is_plain(nn.BatchNorm2d, *self._norms())
            and is_plain(Gelu, self.act1, self.act2)
            and is_plain(nn.Conv2d, expand, project)
            and is_plain(Conv3x3, mix)
            and isinstance(se, SqueezeExcite)
            and se.is_plain()
            and all(_is_pointwise(conv) for conv in (expand, project))
            and expand.bias is None
            and mix.bias is None
            and mix.stride == (self.stride, self.stride)
            and mix.groups == mix.in_channels == expand.out_channels
        )

    def _infer(self, x: Tensor) -> Tensor:
        """The same with folded norms, some samples and rows at a time."""
        scale, shift = _affine(self.pre_norm)
        expand = self.conv1_1x1.weight
        # The first norm comes before a 1 x 1 convolution without padding, so it folds into that one too.
        folded = fold_norm(expand * scale[:, None, None], expand.flatten(1) @ shift, self.norm1)
        depthwise = fold_norm(self.conv2_kxk.weight, None, self.norm2)
        H, W = x.shape[2:]
        samples = max(1, _WORKING_SET // (expand.shape[0] * H * W))
        branches = []
        for part in torch.split(x, samples):
            y = self._expand_and_mix(part, folded, depthwise)
            # The factors of squeeze and excitation scale the inputs of the projection, not the map itself.
            branches.append(self.conv3_1x1(y.mul_(self.se.scale(y))))
        return branches[0] if len(branches) == 1 else torch.cat(branches)

    def _expand_and_mix(self, x: Tensor, expand: tuple[Tensor, Tensor], depthwise: tuple[Tensor, Tensor]) -> Tensor:
        """Expansion and depthwise convolution, a strip of rows at a time."""
        form, groups = self.flavour.approximate, depthwise[0].shape[0]
        pieces = []
        for first, last, (left, right, top, bottom) in self._strips(x, groups):
            y = gelu(F.conv2d(x[:, :, first:last], *expand), form)
            if left == right == top == bottom:
                y = F.conv2d(y, *depthwise, self.stride, top, groups=groups)
            else:
                y = F.conv2d(F.pad(y, (left, right, top, bottom)), *depthwise, self.stride, 0, groups=groups)
            pieces.append(gelu(y, form))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)

    def _strips(self, x: Tensor, hidden: int) -> Iterator[tuple[int, int, tuple[int, int, int, int]]]:
        """First and last row of the input of each strip, and the zeros to put around it for the kernel."""
        B, _, H, W = x.shape
        stride, same = self.stride, self.flavour.same_padding
        (left, right), (top, _) = edge_padding(W, stride, same), edge_padding(H, stride, same)
        rows = max(1, _WORKING_SET // (B * hidden * W * stride))
        out_rows = divide_up(H, stride)
        for start in range(0, out_rows, rows):
            begin = start * stride - top
            end = (min(start + rows, out_rows) - 1) * stride - top + 3
            yield max(begin, 0), min(end, H), (left, right, max(-begin, 0), max(end - H, 0))


class Stem(nn.Module):
    """Two 3 x 3 convolutions, the first of stride 2, with a BatchNorm and a GELU between.

    Args:
        in_chans: Bands.
        dim: Channels that leave.
        flavour: Padding, GELU and BatchNorm.
        first_bias: Whether the first convolution has a bias.

    Source: arXiv:2204.01697, appendix A.1.
    """

    def __init__(self, in_chans: int, dim: int, flavour: ConvFlavour, first_bias: bool) -> None:
        super().__init__()
        self.in_chans, self.flavour = in_chans, flavour
        self.conv1 = Conv3x3(in_chans, dim, 2, flavour.same_padding, bias=first_bias)
        self.norm1 = nn.BatchNorm2d(dim, eps=flavour.norm_eps, momentum=flavour.norm_momentum)
        self.act1 = Gelu(flavour.approximate)
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
        x = _channels_last(x)
        fast = infers_on_cpu(x) and is_plain(nn.BatchNorm2d, self.norm1) and foldable(self.norm1)
        if fast and is_plain(Conv3x3, self.conv1) and is_plain(Gelu, self.act1):
            y = self.conv1.convolve(x, *fold_norm(self.conv1.weight, self.conv1.bias, self.norm1))
            out: Tensor = self.conv2(gelu(_channels_last(y), self.act1.approximate))
        else:
            out = self.conv2(self.act1(self.norm1(_channels_last(self.conv1(x)))))
        return out


def _channels_last(x: Tensor) -> Tensor:
    """The map in the tokens' own order of memory; torch reads an image of one band as contiguous and keeps it so."""
    return x if in_transform() else x.contiguous(memory_format=torch.channels_last)
