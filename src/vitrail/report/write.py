"""Writing a page: one self-contained file, and beside it Markdown, the figures and the tables as CSV."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.text import Text

from vitrail import __version__
from vitrail.errors import ConfigError
from vitrail.figures.picture import Picture, finish_picture
from vitrail.figures.tables import Table, escaped
from vitrail.files import write_text
from vitrail.models.modality import IMAGE, Modality, reword
from vitrail.report.brief import Answer, brief_markdown
from vitrail.report.evaluated import Section
from vitrail.report.glossary import terms_in
from vitrail.report.rendering import render

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
    """Return the folder for a page's figures or tables: pages of other names in one folder have their own.

    Args:
        out: The page.
        what: "figures" or "tables".
    """
    return out.parent / (what if out.stem == _DEFAULT else f"{out.stem}_{what}")


def write_page(
    out: Path,
    title: str,
    brief: Sequence[Answer],
    sections: Sequence[Section],
    template: str,
    more: Mapping[str, Any],
    lead: str = "",
    inputs: Sequence[Modality] = (),
    names: Collection[str] = (),
    prose: Mapping[str, Any] | None = None,
) -> Path:
    """Write a page and the files beside it.

    Args:
        out: The page.
        title: Title of the page.
        brief: Answers at its beginning.
        sections: Sections, in order.
        template: Its template's file.
        more: Further values for the template.
        lead: Markdown of the template's text besides the sections, title included.
        inputs: Kind of the runs' inputs: prose of images is reworded.
        names: Names of runs, variants and classes, which remain.
        prose: Texts and tables, and lists of these, that the template needs: prose too.

    Returns:
        ``out``.
    """
    check_page(out)

    names = frozenset(names)

    def name_inputs(text: str) -> str:
        return reword(text, *inputs, names=names)

    def name_all(value: Any) -> Any:
        if isinstance(value, Table):
            table = _reworded_table(value, name_inputs)
            return {"title": table.name, "caption": table.told, **table.shown()}
        return name_inputs(value) if isinstance(value, str) else [name_all(item) for item in value]

    brief = [Answer(name_inputs(answer.question), list(map(name_inputs, answer.lines))) for answer in brief]
    if not set(inputs) <= {IMAGE}:  # to find all texts of figures takes a while
        sections = [_reworded(section, name_inputs) for section in sections]
    finished: dict[int, list[Picture]] = {}
    for section in sections:
        finished[id(section)] = [finish_picture(p, figure, beside(out, "figures")) for p, figure in section.shown]
        for table in section.tables:
            write_text(beside(out, "tables") / f"{table.name}.csv", table.frame.to_csv(index=False))
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
    text = _markdown(out, title, brief, sections, name_inputs(lead))
    facts = ", ".join(fact["name"] for fact in more.get("facts", ()))
    words = {word: name_inputs(told) for word, told in terms_in(f"{text} {facts}").items()}
    after = (*more.get("after", (("runs", "Runs"),)), *((("words", "Words"),) if words else ()))
    more = {**more, "facts": [{key: name_inputs(text) for key, text in fact.items()} for fact in more.get("facts", ())]}
    more |= {key: name_all(value) for key, value in (prose or {}).items()}
    given = {"before": (), "facts": (), **more, "after": after, "brief": brief, "words": words, "sections": shown}
    write_text(out, render(template, title, **given))
    write_text(out.with_suffix(".md"), _finished(text, words, more.get("runs", ())))
    return out


def _reworded(section: Section, name_inputs: Callable[[str], str]) -> Section:
    """Reword the prose of a section; cells of tables, which hold names of files and classes, remain."""
    for picture, figure in section.shown:
        for name in ("title", "caption", "alt", "problem"):
            setattr(picture, name, name_inputs(getattr(picture, name)))
        for text in () if figure is None else _texts(figure):
            text.set_text(name_inputs(text.get_text()))
    tables = [_reworded_table(table, name_inputs) for table in section.tables]
    return Section(name_inputs(section.title), list(map(name_inputs, section.words)), section.shown, tables)


def _reworded_table(table: Table, name_inputs: Callable[[str], str]) -> Table:
    columns = [dataclasses.replace(column, heading=name_inputs(column.heading)) for column in table.columns]
    return dataclasses.replace(table, caption=name_inputs(table.caption), columns=columns)


def _texts(artist: Artist) -> Iterator[Text]:
    """Find all texts but the labels of ticks, which are written when a figure is drawn; to make them takes a while."""
    for child in artist.get_children():
        if isinstance(child, Axis):
            yield child.label
        elif isinstance(child, Text):
            yield child
        else:
            yield from _texts(child)


def _finished(text: str, words: Mapping[str, str], runs: Sequence[Mapping[str, Any]]) -> str:
    """Append the runs and the words to the Markdown."""
    parts = [text]
    if runs:
        parts.append("## Runs")
        parts += [f"{escaped(run['name'])}: `{run['path']}`\n\n```yaml\n{run['recipe'].strip()}\n```" for run in runs]
    if words:
        explained = "\n".join(f"- **{word}**: {told}" for word, told in words.items())
        parts.append(f"## Words used on this page\n\n{explained}")
    return "\n\n".join([*parts, f"Made by vitrail {__version__}."]) + "\n"


def _markdown(out: Path, title: str, brief: Sequence[Answer], sections: Sequence[Section], lead: str) -> str:
    heading, _, rest = (lead.strip() or f"# {escaped(title)}").partition("\n")
    parts = [part for part in (heading, brief_markdown(brief), rest.strip()) if part]
    for section in sections:
        parts.append(f"## {escaped(section.title)}")
        if section.words:
            parts.append("\n".join(f"- {escaped(words)}" for words in section.words))
        for picture, figure in section.shown:
            if figure is None and not picture.file:
                parts.append(escaped(picture.problem))
                continue
            # Spaces and brackets end a link's address unless it stands between these.
            file = picture.file or f"{beside(out, 'figures').name}/{picture.name}.png"
            alt = escaped(picture.alt).replace("[", "(").replace("]", ")")
            parts += [f"![{alt}](<{file}>)", escaped(picture.caption)]
        for table in section.tables:
            parts += [table.markdown(), escaped(table.told)]
    return "\n\n".join(parts)
