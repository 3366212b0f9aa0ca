"""Labels and splits of clips and clouds by folders and tables."""

import pytest

from vitrail.data.sources.class_folders import (
    groups_of_rows,
    labels_of_rows,
    read_rows,
    split_and_class,
    splits_of_rows,
)
from vitrail.data.sources.folder_names import SPLIT_NAMES
from vitrail.errors import DataError

NAMES = [(name, split) for split, names in SPLIT_NAMES.items() for name in names]


@pytest.mark.parametrize(("name", "split"), NAMES)
def test_splits_have_the_names_of_those_of_images(name, split):
    for spelling in (name, name.upper(), name.title()):
        assert split_and_class((spelling, "cup")) == (split, "cup")
        assert split_and_class(("cup", spelling)) == (split, "cup")
        assert split_and_class((spelling,)) == (split, "")
        assert splits_of_rows([{"path": "a", "label": "cup", "split": spelling}], "clips.csv") == [split]


def test_the_first_folder_that_names_no_split_is_the_class():
    assert split_and_class(("cup", "blue")) == ("", "cup")
    assert split_and_class(()) == ("", "")
    assert splits_of_rows([{"path": "a", "label": "cup"}, {"split": ""}], "clips.csv") == ["", ""]


@pytest.mark.parametrize("word", ["dev", "holdout", "2", "train1"])
def test_other_words_than_splits_are_an_error(word):
    rows = [{"split": "train"}, {"split": word}]
    with pytest.raises(DataError, match=f"clips.csv: split must be train, val, test or empty, got '{word}'"):
        splits_of_rows(rows, "clips.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na,cup\nb,\n", "line 3: b has no label; clouds need one each"),
        ("path,split,label\na,,cup\nb\n", "line 3: b has no label; clouds need one each"),
        ("path,label\na,\nb,\n", "line 2: a has no label; clouds need one each"),
    ],
)
def test_rows_without_a_label(tmp_path, text, message):
    (tmp_path / "clouds.csv").write_text(text)
    rows = read_rows(tmp_path / "clouds.csv")
    with pytest.raises(DataError, match=message):
        labels_of_rows(rows, "clouds.csv", "clouds")


def test_rows_that_may_all_be_without_a_label():
    assert labels_of_rows([{"path": "a"}, {"path": "b"}], "clips.csv", "clips", optional=True) == ["", ""]


def test_groups_are_those_of_tables_of_images(tmp_path):
    (tmp_path / "clouds.csv").write_text("path,label,group\na,cup,1\nb,cup,1.0\nc,cup,nan\nd,cup\n")
    assert groups_of_rows(read_rows(tmp_path / "clouds.csv")) == ["1", "1", "", ""]
    assert groups_of_rows([{"path": "a", "label": "cup"}]) is None
