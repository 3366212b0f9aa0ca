"""Which axis of an array holds the bands."""

import numpy as np
import pytest

from tests.settings import data_config
from vitrail.data import open_data
from vitrail.errors import DataError


def opened(path, x, labels, **settings):
    np.savez(path, x=x, labels=labels)
    config = data_config(
        source="arrays", path=str(path), arrays__cube="x", arrays__patch=3, arrays__block=4, **settings
    )
    return open_data(config, (4, 4))


CLEAR = [((3, 8, 8), None), ((1, 8, 8), None), ((8, 8, 3), None), ((8, 8, 1), None), ((6, 9, 3), None),
         ((3, 6, 9), None), ((8, 8, 4), 4), ((4, 8, 8), 4), ((3, 3, 7), 7), ((7, 3, 3), 7), ((3, 3, 4), 4)]  # fmt: skip
ASKED = [((8, 8, 8), None), ((8, 8, 8), 8), ((5, 5, 9), None), ((3, 8, 3), None), ((4, 8, 4), 4), ((9, 5, 5), None)]


def names(number):
    return None if number is None else tuple(f"b{i}" for i in range(number))


@pytest.mark.parametrize(("shape", "number"), CLEAR)
@pytest.mark.fast_cases("shape0-None", "shape8-7")
def test_images_of_one_possible_layout(tmp_path, shape, number):
    x = np.random.default_rng(0).integers(0, 255, (10, *shape)).astype("uint8")
    first = shape[0] == number or (number is None and shape[0] < min(shape[1:]))
    data = opened(tmp_path / "x.npz", x, np.arange(10) % 2, bands__names=names(number))
    assert len(data.source.bands["image"]) == (shape[0] if first else shape[2])


@pytest.mark.parametrize(("shape", "number"), ASKED)
@pytest.mark.fast_cases("shape2-None", "shape4-4")
def test_images_of_two_possible_layouts_are_asked_about(tmp_path, shape, number):
    x = np.random.default_rng(0).integers(0, 255, (10, *shape)).astype("uint8")
    with pytest.raises(DataError, match=r"are the bands last or first\? .*--data.arrays.layout channels_last"):
        opened(tmp_path / "x.npz", x, np.arange(10) % 2, bands__names=names(number))
    for layout, bands in (("channels_first", shape[0]), ("channels_last", shape[2])):
        if number in (None, bands):
            data = opened(tmp_path / "x.npz", x, np.arange(10) % 2, bands__names=names(number), arrays__layout=layout)
            assert len(data.source.bands["image"]) == bands


@pytest.mark.parametrize("flat", [True, False])
def test_scenes_follow_their_label_plane(tmp_path, flat):
    rng = np.random.default_rng(1)
    x, plane = rng.integers(0, 255, (5, 20, 24)).astype("uint8"), rng.integers(1, 3, (20, 24))
    plane = plane.ravel() if flat else plane
    seen = [opened(tmp_path / "s.npz", cube, plane).source.load([0, 3])["image"] for cube in (x, x.transpose(1, 2, 0))]
    assert (seen[0] == seen[1]).all()
    assert seen[0].shape[1] == 5


def test_scenes_that_are_cubes_are_asked_about(tmp_path):
    rng = np.random.default_rng(2)
    x, plane = rng.integers(0, 255, (20, 20, 20)).astype("uint8"), rng.integers(1, 3, (20, 20))
    with pytest.raises(DataError, match=r"are the bands last or first\?"):
        opened(tmp_path / "s.npz", x, plane)
    first = opened(tmp_path / "s.npz", x, plane, arrays__layout="channels_first").source.load([0])["image"]
    last = opened(tmp_path / "s.npz", x.transpose(1, 2, 0), plane, arrays__layout="channels_last").source.load([0])[
        "image"
    ]
    assert (first == last).all()
