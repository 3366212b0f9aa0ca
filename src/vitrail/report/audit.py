"""The page of an audit: one self-contained file, with thumbnails of its findings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitrail.data.audit import Audit, DuplicateGroup, LookAlikes
from vitrail.data.dataset import ImageData
from vitrail.figures.display import as_pictures, jpeg_uri
from vitrail.figures.film_strip import square_of_frames
from vitrail.files import write_text
from vitrail.models.modality import MODALITIES, reword
from vitrail.report.audit_brief import audit_brief
from vitrail.report.brief import Answer, brief_markdown
from vitrail.report.glossary import terms_in
from vitrail.report.rendering import render

# Groups drawn of each kind, and images of a group; the rest is counted.
_MOST_GROUPS = 60
_MOST_IMAGES = 8
_SIDE = 112


def write_audit(found: Audit, data: ImageData, out: Path) -> Path:
    """Write the page.

    Args:
        found: The audit.
        data: The images that it looked at.
        out: The page.

    Returns:
        ``out``.

    Raises:
        RunError: The file cannot be written.
    """
    constant: dict[str, list[str]] = {}
    for key, stream, band in found.constant:
        constant.setdefault(key, []).append(f"{stream}: {band}")
    places = {key: i for i, key in enumerate(data.source.keys)}
    kinds: dict[str, Sequence[DuplicateGroup | LookAlikes]] = {
        "Duplicates across splits": found.leaks,
        "Duplicates of different classes": [g for g in found.conflicts if not g.leaks],
        "Other duplicates": [g for g in found.duplicates if not g.leaks and not g.conflicts],
        "Possible leaks": found.possible_leaks,
    }
    notes = {
        "Possible leaks": "Images in different splits that look alike and that an alignment did not confirm as copies. "
        f"Their hashes differ in at most {found.distance} of 64 bits (--distance); the closest come first."
    }
    place = str(data.config.path or data.config.source)
    modality = MODALITIES[data.source.first]

    def named(text: str) -> str:
        return reword(text, modality, names=(*data.source.classes, place))

    brief = [Answer(answer.question, list(map(named, answer.lines))) for answer in audit_brief(found, place)]
    words = terms_in(f"{brief_markdown(brief)} {' '.join(notes.values())}")
    text = render(
        "audit.html.j2",
        f"Audit of {place}",
        brief=brief,
        words={word: named(told) for word, told in words.items()},
        named=named,
        found=found,
        splits=list(found.splits),
        kinds=[
            {
                "title": title,
                "note": named(notes.get(title, "")),
                "number": len(groups),
                "groups": [_draw(g, data) for g in groups[:_MOST_GROUPS]],
            }
            for title, groups in kinds.items()
        ],
        constant=[
            {"key": key, "told": "; ".join(bands), "uri": _thumbnail(data, places[key])}
            for key, bands in list(constant.items())[:_MOST_GROUPS]
        ],
        num_constant=len(constant),
        sizes=[(f"{h} x {w}", number) for (h, w), number in found.sizes[:12]],
        num_sizes=len(found.sizes),
    )
    write_text(out, text)
    return out


def _draw(group: DuplicateGroup | LookAlikes, data: ImageData) -> dict[str, Any]:
    if isinstance(group, LookAlikes):
        relations: tuple[str, ...] = ("", f"{group.distance} of 64 bits differ")
        told = "not confirmed"
    else:
        relations = group.relations
        told = "the same files" if group.kind == "exact" else "confirmed on aligned pixels"
    members = list(zip(group.rows, group.keys, group.splits, group.labels, relations, strict=True))
    images = [
        {"key": key, "split": split, "label": label, "relation": relation, "uri": _thumbnail(data, row)}
        for row, key, split, label, relation in members[:_MOST_IMAGES]
    ]
    return {"told": told, "images": images, "more": len(members) - len(images)}


def _thumbnail(data: ImageData, row: int) -> str:
    """Encode an image, or four frames of a clip, as a data URI, with stretched contrast."""
    images = data.source.load([row])[data.source.first]
    if images.ndim == 5:
        images = square_of_frames(images)
    (picture,) = as_pictures(images, data.source.bands[data.source.first], stretch=True)
    return jpeg_uri(picture, (_SIDE, _SIDE))
