"""Figures of reports: what they hold is inside them."""

import io

import numpy as np
import pytest

from vitrail.report.figures import feature_space


@pytest.mark.parametrize("labels", [[str(i) for i in range(10)], [f"quite a long name {i}" for i in range(5)]])
def test_the_keys_of_a_feature_space_fit_into_the_figure(labels):
    rng = np.random.default_rng(0)
    figure = feature_space({"x": (rng.normal(size=(40, 2)), np.arange(40) % len(labels))}, labels)
    figure.savefig(io.BytesIO(), format="png")
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1
