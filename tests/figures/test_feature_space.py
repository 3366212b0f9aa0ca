"""Feature spaces: legends beside the axes."""

import io

import numpy as np
import pytest

from tests.figures.names import long_names
from vitrail.figures.feature_space import feature_space


@pytest.mark.fast_cases("labels0")
@pytest.mark.parametrize("labels", [[str(i) for i in range(10)], [f"quite a long name {i}" for i in range(5)]])
def test_the_keys_of_a_feature_space_fit_into_the_figure(labels):
    rng = np.random.default_rng(0)
    figure = feature_space({"x": (rng.normal(size=(40, 2)), np.arange(40) % len(labels))}, labels)
    figure.savefig(io.BytesIO(), format="png")
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1


@pytest.mark.fast_cases("1000")
@pytest.mark.parametrize("number", [12, 38, 200, 1000])
def test_a_legend_of_many_long_names_leaves_the_axes_their_room(number):
    rng = np.random.default_rng(0)
    figure = feature_space({"x": (rng.normal(size=(400, 2)), rng.integers(0, number, 400))}, long_names(number))
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    (axis,), (legend,) = figure.axes, figure.legends
    box = axis.get_window_extent()
    assert not legend.get_window_extent().overlaps(box)
    assert min(box.width, box.height) > 3.2 * figure.dpi
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(set(labels)) == len(labels) == (number if number <= 40 else 21)
