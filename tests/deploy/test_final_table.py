"""The final table on test images, against counts by hand and independent formulas."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score

from vitrail.deploy.export.bounds import drop_bound
from vitrail.deploy.export.final_table import compare_on_test
from vitrail.deploy.export.gate import GateImages, Outputs


def _outputs(decided, classes=3):
    return Outputs(np.eye(classes)[decided] * 5.0)


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_and_their_difference(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(80, 300))
    targets = rng.integers(0, 3, n)
    run = np.where(rng.random(n) < 0.8, targets, (targets + 1) % 3)
    export = np.where(rng.random(n) < 0.95, run, rng.integers(0, 3, n))
    table = compare_on_test(GateImages(_outputs(run), targets), _outputs(export))
    for found, decided in ((table.original, run), (table.export, export)):
        interval = binomtest(int((decided == targets).sum()), n).proportion_ci(method="wilson")
        assert found == pytest.approx(((decided == targets).mean(), interval.low, interval.high))
    losses, gains = ((run == targets) & (export != targets)).sum(), ((run != targets) & (export == targets)).sum()
    assert (table.losses, table.gains) == (losses, gains)
    value, low, high = table.difference
    assert value == pytest.approx((gains - losses) / n)
    assert low <= value <= high
    assert low == -drop_bound(n, int(losses), int(gains), 0.975)
    assert table.agreement == pytest.approx((run == export).mean())
    assert table.agreement_low < table.agreement
    json.dumps(table.to_json(), allow_nan=False)
    header, rows = table.lines()
    assert {len(row) for row in rows} == {len(header)}


def test_labels_have_the_mean_average_precision():
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 4)) < 0.4).astype(np.int64)
    logits = [targets * 2 - 1 + rng.normal(0, scale, targets.shape) for scale in (1, 2)]
    table = compare_on_test(GateImages(Outputs(logits[0]), targets), Outputs(logits[1]))
    wanted = [np.mean([average_precision_score(targets[:, k], x[:, k]) for k in range(4)]) for x in logits]
    assert (table.original[0], table.export[0]) == pytest.approx(wanted, abs=1e-6)
    assert table.difference[0] == pytest.approx(wanted[1] - wanted[0], abs=1e-6)
    for value, low, high in (table.original, table.export, table.difference):
        assert low < value < high
    assert table.agreement == pytest.approx(((logits[0] >= 0) == (logits[1] >= 0)).all(1).mean())
    alone = compare_on_test(GateImages(Outputs(logits[0][:1]), targets[:1]), Outputs(logits[1][:1]))
    assert alone.to_json()["original"] == [None, None, None]
