"""Embedding of small patches in channels_last memory."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.layers.fast.dispatch import fast_path
from vitrail.layers.modes import in_transform
from vitrail.layers.patches import LinearPatchEmbed, PatchEmbed

# Pixels of a patch up to which channels_last pays: its result is a map of tokens as it is. With patches of 16 the
# convolution itself is slower in that order by a tenth to a half, and the tokens are few.
_SMALL_PATCH = 64


def _has_small_patches(layer: PatchEmbed, x: Tensor) -> bool:
    height, width = layer.patch_size
    return height * width <= _SMALL_PATCH and not in_transform() and not isinstance(layer, LinearPatchEmbed)


@fast_path("patch_embed", when=_has_small_patches)
def project_in_token_order(layer: PatchEmbed, x: Tensor) -> Tensor:
    """Convolve in channels_last memory."""
    out: Tensor = layer.proj(x.contiguous(memory_format=torch.channels_last))
    return out
