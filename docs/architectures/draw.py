"""Regenerate the pictures of these pages with the `vitrail` commands in their text.

Usage: python docs/architectures/draw.py [PAGE.md ...]   (all pages when none is named; or `make docs`)

Each ```sh block's lines that begin with `vitrail` are run in an empty folder that holds the three input files (those of
```bash blocks are not); the pictures that the pages show are then copied beside the pages, as WebP.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from vitrail.cli.main import main as vitrail
from vitrail.files import replacing

HERE = Path(__file__).resolve().parent
PAGES = ("vit.md", "swin.md", "maxvit.md", "hvt.md")
# The thirteenth digit, a 2.
DIGIT = 12
# Largest width of a picture in pixels; bytes up to which it is stored without loss, and in its full width.
WIDTH, SMALLER = 1100, 680
LOSSLESS = 40_000


def commands(page: str) -> list[str]:
    """Return the `vitrail` commands of a page, in order, continued lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.startswith("vitrail ")]


def pictures(page: str) -> list[str]:
    """Return the pictures that a page shows, as paths from the page."""
    return re.findall(r"!\[[^\]]*\]\((images/[^)]+)\)", page)


def write_inputs(folder: Path) -> None:
    """Write the files that the commands name: two photographs and a digit that scikit-learn brings along."""
    flower = Image.fromarray(load_sample_image("flower.jpg")).crop((60, 0, 487, 427))
    flower.save(folder / "flower.png")
    Image.fromarray(load_sample_image("china.jpg")).save(folder / "china.png")
    digit = (load_digits().images[DIGIT] / 16 * 255).round().astype(np.uint8)
    Image.fromarray(digit).save(folder / "digit.png")


def shrink(source: Path, target: Path) -> None:
    """Copy a picture as WebP, with losses where it is large without, as photographs are."""
    with Image.open(source) as image:
        picture = image.convert("RGB")
    picture = narrow(picture, WIDTH)
    forms = [encode(picture, lossless=True, quality=100)]
    if len(forms[0]) > LOSSLESS:
        forms.append(encode(picture, quality=30))
    if min(map(len, forms)) > LOSSLESS:
        forms.append(encode(narrow(picture, SMALLER), quality=30))
    with replacing(target) as temporary:
        temporary.write_bytes(min(forms, key=len))


def narrow(picture: Image.Image, width: int) -> Image.Image:
    """Reduce a picture to a width, unless it is narrower."""
    if picture.width <= width:
        return picture
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)


def encode(picture: Image.Image, **options: Any) -> bytes:
    """Encode a picture as WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", method=6, **options)
    return buffer.getvalue()


def draw(names: list[str]) -> None:
    """Run the commands of pages and copy their pictures."""
    pages = {name: (HERE / name).read_text(encoding="utf-8") for name in names}
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        os.chdir(folder)
        for command in dict.fromkeys(command for page in pages.values() for command in commands(page)):
            print(f"$ {command}", flush=True)
            code = vitrail(shlex.split(command)[1:])
            if code:
                raise SystemExit(code)
        for picture in dict.fromkeys(picture for page in pages.values() for picture in pictures(page)):
            shrink((Path(folder) / picture).with_suffix(".png"), HERE / picture)
        os.chdir(HERE)


if __name__ == "__main__":
    draw(sys.argv[1:] or list(PAGES))
