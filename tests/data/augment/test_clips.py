"""Clips: all frames change alike, as an image does, and flips leave classes that say a direction alone."""

from argparse import Namespace

import pytest
import torch

from tests.settings import data_config
from vitrail.cli.predict import _check_needs
from vitrail.config.augment import PRESETS, augment_settings
from vitrail.data import open_data
from vitrail.data.augment import Mixing, build_augmentation
from vitrail.data.augment.auto import _TRIVIALAUGMENT as STRONGEST
from vitrail.data.augment.auto import COLORS, OPERATIONS, SampledOperations, apply_color_operations
from vitrail.data.augment.contrastive import build_clip_views
from vitrail.data.augment.directions import classes_with_directions, keep_directions, warn_mirrored
from vitrail.errors import DataWarning
from vitrail.runs.trained import ModelCard, StreamCard
from vitrail.train.pretraining import _build_views

CHANGES = {
    "crop": {"crop_area": (0.2, 0.9)},
    "flips": {"flip_horizontal": 0.5, "flip_vertical": 0.5, "quarter_turns": 0.5},
    "affine": {"rotate": 40.0, "translate": 0.2, "zoom": (0.8, 1.3), "shear": 10.0, "padding": "reflection"},
    "colour": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale": 0.3},
    "randaugment": {"auto": "randaugment"},
    "trivialaugment": {"auto": "trivialaugment"},
    "blur": {"blur": 0.7},
    "erasing": {"erase": 0.7},
    "bands": {"band_dropout": 0.5},
}


def _changed(augment, name, x, seed):
    torch.manual_seed(seed)
    return augment({name: x})[name]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
@pytest.mark.fast_cases(
    "crop-0", "flips-0", "affine-2", "colour-0", "randaugment-1", "trivialaugment-0", "blur-2", "erasing-0", "bands-0"
)
def test_each_frame_of_a_clip_is_changed_as_an_image_is(changes, seed):
    """Of a clip whose frames are one image, each frame is what the same random numbers make of that image."""
    images = torch.rand(12, 3, 18, 18)
    means = [0.1, 0.2, 0.3]
    of_images = build_augmentation("none", 3, changes, {"image": means})
    of_clips = build_augmentation("none", 3, changes, {"video": means})
    expected = _changed(of_images, "image", images, seed)
    clips = _changed(of_clips, "video", images[:, :, None].expand(-1, -1, 4, -1, -1), seed)
    assert clips.shape == (12, 3, 4, 18, 18)
    assert not torch.equal(expected, images)
    for frame in clips.unbind(2):
        assert torch.equal(frame, clips[:, :, 0])
    if "auto" not in changes:  # equalising depends on the number of pixels
        assert torch.allclose(clips[:, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "none"])
@pytest.mark.fast_cases("light-0", "standard-1", "leaf-0")
def test_pixels_of_different_frames_take_the_same_way(preset, seed):
    """Frames that differ by their brightness alone differ so after any motion."""
    settings = {"auto": "none", "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "blur": 0, "erase": 0}
    frame = torch.rand(8, 1, 1, 20, 20)
    clip = torch.cat([frame, frame / 2, frame / 4], dim=2)
    moved = _changed(build_augmentation(preset, 1, settings), "video", clip, seed)
    assert not torch.allclose(moved, clip)
    assert torch.allclose(moved[:, :, :1] / 2, moved[:, :, 1:2], atol=1e-6)
    assert torch.allclose(moved[:, :, :1] / 4, moved[:, :, 2:], atol=1e-6)


@pytest.mark.parametrize("name", COLORS)
def test_colours_of_a_clip_go_by_all_of_its_frames(name):
    """A dark and a bright frame are not stretched apart from each other: the clip is one image of many rows."""
    clip = torch.rand(5, 3, 4, 10, 12) * torch.tensor([0.2, 0.5, 0.8, 1.0])[:, None, None]
    drawn = SampledOperations(torch.full((5, 1), OPERATIONS.index(name)), torch.linspace(-1, 1, 5)[:, None], STRONGEST)
    changed = apply_color_operations(clip, drawn)
    if name == "sharpness":  # a pixel's neighbours in its own frame
        expected = torch.stack([apply_color_operations(frame, drawn) for frame in clip.unbind(2)], dim=2)
    else:
        expected = apply_color_operations(clip.flatten(2, 3), drawn).view_as(clip)
    assert torch.allclose(changed, expected, atol=1e-6)


@pytest.mark.parametrize("changes", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 0.7}])
def test_all_frames_are_mixed_alike(changes):
    target = torch.randint(5, (40,))
    clips = torch.eye(5)[target][:, :, None, None, None].expand(-1, -1, 3, 8, 12)
    mixed, shares = Mixing(augment_settings("none", changes), 5)({"video": clips}, target)
    assert torch.equal(mixed["video"], mixed["video"][:, :, :1].expand(-1, -1, 3, -1, -1))
    assert torch.allclose(mixed["video"].mean((2, 3, 4)), shares, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "horizontal", "vertical"),
    [
        ("left", True, False),
        ("Swiping_Left", True, False),
        ("swipingLeft", True, False),
        ("pushing something from right to left", True, False),
        ("up-right", True, True),
        ("Rolling Hand Clockwise", True, True),
        ("leftover food", False, False),
        ("bright", False, False),
        ("supper", False, False),
    ],
)
@pytest.mark.fast_cases("left-True-False", "supper-False-False")
def test_words_of_directions(name, horizontal, vertical):
    assert bool(classes_with_directions("flip_horizontal", [name])) == horizontal
    assert bool(classes_with_directions("flip_vertical", [name])) == vertical


def test_flips_of_a_preset_are_off_where_classes_say_a_direction(capsys):
    assert keep_directions("standard", {}, ["walk", "run"]) == {}
    assert keep_directions("light", {}, ["left", "right"]) == {}
    assert capsys.readouterr().err == ""
    assert keep_directions("standard", {"hue": 0.0}, ["turn left", "walk"]) == {"hue": 0.0, "flip_horizontal": 0.0}
    assert capsys.readouterr().err == (
        "flip_horizontal of data.augment standard is off: classes say a direction (turn left); "
        "data.augmentation.flip_horizontal forces it\n"
    )
    assert keep_directions("leaf", {}, ["up"]) == {"flip_vertical": 0.0, "rotate": 0.0}
    assert keep_directions("leaf", {"rotate": 30.0}, ["up"]) == {"rotate": 30.0, "flip_vertical": 0.0}
    assert keep_directions("leaf", {}, ["clockwise"]) == {"flip_horizontal": 0.0, "flip_vertical": 0.0}


def test_a_flip_that_is_set_stays_with_a_warning():
    with pytest.warns(DataWarning, match=r"data\.augmentation\.flip_horizontal 0\.3 flips or rotates clips whose"):
        assert keep_directions("none", {"flip_horizontal": 0.3}, ["left"]) == {"flip_horizontal": 0.3}
    assert keep_directions("standard", {"flip_horizontal": 0.0}, ["left"]) == {"flip_horizontal": 0.0}


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"quarter_turns": 0.5}, "quarter_turns 0.5 .* set it to 0"),
        ({"rotate": 46.0}, "rotate 46 .* use 45 at most"),
        ({"auto": "trivialaugment"}, "auto trivialaugment .* use randaugment"),
    ],
)
def test_rotations_that_make_one_direction_another_are_warned_of(changes, remedy, recwarn):
    for classes in (["walk", "run"], ["clockwise"]):
        assert keep_directions("none", changes, classes) == changes
    assert keep_directions("none", {"rotate": 45.0, "auto": "randaugment"}, ["left", "up"])
    assert not recwarn.list
    for classes in (["left"], ["up"]):
        with pytest.warns(DataWarning, match=rf"data\.augmentation\.{remedy}"):
            assert keep_directions("none", changes, classes) == changes


@pytest.mark.parametrize("tta", ["mirror", "flips", "turns", "crops", "none"])
def test_mirrored_views_of_directions_are_warned_of(tta, recwarn):
    warn_mirrored(tta, ["walk", "run"])
    assert not recwarn.list
    what = {"mirror": "mirrored", "flips": "mirrored", "turns": "mirrored and rotated"}
    wrong = {"turn left": ("mirror", "flips", "turns"), "up": ("flips", "turns"), "clockwise": tuple(what)}
    for name, views in wrong.items():
        recwarn.clear()
        warn_mirrored(tta, ["walk", name])
        assert [str(warning.message) for warning in recwarn.list] == (
            [f"--tta {tta} averages over {what[tta]} clips, and classes say a direction ({name}); leave it out"]
            if tta in views
            else []
        )


@pytest.mark.parametrize("num_bands", [1, 3, 4])
def test_views_of_clips_change_all_frames_alike(num_bands):
    clips = torch.rand(16, num_bands, 1, 12, 12).expand(-1, -1, 3, -1, -1)
    torch.manual_seed(0)
    (seen,) = build_clip_views(num_bands)({"video": clips}).values()
    assert torch.allclose(seen, seen[:, :, :1].expand_as(seen), atol=1e-6)
    # Whole frames that are not mirrored, of one value each: colours alone are left to change.
    even = torch.linspace(0.2, 0.8, 16)[:, None, None, None, None].expand(-1, num_bands, 3, 12, 12)
    settings = {"min_scale": 1.0, "flips": False}
    for strength, changed in ((0.0, False), (0.5, True)):
        (seen,) = build_clip_views(num_bands, strength=strength, **settings)({"video": even}).values()
        assert torch.allclose(seen, even, atol=1e-5) != changed
    assert 0 <= seen.min() < seen.max() <= 1


def test_views_of_clips_are_mirrored_only_where_no_class_says_left_or_right():
    """A ramp along the columns shows the side."""
    card = ModelCard("vivit", {}, (), {"video": StreamCard(("gray",), (0.0,), (1.0,), (2, 8, 8))}, color="gray")
    ramp = torch.linspace(0, 1, 8).expand(64, 1, 2, 8, 8)
    for classes, mirrored in ((("walk", "run"), True), (("left", "right"), False), ((), True)):
        (seen,) = _build_views(card, classes, 0.5, 0.0)({"video": ramp}).values()
        assert bool((seen[..., 0] > seen[..., -1]).any()) == mirrored


@pytest.mark.parametrize("tta", ["mirror", "none"])
def test_mirrored_views_are_warned_of_by_predict(tta, recwarn):
    stream = StreamCard(("gray",), (0.0,), (1.0,), (2, 8, 8))
    card = ModelCard("vivit", {}, ("left", "right"), {"video": stream}, color="gray")
    _check_needs(Namespace(tta=tta, step=None, window=None, overlay=None), card)
    assert [str(warning.message).startswith("--tta mirror averages") for warning in recwarn.list] == [True] * (
        tta == "mirror"
    )


def test_augmentation_of_opened_clips(capsys):
    settings = {"augment": "standard", "augmentation": {"crop_area": (1.0, 1.0)}}
    data = open_data(data_config(source="moving_digits", **settings), (3, 12, 12))
    clips = data.batch([0, 4, 9])["video"]
    # Nothing is left to change: gray clips, whole frames, and directions.
    assert torch.equal(data.augmentation()({"video": clips})["video"], clips)
    assert "flip_horizontal of data.augment standard is off" in capsys.readouterr().err
