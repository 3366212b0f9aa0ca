"""Evaluations of many classes take seconds."""

import time

import numpy as np
import pandas as pd
import pytest

from vitrail.bootstrap import Bootstrap
from vitrail.evaluate.confusion import clustered
from vitrail.evaluate.saved_predictions import HeldOut, SavedPredictions, measure_saved
from vitrail.runs.folder import EvaluationFiles


@pytest.mark.fast_cases("199")
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


@pytest.mark.parametrize(
    ("classes", "images", "seconds"), [(150, 300, 2), pytest.param(1000, 1500, 10, marks=pytest.mark.slow)]
)
def test_an_evaluation_of_many_classes_is_quick(tmp_path, classes, images, seconds):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(images, classes)).astype(np.float32), rng.integers(0, classes, images)
    logits[np.arange(images), targets] += 2
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(images)], "target": targets})
    saved = SavedPredictions("test", table, logits, targets, tuple(f"class {i}" for i in range(classes)))
    start = time.process_time()
    metrics = measure_saved(saved, HeldOut(saved), EvaluationFiles(tmp_path), Bootstrap(images))
    assert time.process_time() - start < seconds  # 1000: 3 s on a quiet machine
    assert len(pd.read_csv(tmp_path / "per_class.csv")) == classes
    assert metrics["intervals"]["measures"]["roc_auc_macro"] is not None
