"""PatchEmbed against its definition, and the order in which its tokens lie in memory."""

import random

import pytest
import torch
import torch.nn.functional as F

from tests.tiers import fast_paths_on
from vitrail.layers.patches import PatchEmbed


def _slowly(embed, x):
    """Each patch flattened and multiplied, on an image padded to whole patches."""
    ph, pw = embed.patch_size
    x = F.pad(x, (0, -x.shape[3] % pw, 0, -x.shape[2] % ph))
    patches = x.unfold(2, ph, ph).unfold(3, pw, pw).permute(0, 2, 3, 1, 4, 5).flatten(3)
    return embed.norm(patches @ embed.proj.weight.flatten(1).t() + embed.proj.bias)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("patch_size", [1, 2, 4, (4, 8), 8, (16, 3), 16])
@pytest.mark.fast_cases("2-torch.contiguous_format", "16-torch.contiguous_format")
def test_patches_are_their_definition(patch_size, layout):
    rng = random.Random(str(patch_size))
    for _ in range(4):
        embed = PatchEmbed(rng.randint(1, 6), rng.randint(1, 12), patch_size, rng.choice([None, "layernorm"]))
        x = torch.randn(rng.randint(1, 3), embed.proj.in_channels, rng.randint(16, 40), rng.randint(16, 40))
        tokens = embed(x.contiguous(memory_format=layout))
        torch.testing.assert_close(tokens, _slowly(embed, x), rtol=1e-4, atol=1e-4)


@fast_paths_on
@pytest.mark.parametrize("patch_size", [2, 4, (4, 8), 8])
@pytest.mark.parametrize("size", [(32, 32), (29, 43)])
def test_tokens_of_small_patches_need_no_reordering(patch_size, size):
    embed = PatchEmbed(3, 12, patch_size)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            assert embed(torch.randn(2, 3, *size)).is_contiguous()
