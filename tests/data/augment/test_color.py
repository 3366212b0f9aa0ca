"""Colours and the operations of RandAugment against Pillow's."""

import numpy as np
import pytest
import torch
from kornia.color import rgb_to_hsv
from kornia.enhance import adjust_hue
from PIL import Image, ImageEnhance, ImageOps

from vitrail.config.augment import AugmentSettings
from vitrail.data.augment import auto
from vitrail.data.augment.color import GRAY, apply_color_matrices, color_jitter, hue_matrices


def _images(count=3, size=(17, 12), seed=0):
    rng = np.random.default_rng(seed)
    # Not the whole range, so that stretching has something to do; some smoothness, so that histograms are uneven.
    arrays = (rng.beta(2, 3, (count, *size, 3)) * 200 + 20).astype(np.uint8)
    return [Image.fromarray(a) for a in arrays], torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


def _tensor(images):
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 255


def _drawn(name, strengths, trivial=False):
    operations = torch.full((len(strengths), 1), auto.OPERATIONS.index(name))
    most = auto._TRIVIALAUGMENT if trivial else auto._RANDAUGMENT
    return auto.SampledOperations(operations, torch.tensor(strengths)[:, None], most)


ENHANCED = {"color": ImageEnhance.Color, "contrast": ImageEnhance.Contrast, "brightness": ImageEnhance.Brightness,
            "sharpness": ImageEnhance.Sharpness}  # fmt: skip


@pytest.mark.parametrize("name", ENHANCED)
def test_enhancements_are_pillows(name):
    images, x = _images()
    strengths = [-0.8, 0.3, 1.0]
    expected = _tensor([ENHANCED[name](i).enhance(1 + 0.9 * s) for i, s in zip(images, strengths, strict=True)])
    changed = auto.apply_color_operations(x, _drawn(name, strengths))
    assert (changed - expected).abs().max() <= 2.1 / 255  # Pillow rounds at every step


def test_the_other_operations_are_pillows():
    images, x = _images(seed=1)
    cases = {
        "autocontrast": [ImageOps.autocontrast(i) for i in images],
        "equalize": [ImageOps.equalize(i) for i in images],
        "posterize": [ImageOps.posterize(i, bits) for i, bits in zip(images, (4, 6, 8), strict=True)],
        "solarize": [ImageOps.solarize(i, t) for i, t in zip(images, (0, 128, 256), strict=True)],
    }
    for name, expected in cases.items():
        changed = auto.apply_color_operations(x, _drawn(name, [-1.0, 0.5, 0.0]))
        tolerance = 1.1 / 255 if name in ("autocontrast", "equalize") else 1e-5
        assert (changed - _tensor(expected)).abs().max() <= tolerance, name


def test_constant_images_stay():
    x = torch.full((2, 3, 6, 6), 0.4)
    assert torch.allclose(auto.apply_color_operations(x, _drawn("autocontrast", [1.0, 1.0])), x)
    assert auto.apply_color_operations(x, _drawn("equalize", [1.0, 1.0])).isfinite().all()


def test_hue_turns_as_in_hsv_and_keeps_luma():
    x = torch.rand(4, 3, 9, 9) * 0.4 + 0.3
    share = torch.tensor([-0.08, -0.02, 0.03, 0.1])
    turned = apply_color_matrices(x, hue_matrices(share), torch.zeros(4, 3))
    gray = torch.tensor(GRAY)[:, None, None]
    assert torch.allclose((turned * gray).sum(1), (x * gray).sum(1), atol=1e-5)
    # In HSV, the way and about the amount agree with kornia's.
    for i in range(4):
        wanted, got = (rgb_to_hsv(v[None])[:, 0] for v in (adjust_hue(x[i], share[i] * 2 * torch.pi), turned[i]))
        far = torch.remainder(got - wanted + torch.pi, 2 * torch.pi) - torch.pi
        assert far.abs().median() < 0.35 * abs(share[i]) * 2 * torch.pi + 0.01


def test_jitter_is_the_sequence_of_its_parts():
    x = torch.rand(5, 3, 8, 7) * 0.5 + 0.25
    gray = torch.tensor(GRAY)[:, None, None]
    mean = (x * gray).sum(1).mean((1, 2))[:, None, None, None]
    only = {"brightness": 0.2, "contrast": 0.3, "saturation": 0.4}
    for name, most in only.items():
        torch.manual_seed(3)
        changed = color_jitter(x, AugmentSettings(**{name: most}))
        torch.manual_seed(3)
        torch.rand(5), torch.randperm(4)
        amount = ((2 * torch.rand(5) - 1) * most)[:, None, None, None]
        towards = {"brightness": 0.0, "contrast": mean, "saturation": (x * gray).sum(1, keepdim=True)}[name]
        expected = (x + amount * (x - towards)).clamp(0, 1)
        assert torch.allclose(changed, expected, atol=1e-5), name
    together = color_jitter(x, AugmentSettings(**only, hue=0.1, color_probability=0.5))
    same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(together, x, strict=True)]
    assert 0 < sum(same) < 5
    assert torch.allclose(*color_jitter(x, AugmentSettings(grayscale=1.0))[:, :2].unbind(1), atol=1e-6)


@pytest.mark.parametrize("kind", ["randaugment", "trivialaugment"])
def test_each_image_draws_its_own(kind):
    drawn = auto.sample_operations(AugmentSettings(auto=kind, auto_magnitude=15), 2000, True)
    assert drawn.operations.shape == (2000, 1 if kind == "trivialaugment" else 2)
    share = torch.bincount(drawn.operations.flatten(), minlength=14) / drawn.operations.numel()
    assert (share - 1 / 14).abs().max() < 0.03
    assert drawn.strength.abs().unique().numel() == (31 if kind == "trivialaugment" else 1)
    assert 0.45 < (drawn.strength > 0).float().mean() < 0.55
    plain = auto.sample_operations(AugmentSettings(auto=kind), 500, False)
    assert plain.operations.max() == len(auto.MOTIONS)
    assert auto.operation_matrices(drawn, (9, 9)).shape == (2000, 3, 3)
