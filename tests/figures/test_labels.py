"""Short names stay distinct."""

import pytest

from tests.figures.names import long_names
from vitrail.figures.labels import distinct_names


@pytest.mark.parametrize("most", [8, 12, 22])
def test_short_names_stay_distinct(most):
    names = [*long_names(30), "short", "quite a long name with an end", "quite a long name with another end"]
    short = distinct_names(names, most)
    assert len(set(short)) == len(names)
    assert max(map(len, short)) <= most
    assert "short" in short
    assert distinct_names(["a" * 50, "a" * 50], 10) == ["a" * 9 + "…"] * 2  # the same name twice
