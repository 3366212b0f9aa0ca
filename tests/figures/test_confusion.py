"""Figures of reports: what they hold is inside them."""

import io
import warnings

import numpy as np
import pandas as pd
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from vitrail.evaluate.confusion import clustered, most_confused
from vitrail.figures import comparison as suite_figures
from vitrail.figures import fonts
from vitrail.figures.confusion import confusion, feature_space
from vitrail.figures.labels import distinct_names


@pytest.mark.parametrize("labels", [[str(i) for i in range(10)], [f"quite a long name {i}" for i in range(5)]])
def test_the_keys_of_a_feature_space_fit_into_the_figure(labels):
    rng = np.random.default_rng(0)
    figure = feature_space({"x": (rng.normal(size=(40, 2)), np.arange(40) % len(labels))}, labels)
    figure.savefig(io.BytesIO(), format="png")
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1


def _names(number):
    return [f"Tomato___Disease_number_{i:03}_with_leaf_curl_virus" for i in range(number)]


def _confused(number):
    rng = np.random.default_rng(0)
    counts = np.diag(np.full(number, 9))
    counts[np.arange(number), rng.permutation(number)] += 3
    return pd.DataFrame(counts, index=_names(number), columns=_names(number))


@pytest.mark.parametrize("number", [12, 38, 200, 1000])
def test_a_legend_of_many_long_names_leaves_the_axes_their_room(number):
    rng = np.random.default_rng(0)
    figure = feature_space({"x": (rng.normal(size=(400, 2)), rng.integers(0, number, 400))}, _names(number))
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    (axis,), (legend,) = figure.axes, figure.legends
    box = axis.get_window_extent()
    assert not legend.get_window_extent().overlaps(box)
    assert min(box.width, box.height) > 3.2 * figure.dpi
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(set(labels)) == len(labels) == (number if number <= 40 else 21)


@pytest.mark.parametrize("number", [12, 38])
def test_a_confusion_matrix_names_each_class_once(number):
    table = _confused(number)
    figure = confusion({"x": table}, {"x": clustered(table)})
    for axis in figure.axes[:2]:
        labels = [label.get_text() for label in axis.get_yticklabels()]
        assert len(set(labels)) == number


@pytest.mark.parametrize("number", [61, 200, 1000])
def test_a_confusion_matrix_of_many_classes_lists_the_confused_pairs(number):
    table = _confused(number)
    figure = confusion({"x": table}, {})
    told = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert len(told) == 18
    assert all("Tomato" in text for text in told)
    nothing = confusion(
        {"x": pd.DataFrame(np.eye(number, dtype=int), index=_names(number), columns=_names(number))}, {}
    )
    assert "no image is predicted as another class" in [t.get_text() for axis in nothing.axes for t in axis.texts]


def test_most_confused_pairs_are_counted():
    table = pd.DataFrame([[5, 3, 0], [1, 9, 0], [0, 4, 0]], index=list("abc"), columns=list("abc"))
    assert most_confused(table, 2).to_dict("records") == [
        {"true": "c", "predicted": "b", "count": 4, "share": 1.0},
        {"true": "a", "predicted": "b", "count": 3, "share": 3 / 8},
    ]


@pytest.mark.parametrize("most", [8, 12, 22])
def test_short_names_stay_distinct(most):
    names = [*_names(30), "short", "quite a long name with an end", "quite a long name with another end"]
    short = distinct_names(names, most)
    assert len(set(short)) == len(names)
    assert max(map(len, short)) <= most
    assert "short" in short
    assert distinct_names(["a" * 50, "a" * 50], 10) == ["a" * 9 + "…"] * 2  # the same name twice


def test_a_band_over_seeds_stays_where_the_measure_can_be():
    runs = [pd.DataFrame({"epoch": [0, 1], "val_loss": loss, "val_accuracy": accuracy})
            for loss, accuracy in (([0.9, 0.01], [0.9, 0.99]), ([0.1, 0.2], [0.5, 1.0]))]  # fmt: skip
    figure = suite_figures.convergence_bands({"x": runs}, "val_accuracy", "accuracy")
    loss, accuracy = (axis.collections[0].get_paths()[0].vertices[:, 1] for axis in figure.axes)
    assert loss.min() == 0
    assert accuracy.min() == 0
    assert accuracy.max() == 1


@pytest.fixture
def font_of_a_letter(tmp_path):
    """A font with a single letter, which DejaVu Sans lacks."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((500, 0))
    pen.lineTo((500, 500))
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord("猫"): "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (600, 0), "cat": (600, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Only Cats", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cats.ttf")
    return tmp_path / "cats.ttf"


def _drawn(text, capsys):
    fonts._fonts_with.cache_clear()
    fonts._report_missing.cache_clear()
    figure = Figure()
    figure.text(0.5, 0.5, text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            fonts.save_figure(figure, io.BytesIO(), format="png")
    return figure.texts[0].get_fontfamily(), capsys.readouterr().err


def test_letters_that_no_font_has_are_one_line(capsys, monkeypatch):
    usual = [entry for entry in font_manager.fontManager.ttflist if entry.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", usual)
    _, told = _drawn("猫 and 🐝", capsys)
    assert len(told.splitlines()) == 1
    assert "猫" in told
    assert "🐝" in told
    assert _drawn("Blätter, ἄνθος, café, -3 µm", capsys)[1] == ""


def test_letters_are_drawn_in_an_installed_font_that_has_them(capsys, monkeypatch, font_of_a_letter):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
    font_manager.fontManager.addfont(font_of_a_letter)
    family, told = _drawn("a 猫", capsys)
    assert family[-1] == "Only Cats"
    assert told == ""
