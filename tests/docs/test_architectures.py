"""The pages on architectures: their commands and their pictures belong together, and the pictures stay small."""

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.cli.arguments import parse_settings
from vitrail.cli.inspect import _parser

PAGES = Path(__file__).parents[2] / "docs" / "architectures"


def _draw_script():
    spec = importlib.util.spec_from_file_location("draw", PAGES / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _draw_script()


def test_every_page_is_drawn_and_listed():
    pages = {path.name for path in PAGES.glob("*.md")} - {"README.md"}
    assert pages == set(script.PAGES)
    assert all(f"]({page})" in (PAGES / "README.md").read_text() for page in pages)


@pytest.mark.parametrize("page", script.PAGES)
def test_pictures_come_from_the_commands_of_their_page(page):
    text = (PAGES / page).read_text()
    commands = [shlex.split(command) for command in script.commands(text)]
    folders, trained = set(), set()
    for _, verb, *words in commands:
        if verb == "train":
            trained.add(words[words.index("--run.dir") + 1])
            continue
        arguments = _parser().parse_args(words)
        parse_settings(arguments.set)
        assert Path(arguments.image).name in ("flower.png", "china.png", "digit.png")
        assert not arguments.name.startswith("runs/") or arguments.name in trained
        folders.add(arguments.figures)
    pictures = script.pictures(text)
    assert {str(Path(picture).parent) for picture in pictures} == folders
    assert all(len(alt) > 15 for alt in re.findall(r"!\[([^\]]*)\]", text))


def test_pictures_are_there_and_small():
    shown = {picture for page in script.PAGES for picture in script.pictures((PAGES / page).read_text())}
    there = {str(path.relative_to(PAGES)) for path in (PAGES / "images").rglob("*") if path.is_file()}
    assert shown == there
    sizes = [(PAGES / picture).stat().st_size for picture in shown]
    assert max(sizes) < 150_000
    assert sum(sizes) < 1_500_000
    for picture in shown:
        with Image.open(PAGES / picture) as image:
            assert image.format == "WEBP"
            assert min(image.size) > 300


def test_pictures_of_other_pages_are_small():
    for picture in (PAGES.parent / "images").iterdir():
        assert picture.stat().st_size < 100_000, picture


def test_commands_are_read_with_their_continued_lines():
    text = "```sh\nvitrail a \\\n    --b c\nls\n```\n```python\nvitrail no\n```\n```sh\nvitrail d\n```\n"
    assert [c.split() for c in script.commands(text)] == [["vitrail", "a", "--b", "c"], ["vitrail", "d"]]
    assert script.pictures("![x](images/a/b.png) ![y](other/c.png)") == ["images/a/b.png"]


def test_large_pictures_are_made_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "WIDTH", 110)
    monkeypatch.setattr(script, "LOSSLESS", 3000)
    ramp = np.linspace(0, 255, 150 * 20 * 3).astype(np.uint8).reshape(20, 150, 3)
    noise = np.random.default_rng(0).integers(0, 255, ramp.shape, dtype=np.uint8)
    for name, pixels in (("ramp", ramp), ("noise", noise)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        script.shrink(tmp_path / f"{name}.png", tmp_path / f"{name}.webp")
        with Image.open(tmp_path / f"{name}.webp") as image:
            assert image.format == "WEBP"
            assert image.width == script.WIDTH
    small = Image.fromarray(ramp[:, :40])
    small.save(tmp_path / "small.png")
    script.shrink(tmp_path / "small.png", tmp_path / "small.webp")
    with Image.open(tmp_path / "small.webp") as image:
        assert image.convert("RGB").tobytes() == small.tobytes()
    assert len(script.encode(Image.fromarray(noise), lossless=True)) > script.LOSSLESS
    assert (tmp_path / "noise.webp").stat().st_size < len(script.encode(Image.fromarray(noise), lossless=True)) / 2
