"""Intersection over union of parts, by a count of every point."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from vitrail.bootstrap import Bootstrap
from vitrail.config.data import DataConfig
from vitrail.data.dataset import open_data
from vitrail.errors import DataError
from vitrail.evaluate import parts, robustness
from vitrail.evaluate.parts import PartCounts, draw_parts, part_measures
from vitrail.evaluate.saved_predictions import Intervals, SavedPredictions

NAMES = ("leg", "seat", "back", "never")


def _clouds(number=12):
    rng = np.random.default_rng(0)
    true = [rng.integers(0, 3, rng.integers(5, 20)) for _ in range(number)]
    predicted = [np.where(rng.random(len(own)) < 0.7, own, rng.integers(0, 3, len(own))) for own in true]
    return true, predicted


def _iou(true, predicted, part):
    both = sum(a == part and b == part for a, b in zip(true, predicted, strict=True))
    either = sum(a == part or b == part for a, b in zip(true, predicted, strict=True))
    return both / either if either else None


def test_measures_equal_a_count_of_every_point():
    true, predicted = _clouds()
    counts = PartCounts.of(true, predicted, 4)
    found = part_measures(counts, NAMES, Bootstrap(len(true), resamples=200))
    every = np.concatenate(true).tolist(), np.concatenate(predicted).tolist()
    expected = [_iou(*every, part) for part in range(4)]
    assert [row["iou"] for row in found["parts"]] == [*map(pytest.approx, expected[:3]), None]
    assert found["miou"] == pytest.approx(np.mean(expected[:3]))
    assert found["accuracy"] == pytest.approx(np.mean(np.equal(*every)))
    each = [
        np.mean([own for part in range(3) if (own := _iou(a.tolist(), b.tolist(), part)) is not None])
        for a, b in zip(true, predicted, strict=True)
    ]
    assert counts.of_clouds() == pytest.approx(each)
    assert found["miou_clouds"] == pytest.approx(np.mean(each))
    assert [row["points"] for row in found["parts"]] == [every[0].count(part) for part in range(4)]
    assert [row["part"] for row in found["parts"]] == list(NAMES)


def test_intervals_are_of_the_mean_over_the_same_parts():
    true, predicted = _clouds(30)
    # The fourth part occurs in two clouds and is never predicted: its intersection over union is 0.
    for own in true[:2]:
        own[:2] = 3
    found = part_measures(PartCounts.of(true, predicted, 4), NAMES, Bootstrap(30, resamples=400))
    others = part_measures(PartCounts.of(true[2:], predicted[2:], 4), NAMES, Bootstrap(28, resamples=400))
    assert found["parts"][3]["iou"] == 0
    assert found["miou_low"] < found["miou"] < found["miou_high"]
    assert found["miou_high"] < 0.75 * 1.05 * others["miou_high"]
    # Two parts of one cloud each: more than half of the resamples lack one.
    true[0][:2], true[1][:2] = 3, 4
    found = part_measures(PartCounts.of(true, predicted, 5), (*NAMES, "rare"), Bootstrap(30, resamples=400))
    assert found["miou"] > 0
    assert found["miou_low"] is None
    assert found["accuracy_low"] is not None


def test_clouds_without_labels_count_in_no_mean():
    true, predicted = _clouds()
    expected = part_measures(PartCounts.of(true, predicted, 4), NAMES, None)
    empty = np.empty(0, dtype=np.int64)
    counts = PartCounts.of([*true, empty, empty], [*predicted, empty, empty], 4)
    assert np.isnan(counts.of_clouds()).tolist() == [False] * 12 + [True] * 2
    assert part_measures(counts, NAMES, None) == expected
    found = part_measures(counts, NAMES, Bootstrap(14, resamples=200))
    assert found["miou_clouds_low"] < found["miou_clouds"] < found["miou_clouds_high"]


def test_intervals_are_over_clouds():
    true, predicted = _clouds(30)
    counts = PartCounts.of(true, predicted, 4)
    found = part_measures(counts, NAMES, Bootstrap(30, resamples=400))
    for name in ("accuracy", "miou", "miou_clouds"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert found["parts"][3]["low"] is None
    alone = part_measures(PartCounts.of(true[:1], predicted[:1], 4), NAMES, None)
    assert alone["miou_low"] is None
    perfect = part_measures(PartCounts.of(true, true, 4), NAMES, None)
    assert perfect["miou"] == perfect["accuracy"] == perfect["miou_clouds"] == 1.0


@pytest.mark.parametrize("added", [[], ["a.txt"], ["z.txt"], ["a.txt", "c1.txt", "d.txt"]])
def test_clouds_are_drawn_by_their_keys(tmp_path, monkeypatch, added):
    rng = np.random.default_rng(0)

    def write(name):
        points = rng.normal(size=(12, 3))
        (tmp_path / "solids" / "cube").mkdir(parents=True, exist_ok=True)
        np.savetxt(tmp_path / "solids" / "cube" / name, np.column_stack([points, rng.integers(0, 3, 12)]))

    def opened():
        settings = {"source": "points", "path": str(tmp_path / "solids"), "points.part": "feature0"}
        return open_data(DataConfig().changed(settings), (12,))

    for name in ("b.txt", "c.txt", "e.txt", "f.txt"):
        write(name)
    before = opened()
    keys = list(before.source.keys)
    batch = before.batch(range(4))
    labels = list(batch["parts"].numpy().astype(np.int64))
    table = pd.DataFrame({"index": range(4), "path": keys, "parts": labels, "predicted": labels})
    for name in added:
        write(name)
    drawn = []
    monkeypatch.setattr(parts, "parts_figure", lambda clouds, *_: drawn.extend(clouds))
    draw_parts(opened(), table.iloc[[2, 0]], ("leg", "seat", "back"))
    for cloud, index in zip(drawn, (2, 0), strict=True):
        np.testing.assert_array_equal(cloud, batch["points"][index].numpy())
    (tmp_path / "solids" / keys[0]).unlink()
    with pytest.raises(DataError, match=f"{keys[0]} was evaluated and is not among the images any more"):
        draw_parts(opened(), table, ("leg", "seat", "back"))


def test_groups_of_saved_predictions_are_found_by_key(monkeypatch):
    keys = [f"{i}.png" for i in range(6)]
    table = pd.DataFrame({"index": range(6), "path": keys, "group": list("aabbcc")})
    monkeypatch.setattr(SavedPredictions, "read", lambda *_: SimpleNamespace(table=table))
    source = SimpleNamespace(keys=["0.jpg", *reversed(keys)])  # a file more, in another order
    evaluated = SimpleNamespace(run="run", name="test", images=SimpleNamespace(source=source))
    found = robustness._bootstrap(evaluated, None, [1, 3, 6], Intervals())
    assert list(found.groups) == ["c", "b", "a"]
    with pytest.raises(DataError, match=r"0\.jpg is not among the saved predictions of test; evaluate run again"):
        robustness._bootstrap(evaluated, None, [0, 1], Intervals())
