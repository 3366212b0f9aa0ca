"""What a page says of evaluations: all that was measured, nothing else."""

import functools
import json
import tempfile

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from vitrail.analyze.evaluated import Evaluation
from vitrail.errors import ConfigError, RunError
from vitrail.evaluate.calibration import confidences_of, reliability_table
from vitrail.evaluate.saved_predictions import Intervals, evaluate_saved
from vitrail.figures.picture import Picture
from vitrail.figures.style import style
from vitrail.figures.tables import Column, Table
from vitrail.report import measured
from vitrail.report.curves import ranking
from vitrail.report.evaluated import Section, Subject
from vitrail.report.page import write_report
from vitrail.report.robust import robustness
from vitrail.report.write import beside, write_page
from vitrail.runs.folder import RunFolder

CLASSES = ["NA", "b", "c"]


def _make(place, seed=0, images=80, val=40, classes=CLASSES):
    run = RunFolder(place)
    folder, files = _evaluated(seed, images, val, tuple(classes))
    for name, content in files.items():
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_bytes(content)
    return Evaluation.read(run, run.path / folder)


@functools.cache
def _evaluated(seed, images, val, classes):
    """Evaluate predictions; return the folder of the evaluation and the content of all files of the run."""
    with tempfile.TemporaryDirectory() as place:
        run = RunFolder(place)
        run.write_json(run.card, {"classes": list(classes)})
        rng = np.random.default_rng(seed)
        for name, count in (("val", val), ("test", images)):
            targets = rng.integers(0, len(classes), count)
            logits = rng.normal(size=(count, len(classes))).astype(np.float32)
            logits[np.arange(count), targets] += 1
            paths = [f"{i}.png" for i in range(count)]
            run.write_predictions(name, range(count), paths, targets.tolist(), logits, logits)
        folder, _ = evaluate_saved(run, intervals=Intervals(resamples=100))
        files = {file.relative_to(place): file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
        return folder.relative_to(place), files


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return [_make(place / f"r{seed}", seed) for seed in range(2)]


def test_the_bins_of_several_runs_are_those_of_all_their_images(parts):
    variant = Subject("v", parts, "variant")
    pooled = measured._pooled(variant)["as it is"]
    tables = [part.run.read_predictions("test") for part in parts]
    logits = np.stack([row for table in tables for row in table["logits"]])
    targets = np.concatenate([table["target"] for table in tables])
    pd.testing.assert_frame_equal(pooled, reliability_table(confidences_of(logits, targets)), check_dtype=False)


def test_numbers_of_a_variant_are_means_over_its_runs_without_the_intervals_of_one(parts):
    (section,) = measured.prediction_sets([Subject("v", parts, "variant")])
    frame = section.tables[0].frame
    own = [json.loads(part.files.conformal.read_text())["sets"][0]["coverage"] for part in parts]
    assert frame["coverage"].iloc[0] == pytest.approx(np.mean(own))
    assert frame["coverage_low"].isna().all()
    assert section.tables[0].shown()["header"][0]["text"] == "variant"
    (alone,) = measured.prediction_sets([Subject("r0", parts[:1])])
    assert alone.tables[0].frame["coverage_low"].notna().all()


def test_the_risk_coverage_curve_ends_at_the_share_of_mistakes(parts):
    (section,) = measured.selective([Subject(part.run.name, [part]) for part in parts])
    frame = section.tables[0].frame
    assert frame["at_100"].tolist() == pytest.approx([part.metrics["accuracy"] for part in parts])
    assert [c for c in frame if c.startswith("at_")] == ["at_100", "at_95", "at_90", "at_80", "at_70", "at_50"]


def test_a_class_may_be_called_NA(parts):
    assert parts[0].confusion().index.tolist() == CLASSES
    (section,) = measured.classes([Subject("r0", parts[:1])])
    assert sorted(section.tables[0].frame["class"]) == CLASSES


def test_what_was_not_measured_is_not_shown(parts):
    subjects = [Subject(part.run.name, [part]) for part in parts]
    assert robustness(subjects) == []
    assert measured.cost(subjects) == []


def _measure_corruptions(part, weights, names=("fog", "snow")):
    cases = [("none", 0, 0.9), *((n, s, 0.9 - s / 10 - i / 100) for i, n in enumerate(names) for s in range(1, 6))]
    table = pd.DataFrame([{"corruption": n, "severity": s, "images": 50, "accuracy": a, "low": a - 0.1, "high": a + 0.1}
                          for n, s, a in cases])  # fmt: skip
    part.files.corruptions.write_text(table.to_csv(index=False))
    part.run.write_json(part.files.robustness, {"corruptions": {"weights": weights}})


def test_corruptions_of_other_weights_are_not_shown_and_only_common_ones_are_averaged(tmp_path):
    first, second = (_make(tmp_path / name, i) for i, name in enumerate("xy"))
    subjects = [Subject("x", [first]), Subject("y", [second])]
    _measure_corruptions(first, "of another training")
    assert robustness(subjects) == []
    _measure_corruptions(first, None)
    _measure_corruptions(second, None, ("fog",))
    (section,) = robustness(subjects)
    (line, figure), (grid, _) = section.shown
    assert "the corruption fog," in line.caption
    # Fog alone is what both were measured under: the curves lie on each other.
    curves = [list(map(float, drawn.get_ydata())) for drawn in figure.axes[0].lines]
    assert curves[0] == curves[1] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert "x (test); y (test)" in grid.caption
    assert section.tables[0].frame.set_index(["name", "corruption"]).loc[("x", "snow"), "severity_5"] == pytest.approx(
        0.39
    )


def test_a_sheet_of_mistakes_goes_when_the_mistakes_are_others(tmp_path):
    part = _make(tmp_path / "x")
    part.files.mistakes_sheet.write_bytes(b"png")
    evaluate_saved(part.run, intervals=Intervals(resamples=100))
    assert part.files.mistakes_sheet.exists()
    table = part.run.read_predictions("test")
    logits = np.stack(table["logits"].tolist())
    part.run.write_predictions("test", table["index"], table["path"], table["target"].tolist(), -logits, logits)
    evaluate_saved(part.run, intervals=Intervals(resamples=100))
    assert not part.files.mistakes_sheet.exists()


def test_damaged_tables_are_said_in_one_line(tmp_path):
    part = _make(tmp_path / "x")
    part.files.selective.write_text("coverage\n0.5\n")
    with pytest.raises(RunError, match=r"selective.csv holds no risk; `vitrail evaluate"):
        measured.selective([Subject("x", [part])])
    part.files.reliability.write_text("")
    with pytest.raises(RunError, match=r"reliability.csv is damaged"):
        measured.calibration([Subject("x", [part])])


def test_a_run_with_other_weights_than_were_evaluated_has_no_page(tmp_path):
    run = _make(tmp_path / "x").run
    metrics = run.evaluation / "metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"weights": "old"}))
    with pytest.raises(RunError, match="was evaluated with other weights than it holds now"):
        write_report([run], tmp_path / "report.html", lambda _: None)


@pytest.mark.drawn
def test_a_page_is_also_markdown_and_csv(tmp_path):
    frame = pd.DataFrame({"name": ["a|b", "<c>"], "x": [0.25, None], "x_low": [0.1, None], "x_high": [0.5, None]})
    table = Table("t", "Of a|b.", frame, [Column("name", "run", "text"), Column("x", "X", "share", "x_low", "x_high")])
    picture = Picture("p", "Title", "Of a|b.", "An [alternative]")
    figure = Figure()
    figure.subplots().plot([0, 1])
    section = Section("Title", [], [(picture, figure)], [table])
    out = write_page(tmp_path / "mine.html", "Page", [], [section], "page.html.j2", {"runs": []})
    page, text = out.read_text(), (tmp_path / "mine.md").read_text()
    assert '<td data-sort="0.25">0.250 (0.100 to 0.500)</td>' in page
    assert "&lt;c&gt;" in page
    assert 'alt="An [alternative]"' in page
    assert "| a\\|b | 0.250 (0.100 to 0.500) |" in text
    assert "![An (alternative)](<mine_figures/p.png>)" in text
    for kind in ("png", "svg"):
        assert (tmp_path / "mine_figures" / f"p.{kind}").stat().st_size > 1000
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "mine_tables" / "t.csv"), frame)
    assert beside(tmp_path / "report.html", "figures") == tmp_path / "figures"
    with pytest.raises(ConfigError, match=r"must be called NAME.html"):
        write_page(tmp_path / "page.md", "Page", [], [section], "page.html.j2", {"runs": []})


def test_curves_that_were_not_recorded_are_named_and_change_no_colour(tmp_path):
    made = [_make(tmp_path / f"r{seed}", seed) for seed in range(3)]
    made[0].files.curves.unlink()  # evaluated by a version that did not record them
    (section,) = ranking([Subject(f"v{i}", [part], "variant") for i, part in enumerate(made)])
    ((picture, figure),) = section.shown
    assert picture.caption.endswith("Not recorded for v0: `vitrail evaluate` the runs again.")
    assert "v0" not in picture.alt
    colours = {line.get_color() for line in figure.axes[0].lines}
    assert {style(1)["color"], style(2)["color"]} <= colours
    assert style(0)["color"] not in colours


def test_curves_of_many_classes_are_gray_but_for_the_weakest(tmp_path):
    made = _make(tmp_path / "r", classes=[f"c{i}" for i in range(9)])
    ((picture, figure),) = ranking([Subject("r", [made], "run")])[0].shown
    assert [line.get_color() for line in figure.axes[0].lines].count("#b9c0c7") == 9 - 7
    assert "The 7 classes of least average precision are named." in picture.caption
