"""Curves by epoch."""

import pandas as pd

from vitrail.figures.training import convergence_bands


def test_a_band_over_seeds_stays_where_the_measure_can_be():
    runs = [pd.DataFrame({"epoch": [0, 1], "val_loss": loss, "val_accuracy": accuracy})
            for loss, accuracy in (([0.9, 0.01], [0.9, 0.99]), ([0.1, 0.2], [0.5, 1.0]))]  # fmt: skip
    figure = convergence_bands({"x": runs}, "val_accuracy", "accuracy")
    loss, accuracy = (axis.collections[0].get_paths()[0].vertices[:, 1] for axis in figure.axes)
    assert loss.min() == 0
    assert accuracy.min() == 0
    assert accuracy.max() == 1
