"""The page of an audit: one self-contained file, with thumbnails of what was found."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vitrail.data.audit import Audit, DuplicateGroup, LookAlikes
from vitrail.data.dataset import ImageData
from vitrail.files import write_text
from vitrail.report.audit_brief import audit_brief
from vitrail.report.brief import brief_markdown
from vitrail.report.templates import render
from vitrail.report.words import words_on

# Groups drawn of each kind, and images of a group; the rest is counted.
_MOST_GROUPS = 60
_MOST_IMAGES = 8
_SIDE = 112
# Share of the pixels that a thumbnail's stretched contrast cuts off at either end.
_CUT = 0.01


def write_audit(found: Audit, data: ImageData, out: Path) -> Path:
    """Write the page.

    Args:
        found: What an audit found.
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
    brief = audit_brief(found, place)
    text = render(
        "audit.html.j2",
        f"Audit of {place}",
        brief=brief,
        words=words_on(f"{brief_markdown(brief)} {' '.join(notes.values())}"),
        found=found,
        splits=list(found.splits),
        kinds=[
            {
                "title": title,
                "note": notes.get(title, ""),
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
    """An image as a data URI: in true colour where its bands are named red, green and blue, else the mean of all.

    Its contrast is stretched: the darkest and brightest hundredth become black and white, in all bands alike.
    """
    x = data.source.load([row])["image"][0]
    names = [name.lower() for name in data.source.bands["image"]]
    colors = ("red", "green", "blue")
    x = x[[names.index(name) for name in colors]] if set(colors) <= set(names) else x.nanmean(0, keepdim=True)
    low, high = (float(x.nanquantile(share).nan_to_num()) for share in (_CUT, 1 - _CUT))
    stretched = ((x.nan_to_num(low) - low) / max(high - low, 1e-3)).clamp(0, 1)
    pixels = (stretched * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((_SIDE, _SIDE)).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
