"""Labels and classes: the same label is the same class however it is stored, spelled or ordered."""

import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.settings import data_config
from vitrail.config import DataConfig
from vitrail.data.class_checks import describe_doubtful
from vitrail.data.classes import (
    ClassRules,
    clean_name,
    describe_similar,
    encode_targets,
    match_names_to_numbers,
    normalize_label,
    resolve_classes,
    similar_names,
)
from vitrail.errors import ConfigError, DataError

HERE = Path("data")


def resolve(labels, rules=None, **more):
    cleaned = [normalize_label(label, HERE) for label in labels]
    found = resolve_classes(Counter(cleaned), rules or ClassRules(), HERE, **more)
    return found, [found.names[found.index[label]] for label in cleaned]


@pytest.mark.parametrize("blank", [" ", "\t", "\xa0", "\u3000", "\ufeff", "\u200b", "\r\n"])
def test_blanks_around_a_name_are_no_part_of_it(blank):
    assert clean_name(f"{blank}red ant{blank}{blank}") == "red ant"


@pytest.mark.parametrize("name", ["blé", "Äpfel", "ﬁg", "ñandú", "한국"])
def test_a_name_is_one_in_every_unicode_form(name):
    assert clean_name(unicodedata.normalize("NFD", name)) == clean_name(unicodedata.normalize("NFC", name))


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.uint16, np.int64, np.uint64, np.float32, np.float64, np.bool_, str, "S"]
)
def test_a_number_is_one_class_in_every_type(dtype):
    known = ("0", "1") if dtype is np.bool_ else ("0", "1", "2", "10")
    values = np.array([1, 0, 1]) if dtype is np.bool_ else np.array([10, 2, 0, 1, 2])
    labels = values.astype(dtype).tolist() if dtype != "S" else [str(v).encode() for v in values]
    found, named = resolve(labels)
    assert found.names == known
    assert named == [str(v) for v in values]
    # Without the first class a run's classes stay what they are.
    rest = [label for label, value in zip(labels, values, strict=True) if value != 0]
    found, named = resolve(rest, ClassRules(known=known))
    assert found.names == known
    assert [known.index(name) for name in named] == [known.index(str(v)) for v in values if v != 0]


def test_numbers_beyond_64_bits_with_a_sign_are_not_wrapped():
    large = np.array([2**64 - 1, 2**63, 5], dtype=np.uint64).tolist()
    assert resolve(large)[0].names == ("5", str(2**63), str(2**64 - 1))


def test_the_order_of_classes():
    assert resolve(["10", "9", "-1", "2.0", "2"])[0].names == ("-1", "2", "9", "10")
    assert resolve(["10", "9", "b"])[0].names == ("10", "9", "b")
    assert resolve(["007", "012", "003"])[0].names == ("003", "007", "012")
    assert resolve(["0.5", "1.0", "0.25", "0"])[0].names == ("0", "0.25", "0.5", "1")


@pytest.mark.parametrize("label", [0.5, float("nan"), None, b"\xff", 1j])
def test_what_is_no_label(label):
    with pytest.raises(DataError, match="data: the label"):
        normalize_label(label, HERE)


def test_similar_names_are_named_together():
    groups = similar_names(
        ["anger", "ANGER", "fear", "black rot", "Black_Rot", "black-rot", "B+", "B-", "1", "01", "-1"]
    )
    assert groups == [("ANGER", "anger"), ("Black_Rot", "black rot", "black-rot"), ("01", "1")]
    told = describe_similar(["anger", "ANGER", "fear"])
    assert "'ANGER' and 'anger'" in told
    assert "data.classes.merge similar" in told
    assert describe_similar(["a", "b"]) is None


def test_similar_names_are_merged_where_asked_for():
    rules = ClassRules(merge=True)
    found, named = resolve(["anger", "ANGER", "anger", "joy", "Joy", "Joy"], rules)
    assert found.names == ("Joy", "anger")  # the more frequent spelling
    assert named == ["anger"] * 3 + ["Joy"] * 3
    # A run keeps its spelling, whichever is frequent in other data.
    assert resolve(["ANGER", "joy"], ClassRules(merge=True, known=found.names))[1] == ["anger", "Joy"]


@pytest.mark.parametrize("label", ["Anger", "black rot", "ANGER"])
def test_another_spelling_of_a_run_s_class_is_refused_with_both(label):
    with pytest.raises(DataError, match=rf"{label} \(the run has (anger|Black_rot)\) that are unknown to the run"):
        resolve([label], ClassRules(known=("anger", "Black_rot")))


def test_a_run_s_list_decides_the_order():
    known = ("zebra", "ant", "mole")
    found, named = resolve(["ant", "mole", " ant\xa0"], ClassRules(known=known))
    assert found.names == known
    assert named == ["ant", "mole", "ant"]
    assert resolve([False, True], ClassRules(known=("True", "False")))[1] == ["False", "True"]
    assert resolve(["false", "TRUE"], ClassRules(known=("0", "1")))[1] == ["0", "1"]


NAMES = ("soil", "rust", "mildew")


@pytest.mark.parametrize(
    ("present", "numbers"), [([0, 1, 2], (0, 1, 2)), ([0], (0, 1, 2)), ([1, 2, 3], (1, 2, 3)), ([3], (1, 2, 3))]
)
def test_names_count_from_0_or_1_where_that_is_certain(present, numbers):
    assert match_names_to_numbers(present, NAMES, HERE) == numbers
    found, named = resolve(present, ClassRules(names=NAMES))
    assert named == [NAMES[numbers.index(v)] for v in present]
    assert found.numbering.values == numbers


@pytest.mark.parametrize("present", [[1, 2], [1], [2]])
def test_names_that_may_count_from_0_or_1_are_asked_for(present):
    with pytest.raises(
        DataError, match=r"does the first name belong to label 0 or to label 1\? Give data.classes.values"
    ):
        resolve(present, ClassRules(names=NAMES))
    for values in ((0, 1, 2), (1, 2, 3), (2, 7, 1)):
        if set(present) <= set(values):
            assert resolve(present, ClassRules(NAMES, values))[1] == [NAMES[values.index(v)] for v in present]


@pytest.mark.parametrize("present", [[0, 1, 2, 3], [4], [-1, 0, 1]])
def test_numbers_without_a_name(present):
    with pytest.raises(DataError, match="have no name"):
        resolve(present, ClassRules(names=NAMES))
    with pytest.raises(DataError, match="have no name"):
        resolve(present, ClassRules(NAMES, (0, 1, 2)))


def test_names_that_the_data_gives_to_its_numbers():
    own = {0: "dog", 1: "cat", 2: "emu"}
    found, _ = resolve([0, 1, 2, 0], own=own)
    assert found.names == ("dog", "cat", "emu")
    assert found.numbering.values == (0, 1, 2)
    rules = ClassRules(found.numbering.names, found.numbering.values, known=found.names)
    # Other data without names is numbered in the same way; other data with names of its own is read by these.
    assert resolve([2, 1], rules)[1] == ["emu", "cat"]
    assert resolve([0, 1], rules, own={0: "cat", 1: "dog"})[1] == ["cat", "dog"]
    with pytest.raises(DataError, match="fox"):
        resolve([0, 1], rules, own={0: "cat", 1: "fox"})


def test_names_in_place_of_the_data_s_own():
    given = ("Hund", "Katze")
    found, named = resolve([0, 1, 1], ClassRules(given), own={0: "dog", 1: "cat"})
    assert named == ["Hund", "Katze", "Katze"]
    assert found.numbering.values == ("dog", "cat")
    rules = ClassRules(given, found.numbering.values, known=found.names)
    assert resolve([0, 1], rules, own={0: "cat", 1: "dog"})[1] == ["Katze", "Hund"]
    with pytest.raises(DataError, match="fox"):
        resolve([0, 1], rules, own={0: "cat", 1: "fox"})
    with pytest.raises(DataError, match="names 3 classes itself"):
        resolve([0, 1], ClassRules(given), own={0: "dog", 1: "cat", 2: "emu"})


def test_given_names_of_names_are_the_classes_in_that_order():
    assert resolve(["b", "a"], ClassRules(("c", "b", "a")))[0].names == ("c", "b", "a")
    with pytest.raises(DataError, match=r"B \(data.classes.names has b\) that data.classes.names does not name"):
        resolve(["B", "a"], ClassRules(("a", "b")))


def test_targets_of_several_labels():
    index = {"a": 0, "b": 1, "B": 1}
    assert encode_targets(["b", "a", "B"], index, 2).tolist() == [1, 0, 1]
    assert encode_targets([("b", "B"), (), ("a", "b")], index, 2).tolist() == [[0, 1], [0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes__values": (0, 1)}, "data.classes.values must be left out without data.classes.names"),
        ({"classes__values": (0, 1), "classes__names": ("a",)}, "1 label, one for each class name"),
        ({"classes__values": (0, 0), "classes__names": ("a", "b")}, "different labels"),
        ({"classes__names": ("a", "a")}, "different names"),
        (
            {"splitting__group_pattern": "x", "splitting__group": "y"},
            "data.splitting.group and data.splitting.group_pattern must be one of them alone",
        ),
        ({"classes__label_pattern": "x", "table__label_column": "y"}, "left out beside data.classes.label_pattern"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        data_config(source="table", path="t.csv", **settings)


@pytest.mark.parametrize("kind", [int, str, float])
def test_names_that_are_numbers_are_their_own_labels(kind):
    found, named = resolve([kind(v) for v in (0, 1, 2, 0)], ClassRules(("2", "1", "0")))
    assert (found.names, named) == (("2", "1", "0"), ["0", "1", "2", "0"])
    assert found.numbering.values == (2, 1, 0)
    assert resolve([1, 2, 10], ClassRules(("1", "2", "10")))[1] == ["1", "2", "10"]
    with pytest.raises(DataError, match=r"data.classes.names are numbers too, 1; 2; 3: .* Give data.classes.values"):
        resolve([0, 1, 2], ClassRules(("1", "2", "3")))
    assert resolve([0, 1, 2], ClassRules(("1", "2", "3"), (0, 1, 2)))[1] == ["1", "2", "3"]


def test_a_name_given_twice_is_refused():
    with pytest.raises(ConfigError, match=r"data.classes.names has 'a' twice"):
        resolve([0, 1, 2], ClassRules(("a", "a ", "c")))


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "NULL", "NA", "<NA>"])
def test_words_for_no_value_among_numbers_are_no_class(word):
    with pytest.raises(DataError, match=rf"the labels are numbers, and '{word}' where there is none; fill or remove"):
        resolve(["0.0", "1.0", word])
    assert word in resolve(["ant", "bee", word])[0].names


@pytest.mark.parametrize(
    ("one", "other"),
    [("an\u200bt", "ant"), ("red\u00adant", "redant"), ("st. john\u2019s", "st. john's"), ("\u2066ant\u2069", "ant")],
)
def test_names_that_look_the_same_are_similar(one, other):
    assert similar_names([one, other, "bee"]) == [tuple(sorted((one, other)))]


def test_labels_that_are_fractions_or_truths_have_names_by_their_values():
    config = DataConfig(classes={"names": ("good", "worn", "bad"), "values": (0.0, 0.5, 1)})
    rules = ClassRules.of(config, None)
    found, named = resolve(["0.0", "0.5", "1.0"], rules)
    assert (named, found.numbering.values) == (["good", "worn", "bad"], (0, "0.5", 1))
    assert resolve(["0.5", "1"], ClassRules(found.names, found.numbering.values))[1] == ["worn", "bad"]
    truths = ClassRules(("neg", "pos"), ("False", "True"))
    assert resolve([False, True], truths)[1] == resolve(["False", "True"], truths)[1] == ["neg", "pos"]


def test_the_remedy_names_the_settings_that_help():
    with pytest.raises(DataError, match=r"merge them with data.classes.merge similar"):
        resolve(["Ant", "bee"], ClassRules(known=("ant", "bee")))
    with pytest.raises(DataError, match=r"data.classes.names and data.classes.values say which label is which class"):
        resolve([1, 2], ClassRules(known=("ant", "bee")))
    assert resolve([1, 2], ClassRules(("ant", "bee"), (1, 2), known=("ant", "bee")))[1] == ["ant", "bee"]
    with pytest.raises(DataError, match=r"data.classes.values, such as \['n1', 'n2'\]"):
        resolve(["n1", "n2"], ClassRules(("tench", "goldfish")))


def test_other_spellings_of_names_in_the_data_are_no_order():
    own = {0: "ant", 1: "bee", 2: "cat"}
    found, named = resolve([0, 1, 2], ClassRules(("Cat", "Bee", "Ant")), own=own)
    assert (found.names, named) == (("Cat", "Bee", "Ant"), ["Ant", "Bee", "Cat"])


@pytest.mark.parametrize("mark", ["|", ";", ", "])
def test_names_that_join_others_are_reported(mark):
    (line,) = describe_doubtful(["ant", "bee", f"ant{mark}bee"])
    assert f"1 class name joins others, such as 'ant{mark}bee'; data.table.label_separator '{mark.strip()}'" in line
    assert describe_doubtful(["ant", "bee", f"ant{mark}wasp", "a,b"]) == []
    assert "a class is called 'NaN'" in describe_doubtful(["ant", "NaN"])[0]


def test_no_merging_is_offered_where_it_cannot_decide():
    with pytest.raises(DataError, match="unknown to the run: ANT, Ant; rename them or remove them"):
        resolve(["aNt"], ClassRules(known=("ANT", "Ant"), merge=True))
