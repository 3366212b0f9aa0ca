"""Reads the pages of the documentation: their commands, Python snippets and recipes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


class Snippet(NamedTuple):
    """A block of a page.

    Attributes:
        page: The page, relative to the repository.
        line: Number of its first line.
        text: What it says.
    """

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(page: str, language: str) -> list[Snippet]:
    """The blocks of a page in a language, a regular expression."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(?P<text>.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [Snippet(page, text.count("\n", 0, match.start("text")) + 1, match["text"]) for match in found]


def commands(page: str) -> list[tuple[Snippet, list[str]]]:
    """The ``vitrail`` commands of a page, with the words after ``vitrail``; continued lines are joined."""
    found = []
    for block in snippets(page, "(?:sh|bash)"):
        lines, line = block.text.split("\n"), 0
        while line < len(lines):
            start, text = line, lines[line]
            while text.endswith("\\"):
                line += 1
                text = text[:-1] + lines[line]
            line += 1
            if text.startswith("vitrail "):
                words = shlex.split(text, comments=True)
                found.append((Snippet(page, block.line + start, text), words[1:]))
    return found
