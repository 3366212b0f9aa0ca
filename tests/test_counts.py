"""A number that may be 1 is formatted with its noun by ``errors.plural``: no message counts "1 images"."""

import re
from pathlib import Path

import pytest

from vitrail.errors import count_of, plural

SOURCE = Path(__file__).parent.parent / "src" / "vitrail"

NOUNS = (
    "images clips videos clouds frames files folders paths classes labels groups samples pairs copies points "
    "epochs steps batches runs seeds folds models variants candidates layers blocks heads tokens patches bands tensors "
    "shards embeddings logits predictions targets decisions rows columns cells entries pictures corruptions threads "
    "times"
).split()
# A formatted value before such a noun, with at most one word between, which is not a verb ("run measures classes").
# Not the last of a range or of a size ("1 to 3 images", "4 x 4 tokens").
COUNT = re.compile(
    rf"(?<! to )(?<! x )(?<!× )\{{([^{{}}]+?)(?::,)?\}} (?:[a-z-]*[a-rt-z] )?({'|'.join(NOUNS)})(?![\w-])"
)
# Strings that follow each other are one.
JOINED = re.compile(r'"\s*\n\s*f?"')
# Values that are not counts: names, texts in quotes, numbers with decimals, limits.
OTHER = re.compile(
    r"plural\(|count_of\(|.*!r$|.*:[,.\w]*[efg%]$|.*: |.*\.join\(|.*\b_?[A-Z_]+$|_split_name\(|_size\("
    r"|.*(name|name__|path|root|folder|where|what|run|fit|\[0\]|\[0\]\])$",
    re.DOTALL,
)
# Module -> values before nouns that are names, or counts of which 1 is written otherwise or cannot be.
EXCEPTIONS = {
    "analyze/structure.py": {"source.count": "CKA raises an error below FEWEST_IMAGES"},
    "cli/inspect.py": {"batch": "1 has a header of its own"},
    "cli/models.py": {"total": "the catalogue"},
    "data/file_names.py": {
        "copies": "families have two names or more",
        "len(keys)": "proposed from three images on",
        "len(bands)": "proposed from two bands on",
        "len(images)": "proposed from three images on",
    },
    "data/image_errors.py": {"total": "a kind of at least two images"},
    "data/images.py": {"frames": "more than one"},
    "data/rasters.py": {"len(images)": "more than one", "per_page": "more than one"},
    "data/sources/table_file.py": {"self.names.count(name)": "more than one"},
    "data/split_checks.py": {"sum(map(len, alike))": "pairs at least"},
    "data/splits.py": {"count": "at least two folds"},
    "figures/confusion.py": {"len(table)": "more than 16"},
    "figures/tables.py": {"len(self.frame)": "more than those shown"},
    "models/catalogue.py": {"len(catalogue.variants)": "the catalogue"},
    "models/video_positions.py": {"times": "more than one"},
    "report/robust.py": {"len(common)": "1 is written otherwise"},
    "report/suite_brief.py": {"times": "1 is written otherwise"},
    "train/auto/learning_rate.py": {"batches_a_step": "more than one", "gathered": "more than one"},
    "train/resume.py": {"len(rows)": "1 is written otherwise"},
    "weights/locations.py": {"len(files)": "more than one"},
}


def _found(text):
    """Values and their nouns."""
    text = JOINED.sub("", text)
    return [(match[1], match[2]) for match in COUNT.finditer(text) if not OTHER.match(match[1])]


FOUND = {
    name: found
    for path in sorted(SOURCE.rglob("*.py"))
    for name, found in [(path.relative_to(SOURCE).as_posix(), _found(path.read_text(encoding="utf-8")))]
    if found
}


def test_counts_are_formatted_with_their_nouns():
    lines = [
        f"{name}: {{{value}}} {noun}"
        for name, found in FOUND.items()
        for value, noun in found
        if value not in EXCEPTIONS.get(name, ())
    ]
    assert not lines, "use errors.plural, or state in EXCEPTIONS why the number is never 1:\n" + "\n".join(lines)


def test_exceptions_are_needed():
    unused = {name: {*own} - {value for value, _ in FOUND.get(name, ())} for name, own in EXCEPTIONS.items()}
    assert not {name: values for name, values in unused.items() if values}


@pytest.mark.parametrize(
    "text",
    [
        'f"{len(files)} files"', 'f"{number:,} labelled images"', 'f"{run.images}: {a} of {b} clips"',
        'f"{number} "\n        f"classes of {where}"', 'f"{many} "\n    "point clouds"',
    ],
)  # fmt: skip
def test_counts_are_found(text):
    assert _found(text)


@pytest.mark.parametrize(
    "text",
    [
        "{plural(number, 'image')} of {run}", "{run} measures classes", "{share:.0%} images", "1 to {most} images",
        "4 x {n} tokens", "{_MOST} images", "{name!r} labels", "{rate:g} frames", "{number} pointclouds",
    ],
)  # fmt: skip
def test_other_values_are_not_found(text):
    assert not _found(text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, "image"), "1 image"), ((0, "image"), "0 images"), ((1200, "class"), "1,200 classes"),
        ((2, "patch"), "2 patches"), ((1, "entry", "entries"), "1 entry"),
        ((3, "image has", "images have"), "3 images have"),
    ],
)  # fmt: skip
def test_plural(arguments, text):
    assert plural(*arguments) == text


@pytest.mark.parametrize(
    ("number", "total", "text"),
    [(1, 1, "1 of 1 file is"), (1, 2000, "1 of 2,000 files is"), (2, 3, "2 of 3 files are"), (0, 1, "0 of 1 file are")],
)
def test_count_of(number, total, text):
    assert count_of(number, total, "file", "is", "are") == text
