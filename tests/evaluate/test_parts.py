"""Intersection over union of parts, by a count of every point."""

import numpy as np
import pytest

from vitrail.bootstrap import Bootstrap
from vitrail.evaluate.parts import PartCounts, part_measures

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
