"""A folder is a class only where it is one: splits by any name, masks, bands and unlabelled images are recognised."""

import pytest

from tests.images import make_folder, save_image
from tests.settings import data_config
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.sources.folder_names import are_bands, guess_split, images_and_masks
from vitrail.errors import DataError


def folder(path, **settings):
    return open_data(data_config(source="folder", path=str(path), **settings), (8, 8))


def fill(root, *paths, number=4):
    for path in paths:
        for i in range(number):
            save_image(root / path / f"{path.replace('/', '_')}_{i}.png", (9, 9), seed=i)
    return root


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Final_Training", "Final_Test"), ("images_train", "images_test"), ("TrainingSet", "ValidationSet"),
        ("train2017", "val2017"), ("seg_train", "seg_test"), ("Train Data", "Test Data"),
        ("dataset-train", "dataset-dev"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("below", ["", "Images/"])
@pytest.mark.fast_cases("Images/-Final_Training-Final_Test", "Images/-dataset-train-dataset-dev")
def test_splits_by_other_names_are_no_classes(tmp_path, train, test, below):
    names = [f"{split}/{below}{name}" for split in (train, test) for name in ("ampel", "stopp")]
    fill(tmp_path, *names, number=2)
    with pytest.raises(DataError, match=rf"{train}.*named like splits.*classes seem to be ampel, stopp"):
        folder(tmp_path)


def test_folders_with_the_same_folders_inside_are_asked_about(tmp_path, capsys):
    fill(tmp_path / "d", *(f"{probe}/{name}" for probe in ("convex", "linear") for name in ("covid", "regular")))
    with pytest.raises(DataError, match=r"classes seem to be covid, regular.*label_pattern"):
        folder(tmp_path / "d")
    inner = folder(tmp_path / "d", classes__label_pattern="([^/]+)/[^/]+$")
    assert inner.source.classes == ("covid", "regular")
    assert folder(tmp_path / "d", classes__label_pattern="^([^/]+)/").source.classes == ("convex", "linear")
    # Sub-folders that differ, one sub-folder each, and images beside them are not sets of classes.
    fill(tmp_path / "e", "cat/day1", "cat/day2", "dog/day2", "dog/day3")
    fill(tmp_path / "f", "cat/images", "dog/images")
    fill(tmp_path / "g", "cat", "cat/left", "cat/right", "dog/left", "dog/right")
    # Numbers may be days or patients as well as classes: a line, no error.
    fill(tmp_path / "h", *(f"{name}/day{i}" for name in ("cat", "dog") for i in range(3)))
    assert folder(tmp_path / "h").source.classes == ("cat", "dog")
    assert "share the sub-folders day0, day1, day2" in capsys.readouterr().err
    for name in "efg":
        assert folder(tmp_path / name).source.classes == ("cat", "dog")


@pytest.mark.parametrize("names", [("orig", "rotated"), ("original", "flipped", "Rot90"), ("raw", "augmented")])
def test_images_beside_changed_copies_are_images_of_their_class(tmp_path, names):
    fill(tmp_path, *(f"{name}/{kind}" for name in ("blast", "smut") for kind in names), number=3)
    data = folder(tmp_path)
    assert data.source.classes == ("blast", "smut")
    assert len(data.source) == 6 * len(names)
    assert any("changed copies" in note for note in data.source.notes)


def test_splits_inside_classes_are_asked_about(tmp_path):
    fill(tmp_path, *(f"{name}/{split}" for name in ("cat", "dog") for split in ("train", "Test")))
    with pytest.raises(DataError, match="holds the splits Test, train; put the classes into the splits"):
        folder(tmp_path)


@pytest.mark.parametrize(
    "names", [("images", "masks"), ("Images", "Annotations"), ("img", "gt"), ("JPEGImages", "labels")]
)
def test_images_beside_masks_are_no_classes(tmp_path, names):
    fill(tmp_path / "a", *names)
    with pytest.raises(DataError, match="look like images and what was drawn on them"):
        folder(tmp_path / "a")
    fill(tmp_path / "b", *(f"{label}/{name}" for label in ("x", "y") for name in names))
    with pytest.raises(DataError, match="masks or annotations would be trained on as images"):
        folder(tmp_path / "b")


@pytest.mark.parametrize("names", [("B02", "B03", "B04"), ("red", "nir"), ("ch1", "ch2")])
def test_bands_in_folders_are_no_classes(tmp_path, names):
    for name in names:
        for i in range(12):
            save_image(tmp_path / "a" / name / f"{i}.png", (9, 9), mode="L")
            save_image(tmp_path / "b" / name / f"{name}_{i}.png", (9, 9), mode="L")
    with pytest.raises(DataError, match="look like bands of the same images"):
        folder(tmp_path / "a", color="gray")
    # The same names of folders with other files inside are classes: red and green apples.
    assert folder(tmp_path / "b", color="gray").source.classes == tuple(sorted(names))


@pytest.mark.parametrize("name", ["test", "Testing", "val"])
@pytest.mark.parametrize("below", ["", "unknown"])
@pytest.mark.fast_cases("unknown-Testing", "unknown-val")
def test_an_unlabelled_split_is_passed_over(tmp_path, capsys, name, below):
    fill(tmp_path / "d", "train/a", "train/b")
    plain = folder(tmp_path / "d")
    capsys.readouterr()
    for i in range(5):
        save_image(tmp_path / "d" / name / below / f"{i}.png")
    data = folder(tmp_path / "d")
    told = capsys.readouterr().err
    assert f"passed over {tmp_path}/d/{name}: its 5 images" in told
    assert f"vitrail predict RUN {tmp_path}/d/{name}" in told
    assert data.splits == plain.splits
    assert data.source.keys == plain.source.keys


def test_images_outside_of_class_folders_and_other_folders_are_named(tmp_path, capsys):
    fill(tmp_path / "a", "x", "y")
    save_image(tmp_path / "a" / "loose.png")
    assert len(folder(tmp_path / "a").source) == 8
    assert "passed over 1 image in no class folder" in capsys.readouterr().err
    make_folder(tmp_path / "b", per_class=4)
    fill(tmp_path / "b", "extra")
    assert len(folder(tmp_path / "b").source) == 24
    assert "passed over 1 folder beside test, train, val: extra" in capsys.readouterr().err


def test_a_folder_of_annotations_is_no_class_and_one_of_videos_is_refused(tmp_path, capsys):
    fill(tmp_path, "x", "y")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.xml").write_text("<a/>")
    assert folder(tmp_path).source.classes == ("x", "y")
    assert "notes is not a class: it holds no image, only 1 .xml" in capsys.readouterr().err
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    with pytest.raises(DataError, match=r"clips holds no image, only 1 \.mp4; videos are not read"):
        folder(tmp_path)


def test_a_folder_without_any_image_says_what_it_holds(tmp_path):
    for name in ("covid", "regular"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
        (tmp_path / name / "b.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"holds an image, only 2 \.mp4, 2 \.npz"):
        folder(tmp_path)


@pytest.mark.parametrize("name", ["Final_Test", "TEST", "images_val", "test2017"])
def test_pretraining_takes_no_split_that_was_set_apart(tmp_path, name):
    fill(tmp_path, "pile", name)
    with pytest.raises(DataError, match=f"has the folder {name}, whose images look set apart"):
        open_data(DataConfig(source="unlabelled", path=str(tmp_path)), (8, 8))


def test_names_of_folders():
    for name in ("cat", "trainer", "testudo", "pigs_train_station", "contest", "latest", "day1", "evaluation of cats"):
        assert guess_split(name) is None, name
    assert not images_and_masks({"images", "cats"})
    assert not images_and_masks({"masks", "labels"})
    assert not are_bands({"red", "apple"})


@pytest.mark.parametrize(
    ("images", "masks"),
    [("imgs", "anns"), ("img_dir", "ann_dir"), ("train_images", "train_masks"), ("images_png", "masks_png"),
     ("leftImg8bit", "gtFine"), ("Original", "Ground Truth"), ("CXR_png", "masks")],
)  # fmt: skip
def test_masks_by_other_names_are_no_class(tmp_path, images, masks):
    for i in range(8):
        save_image(tmp_path / images / f"scan_{i}.png", (9, 9), seed=i)
        save_image(tmp_path / masks / f"scan_{i}_mask.png", (9, 9), seed=20 + i)
    with pytest.raises(DataError, match=r"what was drawn on them|look like masks of them"):
        folder(tmp_path)


def test_a_class_may_be_called_masks(tmp_path):
    for label in ("mask", "no_mask"):
        for i in range(8):
            save_image(tmp_path / label / f"{i}.png", (9, 9), seed=i)
    assert folder(tmp_path).source.classes == ("mask", "no_mask")


@pytest.mark.parametrize(
    ("names", "missed", "split"),
    [(("train", "val2017"), "val2017", "val"), (("trainval", "test"), "trainval", "train"),
     (("train", "valid", "holdout"), "holdout", "test")],
)  # fmt: skip
def test_a_split_by_another_name_beside_splits_is_not_passed_over(tmp_path, names, missed, split):
    fill(tmp_path, *(f"{name}/{label}" for name in names for label in "ab"), number=4)
    with pytest.raises(DataError, match=f"{missed} .* named like the split {split}; rename it {split}"):
        folder(tmp_path)
    (tmp_path / missed).rename(tmp_path / split)
    assert split in folder(tmp_path).splits


def test_unlabelled_images_beside_training_by_any_split_name(tmp_path, capsys):
    fill(tmp_path, "train/a", "train/b", "test1")
    assert len(folder(tmp_path).source) == 8
    assert f"`vitrail predict RUN {tmp_path}/test1`" in capsys.readouterr().err


def test_training_images_without_class_folders_are_classed_by_their_names(tmp_path):
    for i in range(24):
        save_image(tmp_path / "train" / f"{('cat', 'dog')[i % 2]}.{i}.png", (9, 9), seed=i)
    fill(tmp_path, "test1", number=3)
    with pytest.raises(
        DataError, match=r"train holds 24 images and no class folders.*--data.classes.label_pattern REGEX"
    ):
        folder(tmp_path)
    assert folder(tmp_path / "train", classes__label_pattern=r"^(\w+)\.").source.classes == ("cat", "dog")


@pytest.mark.parametrize("labels", [("a", "b"), ("0", "1", "2")])
def test_a_set_inside_itself_is_no_class(tmp_path, labels):
    fill(tmp_path, *labels, *(f"set/{label}" for label in labels), number=6)
    with pytest.raises(DataError, match=r"set holds folders named like the classes beside it.*label_pattern"):
        folder(tmp_path)
    assert folder(tmp_path, classes__label_pattern="([^/]+)/[^/]+$").source.classes == labels


@pytest.mark.parametrize("splits", [("train",), ("train", "test")])
def test_one_folder_between_splits_and_classes_is_named(tmp_path, splits):
    fill(tmp_path, *(f"{split}/images/{label}" for split in splits for label in "ab"))
    with pytest.raises(
        DataError, match=r"one class only \(images\).*classes \(a; b\).*'\(\[\^/\]\+\)/\[\^/\]\+\$' takes"
    ):
        folder(tmp_path)
    assert folder(tmp_path, classes__label_pattern="([^/]+)/[^/]+$").source.classes == ("a", "b")


def test_folds_and_objects_with_splits_inside_are_no_classes(tmp_path):
    fill(tmp_path / "folds", *(f"fold{k}/{s}/{c}" for k in (1, 2) for s in ("train", "test") for c in "ab"), number=4)
    with pytest.raises(DataError, match=r"fold1, fold2 in .* hold the splits test, train, and these a, b.*data\.path"):
        folder(tmp_path / "folds")
    assert folder(tmp_path / "folds" / "fold1").source.classes == ("a", "b")
    parts = ("train/good", "test/good", "test/bent", "ground_truth/bent")
    fill(tmp_path / "parts", *(f"{thing}/{part}" for thing in ("bottle", "cable") for part in parts), number=2)
    with pytest.raises(DataError, match=r"holds ground_truth, test, train, which are named like splits or masks"):
        folder(tmp_path / "parts")


def test_images_of_classes_beside_annotations_have_a_path(tmp_path):
    fill(tmp_path, "images/train/a", "images/train/b", number=6)
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match=rf"what was drawn on them.*--data\.path {tmp_path}/images takes"):
        folder(tmp_path)
    assert folder(tmp_path / "images").source.classes == ("a", "b")
