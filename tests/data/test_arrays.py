"""Arrays: images with labels, and scenes that are cut into patches, however they are stored."""

import numpy as np
import pytest
import scipy.io
import torch

from tests.settings import data_config
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.errors import ConfigError, DataError

H, W, C = 40, 33, 6


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    cube = rng.integers(0, 4000, (H, W, C)).astype(np.uint16)
    plane = rng.integers(0, 4, (H, W))
    return cube, plane


def opened(path, size=(5, 5), **settings):
    given = {"arrays__patch": 5, "arrays__block": 8, "scale": 4000.0, **settings}
    return open_data(data_config(source="arrays", path=str(path), **given), size)


def check_patches(data, cube, plane, side):
    for i in np.random.default_rng(1).integers(0, len(data.source), 40).tolist():
        top, left = map(int, data.source.keys[i].rsplit("/")[-1].split("_"))
        patch = data.source.load([i])["image"][0].numpy()
        assert np.allclose(patch, cube[top : top + side, left : left + side].transpose(2, 0, 1) / 4000, atol=1e-6)
        assert data.source.classes[data.source.targets[i]] == str(plane[top + side // 2, left + side // 2])


@pytest.mark.parametrize("layout", ["HWC", "CHW", "pixels", "pixels.T", "mat", "mat pixels"])
@pytest.mark.fast_cases("pixels", "mat", "mat pixels")
def test_every_layout_of_a_scene_gives_the_same_patches(tmp_path, scene, layout):
    cube, plane = scene
    settings = {"bands__names": tuple("abcdef"), "arrays__grid": None}
    if layout.startswith("mat"):
        path = tmp_path / "s.mat"
        flat = cube.transpose(2, 0, 1).reshape(C, H * W, order="C")
        by_column = np.stack([band.reshape(H, W).ravel(order="F") for band in flat])  # as MATLAB's reshape does
        stored = cube if layout == "mat" else by_column
        label = plane if layout == "mat" else plane.ravel(order="F")[None]
        content = {"Y": stored, "gt": label}
        if layout == "mat pixels":
            content |= {"nRow": H, "nCol": W}
        scipy.io.savemat(path, content)
        settings |= {"arrays__cube": "Y", "arrays__labels": "gt"}
    else:
        path = tmp_path / "s.npz"
        stored = {
            "HWC": cube,
            "CHW": cube.transpose(2, 0, 1),
            "pixels": cube.transpose(2, 0, 1).reshape(C, -1),
            "pixels.T": cube.reshape(-1, C),
        }[layout]
        np.savez(path, cube=stored, labels=plane)
        settings["arrays__grid"] = (H, W) if "pixels" in layout else None
    data = opened(path, **settings)
    assert data.source.bands == {"image": tuple("abcdef")}
    assert data.source.classes == ("1", "2", "3")
    assert len(data.source) == (plane[2 : H - 2, 2 : W - 2] > 0).sum()
    check_patches(data, cube, plane, 5)


def test_shares_become_the_largest_class(tmp_path, scene):
    cube, _ = scene
    shares = np.random.default_rng(2).random((3, H, W))
    shares[:, 10, 10] = 0
    np.savez(tmp_path / "s.npz", cube=cube, A=shares)
    data = opened(tmp_path / "s.npz", arrays__labels="A", classes__names=("tree", "water", "road"), arrays__patch=4)
    plane = np.array(["tree", "water", "road"])[shares.argmax(0)]
    assert len(data.source) == (H - 3) * (W - 3) - 1
    for i in range(0, len(data.source), 37):
        top, left = map(int, data.source.keys[i].rsplit("/")[-1].split("_"))
        assert data.source.classes[data.source.targets[i]] == plane[top + 2, left + 2]


def test_tiles_do_not_overlap_and_are_resized(tmp_path, scene):
    cube, plane = scene
    np.savez(tmp_path / "s.npz", cube=cube, labels=np.maximum(plane, 1))
    data = opened(tmp_path / "s.npz", (14, 12), arrays__patch=4, arrays__stride=4)
    assert len(data.source) == (H // 4) * (W // 4)
    assert data.source.load([0, 1])["image"].shape == (2, C, 14, 12)
    assert data.source.original_size(0) == (4, 4)
    assert set(data.splits) == {"train", "val", "test"}


def test_labels_may_lie_in_another_file(tmp_path, scene):
    cube, plane = scene
    np.save(tmp_path / "cube.npy", cube)
    np.save(tmp_path / "truth.npy", plane)
    data = opened(tmp_path / "cube.npy", arrays__labels="truth.npy")
    check_patches(data, cube, plane, 5)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_images_with_a_label_each(tmp_path, layout):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (50, 8, 9, 4)).astype(np.uint8)
    labels = rng.integers(0, 3, 50)
    stored = {"NHWC": images, "NCHW": images.transpose(0, 3, 1, 2), "NHW": images[..., 0]}[layout]
    np.savez(tmp_path / "i.npz", images=stored, labels=labels)
    names = ("r", "g", "b", "n") if layout != "NHW" else ("pan",)
    config = DataConfig(
        source="arrays", path=str(tmp_path / "i.npz"), bands={"names": names}, classes={"names": ("x", "y", "z")}
    )
    data = open_data(config, (8, 9))
    wanted = images[..., :1] if layout == "NHW" else images
    assert np.allclose(data.source.load(range(50))["image"].numpy().transpose(0, 2, 3, 1), wanted / 255, atol=1e-6)
    assert data.source.targets.tolist() == labels.tolist()
    assert data.source.scene is None
    batch = next(iter(data.loader("train", shuffle_seed=0)))
    assert torch.equal(batch["target"], torch.from_numpy(labels)[batch["index"]])


FAULTS = [
    ({"arrays__labels": "nothing"}, ConfigError, "no array 'nothing'"),
    ({"arrays__cube": "cueb"}, ConfigError, "no array 'cueb'.*did you mean 'cube'"),
    ({"arrays__patch": 60}, ConfigError, "data.arrays.patch 60 is more than"),
    ({"arrays__block": 40}, DataError, "would get no patch of.*data.arrays.block smaller"),
    ({"bands__names": ("a", "b")}, ConfigError, "2 names and .* 6 bands"),
    ({"classes__names": ("a", "b")}, DataError, "labels 3 have no name"),
    ({"split": "grouped"}, ConfigError, "does not apply to the patches"),
]


@pytest.mark.parametrize(("settings", "kind", "message"), FAULTS)
def test_faults(tmp_path, scene, settings, kind, message):
    cube, plane = scene
    np.savez(tmp_path / "s.npz", cube=cube, labels=plane)
    with pytest.raises(kind, match=message):
        opened(tmp_path / "s.npz", **settings)


def test_faulty_files(tmp_path, scene):
    cube, plane = scene
    np.savez(tmp_path / "s.npz", cube=cube.astype(np.float32), labels=plane[:-1])
    with pytest.raises(DataError, match=r"the labels have the shape \(39, 33\) and the scene is 40 x 33"):
        opened(tmp_path / "s.npz")
    np.savez(tmp_path / "s.npz", cube=cube.astype(np.float32), labels=plane)
    with pytest.raises(DataError, match="whose range is unknown"):
        opened(tmp_path / "s.npz", scale=None)
    np.savez(tmp_path / "p.npz", cube=np.array([{"a": 1}], dtype=object), labels=plane)
    with pytest.raises(DataError, match="cannot be read"):
        opened(tmp_path / "p.npz")
    (tmp_path / "b.mat").write_bytes(b"no matrix")
    with pytest.raises(DataError, match=r"b\.mat cannot be read"):
        opened(tmp_path / "b.mat")
    with pytest.raises(DataError, match="no file of arrays"):
        opened(tmp_path / "none.npy")
    (tmp_path / "x.txt").write_text("1")
    with pytest.raises(DataError, match=r"is not a \.npy, \.npz, \.mat or HDF5 file"):
        opened(tmp_path / "x.txt")


def test_images_and_labels_of_other_numbers(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((7, 5, 5, 3), np.uint8), labels=np.arange(6) % 2)
    with pytest.raises(DataError, match=r"images holds 7 images, .* labels have the shape \(6,\)"):
        opened(tmp_path / "x.npz")
