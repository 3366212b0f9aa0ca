"""Gate and final comparison of exports that label points: counted by cloud."""

import numpy as np
import pytest

from vitrail.bootstrap import Bootstrap
from vitrail.deploy.export.bounds import LEVEL
from vitrail.deploy.export.final_table import compare_on_test
from vitrail.deploy.export.gate import GateImages, Outputs, judge, judge_photographs
from vitrail.deploy.export.gate import Limits as GateLimits
from vitrail.evaluate.parts import PartCounts, part_measures

CLOUDS, POINTS, PARTS = 30, 12, 4


def make(seed=0, quality=2.0):
    """Gate clouds, some of whose points have no label, and logits that know the labels somewhat."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, PARTS, (CLOUDS, POINTS))
    logits = rng.normal(size=(CLOUDS, POINTS, PARTS)) + quality * np.eye(PARTS)[targets]
    targets[rng.random(targets.shape) < 0.2] = -1
    targets[0] = -1
    return targets, logits.astype(np.float32)


def test_one_point_of_another_part_changes_the_decision_for_its_cloud():
    targets, logits = make()
    gate = GateImages(Outputs(logits), targets)
    other = logits.copy()
    other[3, 5] = other[3, 5, ::-1].copy()
    assert gate.changed(other).tolist() == [i == 3 for i in range(CLOUDS)]
    verdict = judge(gate, Outputs(other), "equality")
    assert (verdict.status, verdict.images, verdict.misses, verdict.labelled) == ("refused", CLOUDS, 1, 0)
    assert "1 of 30 decisions differ" in verdict.reason
    same = judge(gate, Outputs(logits + 1e-6), "equality")
    assert same.status == "passed"
    assert same.drop is None
    found = judge_photographs(gate, range(5), logits[:5], logits[:5] + 1e-6, same, GateLimits())
    assert found.status == "passed"
    assert judge_photographs(gate, range(5), logits[:5], logits[:5, ::-1], same, GateLimits()).status == "refused"


@pytest.mark.parametrize("seed", [0, 1])
def test_test_clouds_are_compared_by_mean_intersection_over_union(seed):
    targets, logits = make(seed)
    other = make(seed, quality=1.0)[1]
    found = compare_on_test(GateImages(Outputs(logits), targets), Outputs(other))
    assert found.metric == "mIoU"
    assert (found.losses, found.gains) == (None, None)
    for estimate, own in ((found.original, logits), (found.export, other)):
        rows = range(1, CLOUDS)
        known = [targets[i] >= 0 for i in rows]
        true, predicted = ([x[i][k] for i, k in zip(rows, known, strict=True)] for x in (targets, own.argmax(-1)))
        bootstrap = Bootstrap(CLOUDS - 1, confidence=LEVEL)
        measures = part_measures(PartCounts.of(true, predicted, PARTS), list("abcd"), bootstrap)
        assert estimate == pytest.approx([measures[name] for name in ("miou", "miou_low", "miou_high")])
    assert found.difference[0] == pytest.approx(found.export[0] - found.original[0])
    assert found.difference[1] < found.difference[0] < found.difference[2]
    assert found.agreement == 1 - np.mean((logits.argmax(-1) != other.argmax(-1)).any(axis=1))


def test_without_labels_nothing_is_known():
    targets, logits = make()
    found = compare_on_test(GateImages(Outputs(logits), np.full_like(targets, -1)), Outputs(logits))
    assert np.isnan([*found.original, *found.export, *found.difference]).all()
    assert found.agreement == 1
