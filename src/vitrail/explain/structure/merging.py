"""Parents of merged tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitrail.layers.patch_merging import PatchMerging
from vitrail.layers.tap import TokenLayout

Pair = tuple[int, int]


class Merge(NamedTuple):
    """One patch merging.

    Attributes:
        name: The layer's name.
        grid: Height and width before.
        stride: Pixels per token before.
        parents: Row-major indices of the tokens that each merged token consists of, in the order of their
            concatenation, shape ``(ceil(H / 2), ceil(W / 2), 4)``; -1 is padding.
    """

    name: str
    grid: Pair
    stride: Pair
    parents: Tensor


def trace_merge(name: str, layout: TokenLayout, stride: Pair) -> Merge:
    """Find the parents of merged tokens by merging token indices, without norm and projection.

    Args:
        name: The layer's name.
        layout: Layout that the layer reported.
        stride: Pixels per token before.
    """
    assert layout.key_grid is not None
    H, W = layout.key_grid
    merging = PatchMerging(1)
    merging.norm = nn.Identity()
    merging.reduction = nn.Identity()  # type: ignore[assignment]
    # Double precision represents all indices exactly; they start at 1, so that zero padding differs.
    indices = torch.arange(1, H * W + 1, dtype=torch.float64).view(1, H, W, 1)
    return Merge(name, layout.key_grid, stride, merging(indices)[0].long() - 1)
