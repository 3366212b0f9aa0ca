"""Decisions in a graph, against the evaluation's own functions and by simulation of their guarantees."""

import json
import math

import numpy as np
import pytest
import torch

from vitrail.deploy.export.decisions import DecisionOutputs, fit_decisions
from vitrail.errors import ConfigError, DataError
from vitrail.evaluate.calibration import fit_temperature
from vitrail.evaluate.conformal import prediction_sets
from vitrail.evaluate.out_of_distribution import ModelOutputs, in_distribution_scores


def _outputs(rng, n, k=4, c=6, scale=3.0):
    """Overconfident logits, and embeddings of classes far from the origin."""
    targets = rng.integers(0, k, n)
    logits = rng.normal(size=(n, k)) + np.eye(k)[targets] * 1.5
    embeddings = rng.normal(size=(n, c)) * np.linspace(0.1, 3, c) + 30 + targets[:, None]
    return (logits * scale).astype(np.float32), targets, embeddings.astype(np.float32)


def _decide(decisions, logits, embeddings):
    module = DecisionOutputs(decisions)
    return {name: x.numpy() for name, x in module(torch.from_numpy(logits), torch.from_numpy(embeddings)).items()}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_probabilities_and_sets_are_those_of_evaluation(seed, alpha):
    rng = np.random.default_rng(seed)
    logits, targets, embeddings = _outputs(rng, 300)
    others, _, other_embeddings = _outputs(rng, 200)
    decisions = fit_decisions(logits, targets, embeddings, alpha=alpha)
    assert decisions.temperature == fit_temperature(logits, targets)
    assert decisions.notes == ()
    found = _decide(decisions, others, other_embeddings)
    scaled = np.exp(others.astype(float) / decisions.temperature)
    assert found["probabilities"] == pytest.approx(scaled / scaled.sum(1, keepdims=True), abs=1e-6)
    sets, _ = prediction_sets(others, (logits, targets), alpha, "lac")
    assert (found["set"] == sets).all()
    # The validation image at the threshold itself belongs to its set in float32 too.
    own, _ = prediction_sets(logits, (logits, targets), alpha, "lac")
    assert (_decide(decisions, logits, embeddings)["set"] >= own).all()


@pytest.mark.parametrize("with_train", [True, False])
@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_are_those_of_evaluation_with_the_sign_changed(with_train, multi_label):
    rng = np.random.default_rng(2)
    train_logits, train_targets, train = _outputs(rng, 400)
    logits, targets, embeddings = _outputs(rng, 150)
    others, _, away = _outputs(rng, 60)
    away = away + rng.normal(size=away.shape).astype(np.float32) * 5
    if multi_label:
        targets, train_targets = (np.eye(4, dtype=np.int64)[x] for x in (targets, train_targets))
    decisions = fit_decisions(logits, targets, embeddings, (train, train_targets) if with_train else None)
    found = _decide(decisions, others, away)
    name = "mahalanobis" if with_train else "energy"
    assert decisions.reference.kind == name
    fitted = ModelOutputs(train_logits, train)
    expected = -in_distribution_scores(ModelOutputs(others, away), fitted, train_targets)[name]
    known = -in_distribution_scores(ModelOutputs(logits, embeddings), fitted, train_targets)[name]
    assert found["ood_score"] == pytest.approx(expected, rel=2e-5, abs=2e-3)
    ranks = [(1 + (known >= x).sum()) / (len(known) + 1) for x in expected]
    assert found["ood_p_value"] == pytest.approx(np.array(ranks), abs=1.5 / 151)
    if multi_label:
        assert (found["set"] == (others >= 0)).all()
        assert decisions.least_probability is None
        assert found["probabilities"] == pytest.approx(1 / (1 + np.exp(-others / decisions.temperature)), abs=1e-6)


def test_coverage_and_p_values_hold_for_exchangeable_images():
    rng = np.random.default_rng(3)
    covered, small = [], []
    train = _outputs(rng, 300)
    for _ in range(60):
        logits, targets, embeddings = _outputs(rng, 49)
        others, own, other_embeddings = _outputs(rng, 200)
        decisions = fit_decisions(logits, targets, embeddings, (train[2], train[1]), alpha=0.2)
        found = _decide(decisions, others, other_embeddings)
        covered.append(found["set"][np.arange(200), own].mean())
        small.append((found["ood_p_value"] <= 0.1 + 1e-6).mean())
    error = [np.std(x) / math.sqrt(60) for x in (covered, small)]
    assert 0.8 - 4 * error[0] < np.mean(covered) < 0.8 + 1 / 50 + 4 * error[0]
    assert np.mean(small) == pytest.approx(0.1, abs=4 * error[1])
    far = _decide(decisions, others, other_embeddings + np.float32(100))
    assert (far["ood_p_value"] == np.float32(1 / 50)).all()


def test_scores_of_an_engine_replace_those_of_the_reference():
    rng = np.random.default_rng(7)
    logits, targets, embeddings = _outputs(rng, 99)
    decisions = fit_decisions(logits, targets, embeddings)
    rounded = _decide(decisions, logits, embeddings)["ood_score"].round(0)
    replaced = _decide(decisions.with_scores(rounded), logits, embeddings)
    expected = (1 + (rounded >= replaced["ood_score"][:, None]).sum(1)) / 100
    assert replaced["ood_p_value"] == pytest.approx(expected)
    for wrong in (rounded[1:], np.full_like(rounded, np.inf)):
        with pytest.raises(DataError, match="99 finite scores"):
            decisions.with_scores(wrong)


def test_what_cannot_be_fitted_is_noted():
    rng = np.random.default_rng(4)
    logits, targets, embeddings = _outputs(rng, 8)
    logits[np.arange(8), targets] += 50  # all correct: the best temperature is 0
    decisions = fit_decisions(logits, targets, embeddings)
    assert (decisions.temperature, decisions.least_probability) == (1.0, 0.0)
    assert [note.split(":")[0][:22] for note in decisions.notes] == ["no temperature in 0.05", "sets hold all classes"]
    assert "90% needs at least 9 validation images, there are 8" in decisions.notes[1]
    assert _decide(decisions, logits, embeddings)["set"].all()
    json.dumps(decisions.describe(), allow_nan=False)


def test_wrong_inputs_are_refused():
    logits, targets, embeddings = _outputs(np.random.default_rng(5), 30)
    with pytest.raises(ConfigError, match="alpha"):
        fit_decisions(logits, targets, embeddings, alpha=1.0)
    with pytest.raises(DataError, match="29 embeddings for 30"):
        fit_decisions(logits, targets, embeddings[1:])
    with pytest.raises(DataError, match="infinite or NaN"):
        fit_decisions(logits, targets, embeddings * np.nan)
    for train in (embeddings[:, 1:], embeddings[:0], embeddings * np.inf):
        with pytest.raises(DataError, match="embeddings of training images"):
            fit_decisions(logits, targets, embeddings, (train, targets[: len(train)]))


def test_the_graph_exports_for_any_batch():
    rng = np.random.default_rng(6)
    logits, targets, embeddings = _outputs(rng, 80)
    module = DecisionOutputs(fit_decisions(logits, targets, embeddings, (embeddings, targets)))
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = tuple(torch.from_numpy(x[:2]) for x in (logits, embeddings))
    program = torch.export.export(module, example, dynamic_shapes=({0: batch}, {0: batch})).module()
    inputs = tuple(torch.from_numpy(x[:7]) for x in (logits, embeddings))
    for name, value in program(*inputs).items():
        assert torch.equal(value, module(*inputs)[name]), name
