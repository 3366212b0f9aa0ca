"""Labels in arrays: numbers of every type, names, one-hot rows, planes with unlabelled pixels."""

import numpy as np
import pytest
import scipy.io

from tests.settings import data_config
from vitrail.data import open_data
from vitrail.errors import ConfigError, DataError

NAMES = ("soil", "rust", "healthy")


def stack(number=60, shape=(8, 8), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, *shape)).astype(np.uint8)


def opened(path, classes=None, **settings):
    return open_data(data_config(source="arrays", path=str(path), **settings), (8, 8), classes).source


def save(path, images, labels, **more):
    np.savez(path, images=images, labels=labels, **more)
    return path


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.int64, np.float32, np.bool_, np.float16, str, "S8"])
@pytest.mark.parametrize("shape", [(60,), (60, 1), (1, 60)])
@pytest.mark.fast_cases("shape0-int8", "shape0-float32", "shape0-S8")
def test_the_type_of_labels_does_not_change_the_classes(tmp_path, dtype, shape):
    numbers = np.arange(60) % (2 if dtype is np.bool_ else 3)
    file = save(tmp_path / "x.npz", stack(), numbers.astype(dtype).reshape(shape))
    source = opened(file)
    assert source.classes == (("0", "1") if dtype is np.bool_ else ("0", "1", "2"))
    assert source.targets.tolist() == numbers.tolist()
    rest = save(tmp_path / "y.npz", stack()[numbers > 0], numbers[numbers > 0].astype(dtype))
    assert opened(rest, source.classes).targets.tolist() == numbers[numbers > 0].tolist()


def test_labels_that_are_names(tmp_path):
    names = np.array(["maïs", "blé ", "blé"])[np.arange(60) % 3]
    source = opened(save(tmp_path / "x.npz", stack(), names))
    assert source.classes == ("blé", "maïs")
    assert source.targets.tolist() == [1, 0, 0] * 20


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.bool_, np.int64])
@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (64, 12)])
@pytest.mark.fast_cases("shape0-uint8", "shape1-float32")
def test_one_hot_rows_are_classes(tmp_path, dtype, shape):
    numbers = np.arange(60) * 7 % 10
    np.save(tmp_path / "X.npy", stack(shape=shape))
    np.save(tmp_path / "Y.npy", np.eye(10, dtype=dtype)[numbers])
    source = opened(tmp_path / "X.npy", arrays__labels="Y.npy")
    assert source.classes == tuple(str(i) for i in range(10))
    assert source.targets.tolist() == numbers.tolist()
    assert source.scene is None
    named = opened(tmp_path / "X.npy", arrays__labels="Y.npy", classes__names=tuple("zyxwvutsrq"))
    assert [named.label(i) for i in range(60)] == ["zyxwvutsrq"[n] for n in numbers]
    assert named.numbering.values == tuple(range(10))
    # A column of a class without images stays that class's.
    np.save(tmp_path / "Z.npy", np.eye(10, dtype=dtype)[numbers % 9])
    assert opened(tmp_path / "X.npy", source.classes, arrays__labels="Z.npy").targets.max() == 8


@pytest.mark.parametrize("number", [0, 2])
def test_rows_of_several_or_no_1(tmp_path, number):
    rows = np.eye(4)[np.arange(60) % 4]
    rows[17] = 0
    rows[17, :number] = 1
    file = save(tmp_path / "x.npz", stack(), rows)
    message = rf"several or no 1 in 1 of 60 rows of labels \(row 17 has {number}\); .* data.classes.multi_label true"
    with pytest.raises(DataError, match=message):
        opened(file)
    source = opened(file, classes__multi_label=True, splitting__val_fraction=0, splitting__test_fraction=0)
    assert source.targets.tolist() == rows.astype(int).tolist()
    assert source.label(17) == ("" if number == 0 else "0+1")


def test_rows_that_are_neither(tmp_path):
    with pytest.raises(DataError, match=r"\(60, 4\) and are not all 0 or 1; give one number an image, or one-hot"):
        opened(save(tmp_path / "x.npz", stack(shape=(8, 8, 3)), np.full((60, 4), 0.25)))
    with pytest.raises(ConfigError, match=r"data.classes.multi_label needs labels \(N, K\) of 0 and 1"):
        opened(save(tmp_path / "x.npz", stack(), np.arange(60) % 3), classes__multi_label=True)
    with pytest.raises(DataError, match=r"the label 0\.5 is neither"):
        opened(save(tmp_path / "x.npz", stack(), np.arange(60) / 2))


def test_shares_and_binary_planes_over_a_scene_stay_planes(tmp_path):
    rng = np.random.default_rng(0)
    cube, side = rng.integers(0, 255, (40, 50, 6)).astype(np.uint8), {"arrays__patch": 5, "arrays__block": 10}
    plane = rng.integers(0, 2, (40, 50))
    shares = rng.random((3, 40, 50))
    for labels, classes in ((plane, ("1",)), (shares, ("1", "2", "3")), (shares.reshape(3, -1), ("1", "2", "3"))):
        file = save(tmp_path / "s.npz", cube, labels)
        if len(classes) == 1:
            with pytest.raises(DataError, match="one class only"):
                opened(file, **side)
            continue
        source = opened(file, **side)
        assert source.classes == classes
        assert source.scene is not None


def scene(tmp_path, plane):
    cube = np.random.default_rng(0).integers(0, 255, (*plane.shape, 6)).astype(np.uint8)
    return save(tmp_path / "s.npz", cube, plane)


def centres(source, plane):
    corners = source.scene.corners + 2
    return plane[corners[:, 0], corners[:, 1]].tolist()


def of_scene(path, classes=None, **settings):
    return opened(
        path,
        classes,
        arrays__patch=5,
        arrays__block=10,
        splitting__val_fraction=0.1,
        splitting__test_fraction=0.1,
        **settings,
    )


@pytest.mark.parametrize("low", [-1, 0])
def test_which_pixels_of_a_scene_are_unlabelled_is_certain_or_asked(tmp_path, low):
    plane = np.random.default_rng(1).integers(low, 3, (60, 60))
    file = scene(tmp_path, plane)
    with pytest.raises(ConfigError, match=r"Give data.classes.unlabelled_value"):
        of_scene(file, classes__names=NAMES)
    if low < 0:
        with pytest.raises(ConfigError, match=r"-1; 0; 1; 2: which number is unlabelled\? Give .*value -1"):
            of_scene(file)
        source = of_scene(file, classes__names=NAMES, classes__unlabelled_value=-1)
        found = centres(source, plane)
        assert min(found) == 0
        assert [source.label(i) for i in range(len(source))] == [NAMES[v] for v in found]
        assert source.numbering.values == (0, 1, 2)
        assert source.numbering.unlabelled_value == -1
        return
    counted_from_1 = of_scene(file, classes__names=NAMES, classes__unlabelled_value=0)
    assert {counted_from_1.label(i) for i in range(len(counted_from_1))} == {"soil", "rust"}
    every = of_scene(file, classes__names=NAMES, classes__unlabelled_value="none")
    assert [every.label(i) for i in range(len(every))] == [NAMES[v] for v in centres(every, plane)]
    assert len(every) > len(counted_from_1)


def test_a_large_number_for_unlabelled_pixels(tmp_path):
    plane = np.random.default_rng(1).choice([0, 1, 2, 255], (60, 60)).astype(np.uint8)
    file = scene(tmp_path, plane)
    with pytest.raises(
        ConfigError, match=r"0 to 2 and 255, and 3 classes have names .*data.classes.unlabelled_value 255"
    ):
        of_scene(file, classes__names=NAMES)
    source = of_scene(file, classes__names=NAMES, classes__unlabelled_value=255)
    assert [source.label(i) for i in range(len(source))] == [NAMES[v] for v in centres(source, plane)]


def test_unlabelled_images_are_left_out(tmp_path, capsys):
    labels = np.where(np.arange(60) % 4 == 3, -1, np.arange(60) % 4)
    file = save(tmp_path / "x.npz", stack(), labels)
    assert "-1" in opened(file).classes
    source = opened(file, classes__names=NAMES, classes__unlabelled_value=-1)
    assert "left out 15 images whose label is -1" in capsys.readouterr().err
    assert source.keys[3] == "x/00000004"
    assert [source.label(i) for i in range(45)] == [NAMES[n] for n in labels[labels >= 0]]
    assert np.allclose(source.load([3])["image"] * 255, stack()[4], atol=1e-3)
    with pytest.raises(DataError, match="no image is labelled"):
        opened(save(tmp_path / "y.npz", stack(), np.full(60, -1)), classes__unlabelled_value=-1)


def test_a_run_s_numbering_of_a_scene_holds_for_another(tmp_path):
    plane = np.random.default_rng(1).integers(0, 4, (60, 60))
    source = of_scene(scene(tmp_path, plane), classes__names=NAMES)
    assert [source.label(i) for i in range(len(source))] == [NAMES[v - 1] for v in centres(source, plane)]
    settings = {f"classes__{k}": v for k, v in vars(source.numbering).items() if v is not None}
    assert settings == {"classes__names": NAMES, "classes__values": (1, 2, 3), "classes__unlabelled_value": 0}
    plane = np.random.default_rng(2).choice([0, 2, 3], (60, 60))  # without the first class
    other = of_scene(scene(tmp_path, plane), NAMES, **settings)
    assert [other.label(i) for i in range(len(other))] == [NAMES[v - 1] for v in centres(other, plane)]
    with pytest.raises(DataError, match="labels -1 have no name"):
        of_scene(scene(tmp_path, np.where(plane == 0, -1, plane)), NAMES, **settings)


def test_names_in_a_file_of_matlab(tmp_path):
    plane = np.random.default_rng(1).integers(0, 4, (60, 60))
    cube = np.random.default_rng(0).integers(0, 255, (60, 60, 6)).astype(np.uint8)
    content = {"cube": cube, "gt": plane, "names": np.array(["soil", "rust", "healthy"], dtype=object)[:, None]}
    scipy.io.savemat(tmp_path / "s.mat", content)
    source = of_scene(tmp_path / "s.mat", arrays__labels="gt")
    assert source.classes == NAMES
    assert [source.label(i) for i in range(len(source))] == [NAMES[v - 1] for v in centres(source, plane)]
    settings = {f"classes__{k}": v for k, v in vars(source.numbering).items() if v is not None}
    content["names"] = content["names"][::-1]  # a file whose numbers are named otherwise
    scipy.io.savemat(tmp_path / "t.mat", content)
    other = of_scene(tmp_path / "t.mat", NAMES, arrays__labels="gt", **settings)
    assert [other.label(i) for i in range(len(other))] == [NAMES[3 - v] for v in centres(other, plane)]


@pytest.mark.parametrize("name", ["group", "groups"])
def test_an_array_of_groups_is_respected(tmp_path, name):
    groups = np.repeat(np.arange(12), 5)
    source = opened(save(tmp_path / "t.npz", stack(), np.arange(60) % 3, **{name: groups.astype(np.float32)}))
    assert source.groups == [str(g) for g in groups]


def test_labels_in_a_file_of_several_arrays_are_asked_for(tmp_path):
    np.save(tmp_path / "x.npy", stack(shape=(8, 8, 3)))
    target = np.arange(60) % 3
    np.savez(tmp_path / "l.npz", ids=np.arange(60), y=target)
    with pytest.raises(ConfigError, match=r"which array of .*l\.npz holds the labels.* call it labels"):
        opened(tmp_path / "x.npy", arrays__labels=str(tmp_path / "l.npz"))
    np.savez(tmp_path / "l.npz", ids=np.arange(60), labels=target)
    assert opened(tmp_path / "x.npy", arrays__labels=str(tmp_path / "l.npz")).targets.tolist() == target.tolist()
    np.savez(tmp_path / "l.npz", other=np.arange(100), y=target)
    assert opened(tmp_path / "x.npy", arrays__labels=str(tmp_path / "l.npz")).targets.tolist() == target.tolist()


@pytest.mark.parametrize("kind", ["U4", "S4"])
def test_names_in_the_file_may_be_bytes(tmp_path, kind):
    path = save(tmp_path / "t.npz", stack(), np.arange(60) % 3, names=np.array(["ant", "bee", "cat"], kind))
    assert opened(path).classes == ("ant", "bee", "cat")


def test_a_character_matrix_of_matlab_holds_names(tmp_path):
    names = np.array(["ant", "bee ", "wasp"])[np.arange(60) % 3]
    scipy.io.savemat(tmp_path / "t.mat", {"X": stack(shape=(8, 8, 3)), "y": names})
    assert opened(tmp_path / "t.mat").classes == ("ant", "bee", "wasp")
