"""Tables, words and page of a suite, from prepared runs."""

import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.compare.runs import finish
from vitrail.compare import load_suite, plan
from vitrail.compare.execute import Failure
from vitrail.compare.findings import markdown, sentences
from vitrail.compare.results import tabulate
from vitrail.compare.write import write_suite
from vitrail.config.load import load_recipe
from vitrail.errors import DataError
from vitrail.evaluate import statistics
from vitrail.report.side_by_side import OPTIONAL
from vitrail.report.suite import write_suite_report
from vitrail.runs.folder import EvaluationFiles
from vitrail.runs.suite import SuiteFolder
from vitrail.runs.suite_columns import table_of_tests


def _carry_out(suite, qualities, **more):
    runs = plan(suite)
    for run in runs:
        finish(run, qualities.get(run.variant, 0.0), **more)
    return runs


def test_a_clear_difference_is_said_and_none_is_not(place):
    suite = load_suite(place(seeds=3))
    runs = _carry_out(suite, {"plain": 0.5, "wide": 4.0, "slow": 0.5}, images=150)
    tables = tabulate(suite, runs)
    said = {(r.a, r.b): r.statement for r in tables.pairs.itertuples()}
    assert said == {("plain", "wide"): "wide beats plain", ("plain", "slow"): "not shown",
                    ("wide", "slow"): "wide beats slow"}  # fmt: skip
    assert len(tables.results) == 9
    assert list(tables.summary["variant"]) == ["plain", "wide", "slow"]
    words = " ".join(sentences(suite, tables))
    assert "wide beats plain: wide has " in words
    assert "Not shown: " in words
    assert "slow beats" not in words


def test_numbers_are_those_of_the_runs(place):
    suite = load_suite(place(seeds=3, variants={"a": {}, "b": {"model.depth": 1}}, metric="f1_macro"))
    runs = _carry_out(suite, {"a": 1.0, "b": 2.0}, images=80)
    tables = tabulate(suite, runs)
    recorded = [run.folder.read_json(run.folder.evaluation / "metrics.json")["f1_macro"] for run in runs]
    assert tables.results["f1_macro"].to_numpy() == pytest.approx(recorded)
    assert tables.results["training_seconds"].tolist() == [120.0] * 6
    first = tables.summary.iloc[0]
    low, high = stats.t.interval(0.95, 2, np.mean(recorded[:3]), stats.sem(recorded[:3]))
    assert (first["low"], first["high"]) == pytest.approx((max(low, 0), min(high, 1)))
    row = tables.pairs.iloc[0]
    assert row["difference"] == pytest.approx(np.mean(recorded[:3]) - np.mean(recorded[3:]))
    assert row["p_holm"] == row["p"]
    # Against the predictions, read and paired by hand.
    right = [np.array([int(np.argmax(x)) == t for x, t in zip(p["logits"], p["target"], strict=True)])
             for p in (run.folder.read_predictions("test").sort_values("path") for run in runs)]  # fmt: skip
    expected = statistics.mcnemar(np.stack(right[:3]), np.stack(right[3:]))
    assert (row["a_alone_right"], row["b_alone_right"], row["p_mcnemar"]) == (expected.first, expected.second,
                                                                               expected.p)  # fmt: skip


def test_validation_images_are_not_called_test_images(place):
    suite = load_suite(place(seeds=2, variants={"a": {}, "b": {"model.depth": 1}}))
    runs = _carry_out(suite, {"a": 1.0, "b": 0.0})
    tested = markdown(suite, tabulate(suite, runs), [])
    assert "test images" in tested
    assert "validation" not in tested
    for run in runs:
        file = run.folder.evaluation / "metrics.json"
        run.folder.write_json(file, run.folder.read_json(file) | {"split": "val"})
    told = markdown(suite, tabulate(suite, runs), [])
    assert "validation images, which also chose the best epoch" in told
    assert "test images" not in told


def test_of_the_log_loss_less_is_better(place):
    suite = load_suite(place(seeds=3, variants={"good": {}, "bad": {"model.depth": 1}}, metric="nll"))
    tables = tabulate(suite, _carry_out(suite, {"good": 4.0, "bad": 0.0}, images=120))
    assert tables.pairs.iloc[0]["difference"] < 0
    assert tables.pairs.iloc[0]["statement"] == "good beats bad"


def test_against_one_variant_and_corrected_for_fewer(place):
    suite = load_suite(place(against="wide", seeds=2))
    tables = tabulate(suite, _carry_out(suite, {"wide": 1.0}))
    assert [(r.a, r.b) for r in tables.pairs.itertuples()] == [("plain", "wide"), ("slow", "wide")]
    assert tables.pairs["p_holm"].to_numpy() == pytest.approx(statistics.holm(tables.pairs["p"]))


def test_tests_are_columns_of_one_table(place):
    tests = {"as it is": {}, "turned": {"evaluate.tta": "so3"}}
    suite = load_suite(place(variants={"a": {}, "b": {"model.depth": 1}}, tests=tests, seeds=3))
    runs = plan(suite)
    for run in runs:
        folder = run.folder
        if run.tta == "none":
            finish(run, 3.0 if run.variant.startswith("a") else 1.0, images=80)
            shutil.copy(folder.predictions("test"), folder.predictions("test-so3"))
            metrics = folder.read_json(folder.evaluation / "metrics.json") | {"name": "test-so3"}
            folder.write_json(EvaluationFiles(folder.evaluation_of("test-so3")).metrics, metrics)
    tables = tabulate(suite, runs)
    table = table_of_tests(tables.summary, 100)
    assert table.frame.columns.tolist() == ["variant", "as it is", "turned"]
    assert table.frame["variant"].tolist() == ["a", "b"]
    assert table.frame["as it is"].tolist() == table.frame["turned"].tolist()
    mean, low, high = 100 * tables.summary.iloc[0][["mean", "low", "high"]]
    assert table.frame["turned"][0] == f"{mean:.2f} ({low:.2f} to {high:.2f})"
    assert len(tables.pairs) == 4
    assert tables.pairs.set_index(["a", "b"]).loc[("a, as it is", "a, turned"), "difference"] == 0
    assert "| variant | as it is | turned |" in markdown(suite, tables, [])
    assert table_of_tests(tables.summary.drop(columns="test"), 100) is None


def test_one_run_each_shows_nothing(place):
    suite = load_suite(place(seeds=1, variants={"a": {}, "b": {"model.depth": 1}}))
    tables = tabulate(suite, _carry_out(suite, {"a": 0.0, "b": 5.0}, images=200))
    row = tables.pairs.iloc[0]
    assert row["p"] < 1e-6
    assert row["statement"] == "not shown"
    assert "one run of each" in row["why"]
    assert math.isnan(tables.summary.iloc[0]["low"])


def test_different_images_cannot_be_paired(place):
    suite = load_suite(place(seeds=1, variants={"a": {}, "b": {"model.depth": 1}}))
    first, second = plan(suite)
    finish(first)
    finish(second, names=[f"other{i}" for i in range(60)])
    with pytest.raises(DataError, match=r"tested on different images \(120 images are in one of them only, '000\.png'"):
        tabulate(suite, [first, second])


def test_different_labels_cannot_be_paired(place):
    suite = load_suite(place(seeds=1, variants={"a": {}, "b": {"model.depth": 1}}))
    first, second = plan(suite)
    finish(first)
    finish(second, targets=np.zeros(60, dtype=int))
    with pytest.raises(DataError, match="with different labels"):
        tabulate(suite, [first, second])


def test_folds_are_compared_fold_by_fold(place):
    suite = load_suite(place(folds=4, seeds=1, variants={"a": {}, "b": {"model.depth": 1}}))
    runs = plan(suite)
    for run in runs:
        finish(run, 3.0 if run.variant == "b" else 0.5, names=[f"{run.fold}-{i}" for i in range(60)])
    tables = tabulate(suite, runs)
    row = tables.pairs.iloc[0]
    values = tables.results["accuracy"].to_numpy()
    differences = values[:4] - values[4:]
    training = 600 - 60 - 0.1 * 600
    expected = statistics.over_folds(differences, 60 / training)
    assert row["p"] == pytest.approx(float(expected.p_value()))
    assert (row["images"], row["runs"], row["statement"]) == (240, 4, "b beats a")


def test_runs_that_are_missing_are_left_out_and_said(place):
    suite = load_suite(place(seeds=2))
    runs = plan(suite)
    for run in runs[:3]:
        finish(run, 1.0)
    tables = tabulate(suite, runs)
    assert len(tables.pairs) == 1
    assert tables.pairs.iloc[0]["runs"] == 1  # the seeds that both have
    write_suite(suite, runs, tables, [Failure(runs[3], "the loss became nan", None)])
    page = write_suite_report(SuiteFolder(suite.dir), load_recipe, without=OPTIONAL).read_text()
    assert "3 of 6 runs are done" in page
    assert "the loss became nan" in page


def test_nothing_done_yet_is_a_page_too(place):
    suite = load_suite(place())
    runs = plan(suite)
    write_suite(suite, runs, tabulate(suite, runs), [])
    assert (
        "0 of 6 runs are done" in write_suite_report(SuiteFolder(suite.dir), load_recipe, without=OPTIONAL).read_text()
    )


def test_groups_of_the_predictions_are_taken_as_wholes(place):
    suite = load_suite(place(seeds=3, variants={"a": {}, "b": {"model.depth": 1}}))
    runs = _carry_out(suite, {"b": 1.0})
    for run in runs:
        file = run.folder.predictions("test")
        table = pd.read_parquet(file)
        table["group"] = [path[:2] for path in table["path"]]
        table.to_parquet(file)
    tables = tabulate(suite, runs)
    assert tables.groups == 6
    assert tables.pairs.iloc[0]["groups"] == 6


def test_equal_variants_are_called_equal_within_a_margin(place):
    suite = load_suite(place(seeds=4, variants={"a": {}, "b": {"model.depth": 1}}, margin=0.25))
    tables = tabulate(suite, _carry_out(suite, {"a": 2.0, "b": 2.0}, images=400))
    row = tables.pairs.iloc[0]
    assert row["statement"] == "a equals b"
    assert row["p_equal_holm"] < 0.05 < row["p_holm"]
    assert "a equals b within 25.00 points (two one-sided tests" in " ".join(sentences(suite, tables))
    # Without a margin nothing is said of equality.
    plain = load_suite(place(seeds=4, variants={"a": {}, "b": {"model.depth": 1}}))
    assert tabulate(plain, plan(plain)).pairs.iloc[0]["statement"] == "not shown"


def test_a_difference_within_the_margin_is_both(place):
    suite = load_suite(place(seeds=4, variants={"a": {}, "b": {"model.depth": 1}}, margin=0.9))
    tables = tabulate(suite, _carry_out(suite, {"a": 0.0, "b": 3.0}, images=200))
    words = " ".join(sentences(suite, tables))
    assert "b beats a: b has " in words
    assert "; the two are equal within 90.00 points" in words


@pytest.mark.slow
def test_variants_that_guess_are_named(place):
    suite = load_suite(place(seeds=2))
    labels = np.random.default_rng(9).integers(0, 3, 60)
    tables = tabulate(suite, _carry_out(suite, dict.fromkeys(("plain", "wide", "slow"), -0.3), targets=labels))
    assert tables.near_guess
    assert tables.guess == pytest.approx(np.bincount(labels).max() / 60)
    assert sentences(suite, tables)[0].startswith("No variant is shown to be better than guessing (always the most")
    learned = load_suite(
        place(name="other.yaml", seeds=3, runs_dir="learned", variants={"plain": {}, "wide": {"model.embed_dim": 32}})
    )
    assert not tabulate(learned, _carry_out(learned, {"plain": 5.0})).near_guess


@pytest.mark.slow
def test_the_page_is_whole_and_says_where_its_figures_come_from(place):
    suite = load_suite(place(seeds=2, title="Is <wide> better?", about="About & so on"))
    runs = _carry_out(suite, {"wide": 4.0}, images=100, whole=True)
    folder = write_suite(suite, runs, tabulate(suite, runs), [])
    page = write_suite_report(folder, load_recipe).read_text()
    assert "Is &lt;wide&gt; better?" in page
    assert page.count("<img") == page.count('alt="') == 9
    assert 'alt=""' not in page
    assert "http" not in re.sub(r'base64,[^"]*', "", page)  # any four letters may occur in a picture
    for run in runs:
        assert page.count(run.identity) > 4  # in the captions and in the list of runs
    names = ("differences", "convergence", "pareto", "confusion", "curves", "calibration", "selective", "features",
             "published")  # fmt: skip
    pictures = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {p.name for p in folder.figures.iterdir()} == pictures
    text = folder.text.read_text()
    for title in ("## Result", "## Variants", "## Comparisons", "## Runs"):
        assert title in text
    # Words for people, the same as on the page; what no person needs is in the CSV files.
    assert "| a minus b | from | to |" in text
    assert "a alone right" not in text
    assert "p_holm" not in text
    # The models of these runs were never there: no picture of what they look at, and the reason instead.
    assert page.count("is not drawn: ") == 3
    assert "What the variants look at" not in write_suite_report(folder, load_recipe, without=OPTIONAL).read_text()
    for file, rows in ((folder.results, 6), (folder.summary, 3), (folder.pairs, 3)):
        assert len(pd.read_csv(file)) == rows
