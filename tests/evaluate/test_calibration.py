"""Calibration, prediction sets and selection: against torchmetrics, closed forms and simulations."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from vitrail.errors import ConfigError, DataError
from vitrail.evaluate.calibration import (
    Confidences,
    calibration_error,
    calibration_error_by_resampling,
    calibration_summary,
    confidences_of,
    fit_temperature,
    reliability_table,
    temperature_report,
)
from vitrail.evaluate.conformal import conformal_report, prediction_sets
from vitrail.evaluate.mistakes import mistakes_table
from vitrail.evaluate.selective import confidence_and_correct, risk_coverage, selective_summary, thinned


def _drawn(rng, n, k, temperature=1.0, spread=2.0):
    """Logits, and targets drawn with the probabilities that the logits say at that temperature."""
    logits = spread * rng.normal(size=(n, k))
    p = softmax(logits / temperature, axis=1)
    targets = (p.cumsum(1) < rng.random((n, 1))).sum(1).clip(max=k - 1)
    return logits.astype(np.float32), targets


@pytest.mark.parametrize("seed", range(4))
def test_calibration_error_equals_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    logits, targets = _drawn(rng, int(rng.integers(40, 400)), int(rng.integers(2, 9)), rng.uniform(0.4, 3))
    table = reliability_table(confidences_of(logits, targets))
    p = torch.from_numpy(softmax(logits.astype(float), axis=1))
    wanted = multiclass_calibration_error(p, torch.from_numpy(targets), logits.shape[1], n_bins=15).item()
    assert calibration_error(table) == pytest.approx(wanted, abs=1e-6)
    assert table["count"].sum() == len(targets)
    several = (rng.random(logits.shape) < 0.4).astype(np.int64)
    claims = confidences_of(logits, several)
    wanted = binary_calibration_error(
        torch.from_numpy(claims.confidence), torch.from_numpy(several.ravel()), n_bins=15
    ).item()
    assert calibration_error(reliability_table(claims)) == pytest.approx(wanted, abs=1e-6)


def test_bins_of_equally_many_claims():
    rng = np.random.default_rng(0)
    claims = Confidences(rng.beta(8, 1, 307), rng.random(307) < 0.8)
    table = reliability_table(claims, 10, adaptive=True)
    assert set(table["count"]) == {30, 31}
    order = np.argsort(claims.confidence)
    by_hand = sum(
        len(part) / 307 * abs(claims.confidence[part].mean() - claims.correct[part].mean())
        for part in np.array_split(order, 10)
    )
    assert calibration_error(table) == pytest.approx(by_hand)
    assert len(reliability_table(Confidences(np.ones(3), np.ones(3, bool)), 10, adaptive=True)) == 3


def test_the_error_of_chance_is_what_calibrated_models_show():
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.4, 1, 300)
    errors = [
        calibration_error(reliability_table(Confidences(confidence, rng.random(300) < confidence))) for _ in range(200)
    ]
    mean, most = calibration_error_by_resampling(Confidences(confidence, np.zeros(300, bool)), draws=400)
    assert mean == pytest.approx(np.mean(errors), rel=0.1)
    assert most == pytest.approx(np.quantile(errors, 0.95), rel=0.1)


@pytest.mark.fast_cases("0.4")
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_temperature_is_recovered(temperature):
    rng = np.random.default_rng(3)
    logits, targets = _drawn(rng, 20_000, 5, temperature)
    assert fit_temperature(logits, targets) == pytest.approx(temperature, rel=0.05)
    several = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits / temperature))).astype(np.int64)
    assert fit_temperature(logits, several) == pytest.approx(temperature, rel=0.05)


def test_temperature_mends_and_is_the_best():
    rng = np.random.default_rng(4)
    logits, targets = _drawn(rng, 3000, 4, 3.0)
    report = temperature_report(logits[:1500], targets[:1500], (logits[1500:], targets[1500:]), "val")
    assert report["after"]["ece"] < report["before"]["ece"] / 3
    assert report["after"]["ece"] < 1.5 * report["after"]["ece_of_chance_95"]
    assert report["after"]["nll"] < report["before"]["nll"]
    assert report["fitted_on"] == "val"
    best = report["temperature"]
    nll = [calibration_summary(logits[1500:] / t, targets[1500:])["nll"] for t in (best * 0.98, best, best * 1.02)]
    assert nll[1] == min(nll)


def test_without_a_mistake_there_is_no_best_temperature():
    logits = 3 * np.eye(4, dtype=np.float32)
    assert temperature_report(logits, np.arange(4), (logits, np.arange(4)), "val") is None
    assert fit_temperature(logits, np.array([1, 2, 3, 0])) is None  # and where all are wrong
    with pytest.raises(DataError, match="no images"):
        fit_temperature(logits[:0], np.zeros(0, np.int64))


@pytest.mark.fast_cases("19-0.1-lac", "60-0.2-lac")
@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize(("n", "alpha"), [(19, 0.1), (60, 0.2)])
def test_sets_cover_as_often_as_promised(method, n, alpha):
    rng = np.random.default_rng(5)
    covered = []
    for seed in range(300):
        logits, targets = _drawn(rng, n + 100, 4, 2.0)
        sets, _ = prediction_sets(logits[n:], (logits[:n], targets[:n]), alpha, method, seed)
        covered.append(sets[np.arange(100), targets[n:]].mean())
    # The mean coverage is ceil((n + 1)(1 - alpha)) / (n + 1), exactly.
    promised = math.ceil((n + 1) * (1 - alpha) - 1e-9) / (n + 1)
    assert np.mean(covered) == pytest.approx(promised, abs=4 * np.std(covered) / math.sqrt(300))


def test_lac_sets_by_hand():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    held_out = np.log(p).astype(np.float32), np.array([0, 0, 1, 0])  # strangeness 0.1, 0.4, 0.3, 0.8
    sets, threshold = prediction_sets(np.log([[0.55, 0.45], [0.95, 0.05]]).astype(np.float32), held_out, 0.4, "lac")
    assert threshold == pytest.approx(0.4)  # the third of four
    assert sets.tolist() == [[False, False], [True, False]]
    sets, threshold = prediction_sets(held_out[0], held_out, 0.05, "lac")
    assert threshold == math.inf
    assert sets.all()


def test_conformal_report_counts():
    rng = np.random.default_rng(6)
    logits, targets = _drawn(rng, 700, 5)
    targets[targets == 4] = 0
    held_out = logits[:200], targets[:200]
    report = conformal_report(logits[200:], targets[200:], "abcde", held_out, "val")
    assert [(s["method"], s["alpha"]) for s in report["sets"]] == [
        ("lac", 0.1), ("lac", 0.05), ("aps", 0.1), ("aps", 0.05),
    ]  # fmt: skip
    for s in report["sets"]:
        assert sum(s["sizes"]) == 500
        assert np.average(np.arange(len(s["sizes"])), weights=s["sizes"]) == pytest.approx(s["mean_size"])
        assert [row["class"] for row in s["per_class"]] == list("abcd")
        assert sum(row["coverage"] * row["images"] for row in s["per_class"]) == pytest.approx(500 * s["coverage"])
        assert s["coverage_low"] < s["coverage"] < s["coverage_high"]
    with pytest.raises(ConfigError, match="lac or aps"):
        prediction_sets(logits, held_out, 0.1, "raps")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        prediction_sets(logits, held_out, 10, "lac")


@pytest.mark.parametrize("seed", range(4))
def test_risk_and_coverage_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 40))
    confidence, right = np.round(rng.random(n), int(rng.integers(1, 4))), rng.random(n) < 0.7
    # Ties in random order, many times.
    risks = np.zeros(n)
    for _ in range(2000):
        order = np.lexsort((rng.random(n), -confidence))
        risks += np.cumsum(~right[order]) / np.arange(1, n + 1) / 2000
    curve = risk_coverage(confidence, right)
    assert np.allclose(curve["risk"], risks, atol=0.04)
    summary = selective_summary(curve)
    assert summary["aurc"] == pytest.approx(curve["risk"].mean())
    best = selective_summary(risk_coverage(right + rng.random(n) / 2, right))
    assert best["e_aurc"] == pytest.approx(0, abs=1e-12)
    assert summary["e_aurc"] == pytest.approx(summary["aurc"] - best["aurc"])
    assert summary["accuracy_at"][0]["accuracy"] == pytest.approx(right.mean())
    assert summary["accuracy_at"][-1]["coverage"] >= 0.5
    assert len(thinned(curve, 7)) <= 7
    assert thinned(curve, 3)["coverage"].iloc[-1] == 1


def test_of_several_labels_all_must_be_right():
    logits = np.array([[2.0, -1.0], [-3.0, 0.5]], np.float32)
    confidence, right = confidence_and_correct(logits, np.array([[1, 0], [1, 1]]))
    sigmoid = 1 / (1 + np.exp(-np.abs(logits.astype(float))))
    assert confidence == pytest.approx(sigmoid.prod(1))
    assert right.tolist() == [True, False]


def test_mistakes_come_surest_first():
    logits = np.array([[3.0, 0, 0], [0, 5, 0], [0, 0, 4], [9, 0, 0]], np.float32)
    table = mistakes_table(list("wxyz"), logits, np.array([1, 0, 2, 0]), ["a", "b", "c"])
    assert table["path"].tolist() == ["x", "w"]
    assert table["true"].tolist() == ["a", "b"]
    assert table["predicted"].tolist() == ["b", "a"]
    p = softmax(logits.astype(float), axis=1)
    assert table["confidence"].tolist() == pytest.approx([p[1, 1], p[0, 0]])
    assert table["probability_of_true"].tolist() == pytest.approx([p[1, 0], p[0, 1]])
    assert len(mistakes_table(list("wxyz"), logits, np.array([1, 0, 2, 0]), ["a", "b", "c"], most=1)) == 1
    several = mistakes_table(["x", "y"], np.array([[3.0, -2], [-1, 2]], np.float32), np.array([[0, 0], [1, 1]]), "ab")
    assert several[["path", "true", "predicted"]].to_numpy().tolist() == [["x", "no a", "a"], ["y", "a", "no a"]]
    assert several["probability_of_true"].tolist() == pytest.approx([1 / (1 + np.exp(3)), 1 / (1 + np.exp(1))])
    assert mistakes_table(["x"], logits[:1], np.array([0]), ["a", "b", "c"]).empty


def test_sets_of_images_drawn_alike_are_seldom_called_unreliable():
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(200):
        logits, targets = _alike(rng, 80)
        report = conformal_report(logits[40:], targets[40:], "abc", (logits[:40], targets[:40]), "val", (0.1,))
        called += report["unreliable"] is not None
    assert called / 200 < 0.03


def test_sets_of_other_images_are_called_unreliable_with_the_cause():
    rng = np.random.default_rng(1)
    logits, targets = _alike(rng, 400)
    logits[200:] = rng.normal(size=(200, 3))  # a place where the model guesses
    found = (logits[200:], targets[200:], "abc", (logits[:200], targets[:200]), "val")
    report = conformal_report(*found)
    assert "not exchangeable" in report["unreliable"]
    assert "not 90%" in report["unreliable"]
    assert "6 groups" in conformal_report(*found, groups=(6, 4))["unreliable"]
    assert all(0 <= row["empty"] <= 1 for row in report["sets"])


def _alike(rng, n):
    targets = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3)).astype(np.float32)
    logits[np.arange(n), targets] += 4
    return logits, targets
