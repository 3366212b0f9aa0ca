"""Patch merging against its definition, token by token."""

import pytest
import torch

from vitrail.errors import ShapeError
from vitrail.layers.patch_merging import PatchMerging, parent_weights


@pytest.mark.parametrize("grid", [(1, 1), (4, 6), (3, 5), (2, 7)])
def test_by_hand(grid):
    H, W = grid
    layer = PatchMerging(3)
    torch.nn.init.normal_(layer.norm.weight)
    torch.nn.init.normal_(layer.norm.bias)
    x = torch.randn(2, H, W, 3)
    seen = []
    layer.tap.consumer = lambda weights, layout: seen.append((weights, layout))
    out = layer(x)
    assert out.shape == (2, -(-H // 2), -(-W // 2), 6)
    ((weights, layout),) = seen
    assert (layout.kind, layout.query_grid, layout.key_grid) == ("merge", tuple(out.shape[1:3]), grid)
    assert weights.shape == (2, out.shape[1] * out.shape[2], 4)
    for row in range(out.shape[1]):
        for column in range(out.shape[2]):
            parts, exist = [], []
            for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1)):
                y, z = 2 * row + dy, 2 * column + dx
                exist.append(y < H and z < W)
                parts.append(x[:, y, z] if exist[-1] else torch.zeros(2, 3))
            expected = layer.reduction(layer.norm(torch.cat(parts, dim=-1)))
            assert torch.allclose(out[:, row, column], expected, atol=1e-6)
            mean = torch.tensor(exist, dtype=torch.float32) / sum(exist)
            assert torch.allclose(weights[:, row * out.shape[2] + column], mean.expand(2, 4))


def test_rows_sum_to_one():
    assert torch.allclose(parent_weights((5, 8)).sum(-1), torch.ones(12))


def test_gradients():
    layer = PatchMerging(2, out_dim=3).double()
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_wrong_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"\(B, H, W, 4\)"):
        PatchMerging(4)(torch.randn(1, 4, 4, 3))
