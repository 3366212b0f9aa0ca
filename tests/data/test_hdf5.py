"""Arrays in HDF5: the rules of .npz, and MATLAB 7.3, which stores arrays with their axes reversed."""

import importlib.util

import h5py
import numpy as np
import pytest

from tests.settings import data_config
from vitrail.data import open_data
from vitrail.data.sources.hdf5 import read_hdf5
from vitrail.errors import ConfigError, DataError, VitrailError


def opened(path, **settings):
    return open_data(data_config(source="arrays", path=str(path), **settings), (8, 8)).source


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8), np.arange(40) % 2


@pytest.mark.slow_cases("-.hdf5")
@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
@pytest.mark.parametrize("prefix", ["", "/"])
def test_data_sets_by_their_paths(tmp_path, images, suffix, prefix):
    pixels, labels = images
    with h5py.File(tmp_path / f"x{suffix}", "w") as file:
        file["all/pixels"] = pixels
        file["all/kind"] = labels
        file["all/weight"] = np.zeros(40)
    source = opened(tmp_path / f"x{suffix}", arrays__cube=f"{prefix}all/pixels", arrays__labels=f"{prefix}all/kind")
    np.savez(tmp_path / "x.npz", pixels=pixels, kind=labels)
    same = opened(tmp_path / "x.npz", arrays__cube="pixels", arrays__labels="kind")
    assert source.targets.tolist() == same.targets.tolist() == labels.tolist()
    assert np.array_equal(source.load(range(40))["image"], same.load(range(40))["image"])
    with pytest.raises(ConfigError, match=r"which array of .* holds the labels"):
        opened(tmp_path / f"x{suffix}")
    with pytest.raises(ConfigError, match=r"has no array 'all/pixel'.* did you mean 'all/pixels'"):
        opened(tmp_path / f"x{suffix}", arrays__cube="all/pixel", arrays__labels="all/kind")


@pytest.mark.parametrize("kind", ["variable", "fixed"])
def test_names_and_booleans(tmp_path, images, kind):
    pixels, labels = images
    names = np.array(["blé", "maïs"])[labels]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = pixels
        dtype = h5py.string_dtype("utf-8", None if kind == "variable" else 8)
        content = np.char.encode(names, "utf-8")
        file.create_dataset("labels", data=content.astype(object if kind == "variable" else dtype), dtype=dtype)
        file["flags"] = labels.astype(bool)
    assert opened(tmp_path / "x.h5").classes == ("blé", "maïs")
    assert opened(tmp_path / "x.h5", arrays__labels="flags").targets.tolist() == labels.tolist()


def write_matlab(path, variables):
    """A file as MATLAB 7.3 writes it: a header of 512 bytes, axes reversed, the class of each variable an attribute."""
    with h5py.File(path, "w", userblock_size=512) as file:
        references = file.create_group("#refs#")

        def write(group, name, value):
            if isinstance(value, str):
                codes = np.frombuffer(value.encode("utf-16-le"), np.uint16)[:, None]  # 1 x N in MATLAB
                item = group.create_dataset(name, data=codes)
                item.attrs["MATLAB_class"] = np.bytes_("char")
                item.attrs["MATLAB_int_decode"] = np.int32(2)
            elif isinstance(value, list):
                cells = [write(references, f"{name}{i}", text).ref for i, text in enumerate(value)]
                item = group.create_dataset(name, data=np.array([cells], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)
                item.attrs["MATLAB_class"] = np.bytes_("cell")
            else:
                value = np.atleast_2d(value)
                stored = value.astype(np.uint8) if value.dtype == bool else value
                item = group.create_dataset(name, data=np.ascontiguousarray(stored.T))
                kinds = {"float64": "double", "float32": "single", "bool": "logical"}
                kind = kinds.get(str(value.dtype), str(value.dtype))
                item.attrs["MATLAB_class"] = np.bytes_(kind)
            return item

        for name, value in variables.items():
            write(file, name, value)
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Sun Nov 29 2026 HDF5 schema 1.00 ."
    with path.open("r+b") as file:
        file.write(header.ljust(116) + b" " * 8 + b"\x00\x02IM")


H, W, C = 30, 33, 6


def test_arrays_of_matlab_have_the_shape_that_they_have_in_matlab(tmp_path):
    cube = np.random.default_rng(0).random((H, W, C))
    mask = cube[..., 0] > 0.5
    write_matlab(tmp_path / "s.mat", {"cube": cube, "mask": mask, "names": ["soil", "blé"], "who": "me", "n": 3.0})
    arrays = read_hdf5(tmp_path / "s.mat")
    assert set(arrays) == {"cube", "mask", "names", "who", "n"}
    assert np.array_equal(arrays["cube"], cube)
    assert arrays["mask"].dtype == bool
    assert np.array_equal(arrays["mask"], mask)
    assert arrays["names"].tolist() == ["soil", "blé"]
    assert arrays["who"].tolist() == ["me"]
    assert arrays["n"].tolist() == [[3.0]]


@pytest.mark.fast_cases("False")
@pytest.mark.parametrize("flat", [False, True])
def test_a_scene_of_matlab_is_that_of_an_older_file(tmp_path, flat):
    import scipy.io

    rng = np.random.default_rng(0)
    cube, plane = rng.integers(0, 4000, (H, W, C)).astype(np.uint16), rng.integers(0, 4, (H, W))
    content = {"Y": cube, "gt": plane.astype(float)}
    if flat:  # bands x pixels, and the pixels column by column, as MATLAB's reshape makes them
        content = {
            "Y": cube.reshape(H * W, C, order="F").T,
            "gt": plane.reshape(1, -1, order="F"),
            "nRow": H,
            "nCol": W,
        }
    scipy.io.savemat(tmp_path / "old.mat", content)
    write_matlab(tmp_path / "new.mat", {**content, **({"nRow": float(H), "nCol": float(W)} if flat else {})})
    settings = {"arrays__cube": "Y", "arrays__labels": "gt", "scale": 4000.0, "arrays__patch": 5, "arrays__block": 8}
    old, new = (opened(tmp_path / f"{name}.mat", **settings) for name in ("old", "new"))
    assert len(old) > 100
    assert [key.split("/")[1] for key in old.keys] == [key.split("/")[1] for key in new.keys]
    assert old.classes == new.classes == ("1", "2", "3")
    assert np.array_equal(old.targets, new.targets)
    assert np.array_equal(old.load(range(50))["image"], new.load(range(50))["image"])
    top, left = new.scene.corners[7]
    wanted = cube[top : top + 5, left : left + 5].transpose(2, 0, 1) / 4000
    config = data_config(source="arrays", path=str(tmp_path / "new.mat"), **settings)
    assert np.allclose(open_data(config, (5, 5)).source.load([7])["image"][0], wanted, atol=1e-6)


def test_large_arrays_that_nothing_names_are_not_read(tmp_path, images):
    pixels, labels = images
    with h5py.File(tmp_path / "x.any", "w") as file:  # recognised by its content
        file["images"], file["labels"], file["names"] = pixels, labels, np.array(["a", "b"], dtype=object)
        file["large"] = np.zeros(2**16 + 1)
    assert set(read_hdf5(tmp_path / "x.any", {"images", "labels"})) == {"images", "labels", "names"}
    source = opened(tmp_path / "x.any", arrays__cube="images", arrays__labels="/labels")
    assert source.classes == ("a", "b")


def test_links_to_other_files_are_not_followed(tmp_path, images):
    pixels, labels = images
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = pixels
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"], file["labels"] = pixels, labels
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/secret")
    assert set(read_hdf5(tmp_path / "x.h5")) == {"images", "labels"}


def test_what_is_no_hdf5_and_what_holds_nothing(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"x\.h5 cannot be read"):
        opened(tmp_path / "x.h5")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["table"] = np.zeros(3, dtype=[("a", "i4"), ("b", "f4")])
    with pytest.raises(DataError, match="holds no array of numbers or texts"):
        opened(tmp_path / "y.h5")


def test_without_the_extra(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = np.zeros(3)
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "h5py" else known(name, *rest))
    with pytest.raises(VitrailError, match=r"h5py is not installed; install it with `pip install 'vitrail\[hdf5\]'`"):
        opened(tmp_path / "x.h5")
