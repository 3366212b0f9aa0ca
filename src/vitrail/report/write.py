"""Writing a page: one self-contained file, and beside it Markdown, the figures and the tables as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from vitrail import __version__
from vitrail.errors import ConfigError
from vitrail.files import write_text
from vitrail.report.evaluated import Section
from vitrail.report.picture import Picture, finish_picture
from vitrail.report.tables import escaped

_DEFAULT = "report"


def check_page(out: Path) -> None:
    """Refuse a name that leaves none for the Markdown beside it.

    Raises:
        ConfigError: The page is not called ``NAME.html``.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(
            f"--out {out} must be called NAME.html; NAME.md, the figures and the tables are written beside it"
        )


def beside(out: Path, what: str) -> Path:
    """The folder for a page's figures or tables: pages of other names in one folder have their own.

    Args:
        out: The page.
        what: "figures" or "tables".
    """
    return out.parent / (what if out.stem == _DEFAULT else f"{out.stem}_{what}")


def write_page(
    out: Path, title: str, sections: Sequence[Section], template: str, more: Mapping[str, Any], lead: str = ""
) -> Path:
    """Write a page and all that lies beside it.

    Args:
        out: The page.
        title: Of the page.
        sections: What is on it, in order.
        template: Its template's file.
        more: What else the template needs.
        lead: Markdown, title included, of what the template says besides the sections.

    Returns:
        ``out``.
    """
    check_page(out)
    finished: dict[int, list[Picture]] = {}
    for section in sections:
        finished[id(section)] = [finish_picture(p, figure, beside(out, "figures")) for p, figure in section.shown]
        for table in section.tables:
            write_text(beside(out, "tables") / f"{table.name}.csv", table.frame.to_csv(index=False))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vitrail.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    shown = [
        {
            "title": section.title,
            "anchor": f"s{number}",
            "words": section.words,
            "pictures": finished[id(section)],
            "tables": [{"caption": table.told, **table.shown()} for table in section.tables],
        }
        for number, section in enumerate(sections, start=1)
    ]
    given = {"before": (), "after": (("runs", "Runs"),), **more}
    text = environment.get_template(template).render(title=title, version=__version__, sections=shown, **given)
    write_text(out, text)
    write_text(out.with_suffix(".md"), _markdown(out, title, sections, more.get("runs", ()), lead))
    return out


def _markdown(out: Path, title: str, sections: Sequence[Section], runs: Any, lead: str) -> str:
    parts = [lead.strip() or f"# {escaped(title)}"]
    for section in sections:
        parts.append(f"## {escaped(section.title)}")
        if section.words:
            parts.append("\n".join(f"- {escaped(words)}" for words in section.words))
        for picture, figure in section.shown:
            if figure is None:
                parts.append(escaped(picture.problem))
                continue
            # Spaces and brackets end a link's address unless it stands between these.
            file = f"{beside(out, 'figures').name}/{picture.name}.png"
            alt = escaped(picture.alt).replace("[", "(").replace("]", ")")
            parts += [f"![{alt}](<{file}>)", escaped(picture.caption)]
        for table in section.tables:
            parts += [table.markdown(), escaped(table.told)]
    if runs:
        parts.append("## Runs")
        parts += [f"{escaped(run['name'])}: `{run['path']}`\n\n```yaml\n{run['recipe'].strip()}\n```" for run in runs]
    return "\n\n".join([*parts, f"Made by vitrail {__version__}."]) + "\n"
