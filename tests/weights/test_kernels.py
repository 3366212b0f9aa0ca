"""Kernels for other bands and other patches, against sums written out and against what they must preserve."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitrail.errors import ConfigError, WeightsError
from vitrail.weights import BandRule, resize_patches
from vitrail.weights.kernels import RGB_NM, make_band_rule


def _kernel(rng, bands, size=None):
    size = size or (rng.randint(1, 6), rng.randint(1, 6))
    return torch.randn(rng.randint(1, 7), bands, *size)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.fast_cases("2", "11")
def test_mean_keeps_the_response_to_equal_bands(seed):
    rng = random.Random(seed)
    old, new = rng.randint(1, 9), rng.randint(1, 12)
    kernel = _kernel(rng, old)
    changed, how = BandRule("mean").apply(kernel, new, "image")
    assert changed.shape == (kernel.shape[0], new, *kernel.shape[2:])
    assert changed.dtype == kernel.dtype
    for band in range(new):
        torch.testing.assert_close(changed[:, band], kernel.mean(dim=1) * old / new)
    gray = torch.randn(2, 1, 8, 8)
    before, after = (F.conv2d(gray.expand(-1, k.shape[1], -1, -1), k) for k in (kernel, changed))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    assert f"from {old} to {new}" in how
    assert old == new or f"times {old}/{new}" in how


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.fast_cases("5", "10")
def test_repeat_cycles(seed):
    rng = random.Random(seed)
    old, new = rng.randint(1, 6), rng.randint(1, 14)
    kernel = _kernel(rng, old)
    changed, how = BandRule("repeat").apply(kernel, new, "image")
    for band in range(new):
        torch.testing.assert_close(changed[:, band], kernel[:, band % old] * (old / new))
    if new % old == 0:
        gray = torch.randn(2, 1, 8, 8)
        before, after = (F.conv2d(gray.expand(-1, k.shape[1], -1, -1), k) for k in (kernel, changed))
        torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    assert ("only" in how) == (new < old)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.fast_cases("5", "11")
def test_wavelengths_interpolate_each_value(seed):
    rng = random.Random(seed)
    old, new = rng.randint(1, 8), rng.randint(1, 12)
    theirs = rng.sample(range(400, 2500), old)
    ours = [rng.uniform(300, 2700) for _ in range(new)]
    kernel = _kernel(rng, old).double()
    changed, _ = BandRule("wavelength", ours, theirs).apply(kernel, new, "spectral")
    order = np.argsort(theirs)
    for o in range(kernel.shape[0]):
        for y in range(kernel.shape[2]):
            for x in range(kernel.shape[3]):
                # numpy's interpolation clamps at the ends too.
                by_hand = np.interp(ours, np.array(theirs)[order], kernel[o, :, y, x].numpy()[order]) * old / new
                np.testing.assert_allclose(changed[o, :, y, x].numpy(), by_hand, rtol=1e-9, atol=1e-12)


def test_wavelengths_of_colour_images_by_hand():
    kernel = torch.tensor([6.0, 4.0, 2.0]).view(1, 3, 1, 1)  # red, green, blue
    # Infrared takes red's, violet blue's; halfway between green and red the mean of both.
    changed, how = BandRule("wavelength", (842, 400, 612.5, 560)).apply(kernel, 4, "image")
    assert (changed.flatten() / 0.75).tolist() == pytest.approx([6, 2, 5, 4])
    assert "665, 560, 490 nm" in how
    same, how = BandRule("wavelength", RGB_NM).apply(kernel, 3, "image")
    assert torch.equal(same, kernel)
    assert how == ""
    # Three bands that are not red, green and blue are other bands, though they are three.
    rule = BandRule("wavelength", (842, 665, 560))
    assert rule.applies(kernel, 3, "image")
    assert rule.apply(kernel, 3, "image")[0].flatten().tolist() == pytest.approx([6, 6, 4])


def test_wavelengths_by_stream():
    rule = BandRule("wavelength", {"image": RGB_NM, "spectral": (400, 700)}, {"image": RGB_NM, "spectral": (500,)})
    kernel = torch.randn(2, 1, 1, 1)
    torch.testing.assert_close(rule.apply(kernel, 2, "spectral")[0], kernel.expand(-1, 2, -1, -1) / 2)
    with pytest.raises(WeightsError, match="source_wavelengths for 4 bands of 'spectral', got 1 value"):
        rule.apply(torch.randn(2, 4, 1, 1), 2, "spectral")
    with pytest.raises(WeightsError, match="band_wavelengths for 5 bands of 'image', got 3 values"):
        rule.apply(torch.randn(2, 3, 1, 1), 5, "image")
    # The three bands of a spectral input are not taken for red, green and blue.
    with pytest.raises(WeightsError, match="source_wavelengths for 3 bands of 'spectral', got none"):
        BandRule("wavelength", (400, 500)).apply(torch.randn(2, 3, 1, 1), 2, "spectral")


def test_half_precision_stays():
    kernel = torch.randn(4, 3, 4, 4).bfloat16()
    assert BandRule("mean").apply(kernel, 5, "image")[0].dtype == torch.bfloat16
    assert resize_patches(kernel, (7, 3)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("average", None), "one of mean, repeat, wavelength, got 'average'"),
        (("wavelength", None), "needs band_wavelengths"),
        (("mean", (500,)), "band_wavelengths needs bands='wavelength'"),
        ((None, (500,)), "need bands='wavelength'"),
        (("wavelength", (500, -1)), "in nm"),
        (("wavelength", (500, float("nan"))), "in nm"),
        (("wavelength", ()), "in nm"),
        (("wavelength", "665"), "in nm"),
        (("mean", None, (500,)), "source_wavelengths needs"),
    ],
)
def test_wrong_rules_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_band_rule(*arguments)


def test_equal_source_wavelengths_are_refused():
    with pytest.raises(WeightsError, match="must differ"):
        BandRule("wavelength", (500,), (400, 400)).apply(torch.randn(1, 2, 1, 1), 1, "image")


def _resize(patches, size):
    return F.interpolate(patches, size=size, mode="bicubic", antialias=True, align_corners=False)


@pytest.mark.parametrize("seed", range(8))
def test_enlarged_patches_give_the_old_responses(seed):
    rng = random.Random(seed)
    old = (rng.randint(2, 8), rng.randint(2, 8))
    new = (old[0] + rng.randint(0, 9), old[1] + rng.randint(1, 9))
    kernel = _kernel(rng, rng.randint(1, 4), old).double()
    resized = resize_patches(kernel, new)
    assert resized.shape == (*kernel.shape[:2], *new)
    patches = torch.randn(20, kernel.shape[1], *old, dtype=torch.float64)
    before = torch.einsum("bchw,ochw->bo", patches, kernel)
    after = torch.einsum("bchw,ochw->bo", _resize(patches, new), resized)
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("seed", range(8))
def test_reduced_patches_are_the_least_squares(seed):
    rng = random.Random(seed)
    old = (rng.randint(4, 9), rng.randint(4, 9))
    new = (rng.randint(1, old[0]), rng.randint(1, old[1] - 1))
    kernel = _kernel(rng, 2, old).double()
    units = torch.eye(old[0] * old[1], dtype=torch.float64).view(-1, 1, *old)
    matrix = _resize(units, new).flatten(1)  # (old, new)
    # min |B^T w' - w|^2 for white-noise patches, solved by another method than the code's.
    wanted = torch.linalg.lstsq(matrix, kernel.flatten(2).flatten(0, 1).t()).solution.t().reshape(-1, 2, *new)
    torch.testing.assert_close(resize_patches(kernel, new), wanted)


def test_equal_patches_are_left_alone():
    kernel = torch.randn(2, 3, 5, 4)
    assert resize_patches(kernel, (5, 4)) is kernel
