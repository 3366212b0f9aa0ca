"""Curves by epoch."""

import pandas as pd
import pytest

from vitrail.figures.training import convergence_bands

_LOSS = [[3.0, 0.01], [0.1, 0.2], [0.1, 0.01], [0.1, 0.2], [0.1, 0.01]]
_ACCURACY = [[1.0, 0.99], [0.0, 1.0], [1.0, 0.99], [0.0, 1.0], [1.0, 0.1]]


def _runs(count):
    return [
        pd.DataFrame({"epoch": [0, 1], "val_loss": loss, "val_accuracy": accuracy})
        for loss, accuracy in list(zip(_LOSS, _ACCURACY, strict=True))[:count]
    ]


def test_a_band_over_seeds_stays_where_the_measure_can_be():
    figure = convergence_bands({"x": _runs(5)}, "val_accuracy", "accuracy")
    loss, accuracy = (axis.collections[0].get_paths()[0].vertices[:, 1] for axis in figure.axes)
    assert loss.min() == 0
    assert accuracy.min() == 0
    assert accuracy.max() == 1
    assert [len(axis.lines) for axis in figure.axes] == [1, 1]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_runs_are_single_lines(count):
    figure = convergence_bands({"x": _runs(count), "y": _runs(1)}, "val_accuracy", "accuracy")
    for axis in figure.axes:
        assert not axis.collections
        assert len(axis.lines) == 2 + (count if count > 1 else 0)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("single runs" in texts) == (count > 1)
