"""Evaluations of many classes take seconds."""

import time

import numpy as np
import pandas as pd
import pytest

from vitrail.bootstrap import Bootstrap
from vitrail.evaluate.confusion import clustered
from vitrail.evaluate.saved_predictions import HeldOut, SavedPredictions, measure_saved
from vitrail.runs.folder import EvaluationFiles


@pytest.mark.parametrize("number", [199, 1000])
def test_clustering_keeps_all_classes_and_is_quick(number):
    rng = np.random.default_rng(0)
    counts = np.zeros((number, number), int)
    np.add.at(counts, (np.arange(number), rng.integers(0, 30, number)), 1)  # ties throughout
    names = [str(i) for i in range(number)]
    start = time.process_time()
    found = clustered(pd.DataFrame(counts, index=names, columns=names))
    assert time.process_time() - start < 4
    assert sorted(found.index) == sorted(found.columns) == sorted(names)
    assert found.to_numpy().sum() == number


def test_an_evaluation_of_1000_classes_is_quick(tmp_path):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(1500, 1000)).astype(np.float32), rng.integers(0, 1000, 1500)
    logits[np.arange(1500), targets] += 2
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(1500)], "target": targets})
    saved = SavedPredictions("test", table, logits, targets, tuple(f"class {i}" for i in range(1000)))
    start = time.process_time()
    metrics = measure_saved(saved, HeldOut(saved), EvaluationFiles(tmp_path), Bootstrap(1500))
    assert time.process_time() - start < 10  # 3 s on a quiet machine
    assert len(pd.read_csv(tmp_path / "per_class.csv")) == 1000
    assert metrics["intervals"]["measures"]["roc_auc_macro"] is not None
