"""The glossary: one table for the documentation and for pages."""

import re
from pathlib import Path

from vitrail.report.glossary import TERMS, glossary_markdown, terms_in

PAGE = Path(__file__).parents[2] / "docs" / "glossary.md"


def test_the_page_is_the_table():
    assert PAGE.read_text(encoding="utf-8") == glossary_markdown(), "run `make glossary`"


def test_terms_are_unique_and_meanings_are_short_sentences():
    assert len({term.name.casefold() for term in TERMS}) == len(TERMS)
    for term in TERMS:
        assert term.meaning.endswith("."), term.name
        assert len(term.meaning.split()) <= 40, term.name


def test_each_pattern_finds_its_own_term():
    for term in TERMS:
        if term.pattern and not re.search(r"\\d", term.pattern):
            spelling = re.sub(r" \(.*", "", term.name)
            assert term.name in terms_in(f"the {spelling} of it"), term.name


def test_terms_are_sorted_and_found_as_whole_words():
    assert list(terms_in("Macro F1 and the AUROC of 3 seeds; a splitting headache")) == ["AUROC", "F1", "seed"]


def test_maps_of_attribution_are_no_average_precision():
    assert "average precision" not in terms_in("a plausible map need not be faithful; a map")
    assert "average precision" in terms_in("the mAP is 0.5")
