"""Letters that the figures' font lacks."""

import io
import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from vitrail.figures import fonts


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
            fonts.save_figure(figure, {"png": io.BytesIO()}, dpi=100, tight=True)
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
