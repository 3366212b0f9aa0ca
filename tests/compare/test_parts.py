"""Suites of runs that label points: paired over clouds."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from tests.undrawn import _undrawn as _undrawn
from vitrail.bootstrap import Bootstrap
from vitrail.compare import load_suite, plan
from vitrail.compare.findings import markdown, sentences
from vitrail.compare.results import tabulate
from vitrail.compare.write import write_suite
from vitrail.config.load import dump_recipe, load_recipe
from vitrail.errors import ConfigError, DataError
from vitrail.evaluate.image_scores import PART_SCORES
from vitrail.evaluate.parts import PartCounts, cloud_scores, measure_parts, part_measures, predicted_only
from vitrail.evaluate.saved_predictions import Intervals
from vitrail.report.suite import write_suite_report
from vitrail.runs.folder import EvaluationFiles
from vitrail.train.validation_metrics import MeanIoU

NAMES = ["leg", "seat", "back"]
BASE = {
    "data.source": "solids", "data.points.part": "surface", "task.name": "parts", "trainer.max_epochs": 3,
    "model": {"name": "vnt", "num_points": 24, "embed_dim": 8, "depth": 1, "num_heads": 2},
}  # fmt: skip


@pytest.fixture
def parts(place):
    """Write a suite whose runs label points."""

    def written(**content):
        variants = {"good": {}, "bad": {"model.depth": 2}}
        return load_suite(place(**{"recipe": "parts.yaml", "variants": variants, "seeds": 3, **content}))

    (place("x.yaml").parent / "parts.yaml").write_text("{}")
    return lambda **content: written(**{"changes": BASE, **content})


def label(run, quality, clouds=60, points=24):
    """Write the folder of a planned run whose share ``quality`` of labels is that of the truth."""
    folder = run.folder
    folder.path.mkdir(parents=True)
    folder.recipe.write_text(dump_recipe(run.recipe))
    environment = {"vitrail": "0.1.0", "git_commit": None, "finished": "2026-01-01T00:00:00"}
    folder.write_json(folder.environment, environment | {"images": {"number": 600, "fingerprint": "x"}})
    row = {"train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5, "val_miou": 0.4, "epoch_seconds": 3.0}
    folder.write_metrics([{"epoch": i, **row} for i in range(3)])
    card = {"classes": NAMES, "epoch": 2, "settings": {"per_point": True}, "streams": {"points": {}}}
    folder.write_json(folder.card, card)
    true = np.random.default_rng(0).choice(3, (clouds, points), p=[0.5, 0.3, 0.2])
    true[0] = -1  # a cloud without labels
    rng = np.random.default_rng(int(run.identity, 16))
    predicted = np.where(rng.random(true.shape) < quality, true, rng.integers(0, 3, true.shape)).clip(0)
    table = pd.DataFrame({"index": range(clouds), "path": [f"{i:03}" for i in range(clouds)], "parts": list(true),
                          "predicted": list(predicted)})  # fmt: skip
    folder.write_part_predictions("test", *(table[name].to_list() for name in table), None, {})
    files = EvaluationFiles(folder.evaluation)
    metrics = measure_parts(table, NAMES, files, Intervals(resamples=100).bootstrap(table, None))
    efficiency = {"parameters": 1000, "gmacs": 0.5, "inference_images_per_second": 100.0, "batch_size": 64}
    metrics |= {"name": "test", "split": "test", "efficiency": efficiency | {"device": "cpu"}}
    folder.write_json(files.metrics, metrics)


def measured(measure, true, predicted, parts):
    """Count points one by one."""
    true, predicted = np.concatenate(true), np.concatenate(predicted)
    if measure == "accuracy":
        return np.mean(true == predicted)
    each = []
    for part in parts:
        if not (true == part).any():
            return np.nan
        pairs = [(a == part, b == part) for a, b in zip(true, predicted, strict=True)]
        each.append(sum(a and b for a, b in pairs) / sum(a or b for a, b in pairs))
    return np.mean(each)


@pytest.mark.parametrize("measure", list(PART_SCORES))
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_contributions_of_clouds_are_jackknife_values_of_the_measure(measure, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(6, 12, 7)
    # One cloud has the only points of part 3, which others are labelled as, too; part 4 is predicted alone.
    true = [rng.integers(0, 3 + (i == 2 and seed > 0), size) for i, size in enumerate(sizes)]
    predicted = [rng.integers(0, 5, size) for size in sizes]
    parts = np.unique(np.concatenate(true))
    counts = PartCounts.of(true, predicted, 5)
    whole = part_measures(counts, list("abcde"), None)[measure]
    found = cloud_scores(measure, counts)
    assert found.mean() == pytest.approx(whole)
    if measure == "miou_clouds":
        alone = [PartCounts.of([a], [b], 5).of_clouds()[0] for a, b in zip(true, predicted, strict=True)]
        np.testing.assert_allclose(found, alone)
        return
    assert whole == pytest.approx(measured(measure, true, predicted, parts))
    others = [[j for j in range(7) if j != i] for i in range(7)]
    without = np.array(
        [measured(measure, [true[j] for j in rows], [predicted[j] for j in rows], parts) for rows in others]
    )
    pseudo = 7 * whole - 6 * without
    expected = np.where(np.isnan(pseudo), whole, pseudo - np.nanmean(pseudo) + whole)
    np.testing.assert_allclose(found, expected)
    assert (measure == "accuracy") or np.isnan(pseudo).tolist() == [i == 2 and 3 in parts for i in range(7)]


@pytest.mark.parametrize("stray", [0, 1, 40])
def test_points_labelled_as_a_part_that_never_occurs(stray):
    rng = np.random.default_rng(stray)
    true = list(rng.integers(0, 4, (100, 100)))
    clouds = np.linspace(0.8, 1.0, 100)[:, None]
    predicted = list(np.where(rng.random((100, 100)) < clouds, true, rng.integers(0, 4, (100, 100))))
    names, bootstrap = list("abcde"), Bootstrap(100, resamples=2000)
    before = part_measures(PartCounts.of(true, predicted, 5), names, None)
    for own in predicted[:stray]:
        own[0] = 4
    counts = PartCounts.of(true, predicted, 5)
    found = part_measures(counts, names, bootstrap)
    # A point changes the intersection over union of its own part alone.
    assert before["miou"] - found["miou"] <= stray / 4 / 2000
    assert found["miou"] <= before["miou"]
    # Two uncertainties of one number: the standard error of the contributions, and the width of the interval.
    scores = cloud_scores("miou", counts)
    width = 2 * 1.984 * scores.std(ddof=1) / 10
    assert found["miou_high"] - found["miou_low"] == pytest.approx(width, rel=0.1)
    row = found["parts"][4]
    assert (row["points"], row["predicted"], row["iou"], row["low"]) == (0, stray, None, None)
    caution = predicted_only(found)
    assert (caution or "").rpartition(": ")[2] == ["", "e (1 point)", "e (40 points)"][min(stray, 2)]


def test_of_a_single_part_the_mean_is_the_accuracy():
    rng = np.random.default_rng(0)
    true = list(np.zeros((9, 20), dtype=np.int64))
    predicted = [np.where(rng.random(20) < 0.7, 0, rng.integers(1, 3, 20)) for _ in true]
    shares = [np.mean(own == 0) for own in predicted]
    np.testing.assert_allclose(cloud_scores("miou", PartCounts.of(true, predicted, 3)), shares)
    logits = torch.eye(3)[torch.from_numpy(np.concatenate(predicted))]
    assert MeanIoU(3)(logits, torch.zeros(180, dtype=torch.long)) == pytest.approx(np.mean(shares))


@pytest.mark.slow
@pytest.mark.parametrize("metric", [None, "miou_clouds", "accuracy"])
def test_a_clear_difference_is_shown(parts, metric):
    suite = parts(**({} if metric is None else {"metric": metric}))
    assert suite.metric == (metric or "miou")
    runs = plan(suite)
    for run in runs:
        label(run, 0.9 if run.variant == "good" else 0.3)
    tables = tabulate(suite, runs)
    assert tables.images == 59
    row = tables.pairs.iloc[0]
    assert row["statement"] == "good beats bad"
    recorded = [run.folder.read_json(run.folder.evaluation / "metrics.json")[suite.metric] for run in runs]
    np.testing.assert_allclose(tables.results[suite.metric], recorded)
    assert row["difference"] == pytest.approx(np.mean(recorded[:3]) - np.mean(recorded[3:]))
    assert np.isnan(row["p_mcnemar"])
    assert tables.summary["better_than_guess"].all()
    text = markdown(suite, tables, [])
    assert "McNemar" not in text.partition("## Comparisons")[0]
    assert any("good beats bad: good has" in line for line in sentences(suite, tables))


def test_the_table_and_page_of_a_suite(parts):
    suite = parts(seeds=2)
    assert suite.metric == "miou"
    runs = plan(suite)
    for run in runs:
        label(run, 0.9 if run.variant == "good" else 0.3)
    tables = tabulate(suite, runs)
    row = tables.pairs.iloc[0]
    assert (row["statement"], row["images"]) == ("good beats bad", 59)
    recorded = [run.folder.read_json(run.folder.evaluation / "metrics.json")["miou"] for run in runs]
    np.testing.assert_allclose(tables.results["miou"], recorded)
    assert row["difference"] == pytest.approx(np.mean(recorded[:2]) - np.mean(recorded[2:]))
    assert np.isnan(row["p_mcnemar"])
    folder = write_suite(suite, runs, tables, [])
    html = write_suite_report(folder, load_recipe)
    page = html.with_suffix(".md").read_text()
    assert "McNemar" not in folder.text.read_text().partition("## Comparisons")[0]
    assert "mIoU against the time" in page
    assert "Labelled points, added up over the runs" in page
    assert "Beside published results" not in page
    assert "on the same 59 test point clouds" in folder.read_facts()["method"]
    for text in (page, html.read_text(), *folder.read_facts()["sentences"]):
        text = re.sub(r"<(style|script)>.*?</\1>|<img[^>]*>|images?/s", "", text, flags=re.DOTALL)
        assert not re.findall(r".{0,60}(?<![\w/.-])[Ii]mages?(?![\w/=:-]).{0,60}", text)


def test_clouds_of_other_points_are_not_paired(parts):
    suite = parts(seeds=1)
    for run in plan(suite):
        label(run, 0.5, points=24 if run.variant == "good" else 20)
    with pytest.raises(DataError, match=r"label 24 and 20 points of each cloud; give all variants the same model.num_"):
        tabulate(suite, plan(suite))


@pytest.mark.parametrize(("content", "message"), [
    ({"metric": "f1_macro"}, "unknown metric 'f1_macro'"),
    ({"variants": {"a": {}, "b": {"task.name": "classification", "data.points.part": None}}}, "no common measure"),
    ({"variants": {"a": {}, "b": {"model.num_points": 20}}}, "the variants a and b label 24 and 20 points of each"),
    ({"tests": {"x": {}, "y": {"changes": {"model.num_points": 20}}}}, "good, x and good, y label 24 and 20 points"),
    ({"tests": {"x": {}, "y": {"changes": {"data.points.num_points": 12}}}}, "good, x and good, y label 24 and 12"),
    (
        {"tests": {"x": {}, "y": {"changes": {"model.weights": "pretrained:nosuch"}}}},
        r"tests.y: model.weights 'pretrained:nosuch' names no entry of pretrained",
    ),
    ({"variants": {"a": {}, "b": {"model.weights": "pretrained:no"}}}, "variant b: model.weights 'pretrained:no'"),
])  # fmt: skip
def test_refused(parts, content, message):
    with pytest.raises(ConfigError, match=message):
        parts(**content)


def test_tests_of_the_same_number_of_points_are_planned(parts):
    suite = parts(seeds=1, tests={"plain": {}, "turned": {"changes": {"data.points.turn": "so3"}}})
    assert len(plan(suite)) == 4
