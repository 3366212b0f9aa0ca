"""Letters that the figures' font lacks: drawn in an installed font that has them, or named in one line."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from vitrail.outputs import FIGURE_METADATA, SVG_METADATA

# Boxes with a letter's number; it has every letter and shows none.
_WITHOUT_LETTERS = ("Last Resort",)
_MOST_NAMED = 12


def save_figure(figure: Figure, targets: Mapping[str, BinaryIO | Path], dpi: int, tight: bool = False) -> None:
    """Save a figure in one or more formats, laid out once, with all letters of its texts that an installed font has.

    Letters that no font has are drawn as boxes and named in one line on stderr, once, in place of matplotlib's warning
    for each. The bytes are the same for the same figure.

    Args:
        figure: The figure; it has no layout engine afterwards.
        targets: Formats, "png" or "svg", and the file or stream of each.
        dpi: Pixels an inch.
        tight: Crop to what is drawn.
    """
    missing = _use_fallback_fonts(figure)
    if missing:
        _report_missing(missing)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from", category=UserWarning)
        # Given an engine of layouts or "tight", ``savefig`` draws once more for each format.
        figure.draw_without_rendering()
        figure.set_layout_engine(None)
        box = figure.get_tightbbox().padded(matplotlib.rcParams["savefig.pad_inches"]) if tight else None
        for kind, target in targets.items():
            metadata = SVG_METADATA if kind == "svg" else FIGURE_METADATA
            figure.savefig(target, format=kind, dpi=dpi, metadata=metadata, bbox_inches=box)


def find_font(text: str) -> str:
    """Find the file of a font with all letters of a text: the figures' own, else an installed one.

    Letters that no one font has are drawn as boxes and named as in :func:`save_figure`.
    """
    own = font_manager.findfont(font_manager.FontProperties())
    lacking = _drawn_letters(text) - _letters_of(own)
    if not lacking:
        return own
    for entry in _installed_fonts():
        if lacking <= _letters_of(entry.fname):
            return str(entry.fname)
    _report_missing("".join(sorted(lacking)))
    return own


def _use_fallback_fonts(figure: Figure) -> str:
    """Add fonts to the texts that need them, and return the letters that no font has."""
    missing: set[str] = set()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        letters = _drawn_letters(text.get_text())
        if not letters or letters <= _plain_letters():
            continue
        lacking = letters - _letters_of(font_manager.findfont(text.get_fontproperties()))
        if lacking:
            fonts, rest = _fonts_with("".join(sorted(lacking)))
            missing |= set(rest)
            known = text.get_fontfamily()
            text.set_fontfamily([*known, *(name for name in fonts if name not in known)])
    return "".join(sorted(missing))


def _drawn_letters(text: str) -> frozenset[str]:
    """Return the letters of a text that leave a mark."""
    return frozenset(letter for letter in text if letter.isprintable() and not letter.isspace())


@functools.cache
def _plain_letters() -> frozenset[str]:
    """Return the printable ASCII letters, which every font has."""
    return frozenset(map(chr, range(33, 127)))


@functools.lru_cache(maxsize=512)
def _letters_of(path: str) -> frozenset[str]:
    """Return the letters that a font file can draw at any size; none for colour bitmaps and damaged files."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()


@functools.lru_cache(maxsize=512)
def _fonts_with(letters: str) -> tuple[tuple[str, ...], str]:
    """Find installed fonts that together have letters, and the letters that none has."""
    rest = set(letters)
    chosen: list[str] = []
    for entry in _installed_fonts():
        if not rest:
            break
        if found := rest & _letters_of(entry.fname):
            chosen.append(entry.name)
            rest -= found
    return tuple(chosen), "".join(sorted(rest))


def _installed_fonts() -> list[Any]:
    """List the fonts that show letters, the most suitable first."""
    fonts = (entry for entry in font_manager.fontManager.ttflist if not entry.name.startswith(_WITHOUT_LETTERS))
    return sorted(fonts, key=_rank)


def _rank(entry: Any) -> tuple[bool, bool, str]:
    """Return a sort key: upright fonts of regular weight without serifs come first."""
    return (
        entry.style != "normal" or entry.weight not in (400, "normal", "regular"),
        "Sans" not in entry.name,
        entry.name,
    )


@functools.cache
def _report_missing(letters: str) -> None:
    """Name letters once in a process."""
    shown = " ".join(letters[:_MOST_NAMED]) + (f" and {len(letters) - _MOST_NAMED} more" if len(letters) > 12 else "")
    print(
        f"warning: no installed font has the letters {shown} of the figures' texts; they are drawn as boxes. Install a "
        "font that has them, such as Noto Sans CJK or Noto Emoji, and write the figures again",
        file=sys.stderr,
    )
