"""Motions against torch's and kornia's own, pixel by pixel."""

import random

import kornia.geometry.transform as kornia
import pytest
import torch
import torch.nn.functional as F

from vitrail.config.augment import AugmentSettings
from vitrail.data.augment.geometry import affine_matrices, random_transforms, warp
from vitrail.errors import ConfigError


def _smooth(batch, height, width, bands=2):
    """Images in which a bilinear sample is nearly exact."""
    return F.interpolate(torch.rand(batch, bands, 4, 4), size=(height, width), mode="bicubic", align_corners=False)


def _affine(batch, size, degrees=0.0, shear=(0.0, 0.0), shift=(0.0, 0.0), zoom=1.0):
    full = torch.full((batch,), 1.0)
    pairs = [torch.tensor(pair).expand(batch, 2) for pair in (shear, shift)]
    return affine_matrices(full * degrees, *pairs, full * zoom, size)


@pytest.mark.parametrize("seed", range(4))
def test_the_grid_is_torchs(seed):
    rng = random.Random(seed)
    size = (rng.randint(5, 30), rng.randint(5, 30))
    x, motion = torch.rand(3, 2, *size), torch.eye(3) + 0.3 * torch.randn(3, 3, 3)
    motion[:, 2] = torch.tensor([0.0, 0.0, 1.0])
    padding = rng.choice(["zeros", "border", "reflection"])
    grid = F.affine_grid(motion[:, :2], list(x.shape), align_corners=False)
    expected = F.grid_sample(x, grid, padding_mode=padding, align_corners=False)
    # An ulp in the grid may fall on the other side of an edge.
    close = (warp(x, motion, padding) - expected).abs() < 1e-4
    assert close.float().mean() > 0.995


@pytest.mark.parametrize(("height", "width"), [(24, 24), (20, 34)])
@pytest.mark.parametrize("degrees", [-75.0, -10.0, 30.0, 90.0])
def test_turns_are_kornias(height, width, degrees):
    x = _smooth(2, height, width)
    expected = kornia.rotate(x, torch.tensor([degrees, degrees]))
    moved = warp(x, _affine(2, (height, width), degrees))
    assert (moved - expected).abs().mean() < 0.02  # kornia aligns corners: a border pixel of difference
    inner = (slice(None), slice(None), slice(height // 3, -(height // 3)), slice(width // 3, -(width // 3)))
    assert torch.allclose(moved[inner], expected[inner], atol=0.03)


def test_shifts_move_whole_pixels():
    x = torch.rand(2, 3, 10, 20)
    moved = warp(x, _affine(2, (10, 20), shift=(3 / 20, -2 / 10)))
    assert torch.allclose(moved[:, :, :-2, 3:], x[:, :, 2:, :-3], atol=1e-5)
    assert moved[:, :, -2:].abs().max() < 1e-5
    assert moved[..., :3].abs().max() < 1e-5


def test_zoom_and_shear_go_the_right_way():
    x = _smooth(1, 40, 40)
    zoomed = warp(x, _affine(1, (40, 40), zoom=2.0))
    expected = F.interpolate(x[:, :, 10:30, 10:30], scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(zoomed[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2], atol=1e-4)
    # A shear by 45 degrees along x moves a row that lies n pixels below the centre n to the right.
    sheared = warp(x, _affine(1, (40, 40), shear=(45.0, 0.0)))
    for row in (11, 25):
        n = row - 19.5
        assert torch.allclose(sheared[0, :, row, 20:26], (x[0, :, row, 20 - int(n - 0.5) - 1 : 26 - int(n - 0.5) - 1]
                              + x[0, :, row, 20 - int(n - 0.5) : 26 - int(n - 0.5)]) / 2, atol=0.05)  # fmt: skip


def test_flips_and_quarter_turns_blend_nothing():
    x = torch.rand(64, 1, 8, 8)
    horizontal = warp(x, random_transforms(AugmentSettings(flip_horizontal=1.0), 64, (8, 8)))
    assert torch.allclose(horizontal, x.flip(3), atol=1e-5)
    vertical = warp(x, random_transforms(AugmentSettings(flip_vertical=1.0), 64, (8, 8)))
    assert torch.allclose(vertical, x.flip(2), atol=1e-5)
    turned = warp(x, random_transforms(AugmentSettings(quarter_turns=1.0), 64, (8, 8)))
    found = [[torch.allclose(turned[i], torch.rot90(x[i], k, (1, 2)), atol=1e-5) for k in range(4)] for i in range(64)]
    counts = torch.tensor(found).sum(0)
    assert counts[0] == 0
    assert counts[1:].sum() == 64
    assert (counts[1:] > 5).all()
    with pytest.raises(ConfigError, match="square images, got 8 x 9"):
        random_transforms(AugmentSettings(quarter_turns=0.1), 2, (8, 9))


@pytest.mark.parametrize("seed", range(3))
def test_crops_keep_the_wanted_share_and_fit(seed):
    rng = random.Random(seed)
    low = rng.uniform(0.05, 0.9)
    settings = AugmentSettings(crop_area=(low, rng.uniform(low, 1)), crop_ratio=(0.5, 2.0))
    motions = random_transforms(settings, 500, (7, 13))
    width, height = motions[:, 0, 0], motions[:, 1, 1]
    area = width * height
    assert area.min() >= low - 1e-4
    assert area.max() <= settings.crop_area[1] + 1e-4
    assert (width / height).min() >= 0.5 - 1e-3
    assert (width / height).max() <= 2 + 1e-3
    for axis, half in ((0, width), (1, height)):
        assert (motions[:, axis, 2].abs() + half).max() <= 1 + 1e-5
    # The corner of the result is the corner of the box.
    x = torch.rand(500, 1, 40, 40)
    moved = warp(x, random_transforms(settings, 500, (40, 40)))
    assert (moved.flatten(1).amin(1) >= x.flatten(1).amin(1) - 1e-5).all()  # no zeros from outside


@pytest.mark.parametrize("seed", range(4))
def test_streams_of_other_sizes_move_alike(seed):
    torch.manual_seed(seed)
    settings = AugmentSettings(crop_area=(0.3, 1), flip_horizontal=0.5, rotate=180, shear=15, translate=0.2,
                               zoom=(0.7, 1.4), padding="border")  # fmt: skip
    big = _smooth(6, 96, 96)
    small = F.avg_pool2d(big, 3)
    motions = random_transforms(settings, 6, (96, 96))
    assert (F.avg_pool2d(warp(big, motions, "border"), 3) - warp(small, motions, "border")).abs().mean() < 0.01
