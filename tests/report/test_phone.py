"""Pages on a phone: whatever may be broader than the screen scrolls in a frame that shows it."""

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from matplotlib.figure import Figure

from vitrail.figures.picture import Picture
from vitrail.figures.tables import Column, Table
from vitrail.report.brief import Answer
from vitrail.report.evaluated import Section
from vitrail.report.write import write_page

VOID = {"meta", "img", "br", "link", "input", "hr"}


class _Frames(HTMLParser):
    """The classes around each table and figure."""

    def __init__(self):
        super().__init__()
        self.open, self.around = [], {"table": [], "img": []}

    def handle_starttag(self, tag, attrs):
        if tag in self.around:
            self.around[tag].append([name for _, names in self.open for name in names])
        if tag not in VOID:
            self.open.append((tag, (dict(attrs).get("class") or "").split()))

    def handle_endtag(self, tag):
        while self.open.pop()[0] != tag:
            pass


def _page(tmp_path):
    frame = pd.DataFrame({"name": ["a"], "accuracy": [0.5]})
    table = Table("t", "Of a.", frame, [Column("name", "run", "text"), Column("accuracy", "accuracy")])
    figure = Figure(figsize=(9, 3))
    figure.subplots().plot([0, 1])
    section = Section("Title", [], [(Picture("p", "Title", "Of a.", "Line"), figure)], [table])
    brief = [Answer("What was trained", ["A thing."]), Answer("Careful", list("abcdef"))]
    return write_page(tmp_path / "r.html", "Page", brief, [section], "page.html.j2", {"runs": []})


def test_tables_and_figures_scroll_in_a_frame_that_marks_both_edges(tmp_path):
    page = _page(tmp_path).read_text()
    frames = _Frames()
    frames.feed(page)
    assert frames.around["table"]
    assert frames.around["img"]
    for around in [*frames.around["table"], *frames.around["img"]]:
        assert around.count("frame") == around.count("scroll") == 1
    for rule in (r"\.frame\.more-left::before, \.frame\.more-right::after", r"\.scroll \{ overflow-x: auto"):
        assert re.search(rule, page)
    assert '"more-right"' in page
    assert page.count('class="hint"') == len(frames.around["table"]) + len(frames.around["img"])
    assert "<noscript>" in page


def test_commands_are_code_and_names_are_no_mark_up():
    from vitrail.report.rendering import _with_code

    assert _with_code("`vitrail data audit` of <b>") == "<code>vitrail data audit</code> of &lt;b&gt;"


def test_a_page_begins_with_its_answers_and_ends_with_its_words(tmp_path):
    page = _page(tmp_path).read_text()
    order = [page.index(mark) for mark in ('id="brief"', "<nav", 'class="sortable"', 'id="words"', "<footer")]
    assert order == sorted(order)
    assert "<summary>2 more</summary>" in page
    assert "<dt>accuracy</dt>" in page
    text = (tmp_path / "r.md").read_text()
    assert text.startswith("# Page\n\n**What was trained** A thing.")
    assert "## Words used on this page" in text


@pytest.mark.parametrize("template", ["page", "suite", "audit", "features"])
def test_every_page_stands_on_one_base(template):
    from importlib.resources import files

    text = (files("vitrail.report") / "templates" / f"{template}.html.j2").read_text()
    assert text.startswith('{% extends "base.html.j2" %}')
    assert 'class="scroll' not in text
