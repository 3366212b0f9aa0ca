"""Sine and cosine positions, one number at a time."""

import math

import pytest
import torch

import vitrail
from vitrail.errors import ConfigError
from vitrail.layers.positions import sincos_positions


@pytest.mark.parametrize(("grid", "dim"), [((3, 5), 8), ((1, 4), 16), ((7, 2), 36)])
def test_by_hand(grid, dim):
    table = sincos_positions(grid, dim)
    assert table.shape == (1, grid[0] * grid[1], dim)
    quarter = dim // 4
    for y in range(grid[0]):
        for x in range(grid[1]):
            token = table[0, y * grid[1] + x]
            for i in range(quarter):
                rate = 10000 ** (-i / (quarter - 1))
                expected = [math.sin(x * rate), math.cos(x * rate), math.sin(y * rate), math.cos(y * rate)]
                assert torch.allclose(token[i::quarter], torch.tensor(expected), atol=1e-5)


@pytest.mark.parametrize("dim", [4, 10, 0])
def test_other_widths_are_refused(dim):
    with pytest.raises(ConfigError, match=f"multiple of 4 and at least 8, got {dim}"):
        sincos_positions((2, 2), dim)


def test_a_vit_begins_with_them_and_learns_them():
    settings = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    model = vitrail.create_model("vit", pos_embed_init="sincos", **settings)
    assert torch.equal(model.pos_embed[:, 1:], sincos_positions((2, 3), 16))
    assert model.pos_embed.requires_grad
    model(torch.randn(2, 3, 8, 12)).sum().backward()
    assert model.pos_embed.grad.abs().sum() > 0
    with pytest.raises(ConfigError, match="pos_embed_init must be 'normal' or 'sincos', got 'sine'"):
        vitrail.create_model("vit", pos_embed_init="sine", **settings)
