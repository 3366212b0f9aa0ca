"""Agreement with masks, counted by hand."""

import math

import pytest
import torch

from vitrail.errors import ConfigError, ShapeError
from vitrail.explain import energy_inside, mask_iou, pointing_game

MASK = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)


def _map(**values):
    out = torch.zeros(3, 4)
    for place, value in values.items():
        out[int(place[1]), int(place[2])] = value
    return out


def test_pointing_by_hand():
    maps = torch.stack([_map(p01=2.0, p22=1.0), _map(p22=2.0, p01=1.0), _map(p00=3.0, p23=3.0), torch.zeros(3, 4)])
    found = pointing_game(maps, MASK.expand(4, -1, -1))
    assert found.tolist() == pytest.approx([1, 0, 0.5, 3 / 12])
    # (2, 2) is the square root of five pixels from (0, 1) and of five from (1, 0).
    assert pointing_game(maps, MASK.expand(4, -1, -1), tolerance=2)[1] == 0
    assert pointing_game(maps, MASK.expand(4, -1, -1), tolerance=3)[1] == 1


def test_iou_by_hand():
    maps = torch.stack([_map(p00=3, p01=2, p10=1), _map(p00=3, p01=2, p22=1), _map(p23=3, p21=2, p22=1)])
    assert mask_iou(maps, MASK.expand(3, -1, -1)).tolist() == pytest.approx([1, 2 / 4, 0])
    assert mask_iou(maps - 5, MASK.expand(3, -1, -1)).tolist() == pytest.approx([1, 2 / 4, 0])


def test_energy_by_hand():
    maps = torch.stack([_map(p00=3.0, p01=-9.0, p22=1.0), torch.zeros(3, 4), -torch.ones(3, 4), 1e-40 * _map(p00=1.0)])
    assert energy_inside(maps, MASK.expand(4, -1, -1)).tolist() == pytest.approx([0.75, 0.25, 0.25, 1.0])


def test_an_image_with_nothing_to_find_says_nothing():
    masks = torch.stack([MASK, torch.zeros_like(MASK)])
    for measured in (pointing_game, mask_iou, energy_inside):
        first, second = measured(torch.rand(2, 3, 4), masks).tolist()
        assert not math.isnan(first)
        assert math.isnan(second)


def test_masks_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"\(2, 3, 4\)"):
        pointing_game(torch.rand(2, 3, 4), MASK[None])
    with pytest.raises(ConfigError, match="boolean"):
        mask_iou(torch.rand(1, 3, 4), MASK[None].float())
    with pytest.raises(ConfigError, match="tolerance"):
        pointing_game(torch.rand(1, 3, 4), MASK[None], tolerance=-1)
