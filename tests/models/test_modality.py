"""Texts about images name the inputs of a run by what they are."""

import pytest

from vitrail.models.modality import IMAGE, POINTS, VIDEO, reword


@pytest.mark.parametrize(
    ("text", "clips", "clouds"),
    [
        ("1 image, 3 images.", "1 clip, 3 clips.", "1 point cloud, 3 point clouds."),
        ("An image of an image's images", "A clip of a clip's clips", "A point cloud of a point cloud's point clouds"),
        ("Images: 12.5 images/s", "Clips: 12.5 clips/s", "Point clouds: 12.5 point clouds/s"),
        ("image by image", "clip by clip", "point cloud by point cloud"),
        ("ImageNet, images_other, --image and data.images.resize", None, None),
        ("in /data/images, images/train, images.parquet and image-1.png", None, None),
        ("use `--image image` of `image`", None, None),
    ],
)  # fmt: skip
def test_reword(text, clips, clouds):
    assert reword(text, IMAGE) == text
    assert reword(text) == text
    assert reword(text, VIDEO, VIDEO) == (clips or text)
    assert reword(text, POINTS) == (clouds or text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The images of mirror image: 3 images", "The clips of mirror image: 3 clips"),
        ("an image (mirror image, 90 %)", "a clip (mirror image, 90 %)"),
        ("mirror\nimage", "mirror\nimage"),
        ("a double mirror image of an image", "a double mirror image of a clip"),
        ("remirror image", "remirror clip"),
        ("image", "image"),
        ("an image of image", "a clip of clip"),
        ("Run of images (v1) on images", "Run of images (v1) on clips"),
    ],
)
def test_names_remain(text, expected):
    names = ["image", "mirror image", "double mirror image", "walk", "Run of images (v1)"]
    assert reword(text, VIDEO, names=names) == expected


def test_several_kinds_are_inputs():
    assert reword("an image, all images", VIDEO, IMAGE) == "an input, all inputs"
