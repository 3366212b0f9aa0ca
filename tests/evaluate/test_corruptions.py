"""Corruptions of a real photograph: any bands, any size, repeatable, worse with severity; what some of them do."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_image

from vitrail.errors import ConfigError, ShapeError
from vitrail.evaluate.corruptions import CORRUPTIONS, SEVERITIES, check_corruptions, corrupt
from vitrail.evaluate.warping import convolve, disc_kernel, enlarge, gaussian, move, streak_kernel

NAMES = list(CORRUPTIONS)


@pytest.fixture(scope="module")
def photo():
    return torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None].float() / 255


def _batch(photo, size, bands, count=3):
    x = F.interpolate(photo, size, mode="bilinear", antialias=True)
    x = torch.cat([x, 0.8 * x.flip(1)], dim=1)[:, :bands]
    return x.repeat(count, 1, 1, 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "bands"), [((28, 28), 1), ((48, 64), 3), ((40, 33), 5)])
def test_worse_with_severity_repeatable_and_its_own_for_each_image(photo, name, size, bands):
    x = _batch(photo, size, bands)
    results = [corrupt(x, name, severity, [4, 9, 4], seed=1) for severity in SEVERITIES]
    distances = [float((y - x).square().mean().sqrt()) for y in results]
    for before, after in itertools.pairwise(distances):
        # The paper's fog adds as much in its third severity as in its fourth, in finer clouds, and its snow has about
        # as much in its second as in its third, in larger flakes.
        assert after > before * (0.97 if name in ("fog", "snow") else 1.0), distances
    assert distances[0] > 0.005
    for y in results:
        assert y.shape == x.shape
        assert y.min() >= 0
        assert y.max() <= 1
        assert torch.allclose(y[0], y[2], atol=1e-5)  # the same number, the same chance
    assert torch.equal(results[2], corrupt(x, name, 3, [4, 9, 4], seed=1))
    assert torch.allclose(results[2][1:2], corrupt(x[1:2], name, 3, [9], seed=1), atol=1e-5)  # in whatever batch
    by_chance = name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert (not torch.allclose(results[2][0], results[2][1], atol=1e-5)) == by_chance
    assert (not torch.allclose(results[2], corrupt(x, name, 3, [4, 9, 4], seed=2), atol=1e-5)) == by_chance


def test_noise_has_the_strength_it_says():
    gray = torch.full((2, 4, 100, 100), 0.5)
    for severity, sigma in zip(SEVERITIES, (0.08, 0.12, 0.18), strict=False):
        assert corrupt(gray, "gaussian_noise", severity, [0, 1]).std() == pytest.approx(sigma, rel=0.05)
    assert corrupt(gray, "shot_noise", 1, [0, 1]).std() == pytest.approx((0.5 / 60) ** 0.5, rel=0.05)
    hit = corrupt(gray, "impulse_noise", 5, [0, 1])
    assert (hit == 0).float().mean() == pytest.approx(0.135, abs=0.01)
    assert (hit == 1).float().mean() == pytest.approx(0.135, abs=0.01)
    assert (hit == 0.5).float().mean() == pytest.approx(0.73, abs=0.01)


def test_two_streams_move_alike_and_are_noisy_apart(photo):
    x = _batch(photo, (32, 32), 3, 1)
    for name in NAMES:
        same = torch.equal(corrupt(x, name, 3, [5]), corrupt(x, name, 3, [5], stream="spectral"))
        assert same == (not name.endswith("noise")), name


def test_brightness_is_that_of_hsv(photo):
    import colorsys

    x = _batch(photo, (6, 6), 3, 1)
    y = corrupt(x, "brightness", 2, [0])
    for a, b in zip(x[0].flatten(1).T.tolist(), y[0].flatten(1).T.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*a)
        assert b == pytest.approx(colorsys.hsv_to_rgb(h, s, min(1, v + 0.2)), abs=1e-5)
    assert corrupt(torch.zeros(1, 2, 3, 3), "brightness", 1, [0]).unique().tolist() == pytest.approx([0.1])


def test_contrast_and_pixelate_keep_means(photo):
    x = _batch(photo, (40, 40), 3, 1)
    y = corrupt(x, "contrast", 5, [0])
    assert torch.allclose(y.mean((2, 3)), x.mean((2, 3)), atol=1e-5)
    assert torch.allclose(y.std((2, 3)), 0.05 * x.std((2, 3)), rtol=1e-3)
    cells = corrupt(x, "pixelate", 5, [0])
    assert torch.allclose(cells, F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="nearest"), atol=1e-5)
    assert torch.allclose(corrupt(x, "pixelate", 1, [0]).mean((2, 3)), x.mean((2, 3)), atol=2e-3)


def test_jpeg_of_other_bands_is_that_of_each(photo):
    x = _batch(photo, (32, 32), 4, 2)
    y = corrupt(x, "jpeg_compression", 4, [0, 1])
    for band in range(4):
        assert torch.equal(y[:, band : band + 1], corrupt(x[:, band : band + 1], "jpeg_compression", 4, [0, 1]))
    assert not torch.equal(y[:, :3], corrupt(x[:, :3], "jpeg_compression", 4, [0, 1]))  # colours, with less chroma


def test_lengths_follow_the_size(photo):
    # What a blur does to an image of twice the size, seen at the smaller size, is about the same.
    for name in ("defocus_blur", "motion_blur", "glass_blur", "snow"):
        distances = []
        for size in (64, 128):
            x = _batch(photo, (size, size), 3, 2)
            y = corrupt(x, name, 4, [3, 8])
            small = [F.interpolate(z, (32, 32), mode="area") for z in (x, y)]
            distances.append(float((small[1] - small[0]).square().mean().sqrt()))
        assert distances[0] == pytest.approx(distances[1], rel=0.35), name


def test_kernels_and_convolution():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((2, 3, 20, 25))).float()
    for radius in (0.2, 1.0, 3.7):
        kernel = disc_kernel(radius)[0]
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        assert torch.allclose(kernel, kernel.T, atol=1e-6)
        assert torch.allclose(kernel, kernel.flip(0), atol=1e-6)
    # A disc's variance along an axis is r^2 / 4; bilinear spreading adds a little.
    offsets = torch.arange(disc_kernel(6.0).shape[1]) - disc_kernel(6.0).shape[1] // 2
    variance = (disc_kernel(6.0)[0].sum(0) * offsets**2).sum()
    assert variance == pytest.approx(9, rel=0.03)
    kernels = torch.cat([streak_kernel(4.0, 2.0, 0.0), streak_kernel(4.0, 2.0, 90.0)])
    assert torch.allclose(kernels[0], kernels[1].T, atol=1e-6)
    half = kernels.shape[1] // 2
    padded = F.pad(x, (half,) * 4, mode="replicate")
    flipped = kernels.flip(1, 2)  # a convolution turns the kernel round
    wanted = torch.stack([F.conv2d(padded[i][:, None], flipped[i][None, None])[:, 0] for i in range(2)])
    assert torch.allclose(convolve(x, kernels), wanted, atol=1e-5)
    blurred = np.stack([[gaussian_filter(band, 1.3, mode="nearest") for band in image] for image in x.numpy()])
    assert np.allclose(gaussian(x, 1.3).numpy(), blurred, atol=2e-3)


def test_moving_by_whole_pixels_and_enlarging():
    x = torch.rand(1, 2, 9, 9)
    moved = move(x, torch.tensor(2.0).expand(1, 9, 9), torch.tensor(-1.0).expand(1, 9, 9))
    assert torch.allclose(moved[:, :, :7, 1:], x[:, :, 2:, :8], atol=1e-5)
    assert torch.allclose(enlarge(x, 1.0), x, atol=1e-5)
    assert torch.allclose(enlarge(x, 3.0)[:, :, 4, 4], x[:, :, 4, 4], atol=1e-5)
    assert torch.allclose(enlarge(x, 3.0)[:, :, 4, 7], x[:, :, 4, 5], atol=1e-5)


def test_misuse():
    with pytest.raises(ConfigError, match="did you mean 'fog'"):
        check_corruptions(["fogg"])
    with pytest.raises(ConfigError, match="given twice"):
        check_corruptions(["fog", "snow", "fog"])
    assert check_corruptions([]) == tuple(NAMES)
    assert len(NAMES) == 15
    with pytest.raises(ConfigError, match="1 to 5"):
        corrupt(torch.rand(1, 3, 8, 8), "fog", 6, [0])
    with pytest.raises(ShapeError, match="B indices"):
        corrupt(torch.rand(2, 3, 8, 8), "fog", 1, [0])
