"""Confusion matrices name each class, or the pairs that are confused most often."""

import numpy as np
import pandas as pd
import pytest

from tests.figures.names import long_names
from vitrail.evaluate.confusion import clustered, most_confused
from vitrail.figures.confusion import confusion


def _confused(number):
    rng = np.random.default_rng(0)
    counts = np.diag(np.full(number, 9))
    counts[np.arange(number), rng.permutation(number)] += 3
    return pd.DataFrame(counts, index=long_names(number), columns=long_names(number))


@pytest.mark.fast_cases("38")
@pytest.mark.parametrize("number", [12, 38])
def test_a_confusion_matrix_names_each_class_once(number):
    table = _confused(number)
    figure = confusion({"x": table}, {"x": clustered(table)}, {})
    for axis in figure.axes[:2]:
        labels = [label.get_text() for label in axis.get_yticklabels()]
        assert len(set(labels)) == number


@pytest.mark.slow_cases("200")
@pytest.mark.parametrize("number", [61, 200, 1000])
def test_a_confusion_matrix_of_many_classes_lists_the_confused_pairs(number):
    table = _confused(number)
    figure = confusion({"x": table}, {}, {"x": most_confused(table)})
    told = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert len(told) == 18
    assert all("Tomato" in text for text in told)
    perfect = pd.DataFrame(np.eye(number, dtype=int), index=long_names(number), columns=long_names(number))
    nothing = confusion({"x": perfect}, {}, {"x": most_confused(perfect)})
    assert "no image is predicted as another class" in [t.get_text() for axis in nothing.axes for t in axis.texts]


def test_most_confused_pairs_are_counted():
    table = pd.DataFrame([[5, 3, 0], [1, 9, 0], [0, 4, 0]], index=list("abc"), columns=list("abc"))
    assert most_confused(table, 2).to_dict("records") == [
        {"true": "c", "predicted": "b", "count": 4, "share": 1.0},
        {"true": "a", "predicted": "b", "count": 3, "share": 3 / 8},
    ]
