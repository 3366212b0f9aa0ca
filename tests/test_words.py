"""The project's prose uses the field's words; words and phrases that no paper and no library uses are found here."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Word or phrase (a regular expression) -> the field's word. Everyday words (place, number, kept) are judged by reading.
REPLACED = {
    r"perceptrons?\b": "MLP",
    r"settl(?:e|es|ed|ing)(?:_|\b)": "resolve",
    r"carriers?\b": "relevance",
    r"several[_ ]labels\b": "multi-label",
    r"images a pass\b": "batch of images",
    r"(?:who|what) compiles\b": "the compiler",
    r"for the eye\b": "display, displayable",
    r"surest\b": "most confident, accuracy at a coverage",
    r"carr(?:y|ies|ied|ying) out\b": "run, execute",
    r"unfamiliar\b": "out-of-distribution",
    r"anew\b": "again, from scratch",
    r"cannot be had\b": "is not supported",
    r"its own makes\b": "its own outputs",
    r"who asks\b": "the query",
    r"out of a compiler's sight\b": "opaque to the compiler",
    r"what it (?:is|was) given\b": "the input, the argument",
    r"in what .{3,40} differ\b": "differences",
    r"images? turned\b": "augmented view",
    r"refus(?:e|ing) to answer\b": "abstain, selective prediction",
    r"share of the image with smaller values": "rank",
    r"the reader went away": "the pipe was closed",
    r"(?:is|are) no multiples?\b": "is not a multiple",
    r"has no meaning\b": "applies only to, does not apply to",
    r"one a (?:stage|block|band)\b": "one per stage, block, band",
    r"how much of what\b": "settings",
    r"how many\.": "number of",
    r"as they stand\b": "unchanged, upright",
    r"what can:": "methods that can",
}
# Each on its own and in small letters: a pattern that begins with plain letters is found many times faster.
PATTERNS = [re.compile(words) for words in REPLACED]

# An argument is described by a noun phrase ("Maximum number of images."), not by a clause ("How many.").
CLAUSE = re.compile(r"^ +\*{0,2}[a-z_0-9]+: (?:What|Which|Whose|How|Those|That|Of|Where|Who|When)\b.*", re.MULTILINE)

# A key of recorded files, whose names do not change.
RECORDED = '"several_labels"'


def _texts():
    for folder, endings in (("src", ("py", "j2", "json")), ("docs", ("md", "py")), ("recipes", ("yaml",)),
                            ("suites", ("yaml",))):  # fmt: skip
        for ending in endings:
            yield from sorted((ROOT / folder).rglob(f"*.{ending}"))
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile"))


def _words(text):
    """Begin and match of each word that is found."""
    text = text.lower()
    for pattern in PATTERNS:
        for match in pattern.finditer(text):
            if not text[: match.start()][-1:].isalpha():
                yield match.start(), match.group()


def _found(path):
    text = path.read_text(encoding="utf-8").replace(RECORDED, "")
    return [(text.count("\n", 0, start) + 1, word) for start, word in sorted(_words(text))]


def test_texts_use_the_words_of_the_field():
    found = {path.relative_to(ROOT).as_posix(): words for path in _texts() if (words := _found(path))}
    lines = "\n".join(f"{name}:{number}: {word!r}" for name, words in found.items() for number, word in words)
    assert not found, f"write the field's words of REPLACED instead of:\n{lines}"


def test_arguments_are_described_by_noun_phrases():
    found = {path.name: CLAUSE.findall(path.read_text(encoding="utf-8")) for path in (ROOT / "src").rglob("*.py")}
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize("text", ["a perceptron", "settle_labels", "Carrier(", "several_labels", "drawn anew."])
def test_replaced_words_are_found(text):
    assert list(_words(text))


@pytest.mark.parametrize("text", ["renewed", "canewood", "an unsettled matter", "carry the weight", "a new image"])
def test_other_words_are_not_found(text):
    assert not list(_words(text))
