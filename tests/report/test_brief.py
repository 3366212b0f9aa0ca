"""The plain sentences of a page: what they say follows from the records, in each kind of run, suite and audit."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.report.test_measured import CLASSES, _make
from tests.settings import data_config
from vitrail.data.audit import Audit, DuplicateGroup, LookAlikes
from vitrail.report.audit_brief import audit_brief
from vitrail.report.brief import Answer, brief_markdown, listed, per_hundred, per_hundred_between
from vitrail.report.glossary import terms_in
from vitrail.report.run_brief import QUESTIONS, how_good, ranked_cautions, run_brief, unseen, what_was_trained
from vitrail.report.run_facts import ClassFacts, GroupFacts, RunFacts, read_facts
from vitrail.report.suite_brief import suite_brief

FACTS = RunFacts(
    label="first", model="swin", data="bees", split="test", images=400, accuracy=0.94, low=0.912, high=0.958,
    classes=(ClassFacts("ant", 200, 0.93, 300), ClassFacts("bee", 200, 0.95, 310)),
    splits={"train": 610, "val": 80, "test": 400}, most_frequent=("ant", 0.5),
)  # fmt: skip


FIELDS = ("F1", "F2", "F3")


def _with(**changes):
    return dataclasses.replace(FACTS, **changes)


def _cautions(facts):
    return [line for _, line in ranked_cautions(facts)]


def test_a_good_run_is_told_in_three_sentences():
    assert what_was_trained(FACTS) == (
        "A model (swin) was trained on 610 images of bees to tell apart 2 classes (ant and bee); "
        "80 further images chose the best epoch."
    )
    assert how_good(FACTS) == (
        "About 94 of 100 unseen images are classified correctly (between 91 and 96 of 100, with 95 % confidence): "
        "376 of 400 images. None of them was used in training."
    )
    (only,) = _cautions(FACTS)
    assert "also an image that shows none of them" in only
    assert [answer.question for answer in run_brief([FACTS])] == list(QUESTIONS)


@pytest.mark.parametrize(
    ("drops", "said"),
    [
        ({}, " It reads 3 bands: red, nir and swir."),
        ({"red": (0.0, "not shown"), "nir": (0.0, "not shown")}, "No single band is shown to be needed."),
        ({"red": (0.01, "not shown"), "nir": (0.2, "needed"), "swir": (0.31, "needed")},
         "Shown to be needed: swir (accuracy falls by 0.31 without it) and nir (accuracy falls by 0.20 without it); of "
         "the others it is not shown."),
    ],
)  # fmt: skip
def test_bands_are_named_with_what_was_measured_of_them(drops, said):
    assert what_was_trained(_with(bands=("red", "nir", "swir"), band_drops=drops)).endswith(said)


def test_attributes_of_points_are_no_bands():
    told = what_was_trained(_with(point_attributes=("intensity",)))
    assert told.endswith(" It reads 1 attribute of each point: intensity.")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": "val", "chosen_on": 400}, "validation images .* no unseen test images were measured"),
        ({"split": "train", "trained_on": 400}, "training images .* says nothing about new ones"),
        ({"trained_on": 7}, "test images .* 7 of them were trained on: the result is not on unseen"),
        ({"trained_on": 7, "chosen_on": 3}, "7 of them were trained on and 3 of them chose the epoch"),
        ({"split": "other", "trained_on": 5, "path": "new"}, "other images .* 5 of them were trained on"),
        ({"trained_on": None}, "test images .* is not recorded"),
        ({"pretrained_on": 12}, "test images .* pre-trained on 12 of them"),
        ({"leaking": (3, 0)}, "test images .* but copies of some of them may have been"),
        ({"leaking": (0, 2), "groups": GroupFacts("field", ("F1",), 2)}, "test images .* same fields may have been"),
    ],
)
def test_images_that_were_seen_are_never_called_unseen(changes, said):
    facts = _with(**changes)
    assert re.search(said, how_good(facts))
    assert "unseen images are" not in how_good(facts)
    assert not unseen(facts)


@pytest.mark.parametrize(
    ("groups", "said", "caution"),
    [
        (GroupFacts("field", FIELDS, 0), "No image of these fields was used in training.", "rests on 3 fields"),
        (GroupFacts("field", FIELDS, 1), "other images of the same fields may have been", "1 field of the data lies"),
        (GroupFacts("patient", tuple(map(str, range(40))), None), "whether their patients were is not recorded", ""),
        (GroupFacts("block", tuple(map(str, range(40))), 0), "from 40 blocks. No image of these blocks", ""),
    ],
)  # fmt: skip
def test_groups_are_named_and_what_is_known_of_them(groups, said, caution):
    facts = _with(groups=groups)
    assert said in how_good(facts)
    assert caution in " ".join(_cautions(facts))
    if groups.what == "field":
        assert "from 3 fields (F1, F2 and F3)" in how_good(facts)


WEAK = (ClassFacts("ant", 200, 0.3, 300), ClassFacts("bee", 200, 0.98, 310))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"finished": False}, "Training did not come to its end"),
        ({"leaking": (3, 0)}, "3 groups of copies of the same image lie in several splits"),
        ({"leaking": (1, 2)}, "1 group of copies of the same image and 2 groups of the data's own lie"),
        ({"pretrained_on": 1}, "pre-trained on evaluated images"),
        ({"low": 0.5, "accuracy": 0.52, "high": 0.55}, "the constant answer ant, which is correct for about 50 of 100"),
        ({"stale": True}, "have changed since training"),
        ({"images": 37}, "rests on 37 images"),
        ({"classes": WEAK}, "Rarely recognised: ant (60 of 200 images)."),
        ({"classes": (*FACTS.classes, ClassFacts("fly", 3, 1.0, 300))}, "Few evaluated images of fly (3)"),
        ({"classes": (*FACTS.classes, ClassFacts("fly", 0, None, 300))}, "Few evaluated images of fly (0)"),
        ({"classes": (*FACTS.classes, ClassFacts("fly", 100, 0.9, 12))}, "Few training images of fly (12)"),
        ({"classes": (*FACTS.classes, ClassFacts("fly", 100, 0.9, 40))}, "bee has 8 times as many training"),
        ({"ece": 0.05, "ece_of_chance": 0.02, "mean_confidence": 0.99}, "probabilities are too high: 99 % on average"),
        ({"ece": 0.05, "ece_of_chance": 0.02, "mean_confidence": 0.89}, "probabilities are too low: 89 % on average"),
        ({"ece": 0.05, "ece_of_chance": 0.02, "mean_confidence": 0.94}, "calibration error 0.05"),
        ({"ece": 0.1, "ece_of_chance": 0.02, "ece_after": 0.03}, "from 0.10 to 0.03"),
        ({"possible_leaks": 4}, "4 possible leaks"),
        ({"audited": False}, "No audit for copies"),
        ({"unreadable": 1}, "1 file could not be read"),
        ({"views": "flips"}, "several views of each image (flips)"),
        ({"views": "so3"}, "Each image was rotated once at random (so3)"),
        ({"out_of_distribution": (0.7, "noise")}, "images of noise from its own in only 70 of 100 pairs"),
        ({"out_of_distribution": (0.97, "noise")}, "images of noise from its own in 97 of 100 pairs"),
    ],
)  # fmt: skip
def test_each_recorded_fact_has_its_caution_and_no_other_run_has_it(changes, said):
    assert said in " ".join(_cautions(_with(**changes)))
    assert said not in " ".join(_cautions(FACTS))


@pytest.mark.parametrize("changes", [{"ece": 0.05, "ece_of_chance": 0.06}, {"ece": 0.02, "ece_of_chance": 0.01}])
def test_a_calibration_error_of_chance_or_without_weight_is_no_caution(changes):
    assert "robabilities" not in " ".join(_cautions(_with(**changes)))


def test_several_labels_are_told_as_such():
    facts = _with(multi_label=True, accuracy=0.61, low=0.55, high=0.66)
    assert "to find 2 labels (ant and bee)" in what_was_trained(facts)
    assert how_good(facts).startswith("All labels are correct in about 61 of 100 unseen images (between 55 and 66")
    assert "one of its classes" not in " ".join(_cautions(facts))


def test_a_page_of_several_runs_names_them_and_says_the_common_once():
    other = _with(label="second", model="vit", possible_leaks=2)
    trained, good, care = run_brief([FACTS, other])
    assert trained.lines == ["first: " + what_was_trained(FACTS), "second: " + what_was_trained(other)]
    assert len(good.lines) == 2
    assert good.lines[0] == how_good(FACTS)
    assert "`vitrail compare`" in good.lines[1]
    assert care.lines[0].startswith("second: 2 possible leaks")
    assert sum("also an image that shows none" in line for line in care.lines) == 1


@pytest.mark.parametrize("correct", [0, 1, 50, 399, 400])
def test_none_and_all_are_said_only_where_they_are_meant(correct):
    share = per_hundred(correct / 400, "images")
    assert share == {0: "none of the images", 1: "fewer than 1 of 100 images", 50: "about 12 of 100 images",
                     399: "more than 99 of 100 images", 400: "all images"}[correct]  # fmt: skip


@pytest.mark.parametrize(("low", "high"), [(0.911, 0.958), (0.29, 0.57), (0.0, 0.004), (0.999, 1.0)])
def test_an_interval_in_whole_numbers_holds_the_interval(low, high):
    a, b = map(int, re.findall(r"\d+", per_hundred_between(low, high))[:2])
    assert a <= 100 * low + 1e-6
    assert b >= 100 * high - 1e-6
    assert (100 * low - a) < 1
    assert (b - 100 * high) < 1


def test_many_names_are_cut_and_counted():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(list("abcdefgh"), 3) == "a, b, c and 5 more"


def test_markdown_says_the_same():
    text = brief_markdown([Answer("Q", ["one"]), Answer("R", ["a|b", "c"])])
    assert text.startswith("**Q** one")
    assert "- a\\|b\n- c" in text


def _recipe(**data):
    return SimpleNamespace(
        data=data_config(source="folder", path="d", **data), model=SimpleNamespace(name="vit", weights=None)
    )


@pytest.mark.fast_cases("1")
@pytest.mark.parametrize("seed", [0, 1])
def test_facts_are_read_from_the_records(tmp_path, seed):
    part = _make(tmp_path / "x", seed, images=120, val=30)
    part.metrics.update(trained_on=0, chosen_on=0)
    part.run.write_json(part.run.balance, {
        "fingerprint": "f", "splits": {"train": 500, "test": 120}, "unreadable": [["z", "empty"]],
        "balance": {name: {"train": 10 * (i + 1)} for i, name in enumerate(CLASSES)},
    })  # fmt: skip
    facts = read_facts(part, _recipe(), "x")
    table = part.run.read_predictions("test")
    logits, targets = np.stack(table["logits"]), table["target"].to_numpy()
    correct = logits.argmax(1) == targets
    assert facts.accuracy == pytest.approx(correct.mean())
    for i, one in enumerate(facts.classes):
        own = targets == i
        assert (one.name, one.images, one.train) == (CLASSES[i], own.sum(), 10 * (i + 1))
        assert one.recall == pytest.approx(correct[own].mean())
    counts = np.bincount(targets)
    assert facts.most_frequent == (CLASSES[counts.argmax()], pytest.approx(counts.max() / 120))
    assert (facts.split, facts.unreadable, facts.audited, facts.groups) == ("test", 1, False, None)
    assert facts.mean_confidence == pytest.approx(
        (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).max(1).mean(), abs=1e-5
    )


@pytest.mark.fast_cases("val_groups4-record4-block-0")
@pytest.mark.parametrize(
    ("val_groups", "record", "split", "shared"),
    [
        (("c", "d"), {"divided": 0, "number": 4}, "grouped", 0),
        (("c", "d"), {"divided": 2, "number": 4}, "stratified", 2),
        (("b", "c"), {}, "grouped", 1),
        (("c", "d"), {}, "grouped", None),
        (("c", "d"), {}, "block", 0),
    ],
)
def test_groups_are_unseen_only_where_a_record_shows_it(tmp_path, val_groups, record, split, shared):
    part = _make(tmp_path / "x", images=20, val=10)
    rng = np.random.default_rng(0)
    for name, number, groups in (("test", 20, ("a", "b")), ("val", 10, val_groups)):
        logits = rng.normal(size=(number, 3)).astype(np.float32)
        part.run.write_predictions(name, range(number), [f"{i}" for i in range(number)], [0] * number, logits, logits,
                                   [groups[i % 2] for i in range(number)])  # fmt: skip
    content = {"fingerprint": "f", "splits": {}, "balance": {}, "unreadable": []}
    part.run.write_json(part.run.balance, content | ({"groups": record} if record else {}))
    found = read_facts(part, _recipe(split=split, table__group_column="field"), "x").groups
    assert found.names == ("a", "b")
    assert found.what == ("block" if split == "block" else "field")
    assert found.shared == shared


SUITE = {"variants": [{"name": "vit"}, {"name": "swin"}], "metric_name": "accuracy", "unit": 100, "folds": None,
         "images": 300, "groups": None, "runs_planned": 6, "runs_done": 6, "near_guess": False}  # fmt: skip


def _suite(statement="not shown", runs=3, on="test", difference=0.02, **facts):
    results = pd.DataFrame([{"variant": v, "evaluated_on": on} for v in ("vit", "swin") for _ in range(runs)])
    summary = pd.DataFrame([{"variant": "vit", "mean": 0.9}, {"variant": "swin", "mean": 0.88}])
    pairs = pd.DataFrame([{"a": "vit", "b": "swin", "statement": statement, "difference": difference,
                           "low": difference - 0.01, "high": difference + 0.01}])  # fmt: skip
    return [list(answer.lines) for answer in suite_brief(SUITE | facts, results, summary, pairs)]


def test_a_difference_is_claimed_only_where_it_is_shown():
    compared, shown, care = _suite()
    assert "each trained 3 times and compared by accuracy on the same 300 test images" in compared[0]
    assert shown == [
        "No difference is shown between vit and swin. Mean accuracy: vit 90.0\u00a0% and swin 88.0\u00a0%."
    ]
    assert any("does not mean" in line for line in care)
    _, shown, care = _suite("vit beats swin")
    assert shown == ["vit beats swin: vit has 2.0 points more accuracy than swin (between 1.0 points and 3.0 points)."]
    assert not any("does not mean" in line for line in care)
    _, shown, _ = _suite("swin beats vit", difference=-0.02)
    assert shown == ["swin beats vit: swin has 2.0 points more accuracy than vit (between 1.0 points and 3.0 points)."]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runs": 1}, "With 1 run of a variant"),
        ({"on": "val"}, "validation images, which had a part in training"),
        ({"images": 40}, "rests on 40 images"),
        ({"groups": 6}, "rests on 6 groups"),
        ({"near_guess": True}, "better than a constant answer"),
        ({"runs_done": 4}, "2 planned runs of 6 did not finish"),
    ],
)
def test_what_weakens_a_comparison_is_said(changes, said):
    assert said in " ".join(_suite(**changes)[2])
    assert said not in " ".join(_suite()[2])


def test_a_suite_without_a_run_says_so():
    empty = pd.DataFrame()
    compared, shown, care = suite_brief(SUITE | {"runs_done": 0}, empty, empty, empty)
    assert "no run is done yet" in compared.lines[0]
    assert shown.lines == ["Nothing yet."]
    assert "6 planned runs" in care.lines[0]


CLEAN = Audit(images=20, unreadable=[], splits={"train": 15, "val": 5}, balance={"a": {"train": 15, "val": 5}},
              duplicates=[], shared_groups={}, sizes=[((8, 8), 20)], constant=[], empty_bands=[], similar_classes=[],
              look_alikes=[], distance=8)  # fmt: skip


def _copies(splits, labels=("a", "a")):
    return DuplicateGroup("near", (0, 1), ("1", "2"), splits, labels, ("", "exact"))


@pytest.mark.parametrize(
    ("changes", "said", "remedy"),
    [
        ({"duplicates": [_copies(("train", "val"))]}, "1 group of copies lies in several", "--groups groups.csv"),
        ({"duplicates": [_copies(("train", "train"), ("a", "b"))]}, "different classes", "correct their labels"),
        ({"duplicates": [_copies(("train", "train"))]}, "within one split", "no harm"),
        ({"shared_groups": {"p1": ("train", "val")}}, "data's own lies in several splits (p1)", "--data.split grouped"),
        ({"unreadable": [("z", "empty")]}, "1 file cannot be read", "--data.errors.on_unreadable skip"),
        ({"look_alikes": [LookAlikes((0, 1), ("1", "2"), ("train", "val"), ("a", "a"), 5)]},
         "1 possible leak: look-alikes in different splits that are not confirmed as copies (hashes that differ in at "
         "most 8 of 64 bits, --distance)", "Look at the possible leaks"),
        ({"similar_classes": [("a", "A")]}, "differ only in spelling: a / A", "--data.classes.merge similar"),
        ({"empty_bands": [("image", "nir")]}, "one value in every image: nir", "--data.bands.use"),
        ({"constant": [("1", "image", "red")]}, "1 image with a constant band", "empty or damaged"),
        ({"balance": {"a": {"train": 15, "val": 0}}}, "No image of a in val", "Add images"),
    ],
)  # fmt: skip
def test_each_finding_of_an_audit_has_its_remedy(changes, said, remedy):
    _, found, todo = audit_brief(dataclasses.replace(CLEAN, **changes), "d")
    assert said in " ".join(found.lines)
    assert remedy in " ".join(todo.lines)
    assert len(found.lines) == 1


def test_a_clean_audit_says_that_nothing_is_to_be_done():
    checked, found, todo = audit_brief(CLEAN, "d")
    assert "20 images of 1 class of d (train 15 and val 5)" in checked.lines[0]
    assert found.lines == ["Nothing that spoils these data."]
    assert todo.lines[0].startswith("Nothing")


def test_look_alikes_in_one_split_are_no_possible_leak():
    pair = LookAlikes((0, 1), ("1", "2"), ("train", "train"), ("a", "a"), 5)
    _, found, _ = audit_brief(dataclasses.replace(CLEAN, look_alikes=[pair]), "d")
    assert "possible" not in " ".join(found.lines)


def test_only_words_that_stand_on_a_page_are_explained():
    words = terms_in("Macro F1 and the AUROC of 3 seeds; a splitting headache")
    assert set(words) == {"F1", "AUROC", "seed"}
    assert all(told.endswith(".") for told in words.values())
