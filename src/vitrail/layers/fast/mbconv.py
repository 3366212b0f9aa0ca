"""MBConv: folded BatchNorms and pieces that fit the caches in inference; no padding copies and groups in training.

Channels are independent between expansion and squeeze, so that the expanded map, four times as wide as the output, need
not exist as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.layers.activations import Gelu
from vitrail.layers.fast.dispatch import eager, fast_path, infers_on_cpu, is_plain
from vitrail.layers.mbconv import Conv3x3, MBConv, SqueezeExcite, edge_padding
from vitrail.layers.shapes import divide_up

# Elements of an intermediate map in inference: about what the caches of a small CPU hold.
_WORKING_SET = 1 << 21
# Elements of a map from which training takes its channels in groups: the allocator fetches blocks of more than half of
# this from the operating system each time, which costs more than what is computed in them.
_WIDE_MAP = 1 << 24


def fold_norm(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Fold a BatchNorm with its running statistics into the convolution before it.

    Args:
        weight: Shape ``(out, in, kh, kw)``.
        bias: Shape ``(out,)``, or None.
        norm: BatchNorm that is :func:`foldable`.

    Returns:
        Weight and bias of the one convolution.
    """
    scale, shift = _affine(norm)
    return weight * scale[:, None, None, None], shift if bias is None else torch.addcmul(shift, bias, scale)


def foldable(*norms: nn.BatchNorm2d) -> bool:
    """Return whether BatchNorms normalise with running statistics, not with the batch, and have scale and shift."""
    return all(not norm.training and norm.running_mean is not None and norm.affine for norm in norms)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


def _norms(layer: MBConv) -> tuple[nn.BatchNorm2d, ...]:
    return layer.pre_norm, layer.norm1, layer.norm2


def _has_plain_parts(layer: MBConv) -> bool:
    expand, mix, project, se = layer.conv1_1x1, layer.conv2_kxk, layer.conv3_1x1, layer.se
    return (
        is_plain(nn.BatchNorm2d, *_norms(layer))
        and is_plain(Gelu, layer.act1, layer.act2)
        and is_plain(nn.Conv2d, expand, project)
        and is_plain(Conv3x3, mix)
        and is_plain(SqueezeExcite, se)
        and is_plain(nn.Conv2d, se.fc1, se.fc2)
        and is_plain(nn.SiLU, se.act)
        and all(_is_pointwise(conv) for conv in (expand, project))
        and expand.bias is None
        and mix.bias is None
        and mix.stride == (layer.stride, layer.stride)
        and mix.groups == mix.in_channels == expand.out_channels
    )


def _folds(layer: MBConv, x: Tensor) -> bool:
    if not infers_on_cpu(x) or not _has_plain_parts(layer) or not foldable(*_norms(layer)):
        return False
    # On a small map, folding the norms into the weights costs more than applying them.
    return x.shape[0] * x.shape[2:].numel() >= 4 * x.shape[1]


@fast_path("mbconv", when=_folds)
def infer_folded(layer: MBConv, x: Tensor) -> Tensor:
    """Fold the norms, with the values of this moment, and take some images and rows at a time."""
    scale, shift = _affine(layer.pre_norm)
    weight = layer.conv1_1x1.weight
    # The first norm comes before a 1 x 1 convolution without padding, so it folds into that one too.
    expand = fold_norm(weight * scale[:, None, None], weight.flatten(1) @ shift, layer.norm1)
    depthwise = fold_norm(layer.conv2_kxk.weight, None, layer.norm2)
    images = max(1, _WORKING_SET // (weight.shape[0] * x.shape[2] * x.shape[3]))
    branches = []
    for part in torch.split(x, images):
        y = _expand_and_convolve(layer, part, expand, depthwise)
        branches.append(layer.conv3_1x1(y.mul_(layer.se.scale(y))))
    return branches[0] if len(branches) == 1 else torch.cat(branches)


def _expand_and_convolve(
    layer: MBConv, x: Tensor, expand: tuple[Tensor, Tensor], depthwise: tuple[Tensor, Tensor]
) -> Tensor:
    """Expand and convolve depthwise, a strip of rows at a time."""
    hidden = depthwise[0].shape[0]
    pieces = []
    for first, last, (left, right, top, bottom) in _strips(layer, x, hidden):
        y = layer.act1(F.conv2d(x[:, :, first:last], *expand))
        if left == right == top == bottom:
            y = F.conv2d(y, *depthwise, layer.stride, top, groups=hidden)
        else:
            y = F.conv2d(F.pad(y, (left, right, top, bottom)), *depthwise, layer.stride, 0, groups=hidden)
        pieces.append(layer.act2(y))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _strips(layer: MBConv, x: Tensor, hidden: int) -> Iterator[tuple[int, int, tuple[int, int, int, int]]]:
    """Compute the first and last input row of each strip, and the padding around it for the kernel."""
    B, _, H, W = x.shape
    stride, same = layer.stride, layer.flavour.same_padding
    (left, right), (top, _) = edge_padding(W, stride, same), edge_padding(H, stride, same)
    rows = max(1, _WORKING_SET // (B * hidden * W * stride))
    out_rows = divide_up(H, stride)
    for start in range(0, out_rows, rows):
        begin = start * stride - top
        end = (min(start + rows, out_rows) - 1) * stride - top + 3
        yield max(begin, 0), min(end, H), (left, right, max(-begin, 0), max(end - H, 0))


def _padded_at_the_end(conv: Conv3x3, x: Tensor) -> list[int]:
    """Find the axes with 'same' padding at the end alone, for which torch's convolution needs a padded copy.

    Flipped along these, map and kernel give the flipped result with a padding of one on both sides: the last window
    does not fit a stride any more.
    """
    return [axis for axis in (2, 3) if conv.same and x.shape[axis] % 2 == 0]


def _needs_copies(layer: MBConv, x: Tensor) -> bool:
    if not eager(x) or not _has_plain_parts(layer):
        return False
    return bool(_padded_at_the_end(layer.conv2_kxk, x)) or _count_groups(layer, x) > 1


@fast_path("mbconv", when=_needs_copies)
def convolve_flipped(layer: MBConv, x: Tensor) -> Tensor:
    """Flip the narrow maps instead of padding the wide one, and take a wide map's channels in groups."""
    flipped = _padded_at_the_end(layer.conv2_kxk, x)
    y = layer.pre_norm(x.flip(flipped) if flipped else x)
    groups = _count_groups(layer, x)
    if groups > 1:
        y = _mix_in_groups(layer, y, flipped, groups)
    else:
        y = _depthwise(layer.conv2_kxk, layer.act1(layer.norm1(layer.conv1_1x1(y))), layer.conv2_kxk.weight, flipped)
    y = layer.conv3_1x1(layer.se(layer.act2(layer.norm2(y))))
    out: Tensor = y.flip(flipped) if flipped else y
    return out


def _count_groups(layer: MBConv, x: Tensor) -> int:
    """Count the groups of channels of a wide map; 1 for all channels at once."""
    norm = layer.norm1
    usual = norm.momentum is not None and norm.affine and norm.track_running_stats
    wide = layer.conv1_1x1.out_channels * x.shape[0] * x.shape[2] * x.shape[3]
    return -(-2 * wide // _WIDE_MAP) if wide > _WIDE_MAP and x.device.type == "cpu" and usual else 1


def _depthwise(conv: Conv3x3, x: Tensor, weight: Tensor, flipped: list[int]) -> Tensor:
    """Convolve some channels with their weights."""
    groups = x.shape[1]
    if flipped or not conv.same:
        return F.conv2d(x, weight.flip(flipped) if flipped else weight, None, conv.stride, 1, groups=groups)
    (top, bottom), (left, right) = (edge_padding(length, 2, True) for length in x.shape[2:])
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, conv.stride, groups=groups)


def _mix_in_groups(layer: MBConv, x: Tensor, flipped: list[int], groups: int) -> Tensor:
    """Apply expansion, norm, GELU and depthwise convolution to some channels at a time."""
    norm, hidden = layer.norm1, layer.conv1_1x1.out_channels
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    width = -(-hidden // (8 * groups)) * 8
    pieces = []
    for start in range(0, hidden, width):
        c = slice(start, start + width)
        mean, var = (None if t is None else t[c] for t in (norm.running_mean, norm.running_var))
        y = F.conv2d(x, layer.conv1_1x1.weight[c])
        own = norm.training or mean is None
        y = F.batch_norm(y, mean, var, norm.weight[c], norm.bias[c], own, norm.momentum or 0.0, norm.eps)
        pieces.append(_depthwise(layer.conv2_kxk, layer.act1(y), layer.conv2_kxk.weight[c], flipped))
    return torch.cat(pieces, dim=1)
