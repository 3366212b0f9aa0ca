"""Whole batches: streams together, hiding, mixing, presets and their settings."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from vitrail.config import DataConfig
from vitrail.config.augment import PRESETS, AugmentSettings, augment_settings
from vitrail.data.augment import Mixing, build_augmentation
from vitrail.data.augment.erasing import blur
from vitrail.data.normalization import NormalizeStreams
from vitrail.errors import ConfigError

CHANGING = [name for name in PRESETS if name != "none"]


@pytest.mark.parametrize("preset", CHANGING)
@pytest.mark.parametrize("bands", [1, 3, 5])
@pytest.mark.fast_cases("1-light", "1-leaf", "3-strong", "3-leaf")
def test_shape_and_range_stay_and_a_seed_repeats(preset, bands):
    x = torch.rand(6, bands, 14, 18)
    before = x.clone()
    augment = build_augmentation(preset, bands)
    outputs = []
    for other in (3, 8):  # random numbers of others before it make no difference once the seed is set
        torch.rand(other)
        torch.manual_seed(5)
        outputs.append(augment({"image": x})["image"])
    assert outputs[0].shape == x.shape
    assert outputs[0].min() >= -1e-5
    assert outputs[0].max() <= 1 + 1e-5
    assert torch.equal(*outputs)
    assert torch.equal(x, before)
    assert not torch.equal(outputs[0], x)
    assert not torch.equal(augment({"image": x})["image"], outputs[0])
    assert not augment.state_dict()


@pytest.mark.parametrize("preset", CHANGING)
@pytest.mark.parametrize("seed", [0, 3])
def test_mixed_precision_changes_nothing(preset, seed):
    x = {"image": torch.rand(5, 3, 20, 24), "spectral": torch.rand(5, 4, 10, 12)}
    augment = build_augmentation(preset, 3)
    torch.manual_seed(seed)
    plain = augment(x)
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = augment(x)
    assert all(torch.equal(plain[name], mixed[name]) for name in x)


def test_nothing_to_change_is_none():
    assert build_augmentation("none", 3) is None
    assert build_augmentation("none", 3, {"flip_vertical": 0.5}) is not None
    assert build_augmentation("standard", 3, {"crop_area": [1, 1], "flip_horizontal": 0, "brightness": 0.0,
                              "contrast": 0, "saturation": 0, "hue": 0, "color_probability": 1}) is None  # fmt: skip


@pytest.mark.parametrize("preset", CHANGING)
def test_streams_move_together_and_colour_stays_with_the_image(preset):
    image = torch.rand(32, 3, 16, 16)
    stack = torch.cat([image, 1 - image], dim=1)
    moved = build_augmentation(preset, 1)({"image": image, "spectral": stack})  # other than three bands: no colour
    assert torch.equal(moved["image"], moved["spectral"][:, :3])
    if preset != "light":
        colored = build_augmentation(preset, 3)({"image": image, "spectral": image})
        assert not torch.allclose(colored["image"], colored["spectral"])
    other = build_augmentation(preset, 3)({"image": image, "spectral": torch.rand(32, 2, 8, 8)})
    assert other["spectral"].shape == (32, 2, 8, 8)


def test_blur_is_scipys():
    x = torch.rand(3, 2, 40, 30)
    sigma = torch.tensor([0.4, 1.0, 2.5])
    out = blur(x, sigma)
    for i in range(3):
        expected = gaussian_filter(x[i].numpy(), sigma[i].item(), mode="mirror", axes=(1, 2), truncate=8)
        assert abs(out[i].numpy() - expected).max() < 5e-3
    assert blur(torch.rand(2, 1, 2, 3), torch.tensor([4.0, 4.0])).shape == (2, 1, 2, 3)


def test_what_is_erased_is_the_mean():
    means = {"image": [0.1, 0.2, 0.3], "spectral": [0.4, 0.5]}
    streams = {"image": torch.rand(400, 3, 20, 20) + 2, "spectral": torch.rand(400, 2, 10, 10) + 2}
    normalize = NormalizeStreams({name: (mean, [1.0] * len(mean)) for name, mean in means.items()})

    def erased(**changes):
        changed = build_augmentation("none", 3, changes, means)(streams)
        return [v.abs() < 1e-6 for v in normalize(changed)]

    image, spectral = erased(erase=0.5, erase_area=[0.2, 0.3])
    share = image.float().mean((1, 2, 3))
    hit = share > 0
    assert 0.4 < hit.float().mean() < 0.6
    assert 0.12 < share[hit].min() < share[hit].max() < 0.4
    assert (image.all(1) == image.any(1)).all()  # all bands at the same place
    # A pixel of the small stream is erased where the middle of its four in the large one is.
    large = image[:, :1].float().view(400, 1, 10, 2, 10, 2).mean((3, 5))
    assert ((large == 1) <= spectral[:, :1]).all()
    assert (spectral[:, :1] <= (large > 0)).all()

    image, spectral = erased(band_dropout=0.7)
    for stream in (image, spectral):
        gone = stream.flatten(2).all(2)
        assert (gone == stream.flatten(2).any(2)).all()
        assert not gone.all(1).any()
        assert gone.any()
    image, spectral = (v.flatten(1).all(1) for v in erased(stream_dropout=0.8))
    assert not (image & spectral).any()
    assert 0.7 < (image | spectral).float().mean() < 0.9
    assert min(image.sum(), spectral.sum()) > 100
    only = build_augmentation("none", 3, {"stream_dropout": 1.0})({"image": streams["image"]})
    assert torch.equal(only["image"], streams["image"])


@pytest.mark.parametrize("changes", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 0.7},
                                     {"mixup": 0.4, "mix_probability": 0.3}])  # fmt: skip
def test_shares_are_those_of_the_pixels(changes):
    """An image of class k has ones in band k alone: what the bands hold on average after mixing are the shares."""
    classes, count = 5, 200
    target = torch.randint(classes, (count,))
    image = torch.eye(classes)[target][:, :, None, None].expand(-1, -1, 12, 20)
    mixed, shares = Mixing(augment_settings("none", changes), classes)({"image": image, "spectral": image}, target)
    assert torch.allclose(mixed["image"].mean((2, 3)), shares, atol=1e-5)
    assert torch.equal(mixed["image"], mixed["spectral"])
    assert torch.allclose(shares.sum(1), torch.ones(count))
    changed = (shares.max(1).values < 1).float().mean()
    assert (0.1 < changed < 0.4) if "mix_probability" in changes else changed > 0.4
    blended = ((mixed["image"] > 0) & (mixed["image"] < 1)).any()
    assert blended == ("mixup" in changes)
    several = (torch.rand(count, classes) < 0.4).float()
    multi = Mixing(augment_settings("none", changes), classes)(
        {"image": several[:, :, None, None].expand_as(image)}, several
    )
    assert torch.allclose(multi[0]["image"].mean((2, 3)), multi[1], atol=1e-5)


def test_settings_are_checked():
    cases = {
        "mixxup": (0.2, "unknown setting data.augmentation.mixxup; did you mean 'mixup'"),
        "flip_horizontal": (1.5, "must be a number from 0 to 1, got 1.5"),
        "erase": (True, "must be a number from 0 to 1, got True"),
        "crop_area": ([0.9, 0.3], "the smaller first"),
        "zoom": (1.1, "must be two numbers"),
        "auto": ("randaug", "did you mean 'randaugment'"),
        "auto_operations": (1.5, "a whole number from 1 to 14"),
        "padding": ("mirror", "zeros, border, reflection"),
        "mixup": (float("nan"), "must be a number"),
    }
    for name, (value, message) in cases.items():
        with pytest.raises(ConfigError, match=r"data.augmentation") as error:
            DataConfig(augmentation={name: value})
        assert message in str(error.value)
    with pytest.raises(ConfigError, match="did you mean 'strong'"):
        augment_settings("stronk")
    assert augment_settings("leaf", {"crop_area": [0.9, 1]}).crop_area == (0.9, 1.0)
    assert augment_settings("leaf").mixes is False
    assert AugmentSettings(mixup=0.1, mix_probability=0.0).mixes is False
