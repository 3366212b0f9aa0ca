"""Labels and splits of clips and clouds by folders and tables."""

import pytest

from vitrail.data.sources.class_folders import split_and_class, splits_of_rows
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
