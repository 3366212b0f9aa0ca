"""Suites of runs that label points: paired over clouds."""

import numpy as np
import pandas as pd
import pytest

from tests.undrawn import _undrawn as _undrawn
from vitrail.compare import load_suite, plan
from vitrail.compare.findings import markdown, sentences
from vitrail.compare.results import tabulate
from vitrail.compare.write import write_suite
from vitrail.config.load import dump_recipe, load_recipe
from vitrail.errors import ConfigError, DataError
from vitrail.evaluate.image_scores import PART_SCORES
from vitrail.evaluate.parts import PartCounts, cloud_scores, measure_parts, part_measures
from vitrail.evaluate.saved_predictions import Intervals
from vitrail.report.suite import write_suite_report
from vitrail.runs.folder import EvaluationFiles

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
    folder.write_json(folder.card, {"classes": NAMES, "epoch": 2, "settings": {"per_point": True}})
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


@pytest.mark.parametrize("measure", list(PART_SCORES))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_contributions_of_clouds_are_jackknife_values_of_the_measure(measure, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, 7)
    true, predicted = ([rng.integers(0, 3 + (i == 2), size) for i, size in enumerate(sizes)] for _ in range(2))

    def measured(rows):
        counts = PartCounts.of([true[i] for i in rows], [predicted[i] for i in rows], 4)
        return part_measures(counts, list("abcd"), None)[measure]

    found = cloud_scores(measure, PartCounts.of(true, predicted, 4))
    assert found.mean() == pytest.approx(measured(range(7)))
    without = np.array([measured([j for j in range(7) if j != i]) for i in range(7)])
    if measure != "miou_clouds":
        pseudo = 7 * measured(range(7)) - 6 * without
        np.testing.assert_allclose(found, pseudo - pseudo.mean() + measured(range(7)))
    else:
        np.testing.assert_allclose(found, [measured([i]) for i in range(7)])


@pytest.mark.fast_cases("None")
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


def test_the_page_of_a_suite(parts):
    suite = parts(seeds=2)
    runs = plan(suite)
    for run in runs:
        label(run, 0.6)
    folder = write_suite(suite, runs, tabulate(suite, runs), [])
    page = write_suite_report(folder, load_recipe).with_suffix(".md").read_text()
    assert "mIoU against the time" in page
    assert "Labelled points, added up over the runs" in page
    assert "Beside published results" not in page


def test_clouds_of_other_points_are_not_paired(parts):
    suite = parts(seeds=1)
    for run in plan(suite):
        label(run, 0.5, points=24 if run.variant == "good" else 20)
    with pytest.raises(DataError, match=r"label 24 and 20 points of each cloud; give all variants the same model.num_"):
        tabulate(suite, plan(suite))


@pytest.mark.parametrize(("content", "message"), [
    ({"metric": "f1_macro"}, "unknown metric 'f1_macro'"),
    ({"variants": {"a": {}, "b": {"task.name": "classification", "data.points.part": None}}}, "no common measure"),
])  # fmt: skip
def test_refused(parts, content, message):
    with pytest.raises(ConfigError, match=message):
        parts(**content)
