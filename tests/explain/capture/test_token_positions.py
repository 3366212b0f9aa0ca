"""Row and column of each query and key of captured weights, against attention computed one token at a time."""

import itertools
import random

import pytest
import torch

from tests.explain.tiny_models import SETTINGS, tiny_inputs, tiny_model
from tests.tiers import spread
from vitrail.errors import ConfigError
from vitrail.explain import capture_attention
from vitrail.layers import relative_coords, relative_position_index, window_mask
from vitrail.layers.partition_attention import PartitionAttention
from vitrail.layers.window_attention import WindowAttention


def pytest_generate_tests(metafunc):
    spread(metafunc, name=SETTINGS)


def _captured(layer, x):
    found = []
    layer.tap.consumer = lambda weights, layout: found.append((weights, layout))
    layer(x)
    from vitrail.explain import CapturedMixing

    return CapturedMixing("", *found[0])


def _positions_one_by_one(grid, window, shift, padding, pad_after_shift):
    """Windows of a shifted map, in the words of the paper: each token is followed by hand."""
    H, W = grid
    full = (H + padding[0], W + padding[1])
    where = {}
    for row, column in itertools.product(range(H), range(W)):
        size = grid if pad_after_shift else full
        where[(row - shift[0]) % size[0], (column - shift[1]) % size[1]] = (row, column)
    return [
        [where.get((top + i, left + j), (-1, -1)) for i in range(window[0]) for j in range(window[1])]
        for top in range(0, full[0], window[0])
        for left in range(0, full[1], window[1])
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pad_after_shift", [False, True])
@pytest.mark.fast_cases("False-1", "True-0")
def test_shifted_and_padded_windows(seed, pad_after_shift):
    rng = random.Random(seed)
    window = (rng.randint(2, 4), rng.randint(2, 4))
    shift = (rng.randrange(window[0]), rng.randrange(window[1]))
    grid = (rng.randint(5, 11), rng.randint(5, 11))
    layer = WindowAttention(8, 2, window, shift, mask_padding=not pad_after_shift, pad_after_shift=pad_after_shift)
    step = _captured(layer, torch.randn(2, *grid, 8))
    layout = step.layout
    found = step.positions()
    assert found.tolist() == [
        [list(one) for one in group]
        for group in _positions_one_by_one(grid, layout.window, layout.shift, layout.padding, pad_after_shift)
    ]
    assert torch.equal(found, step.positions("keys"))
    assert len(step.weights) == 2 * len(found)
    if not pad_after_shift:
        # No weight reaches a token from which the image separates the query.
        mask = window_mask(grid, layout.window, layout.shift, True)
        assert torch.equal(step.weights[: len(found)].amax(1)[found[:, :, 0] >= 0] > 0, ~mask[found[:, :, 0] >= 0])


@pytest.mark.parametrize("seed", range(4))
def test_values_at_the_positions_are_the_tokens_that_were_mixed(seed):
    """With values of a token's row and column, and weights alone, the output is the mean position."""
    rng = random.Random(seed)
    grid, window = (rng.randint(3, 9), rng.randint(3, 9)), (rng.randint(2, 3), rng.randint(2, 4))
    layer = PartitionAttention(8, 4, window, "grid" if seed % 2 else "window")
    with torch.no_grad():
        layer.qkv.weight[16:] = torch.eye(8)
        layer.qkv.bias[16:] = 0
        layer.proj.weight.copy_(torch.eye(8))
        layer.proj.bias.zero_()
    x = torch.randn(1, *grid, 8)
    rows, columns = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    x[0, ..., 0], x[0, ..., 1] = rows.float(), columns.float()
    out = layer(x)[0]
    step = _captured(layer, x)
    positions = step.positions()
    mean = step.weights[:, 0] @ positions.clamp(min=0).float()  # the first head mixes the first two channels
    for group, query in itertools.product(range(len(positions)), range(positions.shape[1])):
        row, column = positions[group, query].tolist()
        if row >= 0:
            torch.testing.assert_close(mean[group, query], out[row, column, :2])


@pytest.mark.slow_cases("maxvit")
def test_every_layer_with_a_grid_has_positions(name):
    model = tiny_model(name)
    with capture_attention(model) as record:
        model(*tiny_inputs(model))
    for step in record:
        for of, grid, dim in (("queries", step.layout.query_grid, -2), ("keys", step.layout.key_grid, -1)):
            if grid is None or (step.layout.kind == "merge" and of == "keys"):
                with pytest.raises(ConfigError, match=f"the {of} of a layer of kind '{step.layout.kind}' have no pos"):
                    step.positions(of)
                continue
            found = step.positions(of)
            assert found.shape[1:] == (step.weights.shape[dim], 2)
            real = found[found[..., 0] >= 0]
            assert sorted(map(tuple, real.tolist())) == list(itertools.product(*map(range, grid)))
    with pytest.raises(ConfigError, match="of must be 'queries' or 'keys', got 'rows'"):
        record[0].positions("rows")


@pytest.mark.parametrize("window", [(1, 1), (2, 3), (4, 4), (5, 2)])
def test_relative_coordinates_one_by_one(window):
    tokens = list(itertools.product(range(window[0]), range(window[1])))
    coords, index = relative_coords(window), relative_position_index(window)
    for (i, query), (j, key) in itertools.product(enumerate(tokens), repeat=2):
        dy, dx = query[0] - key[0], query[1] - key[1]
        assert coords[i, j].tolist() == [dy, dx]
        assert index[i, j] == (dy + window[0] - 1) * (2 * window[1] - 1) + dx + window[1] - 1
