"""Curves against scikit-learn's areas, and against counting."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.tiers import fast_first
from vitrail.evaluate.curves import PRECISION_RECALL, ROC, rank_curves, true_and_scores


def _case(seed, several=False, images=None, classes=None):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 150)) if images is None else images
    k = int(rng.integers(2, 7)) if classes is None else classes
    # Few different logits: images that cannot be told apart are at one point of a curve.
    logits = rng.integers(-3, 4, (n, k)).astype(np.float32) + (0 if seed % 2 else rng.normal(size=(n, k)))
    targets = rng.integers(0, 2, (n, k)) if several else rng.integers(0, k, n)
    logits += 1.5 * (targets if several else np.eye(k)[targets])
    true, scores = true_and_scores(logits.astype(np.float32), targets)
    return true, scores, [str(i) for i in range(k)], logits, targets


def _area(rows):
    x, y = rows["x"].to_numpy(), rows["y"].to_numpy()
    return np.trapezoid(y, x) if rows["curve"].iloc[0] == ROC else (np.diff(x) * y[1:]).sum()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("seed", fast_first(range(6), 2))
def test_areas_are_those_of_scikit_learn(seed, several):
    true, scores, classes, _, _ = _case(seed, several)
    table, micro = rank_curves(true, scores, classes)
    measures = {ROC: roc_auc_score, PRECISION_RECALL: average_precision_score}
    for curve, measure in measures.items():
        rows = table[table["curve"] == curve]
        wanted = [measure(true[:, i], scores[:, i]) for i in range(len(classes))]
        own = [_area(rows[(rows["of"] == "class") & (rows["class"] == name)]) for name in classes]
        assert own == pytest.approx(wanted, abs=1e-4)
        together = measure(true.ravel(), scores.ravel())
        assert micro[f"{'roc_auc' if curve == ROC else 'average_precision'}_micro"] == pytest.approx(together)
        # The means are drawn on 200 places, and those of all answers may be thinned.
        assert _area(rows[rows["of"] == "macro"]) == pytest.approx(np.mean(wanted), abs=0.01)
        assert _area(rows[rows["of"] == "micro"]) == pytest.approx(together, abs=0.01)


@pytest.mark.fast_cases("False")
@pytest.mark.parametrize("several", [False, True])
def test_a_point_is_what_counting_at_its_threshold_gives(several):
    true, scores, classes, logits, _ = _case(4, several)
    table, _ = rank_curves(true, scores, classes)
    p = expit(logits.astype(np.float64)) if several else softmax(logits.astype(np.float32).astype(np.float64), axis=1)
    for k, name in enumerate(classes):
        for curve in (ROC, PRECISION_RECALL):
            rows = table[(table["curve"] == curve) & (table["of"] == "class") & (table["class"] == name)]
            for row in rows.iloc[1:].itertuples():
                passed = p[:, k] >= row.threshold - 2e-6
                recall = (passed & true[:, k]).sum() / true[:, k].sum()
                others = (passed & ~true[:, k]).sum() / (~true[:, k]).sum()
                wanted = (others, recall) if curve == ROC else (recall, (passed & true[:, k]).sum() / passed.sum())
                assert (row.x, row.y) == pytest.approx(wanted, abs=1e-5)


def test_curves_are_thinned_and_stay_what_they_are():
    true, scores, classes, _, _ = _case(0, images=2500, classes=2)
    table, _ = rank_curves(true, scores, classes)
    assert table.groupby(["curve", "of", "class"]).size().max() <= 201
    for k, name in enumerate(classes):
        rows = table[(table["of"] == "class") & (table["class"] == name)]
        wanted = roc_auc_score(true[:, k], scores[:, k])
        assert _area(rows[rows["curve"] == ROC]) == pytest.approx(wanted, abs=0.003)
        wanted = average_precision_score(true[:, k], scores[:, k])
        assert _area(rows[rows["curve"] == PRECISION_RECALL]) == pytest.approx(wanted, abs=0.01)
    many = rank_curves(*_case(2, images=150, classes=120)[:3])[0]
    assert len(many) < 42_000


def test_what_is_not_defined_is_not_there():
    true = np.array([[True, False, True], [True, False, False], [True, False, True]])
    table, micro = rank_curves(true, np.random.default_rng(0).normal(size=(3, 3)), ["all", "none", "some"])
    there = set(zip(table["curve"], table["of"], table["class"], strict=True))
    assert (ROC, "class", "all") not in there
    assert (PRECISION_RECALL, "class", "all") in there
    assert not any(name == "none" for _, _, name in there)
    assert (ROC, "macro", "") in there
    assert micro["roc_auc_micro"] is not None
    nothing, areas = rank_curves(np.zeros((4, 2), dtype=bool), np.zeros((4, 2)), ["a", "b"])
    assert len(nothing) == 0
    assert areas == {"roc_auc_micro": None, "average_precision_micro": None}
    everything, areas = rank_curves(np.ones((4, 1), dtype=bool), np.zeros((4, 1)), ["a"])
    assert set(everything["curve"]) == {PRECISION_RECALL}
    assert areas["roc_auc_micro"] is None
    assert areas["average_precision_micro"] == 1
