"""Windows, spread grids and their regions against their definitions, token by token."""

import itertools
import random

import pytest
import torch

from tests.tiers import fast_first
from vitrail.errors import ShapeError
from vitrail.layers.windows import (
    merge_grid,
    merge_windows,
    pad_map,
    partition_grid,
    partition_windows,
    same_region,
    shifted_regions,
    window_padding,
)


def _random_case(seed):
    rng = random.Random(seed)
    group = (rng.randint(1, 5), rng.randint(1, 5))
    grid = (group[0] * rng.randint(1, 4), group[1] * rng.randint(1, 4))
    return torch.randn(rng.randint(1, 3), *grid, rng.randint(1, 4)), group, grid


@pytest.mark.parametrize("seed", range(10))
def test_windows_hold_neighbours(seed):
    x, (wh, ww), grid = _random_case(seed)
    windows = partition_windows(x, (wh, ww))
    across = grid[1] // ww
    per_image = grid[0] // wh * across
    for image, row, column in itertools.product(*map(range, x.shape[:3])):
        window = image * per_image + row // wh * across + column // ww
        token = row % wh * ww + column % ww
        assert torch.equal(windows[window, token], x[image, row, column])
    assert torch.equal(merge_windows(windows, (wh, ww), grid), x)


@pytest.mark.parametrize("seed", range(10))
def test_grids_are_spread_over_the_map(seed):
    x, (gh, gw), grid = _random_case(seed)
    groups = partition_grid(x, (gh, gw))
    down, across = grid[0] // gh, grid[1] // gw
    for image, row, column in itertools.product(*map(range, x.shape[:3])):
        group = (image * down + row % down) * across + column % across
        token = row // down * gw + column // across
        assert torch.equal(groups[group, token], x[image, row, column])
    assert torch.equal(merge_grid(groups, (gh, gw), grid), x)


@pytest.mark.parametrize(("partition", "merge"), [(partition_windows, merge_windows), (partition_grid, merge_grid)])
def test_inverse_both_ways_with_gradient(partition, merge):
    x = torch.randn(2, 6, 8, 3, requires_grad=True)
    groups = partition(x, (3, 4))
    assert torch.equal(partition(merge(groups, (3, 4), (6, 8)), (3, 4)), groups)
    weight = torch.randn_like(x)
    (merge(groups, (3, 4), (6, 8)) * weight).sum().backward()
    assert torch.equal(x.grad, weight)


@pytest.mark.parametrize("partition", [partition_windows, partition_grid])
def test_a_size_that_does_not_divide_is_refused(partition):
    with pytest.raises(ShapeError, match=r"7 x 9 .* of 4 x 3; append 1 row and 0 columns"):
        partition(torch.zeros(1, 7, 9, 2), (4, 3))
    with pytest.raises(ShapeError, match=r"shape \(B, H, W, C\), got \(8, 9, 2\)"):
        partition(torch.zeros(8, 9, 2), (4, 3))


@pytest.mark.parametrize("merge", [merge_windows, merge_grid])
def test_groups_of_another_map_are_refused(merge):
    with pytest.raises(ShapeError, match=r"\(B \* 4, 12, C\) for a map of 8 x 6, got \(6, 12, 2\)"):
        merge(torch.zeros(6, 12, 2), (4, 3), (8, 6))


@pytest.mark.parametrize("seed", fast_first(range(20), 6))
def test_shifted_mask_against_the_definition(seed):
    """Two tokens meet if their places, shifted without wrapping round, lie in one window and both are real."""
    rng = random.Random(seed)
    window = (rng.randint(1, 4), rng.randint(1, 4))
    grid = (rng.randint(1, 10), rng.randint(1, 10))
    shift = (rng.randrange(window[0]), rng.randrange(window[1]))
    mask_padding = rng.random() < 0.5
    padding = window_padding(grid, window)
    H, W = grid[0] + padding[0], grid[1] + padding[1]

    regions = shifted_regions(grid, padding, shift, mask_padding)
    allowed = same_region(partition_windows(regions[None, :, :, None], window).squeeze(-1))
    places = torch.arange(H * W).view(1, H, W, 1).roll((-shift[0], -shift[1]), (1, 2))
    places = partition_windows(places, window).squeeze(-1)

    def window_of(place):
        # Shifting the windows by s down and right is the same as moving the tokens by s up and left: what falls
        # off at the top or left is a window of its own.
        row, column = place // W, place % W
        return (row - shift[0]) // window[0], (column - shift[1]) // window[1]

    def real(place):
        return place // W < grid[0] and place % W < grid[1]

    for group in range(len(places)):
        for i, j in itertools.product(range(places.shape[1]), repeat=2):
            query, key = places[group, i].item(), places[group, j].item()
            expected = window_of(query) == window_of(key)
            if mask_padding and any(padding):
                together = real(query) == real(key) and (expected or not real(query))
                expected = together
            assert allowed[group, i, j].item() == expected
    assert allowed.any(-1).all()


@pytest.mark.parametrize("partition", [partition_windows, partition_grid])
@pytest.mark.parametrize("grid", [(5, 7), (8, 3), (4, 4)])
def test_padding_is_kept_apart(partition, grid):
    window = (4, 4)
    padding = window_padding(grid, window)
    regions = shifted_regions(grid, padding, (0, 0))
    real = (
        partition(pad_map(torch.ones(1, *grid, 1), (grid[0] + padding[0], grid[1] + padding[1])), window).squeeze(-1)
        == 1
    )
    assert (regions == 0).sum() == grid[0] * grid[1]
    allowed = same_region(partition(regions[None, :, :, None], window).squeeze(-1))
    assert torch.equal(allowed, real[:, :, None] == real[:, None, :])


def test_padding_appends_only_what_is_needed():
    x = torch.randn(2, 5, 8, 3)
    assert window_padding((5, 8), (4, 4)) == (3, 0)
    assert window_padding((1, 9), (7, 3)) == (6, 0)
    padded = pad_map(x, (8, 8))
    assert torch.equal(padded[:, :5], x)
    assert padded.shape == (2, 8, 8, 3)
    assert not padded[:, 5:].any()
    assert pad_map(x, (5, 8)) is x
