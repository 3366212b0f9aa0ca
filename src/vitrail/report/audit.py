"""The page of an audit: one self-contained file, with thumbnails of what was found."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image

from vitrail import __version__
from vitrail.data.audit import Audit, DuplicateGroup
from vitrail.data.dataset import ImageData
from vitrail.files import write_text

# Groups drawn of each kind, and images of a group; the rest is counted.
_MOST_GROUPS = 60
_MOST_IMAGES = 8
_SIDE = 112


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
    kinds = {
        "Duplicates across splits": found.leaks,
        "Duplicates of different classes": [g for g in found.conflicts if not g.leaks],
        "Other duplicates": [g for g in found.duplicates if not g.leaks and not g.conflicts],
    }
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("vitrail.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("audit.html.j2")
    text = template.render(
        version=__version__,
        place=data.config.path or data.config.source,
        found=found,
        splits=list(found.splits),
        kinds=[
            {"title": title, "number": len(groups), "groups": [_draw(g, data) for g in groups[:_MOST_GROUPS]]}
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


def _draw(group: DuplicateGroup, data: ImageData) -> dict[str, Any]:
    images = [
        {"key": key, "split": split, "label": label, "uri": _thumbnail(data, row)}
        for row, key, split, label in zip(group.rows, group.keys, group.splits, group.labels, strict=True)
    ]
    return {"kind": group.kind, "images": images[:_MOST_IMAGES], "more": max(0, len(images) - _MOST_IMAGES)}


def _thumbnail(data: ImageData, row: int) -> str:
    """An image as a data URI: its colours where it has three bands, else their mean."""
    x = data.load([row])["image"][0]
    if len(x) != 3:
        x = x.mean(0, keepdim=True)
    pixels = (x * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((_SIDE, _SIDE)).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
